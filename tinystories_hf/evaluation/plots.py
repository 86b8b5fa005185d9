"""Pictures of a run, made from its recorded numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_loss(log_history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss over steps from the Trainer's log history.

    Both are the Trainer's own means in nats per token; dropout acts in the first alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
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
    pyplot.close(figure)
