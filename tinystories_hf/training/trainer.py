"""The Trainer of Transformers, extended by atomic checkpoints and exact resumption."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TrainerArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import PrinterCallback

from tinystories_hf.core.device import reduce_in_fp32
from tinystories_hf.core.environment import library_versions
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.training import checkpoints
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.callbacks import ConsoleLog, EvaluateAtEnd, StorySamples
from tinystories_hf.training.checkpoints import Checkpoint
from tinystories_hf.training.failures import StepLoss, check_losses, check_weights
from tinystories_hf.training.signals import StopRequest
from tinystories_hf.training.trackers import log_to_trackers
from tinystories_hf.training.training_progress import (
    TrainingProgress,
    read_progress,
    write_progress,
)


class EvaluationInterrupted(BaseException):
    """A stop was requested during an evaluation."""


class StoryTrainer(Trainer):
    """A Trainer with atomic checkpoints, exact resumption and the throughput in its log."""

    def __init__(
        self,
        *args: Any,
        plan: BatchPlan,
        steps: int,
        save_total_limit: int | None,
        context_length: int,
        weight_settings: dict[str, Any],
        stop: StopRequest,
        samples: StorySamples,
        live: bool = False,
        hosts: torch.distributed.ProcessGroup | None = None,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.steps = steps
        # Not a setting of the Trainer, which would delete the last checkpoint to keep the best.
        self.save_total_limit = save_total_limit
        self.tokens_per_step = plan.global_batch_size * context_length
        self.stop = stop
        self.samples = samples
        self.stopping = False
        self.evaluation_due = False
        self.earlier: TrainingProgress | None = None
        self.last_checkpoint: Path | None = None
        self.trained_seconds = 0.0
        self._started = self._clock = time.perf_counter()
        self._clock_step: int | None = None
        self._temporary_folder: Path | None = None
        self._losses: list[StepLoss] = []
        callbacks = [EvaluateAtEnd(), samples, ConsoleLog(live), StopCallback(self)]
        super().__init__(*args, callbacks=callbacks, **kwargs)
        self.remove_callback(PrinterCallback)
        samples.report = lambda text: log_to_trackers(self, {"eval_samples": text})
        reduce_in_fp32(self.accelerator)
        # The optimizer checkpoints of sharded training have another format.
        self.weight_settings = {**weight_settings, "sharded": self.is_fsdp_enabled}
        self._hosts = hosts

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and record the training time."""
        result = super().train(*args, **kwargs)
        self.trained_seconds = self._seconds()
        return result

    def _seconds(self) -> float:
        """Return the seconds of training up to this step, over all sessions."""
        before = self.earlier.training_seconds if self.earlier else 0.0
        return before + time.perf_counter() - self._started

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        """Shuffle the rows in each epoch and leave out the last ones that do not fill a step.

        A smaller last step would contain different rows with another number of processes. The rows
        left out (fewer than a step) differ in each epoch.
        """
        rows = self.train_dataset if train_dataset is None else train_dataset
        size = self.plan.global_batch_size
        return RandomSampler(rows, num_samples=len(rows) // size * size)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradient of a micro-batch, and record its loss to check that it is finite.

        On a GPU, losses are only checked when they are logged or saved, because each check has to
        wait for the GPU.

        Raises:
            RunError: the loss is NaN or infinite.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._losses.append(
            StepLoss(self.state.global_step + 1, self.lr_scheduler.get_last_lr()[0], loss.detach())
        )
        if loss.device.type == "cpu":
            self._check_losses()
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; that of a GPT-Neo without materializing the logits of the batch."""
        fused = {"skip_logits": True} if isinstance(self.model, GPTNeoForCausalLM) else {}
        return super().compute_loss(model, {**inputs, **fused}, *args, **kwargs)

    def _check_losses(self) -> None:
        check_losses(self._losses, self._last_checkpoint_name())
        self._losses.clear()

    def _last_checkpoint_name(self) -> str | None:
        return None if self.last_checkpoint is None else str(self.last_checkpoint)

    def stop_agreed(self) -> bool:
        """Return whether any process has received a stop signal; a collective call."""
        if not self.stopping:
            requested = torch.tensor([self.stop.signal is not None], dtype=torch.int32)
            if self._hosts is not None:
                torch.distributed.all_reduce(
                    requested, torch.distributed.ReduceOp.MAX, group=self._hosts
                )
            self.stopping = bool(requested.item())
        return self.stopping

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without counting the time as training, and without changing the random state.

        A DataLoader draws a seed when it starts, which would change all later dropout masks.
        """
        with self.clock_stopped(), torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, or postpone it to the next session if a stop is requested.

        The evaluation before the first step (`eval_on_start`) is not repeated by a resumed run.
        """
        if kwargs.get("skip_scheduler") and self.state.global_step > 0:
            return {}
        if not self.stop_agreed():
            try:
                metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
            except EvaluationInterrupted:
                pass
            else:
                return metrics
        self.evaluation_due = True
        self.control.should_evaluate = False
        self.control.should_save = self.control.should_training_stop = True
        return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether this is the best evaluation, or whether it was postponed by a stop.

        Then the Trainer saves a checkpoint also with `save_strategy` best.
        """
        if not metrics:
            return self.stopping
        found: bool = super()._determine_best_metric(metrics, trial)
        return found

    def _name_best_checkpoint(self) -> None:
        """Let `best_model_checkpoint` be where the best checkpoint is, which is saved elsewhere."""
        step = self.state.best_global_step
        if step:
            folder = checkpoints.checkpoint_folder(Path(str(self.args.output_dir)), step)
            saved = folder.is_dir() or step == self.state.global_step
            self.state.best_model_checkpoint = str(folder) if saved else None

    def load_best_model(self) -> None:
        """Load the weights of the best checkpoint if `load_best_model_at_end` is set."""
        self._name_best_checkpoint()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def best_step(self) -> int | None:
        """Return the step whose weights are the result, None if that is simply the last step."""
        loaded = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        return self.state.best_global_step if loaded else None

    def complete_best_samples(self) -> None:
        """Generate the samples of the best step once more as the last section: a collective call.

        The model card shows the last samples, which must be those of the published model.
        """
        best = self.best_step()
        if best not in (None, self.state.global_step):
            self.samples.write(self.model, self.args, self.state, f"{best}, the best")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tokens seen and the tokens per second since the last log to the training log."""
        step, now = self.state.global_step, time.perf_counter()
        if "loss" in logs:
            self._check_losses()
            logs["tokens_seen"] = step * self.tokens_per_step
            if self._clock_step is not None and step > self._clock_step:
                logs["seconds_per_step"] = (now - self._clock) / (step - self._clock_step)
                logs["tokens_per_second"] = self.tokens_per_step / logs["seconds_per_step"]
            self._clock, self._clock_step = now, step
        super().log(logs, start_time)

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Exclude the time spent in this context from the throughput."""
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._temporary_folder or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint atomically, after checking that losses and weights are finite."""
        run_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        self._check_losses()
        check_weights(self.model, step, self._last_checkpoint_name())
        is_main = self.is_world_process_zero()
        needed = checkpoints.bytes_of_checkpoint(sum(p.numel() for p in self.model.parameters()))
        shared = nullcontext(run_dir / checkpoints.TEMPORARY_FOLDER)
        with checkpoints.writing_checkpoint(run_dir, needed) if is_main else shared as temporary:
            self.accelerator.wait_for_everyone()
            self._temporary_folder = temporary
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._temporary_folder = None
            progress = self._progress()
            self.accelerator.wait_for_everyone()  # until all have written their random states
            if is_main:
                folder = checkpoints.checkpoint_folder(temporary, step)
                self._name_best_checkpoint()
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                # A pickle of the Trainer's arguments, which is not needed and is unsafe to load.
                (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
                write_progress(folder, progress)
                checkpoints.write_checkpoint_record(
                    folder, step, self.weight_settings, library_versions()
                )
                checkpoints.publish_checkpoint_folder(folder, run_dir, step)
                checkpoints.delete_old_checkpoints(
                    run_dir, step, self.save_total_limit, self.state.best_global_step
                )
        self._name_best_checkpoint()
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = checkpoints.checkpoint_folder(run_dir, step)

    def _progress(self) -> TrainingProgress:
        losses = self.accelerator.gather(self._tr_loss.detach().reshape(1))
        return TrainingProgress(
            accumulated_loss=losses.tolist(),
            last_logged_step=self._globalstep_last_logged,
            training_seconds=self._seconds(),
            evaluation_due=self.evaluation_due,
        )

    def read_progress(self, checkpoint: Checkpoint) -> None:
        """Read the progress of a checkpoint; it is restored when the training begins."""
        self.last_checkpoint = checkpoint.path
        self.earlier = read_progress(checkpoint.path)
        self.trained_seconds = self.earlier.training_seconds

    def restore_progress(self) -> None:
        """Restore what the Trainer does not: the running loss, and an evaluation that is due."""
        self._started = self._clock = time.perf_counter()
        if self.earlier is None:
            if self.args.process_index:
                # Until here all processes have drawn the same; each drops out other activations.
                torch.manual_seed(self.args.seed + self.args.process_index)
            return
        sums = self.earlier.accumulated_loss
        # With another number of processes each takes the mean, since the mean of all is logged.
        same = len(sums) == self.args.world_size
        own = sums[self.args.process_index] if same else sum(sums) / len(sums)
        self._tr_loss = torch.tensor(own, device=self.args.device)
        self._globalstep_last_logged = self.earlier.last_logged_step
        self._name_best_checkpoint()
        if self.earlier.evaluation_due:
            self._determine_best_metric(super()._evaluate(None, None), None)
            self._name_best_checkpoint()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not warn about the head, which is tied to the embedding and therefore not saved."""
        if load_result.missing_keys == list(self.model._tied_weights_keys or []):
            load_result.missing_keys.clear()
        super()._issue_warnings_after_load(load_result)

    def restore_end(self, checkpoint: Checkpoint) -> None:
        """Restore a run that has trained all steps but was not finished."""
        self.read_progress(checkpoint)
        self._load_from_checkpoint(str(checkpoint.path))
        self.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.restore_progress()
        self.load_best_model()


class StopCallback(TrainerCallback):
    """Stop the training when a signal requests it, and restore the progress when it begins.

    Before the first step there is nothing to save, and a signal exits immediately: during a
    postponed evaluation, or while the rows of a stream are skipped, which may take hours.
    """

    def __init__(self, trainer: StoryTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restore the progress. Runs after `StorySamples`, whose file the evaluation needs."""
        self.trainer.restore_progress()

    def on_step_begin(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Defer signals to the end of the step, from the first step on."""
        self.trainer.stop.deferred = True

    def on_step_end(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Request a checkpoint and the end of the training if a stop is requested."""
        if self.trainer.stop_agreed():
            control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Interrupt the evaluation if a stop is requested."""
        if self.trainer.is_in_train and self.trainer.stop_agreed():
            raise EvaluationInterrupted
