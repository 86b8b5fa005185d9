"""Finish a run: save the model, measure its final loss, write the results and the model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINING_ARGS_NAME

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core import environment, run_record
from tinystories_hf.core.console import command_line
from tinystories_hf.core.files import reporting_full_disk, sync, sync_tree, write_json
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.data.training_rows import TrainingRows
from tinystories_hf.evaluation.arguments import EvaluationArguments
from tinystories_hf.evaluation.report.card import write_card
from tinystories_hf.evaluation.report.plots import plot_loss
from tinystories_hf.evaluation.results import Results, new_results, read_results, write_results
from tinystories_hf.evaluation.subject import describe_evaluated_model
from tinystories_hf.evaluation.suites.measure import SuiteTask, measure_suite
from tinystories_hf.generation.generate import Story
from tinystories_hf.model.loading import unsharded_model
from tinystories_hf.training import checkpoints
from tinystories_hf.training.trackers import log_to_trackers
from tinystories_hf.training.trainer import StoryTrainer

LOSS_PLOT = "loss.png"


def finish_run(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    record: run_record.RunRecord,
) -> dict[str, float]:
    """Save the model, measure its final loss and write the remaining files of the run directory.

    Each file is written atomically, and `run.json` is marked as finished last. If the process is
    stopped in between, the next start finishes the run.

    Returns:
        The results of `train_results.json`, with `validation_loss` (nats per token) and
        `bits_per_byte`.
    """
    run_dir = Path(arguments.training.output_dir)
    with reporting_full_disk(run_dir, "finishing the run"):
        trainer.complete_best_samples()
        save_model(trainer, run_dir)
        evaluated = evaluate_run(arguments, trainer, prepared, record)
        results = training_results(trainer)
        if trainer.is_world_process_zero():
            write_json(run_dir / run_record.TRAIN_RESULTS, results)
            write_results(run_dir, evaluated)
            plot_loss(trainer.state.log_history, run_dir / LOSS_PLOT, run_dir.name)
            write_card(run_dir)
            loss = evaluated["loss"]["packed"]
            final = {f"eval_final_{name}": loss[name] for name in ("loss", "bits_per_byte")}
            log_to_trackers(trainer, final)
            record.end(run_dir, "finished")
            print_summary(
                arguments, trainer.samples.latest, evaluated["loss"]["packed"], trainer.best_step()
            )
    return _metrics(results, evaluated)


def finished_metrics(run_dir: Path) -> dict[str, float]:
    """Return the metrics of a finished run, as `finish_run` returned them."""
    results = json.loads((run_dir / run_record.TRAIN_RESULTS).read_text(encoding="utf-8"))
    return _metrics(results, read_results(run_dir / run_record.EVAL_RESULTS))


def _metrics(results: dict[str, float], evaluated: Results) -> dict[str, float]:
    loss = evaluated["loss"]["packed"]
    return {**results, "validation_loss": loss["loss"], "bits_per_byte": loss["bits_per_byte"]}


def save_model(trainer: StoryTrainer, run_dir: Path) -> None:
    """Save the model and the tokenizer into the run directory, replacing an older model last."""
    temporary = run_dir / checkpoints.TEMPORARY_FOLDER
    trainer.save_model(str(temporary))
    if trainer.is_world_process_zero():
        # A pickle of the Trainer's arguments, which is not needed and is unsafe to load.
        (temporary / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        sync_tree(temporary)
        for path in temporary.iterdir():
            path.replace(run_dir / path.name)
        sync(run_dir)
        shutil.rmtree(temporary)


def evaluate_run(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    record: run_record.RunRecord,
) -> Results:
    """Measure the final loss as scripts/evaluate.py does, divided among the processes."""
    run_dir = arguments.training.output_dir
    subject = describe_evaluated_model(
        # The published model is fp32: unwrap the autocast that accelerate has added.
        unsharded_model(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)),
        prepared.tokenizer,
        name=str(environment.portable(run_dir)),
        context_length=arguments.data.context_length,
        run_id=record.run_id,
    )
    evaluation = EvaluationArguments(
        model=[run_dir], batch_size=trainer.args.per_device_eval_batch_size
    )
    task = SuiteTask(subject, arguments.data, evaluation, Path(run_dir), prepared)
    loss = measure_suite("loss", task, quiet=not trainer.is_world_process_zero())
    return {**new_results(subject.facts), "loss": loss}


def measure_pretrained(
    arguments: Arguments,
    trainer: StoryTrainer,
    prepared: PreparedData,
    record: run_record.RunRecord,
) -> None:
    """Measure the loss of the pretrained model before the first step, and record it."""
    assert record.pretrained is not None
    record.pretrained.loss = evaluate_run(arguments, trainer, prepared, record)["loss"]
    if trainer.is_world_process_zero():
        record.write(Path(arguments.training.output_dir))
        before = record.pretrained.loss["packed"]
        print(
            f"pretrained  {record.pretrained.name}, validation {before['loss']:.4f} nats per token,"
            f" {before['bits_per_byte']:.4f} bits per byte before the first step",
            flush=True,
        )


def training_results(trainer: StoryTrainer) -> dict[str, float]:
    """Return steps, epochs, tokens and seconds of the run, summed over its sessions.

    `best_step` is there with `load_best_model_at_end`: the step whose weights are the result.
    `training_seconds` includes evaluations. For a killed session, only the time up to its last
    checkpoint is counted.
    """
    steps = trainer.state.global_step
    rows: TrainingRows = trainer.train_dataset
    best = trainer.best_step()
    return {
        "steps": steps,
        **({} if best is None else {"best_step": best}),
        **({"epochs": trainer.state.epoch} if rows.has_epochs else {}),
        "tokens_seen": steps * trainer.tokens_per_step,
        "training_seconds": trainer.trained_seconds,
    }


def print_summary(
    arguments: Arguments, samples: list[Story], loss: dict[str, Any], best_step: int | None
) -> None:
    """Print the last samples, the final loss, and a command that generates more stories."""
    for story in samples:
        print(f"\n{story}")
    if best_step is not None:
        print(f"\nbest        step {best_step:,}, whose weights are the result")
    print(
        f"\nvalidation  {loss['loss']:.4f} nats per token, {loss['bits_per_byte']:.4f} bits per"
        f" byte, all {loss['tokens']:,} tokens"
    )
    run_dir, prompts = arguments.training.output_dir, arguments.training.sample_prompts
    flags = ["--model", run_dir, "--prompt", *(prompts[:1] or ["Once upon a time"])]
    print(f"saved       {run_dir}; generate more stories with")
    print(f"  {command_line('generate', *flags)}", flush=True)
