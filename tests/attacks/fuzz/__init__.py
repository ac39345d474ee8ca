"""A fuzz with fixed seeds: mutated files of every kind, and what comes of each."""
