"""Train a model: prepare the data, build the Trainer, train, and finish the run directory."""

from __future__ import annotations

import math
import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, set_seed
from transformers import TrainingArguments as TrainerArguments

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core import run_record
from tinystories_hf.core.device import (
    deterministic_algorithms,
    missing_for_compilation,
    restoring_precision,
    sharing_cores,
    should_compile,
)
from tinystories_hf.core.errors import HOW_TO_RESUME, RunError, Stopped, UserError, after_work_began
from tinystories_hf.core.launcher import check_launch
from tinystories_hf.core.processes import (
    first_on_each_machine,
    is_main_process,
    new_host_group,
    on_reachable_interface,
    reporting_lost_process,
)
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.data.packing import PackedRows
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.training_rows import TrainingRows, collate_rows, training_rows
from tinystories_hf.evaluation.subject import check_causal, describe_pretrained
from tinystories_hf.generation.generate import encode_prompts
from tinystories_hf.hub import publish
from tinystories_hf.hub.publish import RunRepository
from tinystories_hf.model.loading import load_pretrained
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_model, count_parameters
from tinystories_hf.model.positions import context_length
from tinystories_hf.training import checkpoints
from tinystories_hf.training.batch import BatchPlan, plan_batch
from tinystories_hf.training.callbacks import PublishCheckpoints, StorySamples
from tinystories_hf.training.checkpoints import StartPoint
from tinystories_hf.training.failures import reporting_crashed_worker, reporting_out_of_memory
from tinystories_hf.training.resume import (
    check_same_run,
    weight_settings,
    where_to_start,
)
from tinystories_hf.training.run_directory import (
    check_run_directory_is_shared,
    is_finished,
    lock_run_directory,
)
from tinystories_hf.training.session import describe_run
from tinystories_hf.training.signals import StopRequest
from tinystories_hf.training.trackers import start_trackers, trackers_open
from tinystories_hf.training.trainer import StoryTrainer
from tinystories_hf.training.trainer_arguments import (
    build_trainer_arguments,
    check_optimizer,
    without_buffer_warning,
)


@without_progress_bars()
@sharing_cores()
@restoring_precision()
@without_buffer_warning()
@on_reachable_interface()
@reporting_lost_process()
def train(arguments: Arguments, stop: StopRequest | None = None) -> dict[str, float]:
    """Train a model and return the final metrics.

    Args:
        arguments: All settings of the run.
        stop: Filled by the signal handlers to request a stop; see `signals.stop_on_signals`.

    Returns:
        The results of `train_results.json`, with `validation_loss` (nats per token) and
        `bits_per_byte`.

    Raises:
        UserError: the settings, the data or the run directory are not usable; raised before any
            training.
        RunError: the run failed; saved checkpoints are valid.
        Stopped: a signal requested it; a checkpoint was saved.
    """
    check_launch()
    plan = plan_batch(arguments.training, int(os.environ.get("WORLD_SIZE", "1")))
    trainer_arguments = build_trainer_arguments(arguments.training, plan)
    run_dir = Path(arguments.training.output_dir)
    hosts = new_host_group()
    with (
        lock_run_directory(run_dir) if is_main_process() else nullcontext(),
        deterministic_algorithms(arguments.training.deterministic),
    ):
        start = agree_on_start(arguments.training, trainer_arguments)
        target = check_publishing(arguments, start)
        with first_on_each_machine(hosts):
            quiet = not is_main_process()
            prepared = prepare(arguments.data, arguments.model.tokenizer_size, quiet=quiet)
        rows = training_rows(prepared, arguments.data, trainer_arguments.data_seed)
        rows.check_one_step(plan.global_batch_size)
        check_epochs(rows, trainer_arguments)
        set_seed(arguments.training.seed)
        arguments, model, pretrained = build_or_load_model(arguments, prepared)
        if compiles(model, arguments.training):
            model.compile_training()
        trainer = build_trainer(
            arguments, plan, trainer_arguments, prepared, rows, model, stop, pretrained, hosts
        )
        if start.checkpoint is not None:
            check_same_run(start.checkpoint, trainer.weight_settings)
        if is_finished(run_dir, start, trainer.steps, trainer_arguments.save_strategy):
            from tinystories_hf.training.finish import finished_metrics

            metrics = finished_metrics(run_dir)
            if trainer.is_world_process_zero():
                print(f"run         {run_dir} is already finished")
        else:
            metrics = train_and_finish(arguments, trainer, prepared, start, target, pretrained)
        # A process group (gloo) that is not destroyed here sometimes aborts when Python exits.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        # After the other processes have ended: an upload may take longer than their timeout.
        if target and trainer.is_world_process_zero():
            print(f"published   {publish.publish(run_dir, target)}")
    return metrics


