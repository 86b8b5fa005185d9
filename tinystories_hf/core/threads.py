"""How the threads of a script wait for work."""

from __future__ import annotations

import os

# Any of them is a choice of the user's: OpenMP's own, and those of GNU's and of Intel's runtime.
WAIT_POLICY_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# A step has many short waits. With so many looks for work no speed is lost alone, and half is kept
# beside another program; GNU's default is 300,000 (docs/results.md).
SPIN_COUNT = 10_000


def let_waiting_threads_sleep() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user chose how they wait.

    By default they spin, which takes the cores from other programs, and from the run itself where
    another program has as many threads. With GNU's runtime they look for work a short while first.
    An OpenMP runtime reads this when it is loaded, PyTorch's and the kernels' each for itself. So
    scripts call it before they import PyTorch; importing the package does not.
    """
    if not any(name in os.environ for name in WAIT_POLICY_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
