"""The figures of a study, drawn like those of the paper, with the paper's numbers beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tinystories_hf.core.errors import UserError
from tinystories_hf.evaluation.report.paper import (
    BITS_PER_NAT,
    FIGURE_24,
    paper_bits_per_byte,
    paper_row,
)
from tinystories_hf.study.collect import CellResult, Curve
from tinystories_hf.study.fits import fit_power_law, lower_hull

_COLORS = ("#4477aa", "#cc6633", "#228833", "#aa3377", "#66ccee", "#bbbb44", "#777777")
_BITS = "validation loss, bits per byte"
CellResults = Sequence[CellResult]


def draw_figures(
    rows: CellResults, curves: Mapping[str, Curve], others: Mapping[str, CellResults], folder: Path
) -> list[Path]:
    """Draw the figures for which there are cells, and return their files.

    `curves` are the losses over the steps by the name of the cell, `others` the rows of other
    studies by their name, drawn in grey.
    """
    cells = [row for row in rows if not row.is_sweep]
    drawers: dict[str, Callable[[Any], bool]] = {
        "loss-over-steps": lambda axes: _draw_curves(axes, cells, curves),
        "loss-by-shape": lambda axes: _draw_shapes(axes, cells, others),
        "loss-by-compute": lambda axes: _draw_compute(axes, cells, others),
        "loss-by-heads": lambda axes: _draw_heads(axes, cells),
        "loss-by-data": lambda axes: _draw_data(axes, cells),
        "loss-by-learning-rate": lambda axes: _draw_rates(axes, [r for r in rows if r.is_sweep]),
    }
    from matplotlib.figure import Figure

    drawn = []
    for name, draw in drawers.items():
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        if draw(axes):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=130)
            drawn.append(path)
    return drawn


def alike(rows: CellResults, *varied: str) -> list[CellResult]:
    """Return the rows that differ only in `varied` settings and the seed: the largest such group.

    Its size is the number of different values of the varied settings.
    """
    known = ("budget", "hidden_size", "num_layers", "num_heads", "vocab_size", "train_share")
    fixed = [name for name in known if name not in varied]

    def values(row: CellResult, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(getattr(row, name) for name in names)

    groups = _groups(rows, lambda row: values(row, fixed))
    return max(
        groups.values(), key=lambda found: len({values(row, varied) for row in found}), default=[]
    )


def _groups(rows: CellResults, key: Callable[[CellResult], Any]) -> dict[Any, list[CellResult]]:
    found: dict[Any, list[CellResult]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return dict(sorted(found.items()))


def _draw_curves(axes: Any, rows: CellResults, curves: Mapping[str, Curve]) -> bool:
    """Figure 3: losses over the steps by depth, at the width that has the most depths."""
    depths = _groups(alike(rows, "num_layers"), lambda row: row.num_layers)
    if len(depths) < 2:
        return False
    width = next(iter(depths.values()))[0].hidden_size
    for color, (depth, (row, *_)) in zip(_cycle(len(depths)), depths.items(), strict=True):
        curve = curves.get(row.name, Curve([], []))
        if curve.validation:
            label = f"{depth} layer{'s' if depth > 1 else ''}"
            axes.plot(*zip(*curve.validation, strict=True), "o-", ms=3, color=color, label=label)
        if curve.training:
            axes.plot(*zip(*curve.training, strict=True), ":", lw=1, color=color)
    axes.set(
        xlabel="optimizer step", ylabel="loss, nats per token",
        title=f"hidden size {width}: validation (solid) and training (dotted)",
    )  # fmt: skip
    return True


def _draw_shapes(axes: Any, rows: CellResults, others: Mapping[str, CellResults]) -> bool:
    """Figure 4: the loss by width, a line for each depth; the paper's beside, dashed."""
    rows = alike(rows, "hidden_size", "num_layers")
    depths = _groups(rows, lambda row: row.num_layers)
    if len({(row.hidden_size, row.num_layers) for row in rows}) < 2:
        return False
    for color, (depth, at_depth) in zip(_cycle(len(depths)), depths.items(), strict=True):
        label = f"{depth} layer{'s' if depth > 1 else ''}"
        axes.plot(*_means(at_depth, lambda row: row.hidden_size), "o-", color=color, label=label)
        known = [paper_row(width, depth) for width in sorted({r.hidden_size for r in at_depth})]
        points = [(row.hidden_size, paper_bits_per_byte(row)) for row in known if row is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "x--", lw=1, color=color, label=f"{label}, paper")
    for name, theirs in others.items():
        axes.plot(*_means(theirs, lambda row: row.hidden_size), "s:", color="#999999", label=name)
    axes.set(xscale="log", xlabel="hidden size", ylabel=_BITS)
    widths = sorted({row.hidden_size for row in rows})
    axes.set_xticks(widths, [f"{width:,}" for width in widths])
    axes.minorticks_off()
    return True


