"""Training on one screen: rows in, a run directory out that stock Transformers loads."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler
from transformers import Trainer, set_seed
from transformers import TrainingArguments as TrainerArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

from tinystories_hf import hub, provenance
from tinystories_hf.arguments import Arguments, TrainingArguments
from tinystories_hf.batch import BatchPlan, plan_batch
from tinystories_hf.callbacks import (
    ConsoleLog,
    EvaluateAtTheEnd,
    PublishCheckpoints,
    StorySamples,
)
from tinystories_hf.card import write_card
from tinystories_hf.data import PreparedData, prepare
from tinystories_hf.errors import UserError
from tinystories_hf.evaluation.arguments import EvaluationArguments
from tinystories_hf.evaluation.plots import plot_loss
from tinystories_hf.evaluation.results import Results, new_results, write_results
from tinystories_hf.evaluation.subject import describe_subject
from tinystories_hf.evaluation.suites import Task, measure
from tinystories_hf.hardware import (
    add_up_in_fp32,
    choose_precision,
    compiles,
    device_type,
    hardware_has_tf32,
    use_threads,
)
from tinystories_hf.modeling import GPTNeoForCausalLM, build_model, count_parameters, whole_model
from tinystories_hf.packing import PackedRows

LOSS_PLOT = "loss.png"


def train(arguments: Arguments) -> dict[str, float]:
    """Train a model as the settings say and return the final metrics.

    Raises:
        UserError: before any work, where the settings, the data or the run directory forbid it.
    """
    plan = plan_batch(arguments.training, int(os.environ.get("WORLD_SIZE", "1")))
    checkpoint = checkpoint_to_resume(arguments.training)
    destination = check_publishing(arguments, checkpoint)
    trainer_arguments = build_trainer_arguments(arguments.training, plan)
    with trainer_arguments.main_process_first(local=True, desc="preparing rows"):
        prepared = prepare(
            arguments.data, arguments.model.vocab_size, quiet=trainer_arguments.process_index > 0
        )
    check_enough_rows(prepared, plan)

    set_seed(arguments.training.seed)
    model = build_model(arguments.model, prepared.tokenizer, arguments.data.context_length)
    if compiles(arguments.training):
        model.compile_training()
    trainer = build_trainer(arguments, plan, trainer_arguments, prepared, model)
    if destination and arguments.hub.hub_strategy == "checkpoint-revisions":
        trainer.add_callback(PublishCheckpoints(destination, trainer.clock_stopped))
    record = describe_run(arguments, plan, trainer, prepared, checkpoint)

    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = finish_run(arguments, trainer, prepared, record, destination)
    # A process group that is left to the interpreter's exit now and then aborts there (gloo).
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # Alone, with no process waiting for this one: an upload may take longer than they would wait.
    if destination and trainer.is_world_process_zero():
        print(f"published   {hub.publish(Path(arguments.training.output_dir), destination)}")
    return metrics


def check_publishing(arguments: Arguments, checkpoint: str | None) -> hub.Destination | None:
    """Return where the run will be published; the first process finds out whether it may be.

    Raises:
        UserError: as `hub.check_destination`.
    """
    if not arguments.hub.push_to_hub or os.environ.get("RANK", "0") != "0":
        return None
    run_dir = Path(arguments.training.output_dir)
    run_id = provenance.read_record(run_dir).run_id if checkpoint is not None else None
    return hub.check_destination(arguments.hub, run_dir, run_id)


def checkpoint_to_resume(training: TrainingArguments) -> str | None:
    """Return the checkpoint that the run continues from, None for a new run.

    Raises:
        UserError: the run directory holds another model or run, or there is nothing to resume.
    """
    run_dir, wanted = Path(training.output_dir), training.resume_from_checkpoint
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"output_dir: {run_dir} is a file; choose another directory")
    last = get_last_checkpoint(str(run_dir)) if run_dir.is_dir() else None
    if wanted is False:
        taken = [name for name in (provenance.FILE, "config.json") if (run_dir / name).exists()]
        if last is not None or taken:
            what = Path(last).name if last is not None else taken[0]
            raise UserError(
                f"output_dir: {run_dir} already holds a run ({what}); continue it with"
                " --resume_from_checkpoint, or choose another --output_dir"
            )
        return None
    checkpoint = last if wanted is True else str(wanted)
    if checkpoint is None:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint in {run_dir}; start without it, or name one"
        )
    if not (Path(checkpoint) / "trainer_state.json").exists():
        raise UserError(f"resume_from_checkpoint: {checkpoint} is not a checkpoint of a Trainer")
    return checkpoint


def build_trainer_arguments(training: TrainingArguments, plan: BatchPlan) -> TrainerArguments:
    """Translate our settings into those of the Trainer.

    Raises:
        UserError: an unknown tracker, or several GPUs without a launcher.
    """
    missing = set(training.report_to) - {*get_available_reporting_integrations(), "none"}
    if missing:
        raise UserError(
            f"report_to: {', '.join(sorted(missing))} is not installed, or not known to"
            " Transformers; install it with pip or leave it out"
        )
    use_threads()
    disable_progress_bar()  # of saving: this model is written in milliseconds
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
            " launch --multi_gpu scripts/train.py`, or set CUDA_VISIBLE_DEVICES=0 to use one"
        )
    return built


def check_enough_rows(prepared: PreparedData, plan: BatchPlan) -> None:
    """Raise a `UserError` unless the training rows fill one step."""
    if len(prepared.train) < plan.global_batch_size:
        raise UserError(
            f"global_batch_size {plan.global_batch_size} is more than the {len(prepared.train)}"
            " training rows; lower it or give more text"
        )


class StoryTrainer(Trainer):
    """The Trainer with whole steps only, the throughput in its log, and stories told."""

    def __init__(
        self,
        *args: Any,
        plan: BatchPlan,
        context_length: int,
        samples: StorySamples,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.samples = samples
        self.tokens_per_step = plan.global_batch_size * context_length
        self._clock = time.perf_counter()
        self._clock_step: int | None = None
        super().__init__(*args, callbacks=[EvaluateAtTheEnd(), samples, ConsoleLog()], **kwargs)
        self.remove_callback(PrinterCallback)
        add_up_in_fp32(self.accelerator)

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        """Shuffle the rows anew each epoch and leave out those that fill no step.

        A last, smaller step would be made of other rows for another number of processes. Which
        rows (fewer than one step) are left out changes with each epoch.
        """
        rows = self.train_dataset if train_dataset is None else train_dataset
        size = self.plan.global_batch_size
        return RandomSampler(rows, num_samples=len(rows) // size * size)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with the throughput's clock stopped."""
        with self.clock_stopped():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen, and tokens per second since the last log, to the training losses."""
        step, now = self.state.global_step, time.perf_counter()
        if "loss" in logs:
            logs["tokens_seen"] = step * self.tokens_per_step
            if self._clock_step is not None and step > self._clock_step:
                logs["seconds_per_step"] = (now - self._clock) / (step - self._clock_step)
                logs["tokens_per_second"] = self.tokens_per_step / logs["seconds_per_step"]
            self._clock, self._clock_step = now, step
        super().log(logs, start_time)

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leave out of the throughput what is done meanwhile."""
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start


