"""What answers are worth when only some visual tokens are kept."""
