"""Everything about the compressor's network that needs torch: its shape, and (to come) its training."""
