"""The suites: loss, cloze, stories, memorization, judge, and what they count with.

Use `measure.measure_suite`.
"""
