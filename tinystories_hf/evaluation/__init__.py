"""Evaluation of a model: the suites, the results, their report and the model card.

Use `evaluate.evaluate`.
"""
