"""What must hold for any input, tried on thousands that are drawn at random.

The draws are the same at each run, so that a failure repeats. `PROPERTIES=50 pytest
tests/properties` tries 50 times as many, and others each time.
"""
