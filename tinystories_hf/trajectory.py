"""What decides the weights of a run at each of its steps; what may change while it goes on.

A run that continues has to be the same run. What is not listed here (where it is saved, what is
logged, how often it is evaluated, how many checkpoints stay) may be changed at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tinystories_hf.arguments import Arguments
from tinystories_hf.batch import BatchPlan
from tinystories_hf.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from tinystories_hf.data import Manifest

# Schedules in which a step's learning rate does not depend on how many steps there will be.
OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
TRAINING_FIELDS = (
    *("global_batch_size", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "lr_scheduler_type", "seed", "data_seed"),
)
# Two ways to the same numbers: a checkpoint goes on in the other.
SAME_NUMBERS = ("attn_implementation",)
DROPOUTS = ("attention_dropout", "embed_dropout", "resid_dropout")


def describe_trajectory(
    arguments: Arguments,
    plan: BatchPlan,
    manifest: Manifest,
    *,
    mixed_precision: str,
    compiled: bool,
    warmup_steps: int,
    max_steps: int,
) -> dict[str, Any]:
    """Return what decides the weights, as JSON.

    The number of steps is part of it where the schedule depends on it. How the batch is shared out
    is part of it where there is dropout: each process draws its own. Without dropout another number
    of processes gives the same losses but for the order of floating-point sums.
    """
    model, training = arguments.model, arguments.training
    random = any(getattr(model, name) for name in DROPOUTS)
    ends = training.lr_scheduler_type not in OPEN_ENDED
    data = arguments.data
    if data.streaming:
        rows = {"streaming": True, "shuffle_buffer": data.shuffle_buffer}
    else:
        rows = {"training_rows": manifest.split("train").rows}
    names = ["vocab_sha256", "merges_sha256"]
    if manifest.tokenizer["merges_sha256"] is None:
        names.append("content_sha256")
    if data.eos_token != END_OF_TEXT:
        names.append("eos_token")
    tokenizer = {name: manifest.tokenizer[name] for name in names}
    return {
        **{name: value for name, value in asdict(model).items() if name not in SAME_NUMBERS},
        **{name: getattr(training, name) for name in TRAINING_FIELDS},
        "warmup_steps": warmup_steps,
        "max_steps": max_steps if ends else None,
        "mixed_precision": mixed_precision,
        "torch_compile": compiled,
        "context_length": manifest.context_length,
        "tokenizer": tokenizer,
        "cleaning": manifest.cleaning,
        "training_text": manifest.train.source,
        **rows,
        "processes": plan.num_processes if random else None,
        "per_device_train_batch_size": plan.per_device_train_batch_size if random else None,
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words in what two trajectories differ."""
    before, after = _flat(then), _flat(now)
    missing = "not set"
    return [
        f"{name} was {before.get(name, missing)!r}, is {after.get(name, missing)!r}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, missing) != after.get(name, missing)
    ]


def _flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[above + name] = value
    return flat
