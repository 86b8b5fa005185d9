"""Stories from prompts, many at once.

Use `generate.generate` and `generate.load_for_generation`.
"""
