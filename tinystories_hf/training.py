"""Training on one screen: rows in, a run directory out that stock Transformers loads."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments as TrainerArguments
from transformers import set_seed

from tinystories_hf import checkpoints, hub, provenance
from tinystories_hf.arguments import Arguments, TrainingArguments
from tinystories_hf.batch import BatchPlan, plan_batch
from tinystories_hf.callbacks import PublishCheckpoints, StorySamples
from tinystories_hf.checkpoints import Start
from tinystories_hf.data import PreparedData, prepare
from tinystories_hf.destination import Destination
from tinystories_hf.errors import RunError, Stopped, UserError, work_begun
from tinystories_hf.finishing import finish_run, finished_metrics
from tinystories_hf.generation import encode_prompts
from tinystories_hf.guards import (
    telling_a_dead_reader,
    telling_a_lost_process,
    telling_out_of_memory,
)
from tinystories_hf.hardware import (
    compiles,
    device_type,
    hardware_has_tf32,
    precision_put_back,
    use_threads,
)
from tinystories_hf.hub_client import without_progress_bars
from tinystories_hf.launcher import check_launch, choose_precision
from tinystories_hf.modeling import GPTNeoForCausalLM, build_model, count_parameters
from tinystories_hf.packing import PackedRows
from tinystories_hf.positions import context_length
from tinystories_hf.run_directory import (
    check_same_run,
    check_shared,
    claimed,
    is_finished,
    other_versions,
    where_to_start,
)
from tinystories_hf.stopping import HOW_TO_GO_ON, StopRequest
from tinystories_hf.streaming import StreamedRows
from tinystories_hf.trackers import check_trackers, start_trackers
from tinystories_hf.trainer import StoryTrainer, collate_rows
from tinystories_hf.trajectory import describe_trajectory


@without_progress_bars()
@use_threads()
@precision_put_back()
@telling_a_lost_process()
def train(arguments: Arguments, stop: StopRequest | None = None) -> dict[str, float]:
    """Train a model as the settings say and return the final metrics.

    Raises:
        UserError: before any work, where the settings, the data or the run directory forbid it.
        RunError: the run cannot go on; what was saved is whole.
        Stopped: a signal asked for it; what was done is saved.
    """
    check_launch()
    plan = plan_batch(arguments.training, int(os.environ.get("WORLD_SIZE", "1")))
    trainer_arguments = build_trainer_arguments(arguments.training, plan)
    run_dir = Path(arguments.training.output_dir)
    with claimed(run_dir) if trainer_arguments.process_index == 0 else nullcontext():
        start = agree_on_start(arguments.training, trainer_arguments)
        destination = check_publishing(arguments, start)
        with trainer_arguments.main_process_first(local=True, desc="preparing rows"):
            quiet = trainer_arguments.process_index > 0
            prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=quiet)
        rows = training_rows(arguments, prepared)
        check_enough_rows(rows, plan)
        set_seed(arguments.training.seed)
        model = build_model(arguments.model, prepared.tokenizer, arguments.data.context_length)
        if compiles(arguments.training):
            model.compile_training()
        trainer = build_trainer(arguments, plan, trainer_arguments, prepared, rows, model, stop)
        if start.checkpoint is not None:
            check_same_run(start.checkpoint, trainer.trajectory)
        if is_finished(run_dir, start, trainer.steps):
            metrics = finished_metrics(run_dir)
            if trainer.is_world_process_zero():
                print(f"run         {run_dir} is finished; nothing is left to train")
        else:
            metrics = run_to_its_end(arguments, trainer, prepared, start, destination)
        # A process group that is left to the interpreter's exit now and then aborts there (gloo).
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        # Alone, with no process waiting: an upload may take longer than they would wait.
        if destination and trainer_arguments.process_index == 0:
            print(f"published   {hub.publish(run_dir, destination)}")
    return metrics


def run_to_its_end(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    start: Start,
    destination: Destination | None,
) -> dict[str, float]:
    """Train what is left and complete the run directory; whatever happens, say how it ended."""
    run_dir, first = Path(arguments.training.output_dir), trainer.is_world_process_zero()
    if first:
        kept = checkpoints_kept(trainer.args, trainer.steps)
        checkpoints.check_space(run_dir, count_parameters(trainer.model).total, kept)
    if destination and arguments.hub.hub_strategy == "checkpoint-revisions":
        trainer.add_callback(PublishCheckpoints(destination, trainer.clock_stopped))
    start_trackers(trainer)
    record = describe_run(arguments, trainer, prepared, start)
    try:
        with work_begun():
            train_steps(trainer, start, arguments.data.context_length)
            metrics = finish_run(arguments, trainer, prepared, record, destination)
    except (Stopped, RunError) as end:
        if first:
            with suppress(OSError):  # where the disk is full, that is what has to be said
                record.end(run_dir, "stopped" if isinstance(end, Stopped) else "failed")
        raise
    return metrics


def train_steps(trainer: StoryTrainer, start: Start, context_length: int) -> None:
    """Train from where the run stands to its last step.

    Raises:
        RunError: memory is not enough, the disk is full, or the loss is no number.
        Stopped: a signal asked for it; the last step is saved.
    """
    checkpoint = start.checkpoint
    if checkpoint is not None and checkpoint.seal.step >= trainer.steps:
        trainer.restore_end(checkpoint)  # it was stopped between its last step and its last file
        return
    if checkpoint is not None:
        trainer.read_progress(checkpoint)
    try:
        with telling_a_dead_reader(), telling_out_of_memory(trainer.plan, context_length):
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    finally:
        trainer.stop.deferred = False
    if trainer.stopping or trainer.stop.signal is not None:
        by = f"by {trainer.stop.signal} " if trainer.stop.signal else ""
        raise Stopped(
            f"{by}after step {trainer.state.global_step:,}, saved as {trainer.last_checkpoint};"
            f" {HOW_TO_GO_ON}"
        )


def agree_on_start(training: TrainingArguments, trainer_arguments: TrainerArguments) -> Start:
    """Return where the run begins: the first process looks, and all take what it found.

    Raises:
        UserError: as `where_to_start`.
    """
    found: list[Any] = [where_to_start(training) if trainer_arguments.process_index == 0 else None]
    if trainer_arguments.world_size > 1:
        broadcast_object_list(found)
        check_shared(Path(training.output_dir))
    start: Start = found[0]
    return start


def check_publishing(arguments: Arguments, start: Start) -> Destination | None:
    """Return where the run will be published; the first process finds out whether it may be.

    Raises:
        UserError: as `hub.check_destination`.
    """
    if not arguments.hub.push_to_hub or os.environ.get("RANK", "0") != "0":
        return None
    run_dir = Path(arguments.training.output_dir)
    known = start.checkpoint is not None and (run_dir / provenance.FILE).exists()
    run_id = provenance.read_record(run_dir).run_id if known else None
    return hub.check_destination(arguments.hub, run_dir, run_id)


def count_steps(training: TrainingArguments, plan: BatchPlan, prepared: PreparedData) -> int:
    """Return the optimizer steps of the whole run."""
    if training.max_steps > 0:
        return training.max_steps
    steps_per_epoch = len(prepared.rows("train")) // plan.global_batch_size
    return math.ceil(training.num_train_epochs * steps_per_epoch)


def checkpoints_kept(trainer_arguments: TrainerArguments, steps: int) -> int:
    """Return how many checkpoints the run directory holds in the end."""
    every = trainer_arguments.save_steps
    saved: int = math.ceil(steps / (every if every >= 1 else math.ceil(steps * every)))
    limit: int | None = trainer_arguments.save_total_limit
    return saved if limit is None else min(saved, limit)


def build_trainer_arguments(training: TrainingArguments, plan: BatchPlan) -> TrainerArguments:
    """Translate our settings into those of the Trainer.

    Raises:
        UserError: an unknown tracker, or several GPUs without a launcher.
    """
    check_trackers(training.report_to)
    precision = choose_precision(training)
    built = TrainerArguments(
        output_dir=training.output_dir,
        per_device_train_batch_size=plan.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        tf32=hardware_has_tf32() or None,
        seed=training.seed,
        data_seed=training.seed if training.data_seed is None else training.data_seed,
        logging_steps=training.logging_steps,
        # A NaN has to be seen, not replaced by the mean of the losses before it.
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=training.eval_steps,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=training.save_total_limit,
        dataloader_num_workers=training.dataloader_num_workers,
        dataloader_pin_memory=device_type() == "cuda",
        report_to=list(training.report_to) or "none",
        run_name=training.run_name or Path(training.output_dir).name,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        # It becomes the model's own setting and is saved; steps and evaluations take no cache.
        use_cache=True,
        # Without it the processes of a launcher on the CPU would train apart, each as if alone.
        use_cpu=device_type() == "cpu",
    )
    if built.world_size != plan.num_processes:
        raise UserError(
            f"the launcher started {plan.num_processes} processes but they form a group of"
            f" {built.world_size}; start with `accelerate launch`, see configs/accelerate"
        )
    if built.n_gpu > 1:
        raise UserError(
            f"one process sees {built.n_gpu} GPUs; start one process per GPU with `accelerate"
            f" launch --config_file configs/accelerate/multi_gpu.yaml --num_processes {built.n_gpu}"
            " scripts/train.py`, or set CUDA_VISIBLE_DEVICES=0 to use one"
        )
    return built


def training_rows(arguments: Arguments, prepared: PreparedData) -> StreamedRows | PackedRows:
    """Return the rows that are trained on, streamed or as they lie prepared."""
    if prepared.stream is None:
        return PackedRows(prepared.rows("train"))
    training = arguments.training
    seed = training.seed if training.data_seed is None else training.data_seed
    return StreamedRows(prepared.stream, arguments.data, prepared.tokenizer, seed)


def check_enough_rows(rows: StreamedRows | PackedRows, plan: BatchPlan) -> None:
    """Raise a `UserError` unless the training rows fill one step.

    Of a stream, which begins anew after its last row, one row is enough; one process looks.
    """
    if isinstance(rows, StreamedRows):
        if os.environ.get("RANK", "0") == "0":
            rows.require_a_row()
    elif len(rows) < plan.global_batch_size:
        raise UserError(
            f"global_batch_size {plan.global_batch_size} is more than the {len(rows)} training"
            " rows; lower it or give more text"
        )


def build_trainer(
    arguments: Arguments,
    plan: BatchPlan,
    trainer_arguments: TrainerArguments,
    prepared: PreparedData,
    rows: StreamedRows | PackedRows,
    model: GPTNeoForCausalLM,
    stop: StopRequest | None = None,
) -> StoryTrainer:
    """Put model, rows and callbacks together."""
    training = arguments.training
    validation = prepared.validation
    if training.max_eval_rows is not None:
        validation = validation.select(range(min(training.max_eval_rows, len(validation))))
    encode_prompts(prepared.tokenizer, training.sample_prompts, context_length(model))
    steps = count_steps(training, plan, prepared)
    trajectory = describe_trajectory(
        arguments,
        plan,
        prepared.manifest,
        mixed_precision=trainer_arguments.mixed_precision,
        compiled=compiles(training),
        warmup_steps=trainer_arguments.get_warmup_steps(steps),
        max_steps=steps,
    )
    return StoryTrainer(
        plan=plan,
        steps=steps,
        context_length=arguments.data.context_length,
        trajectory=trajectory,
        stop=stop or StopRequest(),
        samples=StorySamples(prepared.tokenizer, training.sample_prompts, training.seed),
        model=model,
        args=trainer_arguments,
        train_dataset=rows,
        eval_dataset=PackedRows(validation),
        data_collator=collate_rows,
        processing_class=prepared.tokenizer,
    )


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
    arguments: Arguments, trainer: StoryTrainer, prepared: PreparedData, start: Start
) -> provenance.RunRecord:
    """Write `run.json` and say in a few lines what is about to happen."""
    run_dir = Path(arguments.training.output_dir)
    parameters = count_parameters(trainer.model)
    path = None if start.checkpoint is None else str(start.checkpoint.path)
    session = provenance.start_session(
        trainer.plan, trainer.args.mixed_precision, trainer.args.device.type, path
    )
    record = provenance.start_record(run_dir, arguments, prepared.manifest, parameters, session)
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
