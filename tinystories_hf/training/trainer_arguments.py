"""Convert `RunArguments` to the `TrainingArguments` of Transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, get_scheduler
from transformers import TrainingArguments as TrainerArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.core.device import (
    Precision,
    device_type,
    evaluation_batch,
    has_native_bf16,
    has_tf32,
)
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.launcher import launcher_precision, setting_source
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.trackers import check_trackers


def build_trainer_arguments(training: RunArguments, plan: BatchPlan) -> TrainerArguments:
    """Convert the training settings to the arguments of the Trainer.

    Fields of `training.training_arguments` are passed through.

    Raises:
        UserError: a tracker cannot be used, the launcher and `bf16` contradict each other, one
            process sees several GPUs, or Transformers refuses the settings.
    """
    check_trackers(training.report_to)
    precision = choose_precision(training)
    on_gpu = device_type() == "cuda"
    settings: dict[str, Any] = {
        "output_dir": training.output_dir,
        "per_device_train_batch_size": plan.per_device_train_batch_size,
        "per_device_eval_batch_size": evaluation_batch(
            training.per_device_eval_batch_size, on_cpu=8
        ),
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "tf32": has_tf32() or None,
        "seed": training.seed,
        "data_seed": training.seed if training.data_seed is None else training.data_seed,
        "logging_steps": training.logging_steps,
        # The default replaces a NaN loss with the mean of the earlier ones and so hides it.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": training.eval_steps,
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "dataloader_num_workers": training.dataloader_num_workers,
        # On a GPU the host does not wait for copies: from pinned memory they need no waiting.
        "dataloader_pin_memory": on_gpu,
        "accelerator_config": {"non_blocking": on_gpu},
        "report_to": list(training.report_to) or "none",
        "run_name": training.run_name or Path(training.output_dir).name,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        # The only buffers are masks, which are equal and never change.
        "ddp_broadcast_buffers": False,
        # Written into the saved config; training steps and evaluations do not use the cache.
        "use_cache": True,
        # Without it, processes launched on the CPU form no group and each trains on its own.
        "use_cpu": device_type() == "cpu",
    }
    further = training.training_arguments
    if needs_metric(training):
        settings["metric_for_best_model"] = "loss"
    try:
        built = TrainerArguments(**{**settings, **further})
    except (ValueError, TypeError, ImportError) as error:
        if not further:
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"transformers.TrainingArguments refuses the settings: {reason}") from error
    if built.metric_for_best_model not in (None, "loss", "eval_loss"):
        raise UserError(
            f"metric_for_best_model: {built.metric_for_best_model} is not computed during training;"
            " use loss"
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
            " scripts/train.py`, or choose one with the environment variable CUDA_VISIBLE_DEVICES,"
            " such as CUDA_VISIBLE_DEVICES=0"
        )
    return built


@contextmanager
def without_buffer_warning() -> Iterator[None]:
    """Hide that PyTorch 2.13 renames `broadcast_buffers`, which Transformers passes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        yield


def choose_precision(training: RunArguments) -> Precision:
    """Return the autocast type: the requested one, or bf16 if the hardware supports it.

    fp16 is only requested through the launcher: it needs loss scaling, and its range is smaller.

    Raises:
        UserError: the setting `bf16` and the launcher request different types.
    """
    launched = launcher_precision()
    if training.bf16 == "auto":
        return launched or ("bf16" if has_native_bf16() else "no")
    requested: Precision = "bf16" if training.bf16 else "no"
    if training.bf16 is False and launched == "fp16":
        return launched
    if launched not in (None, requested):
        raise UserError(
            f"bf16: the setting is {str(training.bf16).lower()}, but"
            f" {setting_source('ACCELERATE_MIXED_PRECISION')} requests mixed_precision {launched};"
            " change one of them, or set bf16 to auto"
        )
    return requested


# Schedules that change the learning rate by the loss of the evaluations.
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")


def needs_metric(training: RunArguments) -> bool:
    """Return whether the weights of the result depend on the evaluations during training."""
    further = training.training_arguments
    return (
        training.lr_scheduler_type in BY_EVALUATION
        or further.get("load_best_model_at_end") is True
        or further.get("save_strategy") == "best"
    )


def check_optimizer(
    trainer_arguments: TrainerArguments, model: PreTrainedModel, steps: int
) -> None:
    """Check that the optimizer and the schedule can be built, before any work is done.

    Raises:
        UserError: they cannot, such as for a missing library or a wrong argument.
    """
    name = OptimizerNames(trainer_arguments.optim).value
    given = {
        pair.partition("=")[0].strip() for pair in (trainer_arguments.optim_args or "").split(",")
    }
    try:
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(trainer_arguments, model)
        # Other optimizers come with parameter groups of their own, which hold their arguments.
        if settings.keys().isdisjoint({"params", "model", "optimizer_dict"}):
            optimizer([torch.nn.Parameter(torch.zeros(1))], **settings)
            if unused := given - settings.keys() - {""}:
                raise UserError(f"optim_args: {name} does not take {', '.join(sorted(unused))}")
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"optim: {name} cannot be used: {reason}") from error
    try:
        get_scheduler(
            trainer_arguments.lr_scheduler_type,
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
            trainer_arguments.get_warmup_steps(steps),
            steps,
            trainer_arguments.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"lr_scheduler_type: {SchedulerType(trainer_arguments.lr_scheduler_type).value} cannot"
            f" be used with lr_scheduler_kwargs {trainer_arguments.lr_scheduler_kwargs}: {reason}"
        ) from error
