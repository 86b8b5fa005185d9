"""The command line of scripts/evaluate.py."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from tinystories_hf.config.arguments import DEFAULT_CONFIG
from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.config.flags import StrictParser
from tinystories_hf.config.parsing import (
    Setting,
    build_dataclass,
    merge_settings,
    option,
)
from tinystories_hf.config.yaml_files import yaml_layers
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.run_record import RUN_RECORD

SUITES = ("loss", "cloze", "stories", "memorization", "judge")
NEEDS_INDEX = {"stories", "memorization"}
# Settings that only matter for training: a model is evaluated with its own tokenizer and context.
TRAINING_ONLY = (
    *("tokenizer", "tokenizer_revision", "tokenizer_vocab_sha256", "tokenizer_merges_sha256"),
    *("eos_token", "context_length"),
)


@dataclass(frozen=True)
class EvaluationArguments:
    """What to evaluate, with which suites, and where to write the results."""

    model: list[str] = option("run directories, model folders or names on the Hub", [])
    revision: str | None = option("commit, tag or branch on the Hub; for a single model", None)
    suite: str | None = option(
        f"{', '.join(SUITES)} (several separated by commas), or all; null: all but judge, and judge"
        " too if --judge_model is given",
        None,
    )
    results: list[str] = option(
        "eval_results.json files to compare in one report; evaluates nothing", []
    )
    output_dir: str | None = option(
        "output folder, with a subfolder for each of several models; null: a run directory itself,"
        " and evaluations/ for other models",
        None,
    )
    context_length: int | None = option(
        "context length in tokens; null: that of the training run, for other models 512 or their"
        " maximum",
        None,
    )
    batch_size: int | None = option("windows per forward pass; null: 64 on a GPU, else 16", None)
    prompts: str | None = option(
        "YAML list of story prompts; null: the authors' 44, published with the dataset", None
    )
    seed: int = option("seed for the generated stories and the choice of training stories", 42)
    judge_model: list[str] = option(
        "models that grade the stories: names at an endpoint, or model folders", []
    )
    judge_base_url: str | None = option(
        "OpenAI-compatible endpoint, with its key in JUDGE_API_KEY; null: the Hub's inference"
        " providers",
        None,
    )
    judge_concurrency: int = option("stories graded in parallel", 4)
    judge_confirm: bool = option("start requests that may cost money", False)
    judge_price_in: float | None = option(
        "dollars per million input tokens, for the cost estimate", None
    )
    judge_price_out: float | None = option(
        "dollars per million output tokens, for the cost estimate", None
    )

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.results):
            raise UserError("give --model, such as --model runs/xs, or --results, not both")
        if self.revision is not None and len(self.model) != 1:
            raise UserError("revision: only valid for a single model; give one with --model")
        for name in ("batch_size", "judge_concurrency", "context_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        if self.judge_base_url and "@" in self.judge_base_url.partition("://")[2].split("/")[0]:
            raise UserError("judge_base_url: must not contain the key; set JUDGE_API_KEY instead")
        suites = self.suites  # raises for an unknown suite
        if "judge" in suites and not self.judge_model:
            raise UserError("suite: judge needs a model that grades; name one with --judge_model")

    @property
    def suites(self) -> tuple[str, ...]:
        """Return the requested suites, in the order in which they run.

        Raises:
            UserError: there is an unknown suite.
        """
        if self.suite is None:
            return SUITES if self.judge_model else SUITES[:-1]
        wanted = SUITES if self.suite == "all" else tuple(self.suite.split(","))
        unknown = set(wanted) - set(SUITES)
        if unknown:
            raise UserError(
                f"suite: unknown {', '.join(sorted(unknown))}; the suites are {', '.join(SUITES)},"
                " or all"
            )
        return tuple(suite for suite in SUITES if suite in wanted)


class EvaluationRequest(NamedTuple):
    """The parsed command line of scripts/evaluate.py."""

    evaluation: EvaluationArguments
    data: DataArguments


def parse_evaluation_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> EvaluationRequest:
    """Parse the command line; without `--dataset`, models are evaluated on the data of the runs.

    Raises:
        UserError: a flag or suite is unknown, no model is given, or the runs were trained on
            different data.
    """
    parser = StrictParser(description)
    parser.add_dataclass("evaluation (default in brackets)", EvaluationArguments)
    parser.add_dataclass(
        "data (default: as recorded by the run, otherwise as in configs/xs.yaml)",
        DataArguments,
        shown={"dataset": Setting(None, "default")},  # not required here
        leave_out=TRAINING_ONLY,
    )
    flags = parser.parse_layer(argv)
    own = {declared.name for declared in fields(EvaluationArguments)}
    evaluation = build_dataclass(
        EvaluationArguments, {key: value for key, value in flags.items() if key in own}
    )
    named = {key: value for key, value in flags.items() if key not in own}
    data = _evaluation_data(evaluation.model, named)
    if data.streaming and NEEDS_INDEX & set(evaluation.suites):
        raise UserError(
            "suite: stories and memorization need an index of the complete training split, which"
            " was streamed; use --suite loss,cloze, or build the index with --streaming false"
        )
    return EvaluationRequest(evaluation, data)


def _evaluation_data(models: Sequence[str], named: dict[str, Setting]) -> DataArguments:
    """Return the data that all models are evaluated on."""
    known = {declared.name: declared for declared in fields(DataArguments)}
    records = [(name, _recorded(Path(name))) for name in models]
    recorded = [(name, settings) for name, settings in records if settings is not None]
    if recorded and "dataset" not in named:
        first, base = recorded[0]
        for name, other in recorded[1:]:
            if _comparable(other) != _comparable(base):
                raise UserError(
                    f"{first} and {name} were trained on different data; choose the data to"
                    " evaluate both on with --dataset"
                )
        _require_dataset(Path(first), base)
        if not Path(base["prepared_dir"] or "").is_dir():  # recorded on another machine
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


def _require_dataset(run: Path, settings: Mapping[str, Any]) -> None:
    """Raise a `UserError` if a run was trained on local files that do not exist here.

    The recorded path of a run that was moved, or is evaluated from another folder, may be invalid.
    """
    source = json.loads((run / RUN_RECORD).read_text(encoding="utf-8"))["dataset"]["train"][
        "source"
    ]
    names = [settings["dataset"], *settings.get("other_datasets", [])]
    for name, part in zip(names, source.get("mixture", [source]), strict=True):
        exists = Path(name).exists() or glob.glob(name, recursive=True)  # noqa: PTH207
        if not exists and not {"hub", "toy"} & part.keys():
            raise UserError(
                f"dataset: {run / RUN_RECORD} records the dataset {name}, which does not exist;"
                " give its path with --dataset"
            )


def _recorded(folder: Path) -> dict[str, Any] | None:
    """Return the data settings of a run directory, None if it is not a run directory."""
    try:
        with reporting_unreadable("model", folder / RUN_RECORD):
            if not (folder / RUN_RECORD).exists():
                return None
            record = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
        settings: dict[str, Any] = record["configuration"]["data"]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RUN_RECORD} is not a valid run record: {error}") from None
    return settings


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine which stories a run was trained on."""
    apart = (*TRAINING_ONLY, "prepared_dir", "streaming", "shuffle_buffer")
    # Runs of earlier versions do not record settings that were added later.
    defaults = {f.name: f.default for f in fields(DataArguments) if f.default is not MISSING}
    return {key: value for key, value in {**defaults, **settings}.items() if key not in apart}
