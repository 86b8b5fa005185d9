"""Generate stories from prompts, in batches.

Use `generate.generate` and `generate.load_for_generation`.
"""
