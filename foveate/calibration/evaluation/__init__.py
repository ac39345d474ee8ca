"""Evaluation: what share of answers stays right on some of the visual tokens, by how they are chosen.

Bundles are evaluated without torch; only `checkpoint` and `rankings` import it.
"""