def collate_rows(rows: list[np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """Stack rows into `input_ids` of shape (batch, context); labels are the ids themselves."""
    input_ids = torch.from_numpy(np.stack(rows).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids}


def build_trainer(
    arguments: Arguments,
    plan: BatchPlan,
    trainer_arguments: TrainerArguments,
    prepared: PreparedData,
    model: GPTNeoForCausalLM,
) -> StoryTrainer:
    """Put model, rows and callbacks together."""
    training = arguments.training
    validation = prepared.validation
    if training.max_eval_rows is not None:
        validation = validation.select(range(min(training.max_eval_rows, len(validation))))
    return StoryTrainer(
        plan=plan,
        context_length=arguments.data.context_length,
        model=model,
        args=trainer_arguments,
        train_dataset=PackedRows(prepared.train),
        eval_dataset=PackedRows(validation),
        data_collator=collate_rows,
        processing_class=prepared.tokenizer,
        samples=StorySamples(prepared.tokenizer, training.sample_prompts, training.seed),
    )


def describe_run(
    arguments: Arguments,
    plan: BatchPlan,
    trainer: StoryTrainer,
    prepared: PreparedData,
    checkpoint: str | None,
) -> provenance.RunRecord:
    """Write `run.json` and say in a few lines what is about to happen."""
    run_dir = Path(arguments.training.output_dir)
    parameters = count_parameters(trainer.model)
    session = provenance.start_session(
        plan, trainer.args.mixed_precision, trainer.args.device.type, checkpoint
    )
    record = provenance.start_record(run_dir, arguments, prepared.manifest, parameters, session)
    if trainer.is_world_process_zero():
        record.write(run_dir)
        rows, tokens = len(prepared.train), prepared.manifest.train.tokens_out
        print(f"model       {parameters}")
        print(f"rows        {rows:,} of {prepared.manifest.context_length} = {tokens:,} tokens,"
              f" from {prepared.path}")  # fmt: skip
        print(f"batch       {plan} = {trainer.tokens_per_step:,} tokens")
        print(f"machine     {session.device}, mixed precision {session.mixed_precision}")
        print(f"run         {run_dir}" + (f", resumed from {checkpoint}" if checkpoint else ""))
    return record


def finish_run(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    record: provenance.RunRecord,
    destination: hub.Destination | None,
) -> dict[str, float]:
    """Save the model, measure its final loss and complete the run directory."""
    run_dir = Path(arguments.training.output_dir)
    trainer.save_model()
    evaluated = evaluate_run(arguments, trainer, prepared, record)
    loss = evaluated["loss"]["packed"]
    results = training_results(trainer)
    if trainer.is_world_process_zero():
        # A pickle of the Trainer's settings, which nothing needs and nobody should load.
        (run_dir / "training_args.bin").unlink(missing_ok=True)
        provenance.write_json(run_dir / provenance.TRAIN_RESULTS, results)
        write_results(run_dir, evaluated)
        plot_loss(trainer.state.log_history, run_dir / LOSS_PLOT, run_dir.name)
        record.finish(run_dir)
        write_card(run_dir, destination.repo_id if destination else None)
        print_ending(arguments, trainer, loss)
    return {**results, "validation_loss": loss["loss"], "bits_per_byte": loss["bits_per_byte"]}


def evaluate_run(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    record: provenance.RunRecord,
) -> Results:
    """Measure the loss as scripts/evaluate.py does, each process its share."""
    run_dir = arguments.training.output_dir
    subject = describe_subject(
        # What is published is fp32: without the autocast that accelerate has put into the model.
        whole_model(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)),
        prepared.tokenizer,
        name=str(provenance.portable(run_dir)),
        context_length=arguments.data.context_length,
        run_id=record.run_id,
    )
    evaluation = EvaluationArguments(
        model=[run_dir], batch_size=arguments.training.per_device_eval_batch_size
    )
    task = Task(subject, arguments.data, evaluation, Path(run_dir), prepared)
    loss = measure("loss", task, quiet=not trainer.is_world_process_zero())
    return {**new_results(subject.facts), "loss": loss}


def training_results(trainer: StoryTrainer) -> dict[str, float]:
    """Return the Trainer's own totals: steps, tokens, seconds of this session, mean loss."""
    summary = next(entry for entry in reversed(trainer.state.log_history) if "train_loss" in entry)
    steps = trainer.state.global_step
    return {
        "steps": steps,
        "epochs": summary["epoch"],
        "tokens_seen": steps * trainer.tokens_per_step,
        "session_seconds": summary["train_runtime"],
        "session_mean_loss": summary["train_loss"],
    }


def print_ending(arguments: Arguments, trainer: StoryTrainer, loss: dict[str, Any]) -> None:
    """Print the last samples, the final loss and the line to run next."""
    for story in trainer.samples.latest:
        print(f"\n{story}")
    print(
        f"\nvalidation  {loss['loss']:.4f} nats per token, {loss['bits_per_byte']:.4f} bits per"
        f" byte, all {loss['tokens']:,} tokens"
    )
    run_dir, prompt = arguments.training.output_dir, arguments.training.sample_prompts[0]
    python = os.path.relpath(sys.executable)
    python = "python" if python.startswith("..") else python
    command = [python, "scripts/generate.py", "--model", run_dir, "--prompt", prompt]
    print(f"saved       {run_dir}; more stories with")
    print(f"  {shlex.join(command)}", flush=True)
