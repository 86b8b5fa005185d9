"""What decides the weights of a run at each of its steps; what may change while it goes on.

A run that continues has to be the same run. What is not listed here (where it is saved, what is
logged, how often it is evaluated, how many checkpoints stay) may be changed at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core import environment, run_record
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.data.tokenizer import END_OF_TEXT
from tinystories_hf.training import checkpoints
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.checkpoints import Checkpoint, StartPoint

if TYPE_CHECKING:
    from tinystories_hf.data.manifest import Manifest

# Schedules in which a step's learning rate does not depend on how many steps there will be.
OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
TRAINING_FIELDS = (
    *("global_batch_size", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "lr_scheduler_type", "seed", "data_seed"),
)
# Two ways to the same numbers: a checkpoint goes on in the other.
SAME_NUMBERS = ("attn_implementation",)
DROPOUTS = ("attention_dropout", "embed_dropout", "resid_dropout")


def weight_settings(
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


def setting_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
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


AUTO = "auto"


def where_to_start(training: RunArguments) -> StartPoint:
    """Return the checkpoint that the run continues from; reads every byte of it.

    Raises:
        UserError: the run directory holds another model or run, there is nothing to resume, or what
            there is is damaged.
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
            f"resume_from_checkpoint: no checkpoint in {run_dir} is whole"
            f" ({'; '.join(found.passed_over)}); move them away to start from the beginning"
        )
    if found.checkpoint is None and wanted is True:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint in {run_dir}; start without it, name one, or"
            " give `auto`, which begins where there is none"
        )
    if found.checkpoint is None and not (run_dir / run_record.RUN_RECORD).exists():
        _refuse_an_existing_run(run_dir, folders)
    return found


def _refuse_a_run_directory(folder: Path) -> None:
    """Raise a `UserError` where a folder is no checkpoint and holds one that can be continued."""
    if not (folder / checkpoints.CHECKPOINT_RECORD).exists():
        inside = checkpoints.newest_valid_checkpoint(folder).checkpoint
        if inside is not None:
            raise UserError(
                f"resume_from_checkpoint: {folder} is a run, not a checkpoint; its newest one that"
                f" is complete is {inside.path}: give that, or `auto` with --output_dir {folder}"
            )


def _refuse_an_existing_run(run_dir: Path, folders: list[Path]) -> None:
    names = [path.name for path in folders]
    # A record alone is of a run that saved nothing: nothing is lost, and nothing to continue.
    names += ["config.json"] if (run_dir / "config.json").exists() else []
    if names:
        raise UserError(
            f"output_dir: {run_dir} already holds a run ({names[0]}); continue it with"
            " --resume_from_checkpoint auto, or choose another --output_dir"
        )


def check_same_run(checkpoint: Checkpoint, trajectory: dict[str, object]) -> None:
    """Raise a `UserError` where going on from a checkpoint would not be going on with its run."""
    changed = setting_differences(checkpoint.seal.trajectory, trajectory)
    if changed:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint.path} is of a run that differs in what decides"
            f" its weights: {'; '.join(changed)}{_why_not_longer(checkpoint, trajectory)}; give the"
            " settings of that run, or start another one in another --output_dir"
        )


def _why_not_longer(checkpoint: Checkpoint, trajectory: dict[str, object]) -> str:
    """Say why another number of steps is another run, where it is."""
    schedule, steps = trajectory["lr_scheduler_type"], trajectory["max_steps"]
    if steps is None or steps == checkpoint.seal.trajectory.get("max_steps"):
        return ""
    return (
        f" (with lr_scheduler_type {schedule} the learning rate of each step depends on the number"
        f" of steps; a run of {', '.join(OPEN_ENDED[:-1])} or {OPEN_ENDED[-1]} can be lengthened)"
    )


def other_versions(checkpoint: Checkpoint) -> str | None:
    """Say which libraries have changed since a checkpoint; None where none has."""
    then, now = checkpoint.seal.versions, environment.library_versions()
    changed = [
        f"{name} {then.get(name)} then, {now.get(name)} now"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]
    return ", ".join(changed) or None
