"""Choose where training starts, and compare the settings that determine the weights on resume.

A run can only be resumed with the same `weight_settings`. All other settings (where it is saved,
what is logged, how often it is evaluated, how many checkpoints are kept) may change on resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments as TrainerArguments

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.config.pretrained import DROPOUTS, GPT_NEO
from tinystories_hf.config.trainer_fields import WATCHING
from tinystories_hf.core import environment, run_record
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.run_record import PretrainedRecord
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.training import checkpoints
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.checkpoints import Checkpoint, StartPoint
from tinystories_hf.training.trainer_arguments import needs_metric

if TYPE_CHECKING:
    from tinystories_hf.data.manifest import Manifest

# Schedules in which the learning rate of a step does not depend on the total number of steps.
OPEN_ENDED_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")
TRAINING_FIELDS = (
    *("global_batch_size", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "lr_scheduler_type", "seed", "data_seed"),
)
# Settings of the model that do not change the results, and may change on resume.
# The pretrained model is compared by its weights: its folder may move.
NOT_COMPARED = (
    *("attn_implementation", "model_name_or_path", "model_revision", "resize_embedding"),
)


def weight_settings(
    arguments: Arguments,
    plan: BatchPlan,
    manifest: Manifest,
    rows: Mapping[str, Any],
    *,
    trainer_arguments: TrainerArguments,
    compiled: bool,
    max_steps: int,
    pretrained: PretrainedRecord | None = None,
) -> dict[str, Any]:
    """Return the settings that determine the weights, as JSON values.

    `rows` are those of the training rows, see `TrainingRows.weight_settings`.
    The number of steps is included if the schedule depends on it. The number of processes and the
    per-device batch size are included if the model has dropout, because each process draws its own
    masks. Without dropout, they only change the order of floating-point sums.
    """
    model, training = arguments.model, arguments.training
    # The dropout of other architectures is not known here.
    known = pretrained is None or pretrained.model_type == GPT_NEO
    has_dropout = not known or any(getattr(model, name) for name in DROPOUTS)
    weights = {} if pretrained is None else {"pretrained_weights": pretrained.weights_sha256}
    needs_length = training.lr_scheduler_type not in OPEN_ENDED_SCHEDULES
    names = ["vocab_sha256", "merges_sha256"]
    if manifest.tokenizer["merges_sha256"] is None:
        names.append("content_sha256")
    if arguments.data.eos_token != END_OF_TEXT:
        names.append("eos_token")
    tokenizer = {name: manifest.tokenizer[name] for name in names}
    return {
        **{name: value for name, value in asdict(model).items() if name not in NOT_COMPARED},
        **{name: getattr(training, name) for name in TRAINING_FIELDS},
        "warmup_steps": trainer_arguments.get_warmup_steps(max_steps),
        "max_steps": max_steps if needs_length else None,
        "mixed_precision": trainer_arguments.mixed_precision,
        "torch_compile": compiled,
        **({"deterministic": True} if training.deterministic else {}),
        "context_length": manifest.context_length,
        "tokenizer": tokenizer,
        "cleaning": manifest.cleaning,
        "training_text": manifest.train.source,
        **rows,
        **weights,
        **_passed_settings(trainer_arguments, training),
        "processes": plan.num_processes if has_dropout else None,
        "per_device_train_batch_size": plan.per_device_train_batch_size if has_dropout else None,
    }


def _passed_settings(trainer_arguments: TrainerArguments, training: RunArguments) -> dict[str, Any]:
    """Return the fields passed through to the Trainer that determine the weights.

    Fields that have their default are left out, so that a run without them can be resumed after a
    release of Transformers that adds a field.
    """
    defaults = {declared.name: declared.default for declared in fields(TrainerArguments)}
    found = {
        name: value
        for name, value in training.training_arguments.items()
        if name not in WATCHING and value not in (None, defaults[name])
    }
    if needs_metric(training):
        names = ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps")
        evaluated = {name: getattr(trainer_arguments, name) for name in names}
        evaluated["max_eval_rows"] = training.max_eval_rows
        found["evaluations"] = json.loads(json.dumps(evaluated))
    return {"training_arguments": found} if found else {}


def setting_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a description of each difference between two `weight_settings`."""
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


