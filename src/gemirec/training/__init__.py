"""Training: the loop, checkpoints, optimisers and trackers."""
