"""Check and start experiment trackers (wandb, tensorboard, ...) before the run writes files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from tinystories_hf.core.errors import UserError

ALL_OR_NONE = ("all", "none")


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and installed.

    Raises:
        UserError: a tracker is unknown, not installed, or disabled by the environment.
    """
    if len(names) > 1 and set(names) & set(ALL_OR_NONE):
        raise UserError(f"report_to: {' '.join(names)} contradict each other; use one of them")
    for name in set(names) - set(ALL_OR_NONE):
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join([*INTEGRATION_TO_CALLBACK, *ALL_OR_NONE])
            raise UserError(f"report_to: unknown tracker {name}; use one of {known}")
        disabled = os.environ.get("WANDB_DISABLED", "")
        if name == "wandb" and disabled.lower() in ("1", "true", "yes", "on"):
            raise UserError(
                f"report_to: wandb is disabled by WANDB_DISABLED={disabled} in the environment;"
                " omit wandb, or `unset WANDB_DISABLED`"
            )
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to: {name} is not installed; install it with pip, or omit it")


def trackers_of(trainer: Trainer) -> list[TrainerCallback]:
    """Return the callbacks of the trackers in use."""
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    return [each for each in trainer.callback_handler.callbacks if type(each) in kinds]


def log_to_trackers(trainer: Trainer, logs: Mapping[str, float | str]) -> None:
    """Log numbers or text at the present step; names that begin with `eval_` are grouped."""
    for callback in trackers_of(trainer):
        callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(logs))


@contextmanager
def trackers_open(trainer: Trainer) -> Iterator[None]:
    """Let trackers end with this block: the final loss is measured after the Trainer has ended."""
    trackers = trackers_of(trainer)
    for callback in trackers:
        callback.on_train_end = lambda *_, **__: None
    try:
        yield
    finally:
        for callback in trackers:
            del callback.on_train_end
            _call(callback.on_train_end, trainer)


def _call(event: Callable[..., object], trainer: Trainer) -> None:
    """Call a method of a tracker's callback as the Trainer does."""
    event(
        trainer.args,
        trainer.state,
        trainer.control,
        model=trainer.model,
        processing_class=trainer.processing_class,
    )


def start_trackers(trainer: Trainer) -> None:
    """Start the trackers before the Trainer does, so that they fail before the run writes files.

    Raises:
        UserError: a tracker cannot start, for example because the user is not logged in.
    """
    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    for callback in trackers_of(trainer):
        if hasattr(callback, "setup"):
            try:
                _call(callback.on_train_begin, trainer)
            except Exception as error:  # each tracker has its own
                name = names[type(callback)]
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise UserError(f"report_to: {name} cannot be started: {reason}") from error
