"""The command line of scripts/study.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinystories_hf.config.flags import StrictParser
from tinystories_hf.config.parsing import build_dataclass, option
from tinystories_hf.core.errors import UserError


@dataclass(frozen=True)
class StudyArguments:
    """Which study, and what to do with it."""

    study: str = option("YAML file of the study")
    output_dir: str | None = option(
        "folder for the runs and results; null: studies/ and the name of the file", None
    )
    only: int | None = option("run the cell of this number alone, without the results", None)
    collect: bool = option("write the results of the finished cells, and run nothing", False)
    max_hours: float | None = option("stop after so many hours; the same command goes on", None)
    accelerate_config: str | None = option(
        "configuration file of accelerate; null: one process, on a GPU if there is one", None
    )
    settings: list[str] = option(
        "changes of settings for all cells, such as dataset=stories/ or bf16=false", []
    )
    compare: list[str] = option("study.csv files of other studies, drawn into the figures", [])

    def __post_init__(self) -> None:
        if self.collect and self.only is not None:
            raise UserError("give one of --only and --collect")
        if self.max_hours is not None and self.max_hours <= 0:
            raise UserError(f"max_hours must be positive, got {self.max_hours}")


class StudyRequest(NamedTuple):
    """The request of scripts/study.py; `lists` asks for the cells alone."""

    arguments: StudyArguments
    lists: bool


def parse_study_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> StudyRequest:
    """Read the command line of scripts/study.py.

    Raises:
        UserError: an unknown flag, no study, or flags that contradict each other.
    """
    parser = StrictParser(description)
    parser.add_argument(
        "--list", action="store_true", help="print the cells with their numbers, and run nothing"
    )
    parser.add_dataclass("study (defaults in brackets)", StudyArguments)
    flags = parser.parse_layer(argv)
    lists = flags.pop("list", None) is not None
    return StudyRequest(build_dataclass(StudyArguments, flags), lists)
