"""What ends a run before it does harm: a loss that is no number, memory that is not enough."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tinystories_hf.core.errors import RunError
from tinystories_hf.training.batch import BatchPlan

# How PyTorch's allocator for the CPU, and C++ itself, say it.
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")


@dataclass(frozen=True)
class StepLoss:
    """The loss of a micro-batch, still on its device."""

    step: int
    learning_rate: float
    loss: torch.Tensor


def check_losses(losses: list[StepLoss], last_checkpoint: str | None) -> None:
    """Raise a `RunError` at the first loss that is NaN or infinite."""
    if not losses:
        return
    finite = torch.isfinite(torch.stack([recorded.loss for recorded in losses])).tolist()
    for recorded, sound in zip(losses, finite, strict=True):
        if not sound:
            raise RunError(
                f"the loss is {recorded.loss.item()} at step {recorded.step:,}, with a learning"
                f" rate of {recorded.learning_rate:.2e}; the last good checkpoint is"
                f" {last_checkpoint or 'none'}; start a new run with a lower learning_rate, more"
                " warmup_steps or a lower max_grad_norm"
            )


def check_weights(model: nn.Module, step: int, last_checkpoint: str | None) -> None:
    """Raise a `RunError` before weights that hold a NaN or an infinity are saved."""
    # One reduction for each tensor: sums of finite weights are finite, all others are not.
    sums = [weight.detach().sum() for weight in model.parameters()]
    whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in sums]
    if not torch.isfinite(torch.stack(whole)).all():
        raise RunError(
            f"the weights are no numbers after step {step:,} and are not saved; the last good"
            f" checkpoint is {last_checkpoint or 'none'}; start a new run with a lower"
            " learning_rate, more warmup_steps or a lower max_grad_norm"
        )


@contextmanager
def reporting_crashed_worker() -> Iterator[None]:
    """Turn the end of a process that reads rows into one sentence.

    Raises:
        RunError: such a process died.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError):
            # The pipe of a reader ends before PyTorch learns that the process did, and raises here.
            time.sleep(1)
            raise
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that reads rows is gone ({' '.join(str(error).split())}); what was saved is"
            " whole: the same command with --resume_from_checkpoint auto goes on, and"
            " --dataloader_num_workers 0 does without such processes"
        ) from error


@contextmanager
def reporting_out_of_memory(plan: BatchPlan, context_length: int) -> Iterator[None]:
    """Turn the errors of full memory into one sentence that names the settings to change.

    Raises:
        RunError: memory is not enough.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(words in str(error) for words in _NO_MEMORY):
            raise
        smaller = max(plan.per_device_train_batch_size // 2, 1)
        raise RunError(
            f"out of memory with per_device_train_batch_size {plan.per_device_train_batch_size} and"
            f" rows of {context_length}; give --per_device_train_batch_size {smaller} (the global"
            " batch and what is learnt stay the same), a smaller --per_device_eval_batch_size if it"
            " happened in evaluation, or a smaller context_length or model"
        ) from error
