"""Detect failures of a run: a NaN or infinite loss, too little memory, crashed workers."""

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

# Error messages of PyTorch's CPU allocator and of C++ when memory runs out.
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")


@dataclass(frozen=True)
class StepLoss:
    """The loss of a micro-batch; a scalar tensor that is still on its device."""

    step: int
    learning_rate: float
    loss: torch.Tensor


def check_losses(losses: list[StepLoss], last_checkpoint: str | None) -> None:
    """Check that losses are finite.

    Raises:
        RunError: a loss is NaN or infinite; the message names the first one.
    """
    if not losses:
        return
    finite = torch.isfinite(torch.stack([recorded.loss for recorded in losses])).tolist()
    for recorded, is_finite in zip(losses, finite, strict=True):
        if not is_finite:
            raise RunError(
                f"the loss is {recorded.loss.item()} at step {recorded.step:,}, with a learning"
                f" rate of {recorded.learning_rate:.2e}; the last valid checkpoint is"
                f" {last_checkpoint or 'none'}; start a new run with a lower learning_rate, more"
                " warmup_steps or a lower max_grad_norm"
            )


def check_weights(model: nn.Module, step: int, last_checkpoint: str | None) -> None:
    """Check the weights before they are saved.

    Raises:
        RunError: a weight is NaN or infinite.
    """
    # One reduction per tensor: a sum with a NaN or infinite term is not finite.
    sums = [weight.detach().sum() for weight in model.parameters()]
    gathered = [each.full_tensor() if isinstance(each, DTensor) else each for each in sums]
    if not torch.isfinite(torch.stack(gathered)).all():
        raise RunError(
            f"some weights are NaN or infinite after step {step:,} and are not saved; the last"
            f" valid checkpoint is {last_checkpoint or 'none'}; start a new run with a lower"
            " learning_rate, more warmup_steps or a lower max_grad_norm"
        )


@contextmanager
def reporting_crashed_worker() -> Iterator[None]:
    """Report a crashed data-loader worker with one clear message.

    Raises:
        RunError: a worker crashed.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError):
            # The pipe of a worker closes before PyTorch notices the crash, which then raises here.
            time.sleep(1)
            raise
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a data-loader worker crashed ({' '.join(str(error).split())}); saved checkpoints are"
            " valid: resume with the same command and --resume_from_checkpoint auto, or avoid"
            " workers with --dataloader_num_workers 0"
        ) from error


@contextmanager
def reporting_out_of_memory(plan: BatchPlan, context_length: int) -> Iterator[None]:
    """Report out-of-memory errors with one message that names the settings to change.

    Raises:
        RunError: the device or the machine is out of memory.
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
            f" context_length {context_length}; use --per_device_train_batch_size {smaller} (the"
            " global batch size and the training stay the same), a smaller"
            " --per_device_eval_batch_size if it happened during evaluation, or a smaller"
            " context_length or model"
        ) from error
