"""Benchmarks of this package, stock Transformers and a compiled GPT-2 of the same shape.

Use `run.run_benchmark`.
"""
