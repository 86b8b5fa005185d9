"""The wait policy of OpenMP threads."""

from __future__ import annotations

import os

# If one of these is set, the user chose a policy: OpenMP's variable, GNU's and Intel's.
WAIT_POLICY_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# A step has many short waits. With this spin count a run alone loses no speed, and a run beside
# another program keeps half of it; GNU's default is 300,000 (docs/results.md).
SPIN_COUNT = 10_000


def let_waiting_threads_sleep() -> None:
    """Make OpenMP's waiting threads sleep, unless the user chose a policy.

    By default they spin, which slows other programs, and the run itself beside a program with as
    many threads. With GNU's runtime they spin briefly before they sleep. An OpenMP runtime reads
    these variables when it is loaded, so scripts call this before they import PyTorch; importing
    the package does not.
    """
    if not any(name in os.environ for name in WAIT_POLICY_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
