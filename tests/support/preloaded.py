"""What the process imports that test runs are forked from; see tests/support/forked.py."""

import gc

import tests.support.forked  # noqa: F401
import tinystories_hf.training.train  # noqa: F401
from tinystories_hf.config.command_line import passed_fields

passed_fields()  # reads the source of Transformers, and keeps what it found
gc.freeze()  # accelerate collects garbage in each run: 0.2 s for what is imported here