def train_and_finish(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    start: StartPoint,
    target: RunRepository | None,
    pretrained: run_record.PretrainedRecord | None = None,
) -> dict[str, float]:
    """Train the remaining steps and finish the run directory; record how the session ended."""
    run_dir, is_main = Path(arguments.training.output_dir), trainer.is_world_process_zero()
    if is_main:
        training = arguments.training
        kept = checkpoints.checkpoints_kept(
            trainer.args, trainer.steps, training.num_train_epochs, training.save_total_limit
        )
        checkpoints.check_disk_for_checkpoints(run_dir, count_parameters(trainer.model).total, kept)
    if target and arguments.hub.hub_strategy == "checkpoint-revisions":
        trainer.add_callback(PublishCheckpoints(target, trainer.clock_stopped))
    start_trackers(trainer)
    record = describe_run(arguments, trainer, prepared, start, pretrained)
    # After the first output, but before the training: an import must not fail at its end.
    from tinystories_hf.training.finish import finish_run, measure_pretrained

    try:
        with after_work_began(), trackers_open(trainer):
            if record.pretrained and start.checkpoint is None:
                measure_pretrained(arguments, trainer, prepared, record)
            train_steps(trainer, start, arguments.data.context_length)
            metrics = finish_run(arguments, trainer, prepared, record)
    except (Stopped, RunError) as end:
        if is_main:
            with suppress(OSError):  # if the disk is full, report that and not this error
                record.end(run_dir, "stopped" if isinstance(end, Stopped) else "failed")
        raise
    return metrics


def train_steps(trainer: StoryTrainer, start: StartPoint, context_length: int) -> None:
    """Train from the checkpoint in `start`, or from the beginning, to the last step.

    Raises:
        RunError: out of memory, the disk is full, a data-loader worker crashed, or the loss is NaN
            or infinite.
        Stopped: a signal requested it; the last step is saved.
    """
    checkpoint = start.checkpoint
    if checkpoint is not None and checkpoint.record.step >= trainer.steps:
        trainer.restore_end(checkpoint)  # stopped after the last step, before the run was finished
        return
    if checkpoint is not None:
        trainer.read_progress(checkpoint)
    try:
        with reporting_crashed_worker(), reporting_out_of_memory(trainer.plan, context_length):
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    finally:
        trainer.stop.deferred = False
    if trainer.stopping or trainer.stop.signal is not None:
        by = f"by {trainer.stop.signal} " if trainer.stop.signal else ""
        raise Stopped(
            f"{by}after step {trainer.state.global_step:,}, saved as {trainer.last_checkpoint};"
            f" {HOW_TO_RESUME}"
        )


def agree_on_start(training: RunArguments, trainer_arguments: TrainerArguments) -> StartPoint:
    """Return where training starts, as determined by the main process for all processes.

    Raises:
        UserError: see `where_to_start`.
    """
    found: list[Any] = [where_to_start(training) if is_main_process() else None]
    if trainer_arguments.world_size > 1:
        broadcast_object_list(found)
        check_run_directory_is_shared(Path(training.output_dir))
    start: StartPoint = found[0]
    return start


def check_publishing(arguments: Arguments, start: StartPoint) -> RunRepository | None:
    """Return the target repository on the main process, after checking that it can be used.

    Returns:
        None on other processes, or if the run is not published.

    Raises:
        UserError: see `publish.check_repository`.
    """
    if not arguments.hub.push_to_hub or not is_main_process():
        return None
    run_dir = Path(arguments.training.output_dir)
    known = start.checkpoint is not None and (run_dir / run_record.RUN_RECORD).exists()
    run_id = run_record.read_record(run_dir).run_id if known else None
    return publish.check_repository(arguments.hub, run_dir, run_id)


