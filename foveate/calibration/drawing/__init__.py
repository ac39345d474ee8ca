"""Sheets as the paper's figures: what was relevant to a question, and answers from that alone."""
