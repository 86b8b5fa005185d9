"""The parts of a benchmark; each returns what it measured as plain numbers for the JSON."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, default_data_collator

from tinystories_hf.benchmark.counting import MOVED_BYTES, operations_per_token
from tinystories_hf.benchmark.implementations import (
    GPT2,
    OURS,
    PRECISIONS,
    STOCK,
    Case,
    build_implementation,
    evaluation_step,
    generate_with_stock,
    prepare_stock,
    training_step,
)
from tinystories_hf.benchmark.measure import (
    Rate,
    Work,
    in_turn,
    matrix_rate,
    memory_bandwidth,
    peak_memory,
    rate_of,
    wait_for_device,
)
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.manifest import PreparedData, token_stream
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.data.training_rows import PreparedRows, collate_rows, training_rows
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import continue_prompts
from tinystories_hf.model.modeling import story_generation_config
from tinystories_hf.training.batch import plan_batch
from tinystories_hf.training.train import build_trainer
from tinystories_hf.training.trainer_arguments import build_trainer_arguments

_Numbers = dict[str, Any]
COMPARED_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Bench:
    """What is measured: a configuration, its rows, and how often."""

    arguments: Arguments
    prepared: PreparedData
    rows: int
    rounds: int

    @property
    def shape(self) -> ModelArguments:
        """The shape of the model."""
        return self.arguments.model

    @property
    def context(self) -> int:
        """Tokens in a row."""
        return self.arguments.data.context_length

    def first_rows(self) -> torch.Tensor:
        """Return as many training rows as a step has, (rows, context)."""
        rows = PreparedRows(self.prepared)
        return collate_rows([rows[row] for row in range(self.rows)])["input_ids"]

    def cases(self) -> list[Case]:
        """Return both precisions, without dropout, without attention dropout, with all of it."""
        return [
            Case(precision, attention, other, self.rows)
            for precision in COMPARED_PRECISIONS
            for attention, other in ((0.0, 0.0), (0.0, 0.1), (0.1, 0.1))
        ]


def training_steps(bench: Bench) -> list[_Numbers]:
    """Time one optimizer step of each contender in each case."""
    found, rows = [], bench.first_rows()
    for case in bench.cases():
        steps = {
            name: training_step(name, bench.shape, bench.arguments.training, case, rows)
            for name in (STOCK, OURS, GPT2)
        }
        found.append(_compare("step", case, steps, bench.rounds))
    return found


def memory_use(bench: Bench) -> list[_Numbers]:
    """Return the peak of a process that makes two steps with all dropouts, of each contender."""
    found, rows = [], bench.first_rows()
    for precision in COMPARED_PRECISIONS:
        case = Case(precision, 0.1, 0.1, bench.rows)
        arguments = (bench.shape, bench.arguments.training, case, rows)
        peaks = {name: peak_memory(_two_steps, name, *arguments) for name in (STOCK, OURS, GPT2)}
        found.append({**asdict(case), **peaks})
        said = ", ".join(f"{name} {peak / 2**20:,.0f}" for name, peak in peaks.items())
        print(f"{'memory':16} {case}: {said} MiB", flush=True)
    return found


def _two_steps(name: str, *arguments: Any) -> None:
    step = training_step(name, *arguments)
    step()
    step()


def end_to_end(bench: Bench, steps: int = 12) -> _Numbers:
    """Compare the Trainer with a bare loop of the same step, and with the stock Trainer."""
    training = replace(
        bench.arguments.training,
        global_batch_size=bench.rows,
        per_device_train_batch_size=bench.rows,
        max_steps=steps,
        bf16=False,
        logging_steps=10,
        eval_steps=1e9,
        save_steps=1e9,
        max_eval_rows=1,
    )
    arguments = bench.arguments._replace(training=training)
    case = Case("fp32", bench.shape.attention_dropout, bench.shape.resid_dropout, bench.rows)
    step = training_step(OURS, bench.shape, training, case, bench.first_rows())
    runs = {
        "bare loop": partial(rate_of, lambda: sum(step() for _ in range(steps - 1))),
        OURS: partial(_trainer_rate, arguments, bench.prepared, case, OURS),
        STOCK: partial(_trainer_rate, _with_steps(arguments, 3), bench.prepared, case, STOCK),
    }
    return _numbers("trainer", case, in_turn(runs, bench.rounds))


def _with_steps(arguments: Arguments, steps: int) -> Arguments:
    return arguments._replace(training=replace(arguments.training, max_steps=steps))


class _Stopwatch(TrainerCallback):
    """Measures the time from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the time when the step is complete."""
        wait_for_device()
        self.times.append(time.perf_counter())


def _trainer_rate(arguments: Arguments, prepared: PreparedData, case: Case, name: str) -> float:
    """Return the tokens per second of a Trainer run, without its first step."""
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        training = replace(arguments.training, output_dir=folder)
        plan = plan_batch(training, 1)
        settings = build_trainer_arguments(training, plan)
        model = build_implementation(name, arguments.model, case)
        if name == STOCK:
            trainer = Trainer(
                model,
                settings,
                train_dataset=prepared.train,
                eval_dataset=prepared.validation,
                data_collator=_collate_as_run_clm,
            )
        else:
            ours = arguments._replace(training=training)
            rows = training_rows(prepared, ours.data, settings.data_seed)
            trainer = build_trainer(ours, plan, settings, prepared, rows, model)
        trainer.add_callback(watch)
        trainer.train()
    steps = len(watch.times) - 1
    return steps * case.rows * prepared.manifest.context_length / (watch.times[-1] - watch.times[0])


def _collate_as_run_clm(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    labelled = [{**row, "labels": row["input_ids"]} for row in rows]
    return dict(default_data_collator(labelled))


def evaluation_rates(bench: Bench) -> _Numbers:
    """Time the loss of rows without gradients, in fp32 like all published losses."""
    case = Case("fp32", 0.0, 0.0, bench.rows)
    steps = {
        name: evaluation_step(name, bench.shape, case, bench.context)
        for name in (STOCK, OURS, GPT2)
    }
    return _compare("evaluation", case, steps, bench.rounds)


def preparation_rates(bench: Bench, tokens: int = 20_000_000) -> _Numbers:
    """Time the preparation of a text file, from scratch, with the training stories repeated."""
    data, context = bench.arguments.data, bench.context
    counts = bench.prepared.manifest.split("train")
    with tempfile.TemporaryDirectory() as folder:
        text, told = Path(folder, "stories.txt"), 0
        with text.open("w", encoding="utf-8") as stream:
            while told < tokens:
                for story in open_corpus(data).train.read():
                    if story is not None:
                        stream.write(f"{story}\n{END_OF_TEXT}\n")
                told += counts.tokens_in
        alone = replace(data, dataset=str(text), train_file=None, validation_file=None,
                        dataset_revision=None, story_separator=END_OF_TEXT)  # fmt: skip

        def ours() -> int:
            with tempfile.TemporaryDirectory(dir=folder) as rows:
                fresh = replace(alone, prepared_dir=rows)
                made = prepare(fresh, bench.shape.vocab_size, quiet=True).manifest
            return made.split("train").tokens_out + made.validation.tokens_out

        def stock() -> int:
            with tempfile.TemporaryDirectory(dir=folder) as rows:
                return prepare_stock(text, bench.prepared.path / "tokenizer", context, Path(rows))

        case = Case("fp32", 0.0, 0.0, told // context)
        rates = _compare("preparation", case, {STOCK: stock, OURS: ours}, bench.rounds)
    return {**rates, "tokens": told}


def generation_rates(bench: Bench, *, prompts: int = 44, completions: int = 10) -> _Numbers:
    """Time stories of up to 200 tokens at temperature 1, prompted by validation stories.

    This package generates all of them, `pipeline` one for each of the first 8 prompts. The weights
    are random, so no story ends early, and all have the same number of tokens.
    """
    context, case = bench.context, Case("fp32", 0.0, 0.0, 1)
    longest = min(200, context // 2)
    stream = token_stream(bench.prepared, "validation").astype(int)
    lengths = [6 + (5 * story) % 24 for story in range(prompts)]
    beginnings = [
        stream[story * 50 : story * 50 + length].tolist() for story, length in enumerate(lengths)
    ]
    models = {name: build_implementation(name, bench.shape, case).eval() for name in (STOCK, OURS)}
    for model in models.values():
        model.generation_config = story_generation_config(bench.prepared.tokenizer, context)
    settings = GenerationArguments(max_new_tokens=longest)

    @torch.inference_mode()
    def ours() -> int:
        asked = [ids for ids in beginnings for _ in range(completions)]
        told = continue_prompts(models[OURS], asked, settings, context)
        return sum(map(len, told))

    stock = partial(
        generate_with_stock, models[STOCK], bench.prepared.tokenizer, beginnings[:8], longest
    )
    rates = _compare("generation", case, {STOCK: stock, OURS: ours}, bench.rounds)
    return {**rates, "stories": prompts * completions, "max_new_tokens": longest}


def growth(bench: Bench) -> list[_Numbers]:
    """Time a step over batch, context, hidden size and vocabulary, the others as they are.

    Transformers' model up to 4,096 tokens a step; each context with the same tokens per step.
    """
    tokens = bench.rows * bench.context
    plans: list[tuple[str, int, ModelArguments, int, int]] = [
        *(("batch", rows, bench.shape, rows, bench.context) for rows in (1, 2, 4, 8, 16, 32)),
        *(
            ("context", context, replace(bench.shape, max_position_embeddings=context),
             max(1, tokens // context), context)
            for context in (128, 256, 512, 1024)
        ),
        *(
            ("hidden size", hidden, replace(bench.shape, hidden_size=hidden), bench.rows,
             bench.context)
            for hidden in (64, 128, 256, 512)
        ),
        *(
            ("vocabulary", size, replace(bench.shape, vocab_size=size), bench.rows, bench.context)
            for size in (1_000, 10_000, 50_257)
        ),
    ]  # fmt: skip
    found = []
    for axis, value, shape, rows, context in plans:
        case = Case("fp32", shape.attention_dropout, shape.resid_dropout, rows)
        drawn = torch.randint(shape.vocab_size, (rows, context))
        names = (STOCK, OURS) if rows * context <= 4096 and context <= 512 else (OURS,)
        steps = {
            name: training_step(name, shape, bench.arguments.training, case, drawn)
            for name in names
        }
        found.append(
            {"axis": axis, "value": value, "context": context,
             **_compare(f"{axis} {value}", case, steps, bench.rounds)}
        )  # fmt: skip
    return found


def roofline(bench: Bench, steps: list[_Numbers]) -> list[_Numbers]:
    """Compare this package's steps with the limits of this machine.

    A step takes at least the time of its matrix operations at the measured rate, and at least the
    time of moving its weights, gradients and optimizer states at the measured bandwidth.
    """
    bandwidth = memory_bandwidth()
    operations = operations_per_token(bench.shape, bench.context)
    parameters = sum(
        p.numel() for p in build_implementation(OURS, bench.shape, bench.cases()[0]).parameters()
    )
    found = []
    for precision, dtype in PRECISIONS.items():
        rate = matrix_rate(dtype)
        step = next(
            s for s in steps if s["precision"] == precision and s["attention_dropout"] == 0
            and s["other_dropout"] > 0
        )  # fmt: skip
        tokens = bench.rows * bench.context
        moved = parameters * MOVED_BYTES
        least = max(operations * tokens / rate, moved / bandwidth)
        found.append(
            {
                "precision": precision,
                "operations_per_second": rate,
                "bytes_per_second": bandwidth,
                "operations_per_token": operations,
                "bytes_per_step": moved,
                "least_seconds": least,
                "seconds": tokens / step[OURS]["median"],
                "share": least / (tokens / step[OURS]["median"]),
            }
        )
        print(f"roofline    {found[-1]}", flush=True)
    return found


def _compare(what: str, case: Case, works: Mapping[str, Work], rounds: int) -> _Numbers:
    runs = {name: partial(rate_of, work) for name, work in works.items()}
    return _numbers(what, case, in_turn(runs, rounds))


def _numbers(what: str, case: Case, rates: Mapping[str, Rate]) -> _Numbers:
    """Return the rates of a comparison as numbers, and print them."""
    said = ", ".join(f"{name} {rate.median:,.0f}" for name, rate in rates.items())
    print(f"{what:16} {case}: {said} tokens/s", flush=True)
    return {**asdict(case), **{name: asdict(rate) for name, rate in rates.items()}}
