"""Trackers such as wandb and tensorboard: asked before a run leaves anything in its directory."""

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
    """Find out whether trackers are known and installed.

    Raises:
        UserError: one is not.
    """
    if len(names) > 1 and set(names) & set(ALL_OR_NONE):
        raise UserError(f"report_to: {' '.join(names)} contradict each other; give one of them")
    for name in set(names) - set(ALL_OR_NONE):
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join([*INTEGRATION_TO_CALLBACK, *ALL_OR_NONE])
            raise UserError(f"report_to: {name} is not known; choose among {known}")
        disabled = os.environ.get("WANDB_DISABLED", "")
        if name == "wandb" and disabled.lower() in ("1", "true", "yes", "on"):
            raise UserError(
                f"report_to: wandb, while the environment has WANDB_DISABLED={disabled}; leave"
                " wandb out, or `unset WANDB_DISABLED`"
            )
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to: {name} is not installed; use pip, or leave it out")


def start_trackers(trainer: Trainer) -> None:
    """Have the trackers log in and begin; at the Trainer's own beginning they have done so.

    Raises:
        UserError: one cannot, where nobody is logged in for instance.
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
                    raise UserError(f"report_to: {name} cannot be used: {reason}") from error
