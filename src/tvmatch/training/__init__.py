"""Training: configuration, the loop, moving averages, checkpoints."""
