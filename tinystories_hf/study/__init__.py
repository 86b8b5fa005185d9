"""Studies: many runs from one file, their results in one table, and the paper's figures.

The entry point is `run.run_study`.
"""
