"""Write the run record (`run.json`) at the start of a session, and print the run's header."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers import TrainingArguments as TrainerArguments

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.config.pretrained import GPT_NEO, SHAPE
from tinystories_hf.core.device import has_native_bf16, missing_for_compilation
from tinystories_hf.core.environment import (
    NO_PATHS,
    describe_environment,
    portable,
    power_limit_watts,
)
from tinystories_hf.core.run_record import (
    RUN_RECORD,
    PretrainedRecord,
    RunRecord,
    Session,
    read_record,
)
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.data.training_rows import TrainingRows
from tinystories_hf.model.gpu_attention import runs_fused
from tinystories_hf.model.modeling import GPTNeoForCausalLM, count_parameters
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.checkpoints import StartPoint
from tinystories_hf.training.resume import NOT_COMPARED, version_differences
from tinystories_hf.training.trainer import StoryTrainer

if TYPE_CHECKING:
    from tinystories_hf.data.manifest import Manifest
    from tinystories_hf.model.modeling import ParameterReport


def describe_run(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    start: StartPoint,
    pretrained: PretrainedRecord | None = None,
) -> RunRecord:
    """Write `run.json` and print the model, data, batch and device of the run."""
    run_dir = Path(arguments.training.output_dir)
    rows: TrainingRows = trainer.train_dataset
    parameters = count_parameters(trainer.model)
    path = None if start.checkpoint is None else str(start.checkpoint.path)
    session = describe_session(
        trainer.plan, trainer.args.mixed_precision, trainer.args.device.type, path
    )
    record = start_run_record(
        run_dir, arguments, prepared.manifest, parameters, session, pretrained
    )
    if trainer.is_world_process_zero():
        record.write(run_dir)
        print(f"model       {parameters}")
        print(f"rows        {rows.describe()}")
        print(f"batch       {trainer.plan} = {trainer.tokens_per_step:,} tokens")
        print(f"machine     {session.device}, mixed precision {session.mixed_precision}")
        for note in device_notes(arguments, trainer.model, trainer.args):
            print(f"note        {note}")
        for reason in start.skipped:
            print(f"skipped     {reason}")
        print(f"run         {run_dir}" + (f", resumed from {path}" if path else ""), flush=True)
        if start.checkpoint and rows.reread_on_resume:
            tokens = start.checkpoint.record.step * trainer.tokens_per_step
            print(f"rereading   {tokens:,} tokens of the stream before the first step", flush=True)
        changed = version_differences(start.checkpoint) if start.checkpoint else None
        if changed:
            print(
                f"note        {path} was saved with other library versions, so results may differ"
                f" slightly: {changed}"
            )
    return record


def device_notes(
    arguments: Arguments, model: PreTrainedModel, args: TrainerArguments, kind: str | None = None
) -> list[str]:
    """Return what makes training slow on a GPU, and how to change it.

    `kind` is the device type, by default that of `args`.
    """
    if (kind or args.device.type) != "cuda":
        return []
    notes, training = [], arguments.training
    missing = missing_for_compilation()
    if training.torch_compile == "auto" and missing:
        notes.append(f"the blocks are not compiled, which is slower: {missing}")
    if training.bf16 == "auto" and args.mixed_precision == "no" and not has_native_bf16():
        notes.append(
            "this GPU has no bf16, so that it trains in fp32; fp16 takes about a third of the time"
            " (estimated): launch with `accelerate launch --mixed_precision fp16`"
        )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision, torch.float32)
    is_ours = isinstance(model, GPTNeoForCausalLM)
    if is_ours and arguments.model.attn_implementation == "sdpa":
        head_dim = model.config.hidden_size // model.config.num_heads
        if not runs_fused(head_dim, dtype, args.device, masked=True):
            notes.append(
                "PyTorch has no fused attention for this GPU and precision, so that all scores are"
                " held in memory; if it does not suffice, lower per_device_train_batch_size"
            )
    return notes


def start_run_record(
    run_dir: Path,
    arguments: Arguments,
    manifest: Manifest,
    parameters: ParameterReport,
    session: Session,
    pretrained: PretrainedRecord | None = None,
) -> RunRecord:
    """Return the record of a run that starts or resumes; earlier sessions are kept."""
    earlier = read_record(run_dir) if (run_dir / RUN_RECORD).exists() else None
    for previous in earlier.sessions if earlier else []:
        if previous.status == "running":  # it was killed before it could record its end
            previous.status = "killed"
    dataset = asdict(manifest)
    for split in ("train", "validation"):
        dataset[split].pop("tail", None)
    return RunRecord(
        configuration=published_configuration(arguments, pretrained),
        dataset={"name": portable(arguments.data.dataset), **dataset},
        parameters=asdict(parameters),
        run_id=earlier.run_id if earlier else uuid.uuid4().hex,
        sessions=[*(earlier.sessions if earlier else []), session],
        pretrained=earlier.pretrained if earlier else pretrained,
    )


def describe_session(
    plan: BatchPlan, mixed_precision: str, device_type: str, resumed_from: str | None
) -> Session:
    """Return the record of this session: command, versions, device, batch and precision."""
    return Session(
        **describe_environment(device_type),
        resumed_from=portable(resumed_from),
        batch=asdict(plan),
        mixed_precision=mixed_precision,
        power_limit_watts=power_limit_watts() if device_type == "cuda" else None,
    )


def published_configuration(
    arguments: Arguments, pretrained: PretrainedRecord | None = None
) -> dict[str, Any]:
    """Return all settings of a run, with absolute paths shortened so that they can be published.

    Settings that the architecture of a pretrained model does not have are left out.
    """
    configuration = {
        name: {
            key: value if key in NO_PATHS else portable(value)
            for key, value in asdict(part).items()
        }
        for name, part in arguments._asdict().items()
    }
    if pretrained is not None and pretrained.model_type != GPT_NEO:
        kept = {*SHAPE, *NOT_COMPARED}
        configuration["model"] = {k: v for k, v in configuration["model"].items() if k in kept}
    return configuration
