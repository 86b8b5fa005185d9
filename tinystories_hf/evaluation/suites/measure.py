"""Runs a suite and returns its section of `eval_results.json`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core import environment
from tinystories_hf.core.device import device_type, evaluation_batch
from tinystories_hf.core.files import file_sha256
from tinystories_hf.data import cleaning
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.evaluation.arguments import EvaluationArguments
from tinystories_hf.evaluation.subject import EvaluatedModel
from tinystories_hf.evaluation.suites.cloze import ITEMS, measure_cloze
from tinystories_hf.evaluation.suites.judge import JudgeArguments, measure_judge
from tinystories_hf.evaluation.suites.loss import split_loss
from tinystories_hf.evaluation.suites.memorization import measure_memorization
from tinystories_hf.evaluation.suites.stories import (
    Prompts,
    load_prompts,
    measure_stories,
    story_records,
)
from tinystories_hf.evaluation.suites.training_index import load_training_index
from tinystories_hf.evaluation.validation import prepared_validation, read_validation

Section = dict[str, Any]


@dataclass(frozen=True)
class SuiteTask:
    """The model to evaluate, the data, and the folder of the results.

    `prepared` is given at the end of a training run, so that the validation split is not read again
    from the Hub or from files that may have been removed.
    """

    subject: EvaluatedModel
    data: DataArguments
    arguments: EvaluationArguments
    folder: Path
    prepared: PreparedData | None = None

    def sources(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what identifies the stories of the training and the validation split."""
        if self.prepared is not None:
            manifest = self.prepared.manifest
            return manifest.train.source, manifest.validation.source
        corpus = open_corpus(self.data)
        return corpus.train.identity, corpus.validation.identity


def suite_settings(suite: str, task: SuiteTask) -> Section:
    """Return the settings that determine the results, besides the model and the code."""
    context = task.subject.context_length
    if suite == "cloze":
        return {"context_length": context, "items_sha256": file_sha256(ITEMS)}
    training, validation = task.sources()
    if task.data.streaming:  # validation stories are not searched in the training split
        training = {**training, "streaming": True}
    text = {"cleaning": cleaning.options(task.data), "training": training}
    settings: Section = {"context_length": context, **text}
    if suite == "loss":
        return {**settings, "validation": validation}
    settings["seed"] = task.arguments.seed
    if suite in ("stories", "judge"):
        settings["prompts_sha256"] = _prompts(task).sha256
    if suite == "judge":
        settings["judges"] = [environment.portable(name) for name in task.arguments.judge_model]
        settings["base_url"] = task.arguments.judge_base_url
    return settings


def measure_suite(suite: str, task: SuiteTask, *, quiet: bool = False) -> Section:
    """Run one suite and return its section; `made` has its settings, versions and seconds."""
    made = environment.describe_environment(device_type())
    made["settings"] = suite_settings(suite, task)
    suites: dict[str, Callable[[SuiteTask, bool], Section]] = {
        "loss": _loss,
        "cloze": _cloze,
        "stories": _stories,
        "memorization": _memorization,
        "judge": _judge,
    }
    start = time.perf_counter()
    section = suites[suite](task, quiet)
    made["seconds"] = round(time.perf_counter() - start, 1)
    return {"made": made, **section}


def _loss(task: SuiteTask, quiet: bool) -> Section:
    subject, prepared = task.subject, task.prepared
    validation = read_validation(task.data) if prepared is None else prepared_validation(prepared)
    found = split_loss(
        subject.model,
        subject.tokenizer,
        validation,
        context_length=subject.context_length,
        batch_size=evaluation_batch(task.arguments.batch_size, on_cpu=16),
        scratch=task.folder / f".losses-{subject.facts.weights_sha256[:16]}",
        quiet=quiet,
    )
    dataset = {
        "name": str(environment.portable(task.data.dataset)),
        "source": validation.source,
        "cleaning": validation.cleaning,
    }
    return {"dataset": dataset, **asdict(found)}


def _cloze(task: SuiteTask, quiet: bool) -> Section:
    subject = task.subject
    return measure_cloze(
        subject.model,
        subject.tokenizer,
        subject.context_length,
        evaluation_batch(task.arguments.batch_size, on_cpu=16),
        quiet=quiet,
    )


def _stories(task: SuiteTask, quiet: bool) -> Section:
    index = load_training_index(task.data, quiet=quiet)
    seed = task.arguments.seed
    return measure_stories(task.subject, _prompts(task), index, task.folder, seed=seed, quiet=quiet)


def _memorization(task: SuiteTask, quiet: bool) -> Section:
    index = load_training_index(task.data, quiet=quiet)
    return measure_memorization(
        task.subject, task.data, index, task.folder, seed=task.arguments.seed, quiet=quiet
    )


def _judge(task: SuiteTask, quiet: bool) -> Section:
    """Grade the stories of the stories suite, and generate those that are missing."""
    arguments, prompts = task.arguments, _prompts(task)
    stories = story_records(task.subject, prompts, task.folder, seed=arguments.seed, quiet=quiet)
    judge = JudgeArguments(
        models=tuple(arguments.judge_model),
        base_url=arguments.judge_base_url,
        concurrency=arguments.judge_concurrency,
        confirmed=arguments.judge_confirm,
        price_in=arguments.judge_price_in,
        price_out=arguments.judge_price_out,
    )
    return measure_judge(
        stories.records, judge, task.folder, made_with=stories.made_with, quiet=quiet
    )


def _prompts(task: SuiteTask) -> Prompts:
    return _load_prompts_once(task.data, task.arguments.prompts)


@functools.cache
def _load_prompts_once(data: DataArguments, path: str | None) -> Prompts:
    return load_prompts(data, None if path is None else Path(path))
