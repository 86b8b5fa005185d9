"""The suites (loss, cloze, stories, memorization, judge) and their metrics.

Use `measure.measure_suite`.
"""
