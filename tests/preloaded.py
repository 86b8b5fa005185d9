"""What the process imports that test runs are forked from; see tests/forked.py."""

import tests.forked  # noqa: F401
import tinystories_hf.training  # noqa: F401
