"""Evaluation: what share of answers stays right on some of the visual tokens, by how they are ranked."""
