"""Training the compressor of a checkpoint: relevance maps, f_θ's training, its evaluation, and drawings."""
