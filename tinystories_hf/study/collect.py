"""The results of a study's finished cells, as rows of `study.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import write_text
from tinystories_hf.core.run_record import EVAL_RESULTS, RUN_RECORD, TRAIN_RESULTS, read_record
from tinystories_hf.evaluation.results import read_results
from tinystories_hf.model.flops import model_size, training_flops_per_token
from tinystories_hf.study.cells import BUDGETS, Cell, Study, cell_arguments

STUDY_CSV = "study.csv"
# The training loss of a run is the mean over this last part of its steps.
LAST_PART = 0.1


@dataclass(frozen=True)
class CellResult:
    """The result of one cell. Losses are in nats per token; None where a suite was not run.

    `budget` is what decided the length, such as `flops 1e+12`. `flops` counts the matrix products
    of all steps. `rate_by_law`: the learning rate was predicted by the sweep. `cloze`
    is the mean share of right answers over the families, the grades are those of the first judge.
    """

    cell: int
    name: str
    is_sweep: bool
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    context_length: int
    train_share: float
    seed: int
    learning_rate: float
    rate_by_law: bool
    budget: str
    steps: int
    tokens: int
    flops: float
    parameters: int
    embedding_parameters: int
    position_parameters: int
    block_parameters: int
    train_loss: float | None
    validation_loss: float
    bits_per_byte: float
    bits_per_byte_low: float | None
    bits_per_byte_high: float | None
    cloze: float | None = None
    story_words: float | None = None
    stories_ended: float | None = None
    grammar: float | None = None
    creativity: float | None = None
    consistency: float | None = None


@dataclass(frozen=True)
class Curve:
    """The losses of a run over its steps, from the Trainer's log: (step, loss) pairs."""

    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Return the run directory of a cell."""
    return folder / "runs" / cell.name


def is_cell_finished(folder: Path) -> bool:
    """Return whether the run of a cell is finished."""
    if not (folder / RUN_RECORD).is_file() or not (folder / EVAL_RESULTS).is_file():
        return False
    return read_record(folder).sessions[-1].status == "finished"


def read_row(study: Study, number: int, cell: Cell, folder: Path) -> CellResult:
    """Return the row of a finished cell.

    Raises:
        UserError: the folder holds the run of other settings.
    """
    record, results = read_record(folder), read_results(folder / EVAL_RESULTS)
    rate = record.configuration["training"]["learning_rate"]
    arguments = cell_arguments(study, cell, rate)
    _check_same(cell, record.configuration, folder)
    shape, context = arguments.model, arguments.data.context_length
    trained = json.loads((folder / TRAIN_RESULTS).read_text(encoding="utf-8"))
    size, loss = model_size(shape), results["loss"]["packed"]
    low, high = loss["bits_per_byte_interval"] or (None, None)
    return CellResult(
        cell=number,
        name=cell.name,
        is_sweep=cell.is_sweep,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        vocab_size=shape.vocab_size,
        context_length=context,
        train_share=arguments.data.train_share,
        seed=arguments.training.seed,
        learning_rate=rate,
        rate_by_law=cell.by_law,
        budget=_budget(cell, arguments),
        steps=trained["steps"],
        tokens=trained["tokens_seen"],
        flops=float(trained["tokens_seen"] * training_flops_per_token(shape, context)),
        parameters=size.total,
        embedding_parameters=size.embedding,
        position_parameters=size.positions,
        block_parameters=size.blocks,
        train_loss=_last(read_curve(folder).training, trained["steps"]),
        validation_loss=loss["loss"],
        bits_per_byte=loss["bits_per_byte"],
        bits_per_byte_low=low,
        bits_per_byte_high=high,
        **_suites(results),
    )


def finished_rows(study: Study, folder: Path) -> list[CellResult]:
    """Return the rows of all finished cells, in the order of the cells."""
    return [
        read_row(study, number, cell, cell_folder(folder, cell))
        for number, cell in enumerate(study.cells)
        if is_cell_finished(cell_folder(folder, cell))
    ]


def _budget(cell: Cell, arguments: Arguments) -> str:
    for name in BUDGETS:
        if name in cell.settings:
            return f"{name} {float(cell.settings[name]):g}"
    training = arguments.training
    if training.max_steps > 0:
        return f"steps {training.max_steps}"
    return f"epochs {training.num_train_epochs:g}"


def _check_same(cell: Cell, configuration: dict[str, Any], folder: Path) -> None:
    recorded = {key: value for part in configuration.values() for key, value in part.items()}
    for key, value in cell.settings.items():
        if key in recorded and isinstance(value, (int, float)) and recorded[key] != value:
            raise UserError(
                f"{folder} was trained with {key} {recorded[key]}, but the study asks for {value};"
                " choose another --output_dir"
            )


def _suites(results: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    if "cloze" in results:
        found["cloze"] = mean(each["accuracy"] for each in results["cloze"]["families"].values())
    if "stories" in results:
        found["story_words"] = results["stories"]["words"]["mean"]
        found["stories_ended"] = results["stories"]["ended"]["mean"]
    judges = results.get("judge", {}).get("judges", [])
    if judges and judges[0]["grades"]:
        grades = judges[0]["grades"]
        found |= {name: grades[name]["mean"] for name in ("grammar", "creativity", "consistency")}
    return found


def read_curve(folder: Path) -> Curve:
    """Return the losses of a run over its steps, as its newest checkpoint recorded them."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    if not states:
        return Curve([], [])
    newest = max(states, key=lambda path: int(path.parent.name.rpartition("-")[2]))
    log = json.loads(newest.read_text(encoding="utf-8"))["log_history"]
    training, validation = (
        [(entry["step"], entry[key]) for entry in log if key in entry]
        for key in ("loss", "eval_loss")
    )
    return Curve(training, validation)


def _last(points: Sequence[tuple[int, float]], steps: int) -> float | None:
    late = [loss for step, loss in points if step > steps * (1 - LAST_PART)]
    return mean(late) if late else None


def write_rows(rows: Sequence[CellResult], path: Path) -> None:
    """Write rows as CSV; nothing in it depends on the time or the machine's speed."""
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, [field.name for field in fields(CellResult)], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, stream.getvalue())


def read_rows(path: Path) -> list[CellResult]:
    """Read a `study.csv`.

    Raises:
        UserError: it is not one.
    """
    kinds: dict[str, Any] = {field.name: field.type for field in fields(CellResult)}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [
                CellResult(**{name: _value(kinds[name], text) for name, text in row.items()})
                for row in csv.DictReader(stream)
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not the study.csv of a study: {error}") from None


def _value(kind: str, text: str) -> Any:
    if text == "" and "None" in kind:
        return None
    name = kind.partition(" ")[0]
    return (
        text == "True" if name == "bool" else {"int": int, "float": float, "str": str}[name](text)
    )
