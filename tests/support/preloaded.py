"""What the process imports that test runs are forked from; see tests/support/forked.py."""

import tests.support.forked  # noqa: F401
import tinystories_hf.training.train  # noqa: F401
