"""Training: the Trainer, checkpoints, resuming, and the files of the run directory.

The entry point is `train.train`.
"""
