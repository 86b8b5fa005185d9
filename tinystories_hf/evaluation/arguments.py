"""The command line of scripts/evaluate.py."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from tinystories_hf.config.arguments import DEFAULT_CONFIG, DataArguments
from tinystories_hf.config.parsing import (
    Setting,
    StrictParser,
    build_dataclass,
    merge_settings,
    option,
)
from tinystories_hf.config.yaml_files import yaml_layers
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.run_record import RUN_RECORD

SUITES = ("loss", "cloze", "stories", "memorization", "judge")
INDEXED = {"stories", "memorization"}
# How stories become rows is a matter of training; here a model's own tokenizer reads them.
OF_ROWS = (
    *("tokenizer", "tokenizer_revision", "tokenizer_vocab_sha256", "tokenizer_merges_sha256"),
    *("eos_token", "context_length"),
)


@dataclass(frozen=True)
class EvaluationArguments:
    """What is measured, of which models, and where it goes."""

    model: list[str] = option("run directories, folders or names on the Hub", [])
    revision: str | None = option("commit, tag or branch on the Hub, of a single model", None)
    suite: str | None = option(
        f"{', '.join(SUITES)}, several by comma, or all; null is all that needs no --judge_model",
        None,
    )
    results: list[str] = option(
        "eval_results.json files: make the report of what was measured, measure nothing", []
    )
    output_dir: str | None = option(
        "where the results go, a folder for each model; null is the run directory itself, and"
        " evaluations/ for a model that is none",
        None,
    )
    context_length: int | None = option(
        "tokens that a model reads at once; null is what it was trained on, 512 where it does not"
        " say",
        None,
    )
    batch_size: int = option("windows read at once", 16)
    prompts: str | None = option(
        "YAML list of story beginnings; null is the authors', beside the dataset", None
    )
    seed: int = option("seed of the stories told", 42)
    judge_model: list[str] = option("models behind an endpoint, or folders, that grade", [])
    judge_base_url: str | None = option(
        "endpoint that speaks OpenAI's protocol, its key in JUDGE_API_KEY; null is the Hub's"
        " inference providers",
        None,
    )
    judge_concurrency: int = option("stories graded at once", 4)
    judge_confirm: bool = option("start what has to be paid for", False)
    judge_price_in: float | None = option("dollars for a million tokens asked", None)
    judge_price_out: float | None = option("dollars for a million tokens answered", None)

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.results):
            raise UserError("give --model, such as --model runs/xs, or --results to compare")
        if self.revision is not None and len(self.model) != 1:
            raise UserError("revision: belongs to a single model; name one with --model")
        for name in ("batch_size", "judge_concurrency", "context_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        if self.judge_base_url and "@" in self.judge_base_url.partition("://")[2].split("/")[0]:
            raise UserError("judge_base_url: leave the key out; it is read from JUDGE_API_KEY")
        suites = self.suites  # an unknown one is told here
        if "judge" in suites and not self.judge_model:
            raise UserError("suite: judge needs somebody who grades; name one with --judge_model")

    @property
    def suites(self) -> tuple[str, ...]:
        """Return the suites asked for, in their order.

        Raises:
            UserError: one is not known.
        """
        if self.suite is None:
            return SUITES if self.judge_model else SUITES[:-1]
        wanted = SUITES if self.suite == "all" else tuple(self.suite.split(","))
        unknown = set(wanted) - set(SUITES)
        if unknown:
            raise UserError(
                f"suite: {', '.join(sorted(unknown))}; known are {', '.join(SUITES)}, and all"
            )
        return tuple(suite for suite in SUITES if suite in wanted)


class EvaluationRequest(NamedTuple):
    """What scripts/evaluate.py is asked for."""

    evaluation: EvaluationArguments
    data: DataArguments


def parse_evaluation_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> EvaluationRequest:
    """Read the command line; the text is the runs' own unless flags name another.

    Raises:
        UserError: an unknown flag or suite, no model, or runs that were trained on different text.
    """
    parser = StrictParser(description)
    title = "(default in brackets)"
    parser.add_dataclass(f"evaluation {title}", EvaluationArguments)
    parser.add_dataclass(
        "text (without a flag: as recorded in the run, else as in configs/xs.yaml)",
        DataArguments,
        leave_out=OF_ROWS,
    )
    flags = parser.parse_layer(argv)
    own = {declared.name for declared in fields(EvaluationArguments)}
    evaluation = build_dataclass(
        EvaluationArguments, {key: value for key, value in flags.items() if key in own}
    )
    named = {key: value for key, value in flags.items() if key not in own}
    data = _text(evaluation.model, named)
    if data.streaming and INDEXED & set(evaluation.suites):
        raise UserError(
            "suite: stories and memorization look up in an index of all training text, which was"
            " streamed; measure --suite loss,cloze or have it made by --streaming false --suite"
            " stories,memorization"
        )
    return EvaluationRequest(evaluation, data)


def _text(models: Sequence[str], named: dict[str, Setting]) -> DataArguments:
    """Return the text that all models are measured on."""
    known = {declared.name: declared for declared in fields(DataArguments)}
    records = [(name, _recorded(Path(name))) for name in models]
    recorded = [(name, settings) for name, settings in records if settings is not None]
    if recorded and "dataset" not in named:
        first, base = recorded[0]
        for name, other in recorded[1:]:
            if _of_the_text(other) != _of_the_text(base):
                raise UserError(
                    f"{first} and {name} were trained on different text; name the one to measure"
                    " on with --dataset"
                )
        _require_text(Path(first), base)
        if not Path(base["prepared_dir"] or "").is_dir():  # a name of another folder or machine
            base = {**base, "prepared_dir": None}
        settings = {
            key: Setting(value, f"{first}/{RUN_RECORD}: {key}") for key, value in base.items()
        }
        layers = [settings]
    else:
        layers = [
            {key: value for key, value in layer.items() if key in known}
            for layer in yaml_layers(DEFAULT_CONFIG)
        ]
    return build_dataclass(DataArguments, merge_settings([*layers, named], known))


def _require_text(run: Path, settings: Mapping[str, Any]) -> None:
    """Raise a `UserError` where the text that a run records is files that are not here.

    A run that was moved, or is evaluated from another folder, records a path that leads nowhere.
    """
    source = json.loads((run / RUN_RECORD).read_text(encoding="utf-8"))["dataset"]["train"][
        "source"
    ]
    name = settings["dataset"]
    there = Path(name).exists() or glob.glob(name, recursive=True)  # noqa: PTH207
    if not there and not {"hub", "toy"} & source.keys():
        raise UserError(
            f"dataset: {run / RUN_RECORD} names the text {name}, which is not there; name it with"
            " --dataset"
        )


def _recorded(folder: Path) -> dict[str, Any] | None:
    """Return the data settings of a run directory, None where it is none."""
    try:
        with reporting_unreadable("model", folder / RUN_RECORD):
            if not (folder / RUN_RECORD).exists():
                return None
            record = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
        settings: dict[str, Any] = record["configuration"]["data"]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RUN_RECORD} is not a record of a run: {error}") from None
    return settings


def _of_the_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    apart = (*OF_ROWS, "prepared_dir", "streaming", "shuffle_buffer")
    # A run of an earlier version has no record of a setting that came later.
    later = {f.name: f.default for f in fields(DataArguments) if f.default is not MISSING}
    return {key: value for key, value in {**later, **settings}.items() if key not in apart}