def _draw_compute(axes: Any, rows: CellResults, others: Mapping[str, CellResults]) -> bool:
    """Figure 23: the loss by training operations, the lower hull, and a power law through it."""
    if len({round(row.flops) for row in rows}) < 2:
        return False
    for color, (width, at_width) in zip(
        _cycle(len({row.hidden_size for row in rows})),
        _groups(rows, lambda row: row.hidden_size).items(),
        strict=True,
    ):
        points = [(row.flops, row.bits_per_byte) for row in at_width]
        axes.plot(*zip(*points, strict=True), "o", ms=4, color=color, label=f"hidden size {width}")
    hull = [rows[i] for i in hull_of(rows)]
    x, y = [row.flops for row in hull], [row.bits_per_byte for row in hull]
    axes.plot(x, y, "-", color="#333333", lw=1, label="lower hull")
    for row in hull:
        axes.annotate(f"{row.hidden_size}_{row.num_layers}", (row.flops, row.bits_per_byte),
                      textcoords="offset points", xytext=(3, 4), fontsize=7)  # fmt: skip
    try:
        law = fit_power_law(x, y)
    except UserError:
        law = None
    if law is not None and law.interval is not None:
        low, high = law.interval
        label = f"exponent {law.exponent:.3f} ({low:.3f} to {high:.3f})"
        axes.plot(x, [law(value) for value in x], "--", color="#333333", lw=1, label=label)
    for name, theirs in others.items():
        points = [(row.flops, row.bits_per_byte) for row in theirs if not row.is_sweep]
        axes.plot(*zip(*points, strict=True), "s", ms=3, color="#999999", label=name)
    axes.set(xscale="log", xlabel="training operations (FLOPs)", ylabel=_BITS)
    return True


def hull_of(rows: CellResults) -> list[int]:
    """Return the indices of the rows on the lower hull of loss over training operations."""
    return lower_hull([row.flops for row in rows], [row.bits_per_byte for row in rows])


def _draw_heads(axes: Any, rows: CellResults) -> bool:
    """Figure 24: the loss by the number of heads, at the shape that has the most."""
    found = alike(rows, "num_heads")
    if len({row.num_heads for row in found}) < 2:
        return False
    width, depth = found[0].hidden_size, found[0].num_layers
    label = f"{width}, {depth} layer{'s' if depth > 1 else ''}"
    axes.plot(*_means(found, lambda row: row.num_heads), "o-", color=_COLORS[0], label=label)
    for layers, style in ((1, "x--"), (2, "+--")):
        theirs = [
            (h, values[0] * BITS_PER_NAT) for (d, h), values in FIGURE_24.items() if d == layers
        ]
        label = f"paper: 768, {layers} layer{'s' if layers > 1 else ''}"
        axes.plot(*zip(*theirs, strict=True), style, lw=1, color="#999999", label=label)
    axes.set(xlabel="heads", ylabel=_BITS)
    return True


def _draw_data(axes: Any, rows: CellResults) -> bool:
    """The loss by the share of the training stories, at the shape that has the most."""
    found = alike(rows, "train_share")
    if len({row.train_share for row in found}) < 2:
        return False
    x, y = _means(found, lambda row: row.train_share)
    label = f"{found[0].hidden_size}, {found[0].num_layers} layers"
    axes.plot(x, y, "o-", color=_COLORS[0], label=label)
    axes.set(xlabel="share of the training stories", ylabel=_BITS)
    return True


def _draw_rates(axes: Any, rows: CellResults) -> bool:
    """The sweep of learning rates, a line for each width."""
    widths = _groups(rows, lambda row: row.hidden_size)
    for color, (width, found) in zip(_cycle(len(widths)), widths.items(), strict=True):
        x, y = _means(found, lambda row: row.learning_rate)
        axes.plot(x, y, "o-", color=color, label=f"hidden size {width}")
    axes.set(xscale="log", xlabel="learning rate", ylabel=_BITS)
    return bool(rows)


def _means(
    rows: CellResults, key: Callable[[CellResult], float]
) -> tuple[list[float], list[float]]:
    """Return the values of `key` and the mean loss at each, over the seeds."""
    groups = _groups(rows, key)
    return list(groups), [mean(row.bits_per_byte for row in found) for found in groups.values()]


def _cycle(number: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(number)]
