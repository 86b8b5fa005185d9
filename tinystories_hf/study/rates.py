"""The learning rate of each width, predicted from a sweep at some widths.

GPT-Neo does not scale its attention scores, so that the rules of muP do not fit it. The optimum is
measured at a few widths instead, and a power of the width goes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinystories_hf.core.errors import UserError
from tinystories_hf.study.cells import Study
from tinystories_hf.study.collect import CellResult, cell_folder, finished_rows, is_cell_finished
from tinystories_hf.study.fits import Optimum, PowerLaw, find_optimum, fit_power_law


def sweep_optima(rows: Sequence[CellResult]) -> dict[int, Optimum]:
    """Return the best learning rate of each hidden size of a sweep."""
    sweep = [row for row in rows if row.is_sweep]
    return {
        width: find_optimum(
            [row.learning_rate for row in sweep if row.hidden_size == width],
            [row.validation_loss for row in sweep if row.hidden_size == width],
        )
        for width in sorted({row.hidden_size for row in sweep})
    }


def law_of(study: Study, folder: Path) -> PowerLaw:
    """Return the law by which the learning rate follows from the hidden size.

    Raises:
        UserError: the sweep is not finished, or the best rate lies at the edge of the grid.
    """
    missing = [
        number
        for number, cell in enumerate(study.cells)
        if cell.is_sweep and not is_cell_finished(cell_folder(folder, cell))
    ]
    if missing:
        raise UserError(
            f"the cells {missing[0]} to {missing[-1]} find the learning rate; run them first"
        )
    optima = sweep_optima(finished_rows(study, folder))
    inside = {width: found for width, found in optima.items() if not found.at_edge}
    if len(inside) < 2:
        raise UserError(
            "learning_rate_sweep: the best rate lies at the edge of the grid at hidden_size"
            f" {', '.join(str(w) for w in optima if w not in inside)}; widen learning_rate"
        )
    return fit_power_law(list(inside), [found.value for found in inside.values()])
