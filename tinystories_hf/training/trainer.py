"""The Trainer of Transformers, with whole steps, whole checkpoints and exact resumption."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TrainerArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import PrinterCallback

from tinystories_hf.core.device import reduce_in_fp32
from tinystories_hf.core.environment import library_versions
from tinystories_hf.core.files import write_json
from tinystories_hf.training import checkpoints
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.callbacks import ConsoleLog, EvaluateAtTheEnd, StorySamples
from tinystories_hf.training.checkpoints import Checkpoint
from tinystories_hf.training.failures import StepLoss, check_losses, check_weights
from tinystories_hf.training.signals import StopRequest

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class TrainingProgress:
    """What the Trainer's own checkpoint leaves out.

    `accumulated_loss` is each process' sum since the last log, in the order of the processes;
    `evaluation_due` says that a stop came before the evaluation of this step.
    """

    accumulated_loss: list[float]
    last_logged_step: int
    training_seconds: float
    evaluation_due: bool


class EvaluationInterrupted(BaseException):
    """A stop was requested in an evaluation."""


class StoryTrainer(Trainer):
    """The Trainer with whole steps, whole checkpoints, and the throughput in its log."""

    def __init__(
        self,
        *args: Any,
        plan: BatchPlan,
        steps: int,
        context_length: int,
        trajectory: dict[str, Any],
        stop: StopRequest,
        samples: StorySamples,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.steps = steps
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
        self._aside: Path | None = None
        self._losses: list[StepLoss] = []
        callbacks = [EvaluateAtTheEnd(), samples, ConsoleLog(), StopCallback(self)]
        super().__init__(*args, callbacks=callbacks, **kwargs)
        self.remove_callback(PrinterCallback)
        reduce_in_fp32(self.accelerator)
        # Checkpoints of a sharded optimizer are files of another kind.
        self.trajectory = {**trajectory, "sharded": self.is_fsdp_enabled}
        # Beside NCCL, which would have to wait for the GPU at each step.
        several = self.args.world_size > 1
        self._hosts = torch.distributed.new_group(backend="gloo") if several else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and keep how long it took."""
        result = super().train(*args, **kwargs)
        self.trained_seconds = self._seconds()
        return result

    def _seconds(self) -> float:
        """Return the seconds of training that led to this step, those of earlier sessions too."""
        before = self.earlier.training_seconds if self.earlier else 0.0
        return before + time.perf_counter() - self._started

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        """Shuffle the rows anew each epoch and leave out those that fill no step.

        A last, smaller step would be made of other rows for another number of processes. Which
        rows (fewer than one step) are left out changes with each epoch.
        """
        rows = self.train_dataset if train_dataset is None else train_dataset
        size = self.plan.global_batch_size
        return RandomSampler(rows, num_samples=len(rows) // size * size)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take the gradient of a micro-batch, and stop at a loss that is no number.

        On a GPU losses are looked at when they are logged or saved: each look waits for it.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._losses.append(
            StepLoss(self.state.global_step + 1, self._get_learning_rate(), loss.detach())
        )
        if loss.device.type == "cpu":
            self._check_losses()
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Have the model make the loss alone, without the logits of the batch."""
        return super().compute_loss(model, {**inputs, "skip_logits": True}, *args, **kwargs)

    def _check_losses(self) -> None:
        check_losses(self._losses, self._last_checkpoint_name())
        self._losses.clear()

    def _last_checkpoint_name(self) -> str | None:
        return None if self.last_checkpoint is None else str(self.last_checkpoint)

    def stop_agreed(self) -> bool:
        """Tell whether any process was asked to stop; all processes ask at the same place."""
        if not self.stopping:
            asked = torch.tensor([self.stop.signal is not None], dtype=torch.int32)
            if self._hosts is not None:
                torch.distributed.all_reduce(
                    asked, torch.distributed.ReduceOp.MAX, group=self._hosts
                )
            self.stopping = bool(asked.item())
        return self.stopping

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with the throughput's clock stopped, and without a trace in the training.

        A DataLoader draws a seed when it starts, which would move all dropout after it.
        """
        with self.clock_stopped(), torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, or leave it to the next session: a machine that is taken away does not wait."""
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen, and tokens per second since the last log, to the training losses."""
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
        """Leave out of the throughput what is done meanwhile."""
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint that is whole or not there, after a look at what is to be saved."""
        run_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        self._check_losses()
        check_weights(self.model, step, self._last_checkpoint_name())
        first = self.is_world_process_zero()
        needed = checkpoints.bytes_of_checkpoint(sum(p.numel() for p in self.model.parameters()))
        shared = nullcontext(run_dir / checkpoints.ASIDE)
        with checkpoints.writing_checkpoint(run_dir, needed) if first else shared as aside:
            self.accelerator.wait_for_everyone()
            self._aside = aside
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            progress = self._progress()
            self.accelerator.wait_for_everyone()  # until each has written its random state
            if first:
                folder = checkpoints.checkpoint_folder(aside, step)
                # A pickle of the Trainer's settings, which nothing needs and nobody should load.
                (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
                write_json(folder / PROGRESS_FILE, asdict(progress))
                checkpoints.write_checkpoint_record(
                    folder, step, self.trajectory, library_versions()
                )
                checkpoints.publish_checkpoint_folder(folder, run_dir, step)
                checkpoints.delete_old_checkpoints(run_dir, step, self.args.save_total_limit)
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
        """Read how far a run had come; `train` restores it once the Trainer has begun."""
        self.last_checkpoint = checkpoint.path
        content = json.loads((checkpoint.path / PROGRESS_FILE).read_text(encoding="utf-8"))
        self.earlier = TrainingProgress(**content)
        self.trained_seconds = self.earlier.training_seconds

    def restore_progress(self) -> None:
        """Put back what the Trainer forgets: its running loss, and an evaluation that is due."""
        self._started = self._clock = time.perf_counter()
        if self.earlier is None:
            return
        sums = self.earlier.accumulated_loss
        # On another number of processes each takes the mean: that of all is what is logged.
        same = len(sums) == self.args.world_size
        own = sums[self.args.process_index] if same else sum(sums) / len(sums)
        self._tr_loss = torch.tensor(own, device=self.args.device)
        self._globalstep_last_logged = self.earlier.last_logged_step
        if self.earlier.evaluation_due:
            self.evaluate()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say nothing of the head, which is the embedding and is not stored twice."""
        if load_result.missing_keys == list(self.model._tied_weights_keys):
            load_result.missing_keys.clear()
        super()._issue_warnings_after_load(load_result)

    def restore_end(self, checkpoint: Checkpoint) -> None:
        """Restore a run that was trained to its end and not yet finished."""
        self.read_progress(checkpoint)
        self._load_from_checkpoint(str(checkpoint.path))
        self.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.restore_progress()


class StopCallback(TrainerCallback):
    """End the training where a signal asks for it; restore what its start has just set to zero.

    Until the first step there is nothing to save, and a signal ends the process where it is: in the
    evaluation that a stop left undone, or while a stream is read again, maybe for hours.
    """

    def __init__(self, trainer: StoryTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restore it; placed last, so that the samples of that evaluation find their file."""
        self.trainer.restore_progress()

    def on_step_begin(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Have signals wait for the end of the step, from the first step on."""
        self.trainer.stop.deferred = True

    def on_step_end(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint and for the end."""
        if self.trainer.stop_agreed():
            control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the evaluation."""
        if self.trainer.is_in_train and self.trainer.stop_agreed():
            raise EvaluationInterrupted


def collate_rows(rows: list[np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """Stack rows into `input_ids` of shape (batch, context); labels are the ids themselves."""
    input_ids = torch.from_numpy(np.stack(rows).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids}