AUTO = "auto"


def where_to_start(training: RunArguments) -> StartPoint:
    """Return the checkpoint to start from, verified completely; None for a new run.

    Raises:
        UserError: the run directory already contains another run or model, there is no checkpoint
            to resume from, or all checkpoints are damaged.
    """
    run_dir, wanted = Path(training.output_dir), training.resume_from_checkpoint
    with reporting_unreadable("output_dir", run_dir):
        folders = checkpoints.checkpoint_folders(run_dir)
    if wanted is False:
        _refuse_an_existing_run(run_dir, folders)
        return StartPoint()
    if wanted is not True and wanted != AUTO:
        with reporting_unreadable("resume_from_checkpoint", wanted):
            _refuse_a_run_directory(Path(wanted))
            return StartPoint(checkpoints.read_checkpoint(Path(wanted)))
    found = checkpoints.newest_valid_checkpoint(run_dir)
    if found.checkpoint is None and folders:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint in {run_dir} is valid"
            f" ({'; '.join(found.skipped)}); move them away to start from the beginning"
        )
    if found.checkpoint is None and wanted is True:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint in {run_dir}; omit the flag, give the path of a"
            " checkpoint, or use `auto`, which starts a new run if there is none"
        )
    if found.checkpoint is None and not (run_dir / run_record.RUN_RECORD).exists():
        _refuse_an_existing_run(run_dir, folders)
    return found


def _refuse_a_run_directory(folder: Path) -> None:
    """Raise a `UserError` if a folder is a run directory and not a checkpoint."""
    if not (folder / checkpoints.CHECKPOINT_RECORD).exists():
        inside = checkpoints.newest_valid_checkpoint(folder).checkpoint
        if inside is not None:
            raise UserError(
                f"resume_from_checkpoint: {folder} is a run directory, not a checkpoint; use its"
                f" newest valid checkpoint {inside.path}, or `auto` with --output_dir {folder}"
            )


def _refuse_an_existing_run(run_dir: Path, folders: list[Path]) -> None:
    names = [path.name for path in folders]
    # run.json alone belongs to a run that saved nothing, so that nothing would be lost.
    names += ["config.json"] if (run_dir / "config.json").exists() else []
    if names:
        raise UserError(
            f"output_dir: {run_dir} already contains a run ({names[0]}); resume it with"
            " --resume_from_checkpoint auto, or use another --output_dir"
        )


def check_same_run(checkpoint: Checkpoint, settings: dict[str, object]) -> None:
    """Check that a checkpoint was trained with the given `weight_settings`.

    Raises:
        UserError: it was not; the message names each difference.
    """
    changed = setting_differences(checkpoint.record.trajectory, settings)
    if changed:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint.path} was trained with other settings that"
            f" determine the weights: {'; '.join(changed)}{_why_not_longer(checkpoint, settings)};"
            " use the settings of that run, or start a new run in another --output_dir"
        )


def _why_not_longer(checkpoint: Checkpoint, settings: dict[str, object]) -> str:
    """Return why the number of steps must not change, or an empty string if it did not."""
    schedule, steps = settings["lr_scheduler_type"], settings["max_steps"]
    if steps is None or steps == checkpoint.record.trajectory.get("max_steps"):
        return ""
    return (
        f" (with lr_scheduler_type {schedule} the learning rate of each step depends on the number"
        f" of steps; only runs with {', '.join(OPEN_ENDED_SCHEDULES[:-1])} or"
        f" {OPEN_ENDED_SCHEDULES[-1]} can be extended)"
    )


def version_differences(checkpoint: Checkpoint) -> str | None:
    """Return which library versions have changed since a checkpoint, or None if none has."""
    then, now = checkpoint.record.versions, environment.library_versions()
    changed = [
        f"{name} {then.get(name)} -> {now.get(name)}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]
    return ", ".join(changed) or None
