"""The record of a session in `run.json`, and what a run prints before its first step."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core import run_record
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.model.modeling import count_parameters
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.checkpoints import StartPoint
from tinystories_hf.training.resume import (
    other_versions,
)
from tinystories_hf.training.trainer import StoryTrainer

if TYPE_CHECKING:
    from tinystories_hf.data.manifest import Manifest
    from tinystories_hf.model.modeling import ParameterReport
from tinystories_hf.core.environment import (
    NO_PATHS,
    describe_environment,
    portable,
    power_limit_watts,
)
from tinystories_hf.core.run_record import RUN_RECORD, RunRecord, Session, read_record


def describe_rows(arguments: Arguments, prepared: PreparedData) -> str:
    """Return what is trained on, for people."""
    data = arguments.data
    if data.streaming:
        return (
            f"streamed from {data.dataset}, of {data.context_length} tokens, drawn among"
            f" {data.shuffle_buffer:,}"
        )
    counts = prepared.manifest.split("train")
    return (
        f"{counts.rows:,} of {data.context_length} = {counts.tokens_out:,} tokens, from"
        f" {prepared.path}"
    )


def describe_run(
    arguments: Arguments, trainer: StoryTrainer, prepared: PreparedData, start: StartPoint
) -> run_record.RunRecord:
    """Write `run.json` and say in a few lines what is about to happen."""
    run_dir = Path(arguments.training.output_dir)
    parameters = count_parameters(trainer.model)
    path = None if start.checkpoint is None else str(start.checkpoint.path)
    session = describe_session(
        trainer.plan, trainer.args.mixed_precision, trainer.args.device.type, path
    )
    record = start_run_record(run_dir, arguments, prepared.manifest, parameters, session)
    if trainer.is_world_process_zero():
        record.write(run_dir)
        print(f"model       {parameters}")
        print(f"rows        {describe_rows(arguments, prepared)}")
        print(f"batch       {trainer.plan} = {trainer.tokens_per_step:,} tokens")
        print(f"machine     {session.device}, mixed precision {session.mixed_precision}")
        for reason in start.passed_over:
            print(f"passed over {reason}")
        print(f"run         {run_dir}" + (f", resumed from {path}" if path else ""), flush=True)
        if start.checkpoint and arguments.data.streaming:
            tokens = start.checkpoint.seal.step * trainer.tokens_per_step
            print(f"reads again {tokens:,} tokens, before the first step", flush=True)
        changed = other_versions(start.checkpoint) if start.checkpoint else None
        if changed:
            print(
                f"note        {path} is of other versions, whose last digits may differ: {changed}"
            )
    return record


def start_run_record(
    run_dir: Path,
    arguments: Arguments,
    manifest: Manifest,
    parameters: ParameterReport,
    session: Session,
) -> RunRecord:
    """Describe a run that begins; the earlier sessions of a resumed one stay."""
    earlier = read_record(run_dir) if (run_dir / RUN_RECORD).exists() else None
    for session_before in earlier.sessions if earlier else []:
        if session_before.status == "running":  # it had no time to say how it ended
            session_before.status = "killed"
    dataset = asdict(manifest)
    for split in ("train", "validation"):
        dataset[split].pop("tail", None)
    return RunRecord(
        configuration=published_configuration(arguments),
        dataset={"name": portable(arguments.data.dataset), **dataset},
        parameters=asdict(parameters),
        run_id=earlier.run_id if earlier else uuid.uuid4().hex,
        sessions=[*(earlier.sessions if earlier else []), session],
    )


def describe_session(
    plan: BatchPlan, mixed_precision: str, device_type: str, resumed_from: str | None
) -> Session:
    """Describe this start of the program and the machine it runs on."""
    return Session(
        **describe_environment(device_type),
        resumed_from=portable(resumed_from),
        batch=asdict(plan),
        mixed_precision=mixed_precision,
        power_limit_watts=power_limit_watts() if device_type == "cuda" else None,
    )


def published_configuration(arguments: Arguments) -> dict[str, Any]:
    """Return every setting of a run, without what gives its machine away."""
    return {
        name: {
            key: value if key in NO_PATHS else portable(value)
            for key, value in asdict(part).items()
        }
        for name, part in arguments._asdict().items()
    }
