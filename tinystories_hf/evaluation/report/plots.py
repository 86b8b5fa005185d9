"""Plots of a training run and of evaluation results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinystories_hf.evaluation.results import Results
from tinystories_hf.evaluation.suites.rubric import GRADES

COLORS = ("#4477aa", "#cc6633", "#228833", "#aa3377", "#66ccee", "#bbbb44", "#777777")
HISTOGRAMS = (
    ("true_ending_rouge_2", "Rouge-2 precision with the true ending"),
    ("between_rouge_2", "highest Rouge-2 f-measure with another completion"),
)


def plot_loss(log_history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Plot training and validation loss over steps from the Trainer's log history.

    Both are the Trainer's means in nats per token. Dropout is active only in the training loss.
    """
    figure, axes = _panels()
    for key, label, style in (
        ("loss", "training", {"linewidth": 1.2, "color": "#4477aa"}),
        ("eval_loss", "validation", {"marker": "o", "markersize": 4, "color": "#cc6633"}),
    ):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(title=title, xlabel="optimizer step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def plot_results(results: Sequence[Results], folder: Path) -> list[str]:
    """Plot the results of one or several models and return the file names."""
    drawers = {
        "loss": ("loss_by_position.png", _draw_positions),
        "cloze": ("cloze.png", _draw_cloze),
        "memorization": ("memorization.png", _draw_memorization),
        "judge": ("judge.png", _draw_judge),
    }
    drawn = []
    for suite, (name, draw) in drawers.items():
        measured = [model for model in results if suite in model]
        if measured:
            figure = draw(measured)
            figure.savefig(folder / name, dpi=130)
            drawn.append(name)
    return drawn


def _panels(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4.2)
) -> tuple[Any, Any]:
    """Return a figure and its axes without pyplot, which would set the backend of the process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _draw_positions(results: Sequence[Results]) -> Any:
    figure, axes = _panels()
    for color, model in zip(itertools.cycle(COLORS), results, strict=False):
        for protocol, style in (("packed", "-o"), ("by_story", "--s")):
            points = model["loss"][protocol]["by_position"]
            label = f"{model['model']['name']}, {protocol}"
            places = [math.sqrt(max(1, at["first"]) * at["end"]) for at in points]
            losses = [at["loss"] for at in points]
            axes.plot(places, losses, style, color=color, label=label, markersize=4)
    axes.set(xscale="log", xlabel="position in the window, tokens", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _draw_cloze(results: Sequence[Results]) -> Any:
    figure, axes = _panels()
    families = list(results[0]["cloze"]["families"])
    width = 0.8 / len(results)
    for number, model in enumerate(results):
        places = [at - 0.4 + width * (number + 0.5) for at in range(len(families))]
        found = [
            (score["relative_accuracy"], score["relative_interval"])
            for score in (model["cloze"]["families"][family] for family in families)
        ]
        _bars(axes, places, found, width, number, model["model"]["name"])
    for at, family in enumerate(families):
        chance = results[0]["cloze"]["families"][family]["chance"]
        label = "chance" if at == 0 else None
        axes.hlines(chance, at - 0.45, at + 0.45, colors="black", linestyles="dotted", label=label)
    axes.set(ylim=(0, 1), ylabel="accuracy by relative likelihood")
    axes.set_xticks(range(len(families)), families)
    axes.legend(fontsize=8)
    return figure


def _draw_judge(results: Sequence[Results]) -> Any:
    figure, axes = _panels()
    graded = [
        (f"{model['model']['name']}, {judge['judge']}", judge["grades"])
        for model in results
        for judge in model["judge"]["judges"]
        if judge["grades"]
    ]
    width = 0.8 / max(1, len(graded))
    for number, (label, grades) in enumerate(graded):
        places = [at - 0.4 + width * (number + 0.5) for at in range(len(GRADES))]
        found = [(grades[grade]["mean"], grades[grade]["interval"]) for grade in GRADES]
        _bars(axes, places, found, width, number, label)
    axes.set(ylim=(0, 10), ylabel="mean grade")
    axes.set_xticks(range(len(GRADES)), GRADES)
    if graded:
        axes.legend(fontsize=8)
    return figure


def _bars(
    axes: Any,
    places: Sequence[float],
    found: Sequence[tuple[float, Sequence[float] | None]],
    width: float,
    number: int,
    label: str,
) -> None:
    """Draw values as bars with their intervals."""
    values = [value for value, _ in found]
    below = [0.0 if ends is None else max(0.0, value - ends[0]) for value, ends in found]
    above = [0.0 if ends is None else max(0.0, ends[1] - value) for value, ends in found]
    color = COLORS[number % len(COLORS)]
    axes.bar(places, values, width, yerr=[below, above], capsize=3, color=color, label=label)


def _draw_memorization(results: Sequence[Results]) -> Any:
    """Draw the four histograms of the paper (figures 14 to 17)."""
    figure, panels = _panels(2, 2, (10, 7))
    for axes, (key, title) in zip(panels[0], HISTOGRAMS, strict=True):
        for color, model in zip(itertools.cycle(COLORS), results, strict=False):
            _histogram(axes, model["memorization"][key], color, model["model"]["name"])
        axes.set(title=title, ylabel="completions")
    endings = results[0]["memorization"]["endings_between_rouge_2"]
    _histogram(panels[0][1], endings, "black", "true endings")
    _draw_frequencies(panels[1][0], results)
    for color, model in zip(itertools.cycle(COLORS), results, strict=False):
        for k, style in (("2", "-"), ("3", "--")):
            label = f"{model['model']['name']}, Rouge-{k}"
            _histogram(panels[1][1], model["memorization"]["nearest"][k], color, label, style)
    panels[1][1].set(title="precision with the nearest training story", ylabel="completions")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _histogram(
    axes: Any, found: Mapping[str, Any], color: str, label: str, style: str = "-"
) -> None:
    bins = [at / 20 for at in range(21)]
    axes.hist(
        found["values"], bins, histtype="step", color=color, label=label, linestyle=style,
        linewidth=1.4,
    )  # fmt: skip


def _draw_frequencies(axes: Any, results: Sequence[Results]) -> None:
    """Plot how often the generated k-grams occur in training, by powers of ten."""
    styles = ("-", "--", "-.", ":")
    for color, model in zip(itertools.cycle(COLORS), results, strict=False):
        for style, (k, counts) in zip(
            styles, model["memorization"]["frequencies"].items(), strict=False
        ):
            known = [int(name) for name in counts if name != "never"]
            powers = list(range(-1, max(known, default=-1) + 1))
            total = sum(counts.values())
            shares = [counts.get("never" if p < 0 else str(p), 0) / total for p in powers]
            label = f"{model['model']['name']}, {k}-grams"
            axes.plot(powers, shares, style, color=color, label=label, marker=".")
    axes.set(
        title="how often k-grams occur in training (-1: never)",
        ylabel="share of k-grams",
        xlabel="log10 of the count in training",
    )
