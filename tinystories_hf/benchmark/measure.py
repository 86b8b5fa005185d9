"""How things are measured: in turn, medians with their spread, memory in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tinystories_hf.core.device import device_type

# Does its work and returns how many tokens (or operations, or bytes) that was.
Work = Callable[[], int]


@dataclass(frozen=True)
class Rate:
    """Tokens per second over several runs."""

    median: float
    lowest: float
    highest: float
    runs: int


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Rate]:
    """Take each run's rate once to warm up, then all of them in turn: drift meets all alike."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return {
        name: Rate(median(rates), min(rates), max(rates), rounds) for name, rates in found.items()
    }


def rate_of(work: Work) -> float:
    """Do the work once and return its tokens per second."""
    wait_for_device()
    start = time.perf_counter()
    tokens = work()
    wait_for_device()
    return tokens / (time.perf_counter() - start)


def wait_for_device() -> None:
    """Return when the accelerator has done all that it was given."""
    if device_type() != "cpu":
        torch.accelerator.synchronize()


def peak_memory(work: Callable[..., object], *arguments: Any) -> int:
    """Return the largest memory in bytes that a fresh process takes to do the work.

    On a GPU it is that of the device, else the resident memory, libraries included.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_report_memory, args=(send, work, arguments))
    process.start()
    send.close()
    try:
        peak: int = receive.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} did not finish; its own message is above") from None
    finally:
        process.join()
    return peak


def _report_memory(send: Any, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    work(*arguments)
    if device_type() == "cuda":
        send.send(torch.cuda.max_memory_allocated())
        return
    # Not getrusage: it counts what the parent held when this process was forked from it.
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    send.send(int(status.partition("VmHWM:")[2].split()[0]) * 1024)


def matrix_rate(dtype: torch.dtype, size: int | None = None) -> float:
    """Return the operations per second of a large matrix product: what this machine can do.

    Smaller products than the default leave a GPU waiting.
    """
    size = size or (8192 if device_type() == "cuda" else 2048)
    square = torch.randn(size, size, device=device_type()).to(dtype)

    def multiply() -> int:
        square @ square
        return 2 * size**3

    multiply()
    return max(rate_of(multiply) for _ in range(10))


def memory_bandwidth(numbers: int = 2**26) -> float:
    """Return the bytes per second of a copy that no cache can hold, read and written."""
    source = torch.randn(numbers, device=device_type())
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        return 2 * source.nbytes

    copy()
    return max(rate_of(copy) for _ in range(10))
