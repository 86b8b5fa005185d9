"""Derive the per-device batch size and the accumulation steps from the global batch size."""

from __future__ import annotations

from dataclasses import dataclass

from tinystories_hf.config.arguments import MAX_AUTO_BATCH, RunArguments
from tinystories_hf.core.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """The batch of one optimizer step: global = per device x processes x accumulation steps."""

    global_batch_size: int
    num_processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int

    def __str__(self) -> str:
        return (
            f"{self.global_batch_size} sequences per step"
            f" = {self.per_device_train_batch_size} per device"
            f" x {self.num_processes} process{'es' if self.num_processes > 1 else ''}"
            f" x {self.gradient_accumulation_steps} accumulation"
            f" step{'s' if self.gradient_accumulation_steps > 1 else ''}"
        )


def plan_batch(training: RunArguments, num_processes: int) -> BatchPlan:
    """Derive the per-device batch size and the accumulation steps.

    Raises:
        UserError: `global_batch_size` is not divisible by the number of processes, or the share of
            a process is not divisible by `per_device_train_batch_size`.
    """
    total = training.global_batch_size
    share, rest = divmod(total, num_processes)
    if rest or not share:
        nearest = dict.fromkeys([max(share, 1) * num_processes, (share + 1) * num_processes])
        fewer = max(count for count in range(1, num_processes) if total % count == 0)
        raise UserError(
            f"global_batch_size {total} is not divisible by {num_processes} processes; use"
            f" {' or '.join(map(str, nearest))}, or start {fewer}"
            f" process{'es' if fewer > 1 else ''}"
        )
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    per_device = training.per_device_train_batch_size
    if per_device is None:
        per_device = max(size for size in divisors if size <= MAX_AUTO_BATCH)
    if per_device not in divisors:
        fitting = ", ".join(map(str, divisors))
        raise UserError(
            f"global_batch_size {total} over {num_processes} process(es) is {share} sequences each,"
            f" which is not divisible by per_device_train_batch_size {per_device};"
            f" use one of {fitting}"
        )
    return BatchPlan(total, num_processes, per_device, share // per_device)
