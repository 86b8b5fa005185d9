"""`study.md`: the tables of a study, with the paper's numbers beside, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import write_text
from tinystories_hf.evaluation.report.paper import FIGURE_24, paper_bits_per_byte, paper_row
from tinystories_hf.study.collect import CellResult, Curve
from tinystories_hf.study.figures import draw_figures, hull_of
from tinystories_hf.study.fits import Optimum, PowerLaw, find_optimum, fit_power_law

STUDY_PAGE = "study.md"
CAPTIONS = {
    "loss-over-steps": "Losses over the steps by depth, as in the paper's Figure 3",
    "loss-by-shape": "Loss by width and depth, as in the paper's Figure 4",
    "loss-by-compute": "Loss by training operations, as in the paper's Figure 23",
    "loss-by-heads": "Loss by the number of heads, as in the paper's Figure 24",
    "loss-by-data": "Loss by the share of the training stories",
    "loss-by-learning-rate": "The sweep of learning rates",
}


def write_study(
    title: str,
    rows: Sequence[CellResult],
    cells: int,
    curves: Mapping[str, Curve],
    optima: Mapping[int, Optimum],
    law: PowerLaw | None,
    others: Mapping[str, Sequence[CellResult]],
    folder: Path,
) -> Path:
    """Draw the figures and write the page of a study; return its path."""
    figures = draw_figures(rows, curves, others, folder)
    chosen = [row for row in rows if not row.is_sweep]
    parts = [f"# {title}", f"{len(rows)} of {cells} cells are finished."]
    if optima:
        parts += ["## Learning rates", rates_table(optima, law)]
    if chosen:
        parts += ["## Cells", cells_table(chosen), _NOTES]
        if repeated := seeds_table(chosen):
            parts += ["## Several seeds", repeated]
        if compute := compute_text(chosen):
            parts += ["## Compute", compute]
        if budgets := budgets_text(chosen):
            parts += ["## The best size for a budget", budgets]
    parts += [f"![{CAPTIONS[path.stem]}]({path.name})" for path in figures]
    write_text(folder / STUDY_PAGE, "\n\n".join(parts) + "\n")
    return folder / STUDY_PAGE


_NOTES = (
    "Losses are over the whole validation split, in nats per token and in bits per byte; only bits"
    " per byte can be compared across vocabularies. The paper's are read off its figures, converted"
    " as if it had kept all tokens (docs/evaluation.md). FLOPs count the matrix products of all"
    " steps. Parameters: blocks + token embedding + positions."
)


def cells_table(rows: Sequence[CellResult]) -> str:
    """Return the table of the cells, with the paper's loss of the same shape."""
    lines = [
        "| hidden | layers | heads | vocabulary | share | seed | rate | steps | tokens | FLOPs"
        " | parameters | train loss | loss | bits/byte | paper | grammar / creativity / consistency"
        " | cloze |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs = paper_row(row.hidden_size, row.num_layers)
        heads = FIGURE_24.get((row.num_layers, row.num_heads)) if row.hidden_size == 768 else None
        known = "" if theirs is None else f"{theirs.loss:.2f} ({paper_bits_per_byte(theirs):.3f})"
        if heads is not None:
            known = f"{heads[0]:.2f}"
        grades = [row.grammar, row.creativity, row.consistency]
        sizes = (
            f"{row.block_parameters:,} + {row.embedding_parameters:,} + {row.position_parameters:,}"
        )
        cells = [
            *(str(row.hidden_size), str(row.num_layers), str(row.num_heads)),
            *(f"{row.vocab_size:,}", f"{row.train_share:g}", str(row.seed)),
            f"{row.learning_rate:.3g}{' (law)' if row.rate_by_law else ''}",
            *(f"{row.steps:,}", f"{row.tokens:,}", f"{row.flops:.2e}", sizes),
            "" if row.train_loss is None else f"{row.train_loss:.4f}",
            *(f"{row.validation_loss:.4f}", f"{row.bits_per_byte:.4f}", known),
            "" if None in grades else " / ".join(f"{grade:.2f}" for grade in grades),
            "" if row.cloze is None else f"{row.cloze:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rates_table(optima: Mapping[int, Optimum], law: PowerLaw | None) -> str:
    """Return the best rate of each width, and the law through them."""
    lines = ["| hidden | best rate | loss | |", "|---|---|---|---|"]
    for width, found in optima.items():
        note = "at the edge of the grid, not used" if found.at_edge else ""
        if not found.at_edge and not found.fitted:
            note = "the best rate of the grid"
        lines.append(f"| {width} | {found.value:.3g} | {found.loss:.4f} | {note} |")
    text = "\n".join(lines)
    if law is None:
        return f"{text}\n\nNo law: two widths with an optimum inside the grid are needed."
    formula = f"{law.coefficient:.3g} x hidden size ^ {law.exponent:.3f}"
    return f"{text}\n\nLearning rate = {formula}{_interval(law)}."


def seeds_table(rows: Sequence[CellResult]) -> str:
    """Return the spread over seeds of cells that differ in nothing else, or an empty text."""
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for row in rows:
        same = (row.hidden_size, row.num_layers, row.num_heads, row.vocab_size, row.train_share)
        groups.setdefault((*same, row.steps, row.learning_rate), []).append(row)
    lines = [
        "| hidden | layers | seeds | mean bits/byte | standard deviation |",
        "|---|---|---|---|---|",
    ]
    for found in groups.values():
        bits = [row.bits_per_byte for row in found]
        if len({row.seed for row in found}) > 1:
            width, depth = found[0].hidden_size, found[0].num_layers
            lines.append(
                f"| {width} | {depth} | {len(bits)} | {mean(bits):.4f} | {stdev(bits):.4f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def compute_text(rows: Sequence[CellResult]) -> str:
    """Return the best shape for each budget and the law of the lower hull, or an empty text."""
    hull = [rows[i] for i in hull_of(rows)]
    if len(hull) < 2:
        return ""
    lines = ["| FLOPs | best shape so far | bits/byte |", "|---|---|---|"]
    lines += [
        f"| {r.flops:.2e} | {r.hidden_size}_{r.num_layers} | {r.bits_per_byte:.4f} |" for r in hull
    ]
    text = "\n".join(lines)
    try:
        law = fit_power_law([row.flops for row in hull], [row.bits_per_byte for row in hull])
    except UserError:
        return text
    if law.interval is None:
        return f"{text}\n\nNo law: it would need three points of the hull."
    formula = f"{law.coefficient:.3g} x FLOPs ^ {law.exponent:.4f}"
    return f"{text}\n\nBits per byte = {formula}{_interval(law)}."


def budgets_text(rows: Sequence[CellResult]) -> str:
    """Return the best model size for each budget of operations, and the law through them.

    Parameters are counted with and without the embeddings, because the exponents differ.
    """
    budgets: dict[str, list[CellResult]] = {}
    for row in rows:
        if row.budget.startswith("flops"):
            budgets.setdefault(row.budget, []).append(row)
    budgets = {name: found for name, found in budgets.items() if len(_by_size(found, True)) > 2}
    if len(budgets) < 2:
        return ""
    lines = ["| budget | best shape | parameters | blocks alone | |", "|---|---|---|---|---|"]
    optima: dict[bool, dict[float, Optimum]] = {True: {}, False: {}}
    for name, found in sorted(budgets.items(), key=lambda item: float(item[0].split()[1])):
        for whole in (True, False):
            sizes = _by_size(found, whole)
            optima[whole][float(name.split()[1])] = find_optimum(list(sizes), list(sizes.values()))
        best = min(found, key=lambda row: row.bits_per_byte)
        values = [optima[whole][float(name.split()[1])] for whole in (True, False)]
        edge = "at the edge of the grid, not used" if any(v.at_edge for v in values) else ""
        sizes_text = " | ".join(f"{value.value:,.0f}" for value in values)
        lines.append(f"| {name} | {best.hidden_size}_{best.num_layers} | {sizes_text} | {edge} |")
    text = ["\n".join(lines)]
    for whole, what in ((True, "parameters"), (False, "parameters of the blocks")):
        inside = {x: found.value for x, found in optima[whole].items() if not found.at_edge}
        if len(inside) < 3:
            text.append(f"No law for {what}: fewer than three optima lie inside the grid.")
            continue
        law = fit_power_law(list(inside), list(inside.values()))
        formula = f"{law.coefficient:.3g} x FLOPs ^ {law.exponent:.3f}"
        text.append(f"Best number of {what} = {formula}{_interval(law)}.")
    return "\n\n".join(text)


def _by_size(rows: Sequence[CellResult], whole: bool) -> dict[float, float]:
    """Return the lowest loss of each model size; `whole`: all parameters, else the blocks'."""
    found: dict[float, float] = {}
    for row in rows:
        size = row.parameters if whole else row.block_parameters
        found[size] = min(found.get(size, row.bits_per_byte), row.bits_per_byte)
    return found


def _interval(law: PowerLaw) -> str:
    if law.interval is None:
        return " (two points, no interval)"
    low, high = law.interval
    return f" (95% interval of the exponent {low:.4f} to {high:.4f}, {law.points} points)"
