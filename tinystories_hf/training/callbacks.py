"""Trainer callbacks: log lines, sample stories and published checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers import TrainingArguments as TrainerArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from tinystories_hf.core.files import write_text
from tinystories_hf.core.run_record import SAMPLES_FILE
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import Story, generate
from tinystories_hf.hub import publish
from tinystories_hf.hub.publish import RunRepository
from tinystories_hf.model.loading import unsharded_model

HEADING = "# Samples\n\nThe same prompts and the same seed at each evaluation, temperature 1.\n"


class EvaluateAtEnd(TrainerCallback):
    """Evaluate after the last step, even if `eval_steps` does not divide the number of steps."""

    def on_step_end(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Request an evaluation after the last step; by epochs, the Trainer does so itself."""
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.EPOCH:
            control.should_evaluate = True


class StorySamples(TrainerCallback):
    """Complete the sample prompts at each evaluation and write the stories to `samples.md`.

    Sampling uses its own random generator, so it does not change the training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int) -> None:
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.settings = GenerationArguments(seed=seed)
        self.latest: list[Story] = []
        # Called with each section, to log it elsewhere too.
        self.report: Callable[[str], None] = lambda _: None

    def on_train_begin(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Create the file, or remove the samples after the checkpoint that the run resumes from."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / SAMPLES_FILE
            kept = _sections_until(path, state.global_step) if state.global_step else ""
            write_text(path, kept or HEADING)

    def on_evaluate(
        self,
        args: TrainerArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **_: Any,
    ) -> None:
        """Generate the stories and append them to the file."""
        self.write(model, args, state, str(state.global_step))

    def write(
        self, model: PreTrainedModel, args: TrainerArguments, state: TrainerState, step: str
    ) -> None:
        """Generate the stories and write them as the last section, under the heading `Step N`."""
        model = unsharded_model(model)
        if not state.is_world_process_zero:
            return
        self.latest = generate(model, self.tokenizer, self.prompts, self.settings)
        quoted = [_quoted(story) for story in self.latest]
        path = Path(str(args.output_dir)) / SAMPLES_FILE
        # A killed session may already have written the samples of this step: replace them.
        last = state.global_step - (step == str(state.global_step))
        before = _sections_until(path, last) or HEADING
        write_text(path, before + "\n".join([f"\n## Step {step}\n", *quoted]))
        self.report("\n".join(quoted))


def _quoted(story: Story) -> str:
    text = f"**{story.prompt}**{story.completion}" + ("" if story.ended else " […]")
    return "".join(f"> {line}\n" if line else ">\n" for line in text.splitlines())


def _sections_until(path: Path, step: int) -> str:
    if not path.exists():
        return ""
    head, *sections = re.split(r"(?m)^(?=## Step \d+)", path.read_text(encoding="utf-8"))
    titles = [part.split("\n", 1)[0].removeprefix("## Step ") for part in sections]
    kept = [
        part
        for part, title in zip(sections, titles, strict=True)
        if title.isdigit() and int(title) <= step
    ]
    return "".join([head, *kept]).rstrip("\n") + "\n"


class PublishCheckpoints(TrainerCallback):
    """Publish each saved checkpoint as a branch; only added on the main process."""

    def __init__(
        self,
        target: RunRepository,
        clock_stopped: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.target = target
        self.clock_stopped = clock_stopped

    def on_save(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Publish the newest checkpoint, and those whose upload failed before."""
        run_dir, step = Path(str(args.output_dir)), state.global_step
        checkpoint = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        with self.clock_stopped():
            publish.publish_checkpoint(checkpoint, run_dir, self.target, step)


class ConsoleLog(TrainerCallback):
    """Print one line per log entry, on the main process only; on a terminal, one live line.

    With `live` the loss is shown in the line of a progress bar, with the rate and the time left,
    and only evaluations are printed.
    """

    def __init__(self, live: bool = False) -> None:
        self.live = live
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the live line."""
        if self.live and state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit=" steps",
                desc="training",
                dynamic_ncols=True,
            )

    def on_step_end(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance the live line."""
        if self.bar is not None:
            self.bar.update()

    def on_train_end(
        self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the live line as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_log(
        self,
        args: TrainerArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Print the metrics in this log entry."""
        if not state.is_world_process_zero:
            return
        if self.bar is None:
            line = "  ".join([_step_of(state), *_metrics_of(state, logs)])
            if line != _step_of(state):
                print(line, flush=True)
            return
        if "loss" in logs:
            shown = [part for part in _metrics_of(state, logs) if part.startswith("loss")]
            if "tokens_per_second" in logs:
                shown.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
            self.bar.set_postfix_str(", ".join(shown))
        elif metrics := _metrics_of(state, logs):
            self.bar.write("  ".join([_step_of(state), *metrics]))


def _step_of(state: TrainerState) -> str:
    return f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"


def _metrics_of(state: TrainerState, logs: dict[str, float]) -> list[str]:
    """Return the parts of a line about the metrics in a log entry, [] if none are shown."""
    parts = []
    if "loss" in logs:
        parts += [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
    if "eval_loss" in logs:
        parts.append(f"validation loss {logs['eval_loss']:.4f}")
    if "tokens_seen" in logs:
        parts.append(f"{logs['tokens_seen'] / 1e6:,.1f}M tokens")
    if "tokens_per_second" in logs:
        left = state.max_steps - state.global_step
        seconds = left * logs["seconds_per_step"]
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{timedelta(seconds=round(seconds))} left")
    return parts
