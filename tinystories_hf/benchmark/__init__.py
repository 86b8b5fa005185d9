"""What the fast path is worth: stock Transformers, ours, and the best one could pick instead."""
