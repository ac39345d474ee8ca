"""Relevance maps: how they are computed (paper, Eq. 1), collected and stored."""
