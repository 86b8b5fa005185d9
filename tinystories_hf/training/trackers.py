"""Check and start experiment trackers (wandb, tensorboard, ...) before the run writes files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from transformers import Trainer
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


def start_trackers(trainer: Trainer) -> None:
    """Start the trackers before the Trainer does, so that they fail before the run writes files.

    Raises:
        UserError: a tracker cannot start, for example because the user is not logged in.
    """
    for callback in trainer.callback_handler.callbacks:
        for name, kind in INTEGRATION_TO_CALLBACK.items():
            if type(callback) is kind and hasattr(callback, "setup"):
                try:
                    callback.on_train_begin(
                        trainer.args,
                        trainer.state,
                        trainer.control,
                        model=trainer.model,
                        processing_class=trainer.processing_class,
                    )
                except Exception as error:  # each tracker has its own
                    reason = str(error).strip().partition("\n")[0] or type(error).__name__
                    raise UserError(f"report_to: {name} cannot be started: {reason}") from error
