"""A run from its first step to its finished directory.

Use `train.train`.
"""
