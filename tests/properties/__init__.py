"""Property-based tests: what must hold for any input, checked on thousands of random cases.

The cases are the same in each run, so that failures are reproducible. `PROPERTIES=50 pytest
tests/properties` checks 50 times as many, and new ones each time.
"""
