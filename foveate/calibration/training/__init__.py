"""Training f_θ on relevance maps."""
