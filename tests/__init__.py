"""Tests run beside each other: their waiting threads sleep, in this process too."""

from tinystories_hf.core.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()  # before conftest.py imports PyTorch
