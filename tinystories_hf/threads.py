"""How the threads of a script wait for work."""

from __future__ import annotations

import os

# Any of them is a choice of the user's: OpenMP's own, and those of GNU's and of Intel's runtime.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user chose how they wait.

    By default they spin, which takes the cores from other programs: beside one with as many threads
    training was ten times slower. An OpenMP runtime reads this when it is loaded, PyTorch's and the
    kernels' each for itself. So scripts call it before they import PyTorch; importing the package
    does not.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