def build_or_load_model(
    arguments: Arguments, prepared: PreparedData
) -> tuple[Arguments, PreTrainedModel, run_record.PretrainedRecord | None]:
    """Return the model with random or pretrained weights, and the record of the latter.

    The settings are returned with the `vocab_size` of the model, whose embedding may be resized.

    Raises:
        UserError: the pretrained model cannot be loaded, is not causal, or has another vocabulary.
    """
    chosen, context = arguments.model, arguments.data.context_length
    if chosen.model_name_or_path is None:
        return arguments, build_model(chosen, prepared.tokenizer, context), None
    model = load_pretrained(chosen, prepared.tokenizer, context)
    check_causal(model, chosen.model_name_or_path)
    record = describe_pretrained(model, chosen.model_name_or_path, chosen.model_revision)
    fitted = replace(chosen, vocab_size=model.get_input_embeddings().weight.shape[0])
    return arguments._replace(model=fitted), model, record


def compiles(model: PreTrainedModel, training: RunArguments) -> bool:
    """Return whether the blocks are compiled for training; only those of a GPT-Neo can be.

    Raises:
        UserError: it is asked for and impossible.
    """
    missing = missing_for_compilation()
    if training.torch_compile is True and missing:
        raise UserError(f"torch_compile: {missing}, or omit it")
    if isinstance(model, GPTNeoForCausalLM):
        return should_compile(training.torch_compile)
    if training.torch_compile is True:
        raise UserError(
            f"torch_compile: not for a {model.config.model_type}, only for a GPT-Neo; omit it"
        )
    return False


def check_epochs(rows: TrainingRows, trainer_arguments: TrainerArguments) -> None:
    """Raise a `UserError` if something is to happen after each epoch of rows without epochs."""
    for name in ("logging_strategy", "eval_strategy", "save_strategy"):
        if getattr(trainer_arguments, name) == "epoch" and not rows.has_epochs:
            raise UserError(f"{name}: a stream has no epochs; use steps")


def shows_live_line(disable_tqdm: bool | None) -> bool:
    """Return whether progress is one live line: on a terminal, unless the settings decide."""
    if disable_tqdm is not None:
        return not disable_tqdm
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


def count_steps(training: RunArguments, plan: BatchPlan, prepared: PreparedData) -> int:
    """Return the number of optimizer steps of the complete run."""
    if training.max_steps > 0:
        return training.max_steps
    steps_per_epoch = len(prepared.rows("train")) // plan.global_batch_size
    return math.ceil(training.num_train_epochs * steps_per_epoch)


def build_trainer(
    arguments: Arguments,
    plan: BatchPlan,
    trainer_arguments: TrainerArguments,
    prepared: PreparedData,
    rows: TrainingRows,
    model: PreTrainedModel,
    stop: StopRequest | None = None,
    pretrained: run_record.PretrainedRecord | None = None,
    hosts: torch.distributed.ProcessGroup | None = None,
) -> StoryTrainer:
    """Build the Trainer from the model, the rows and the settings."""
    training = arguments.training
    validation = prepared.validation
    if training.max_eval_rows is not None:
        validation = validation.select(range(min(training.max_eval_rows, len(validation))))
    encode_prompts(prepared.tokenizer, training.sample_prompts, context_length(model))
    steps = count_steps(training, plan, prepared)
    check_optimizer(trainer_arguments, model, steps)
    determining = weight_settings(
        arguments,
        plan,
        prepared.manifest,
        rows.weight_settings,
        trainer_arguments=trainer_arguments,
        compiled=compiles(model, training),
        max_steps=steps,
        pretrained=pretrained,
    )
    return StoryTrainer(
        plan=plan,
        steps=steps,
        save_total_limit=training.save_total_limit,
        context_length=arguments.data.context_length,
        weight_settings=determining,
        stop=stop or StopRequest(),
        samples=StorySamples(prepared.tokenizer, training.sample_prompts, training.seed),
        live=shows_live_line(training.disable_tqdm),
        hosts=hosts,
        model=model,
        args=trainer_arguments,
        train_dataset=rows,
        eval_dataset=PackedRows(validation),
        data_collator=collate_rows,
        processing_class=prepared.tokenizer,
    )
