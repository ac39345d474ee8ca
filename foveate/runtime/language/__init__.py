"""What runs the language model: one engine a file."""
