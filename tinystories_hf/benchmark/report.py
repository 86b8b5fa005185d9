"""The tables and plots of a benchmark, from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinystories_hf.benchmark.implementations import GPT2, OURS, STOCK

_Numbers = dict[str, Any]


def benchmark_tables(results: _Numbers) -> str:
    """Return the Markdown tables of a benchmark, one per part."""
    parts = results["parts"]
    makers: dict[str, Callable[[Any], str]] = {
        "step": _steps,
        "memory": _memory,
        "trainer": _trainer,
        "evaluation": _evaluation,
        "preparation": _preparation,
        "generation": _generation,
        "roofline": _roofline,
        "growth": _growth,
        "alternatives": _alternatives,
        "gpu": _gpu,
    }
    return "\n\n".join(make(parts[name]) for name, make in makers.items() if name in parts)


def summary(results: _Numbers) -> str:
    """Return the summary table: stock, this package, and their ratio."""
    parts = results["parts"]
    rows = []
    for step in parts["step"]:
        dropouts = f"dropout {step['attention_dropout']:g} in attention, {step['other_dropout']:g}"
        rows.append((f"training step, {step['precision']}, {dropouts} elsewhere", step))
    rows += [
        (name, parts[key])
        for name, key in (
            ("evaluation, fp32", "evaluation"),
            ("preparation", "preparation"),
            ("generation, against `pipeline`", "generation"),
        )
    ]
    lines = ["| tokens/s | stock | this package | ratio |", "|---|---|---|---|"]
    for name, row in rows:
        stock, ours = row[STOCK], row[OURS]
        lines.append(
            f"| {name} | {stock['median']:,.0f} | {ours['median']:,.0f} | {_times(ours, stock)} |"
        )
    for row in parts["memory"]:
        stock, ours = row[STOCK] / 2**20, row[OURS] / 2**20
        lines.append(
            f"| memory of the process, {row['precision']}, MiB | {stock:,.0f} | {ours:,.0f}"
            f" | {ours / stock:.2f} |"
        )
    return "\n".join(lines)


def table(title: str, header: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table under its title; the columns of `header` are separated by ` | `."""
    columns = header.split(" | ")
    lines = [f"| {header} |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{title}**", "", *lines])


def _rate(rate: _Numbers) -> str:
    return f"{rate['median']:,.0f} ({rate['lowest']:,.0f} to {rate['highest']:,.0f})"


def _times(ours: _Numbers, other: _Numbers) -> str:
    return f"{ours['median'] / other['median']:.2f}"


def _case(row: _Numbers) -> list[str]:
    dropouts = f"{row['attention_dropout']:g} / {row['other_dropout']:g}"
    return [row["precision"], dropouts]


def _steps(rows: list[_Numbers]) -> str:
    return table(
        "Training step, tokens/s: median (lowest to highest)",
        "precision | dropout: attention / others | stock | this package | GPT-2, compiled | this"
        " package / stock"
        " | this package / GPT-2",
        [
            [
                *_case(row),
                *(_rate(row[name]) for name in (STOCK, OURS, GPT2)),
                _times(row[OURS], row[STOCK]),
                _times(row[OURS], row[GPT2]),
            ]
            for row in rows
        ],
    )


def _memory(rows: list[_Numbers]) -> str:
    return table(
        "Peak memory of the training process, MiB",
        "precision | dropout: attention / others | stock | this package | GPT-2, compiled | this"
        " package / stock",
        [
            [
                *_case(row),
                *(f"{row[name] / 2**20:,.0f}" for name in (STOCK, OURS, GPT2)),
                f"{row[OURS] / row[STOCK]:.3f}",
            ]
            for row in rows
        ],
    )


def _trainer(row: _Numbers) -> str:
    return table(
        "End to end through the Trainer, tokens/s",
        "precision | dropout: attention / others | stock | this package | bare loop of its step"
        " | this package / bare loop | this package / stock",
        [
            [
                *_case(row),
                *(_rate(row[name]) for name in (STOCK, OURS, "bare loop")),
                f"{row[OURS]['median'] / row['bare loop']['median']:.3f}",
                _times(row[OURS], row[STOCK]),
            ]
        ],
    )


def _evaluation(row: _Numbers) -> str:
    return table(
        "Evaluation in fp32, tokens/s",
        "stock | this package | GPT-2 | this package / stock",
        [[*(_rate(row[name]) for name in (STOCK, OURS, GPT2)), _times(row[OURS], row[STOCK])]],
    )


def _preparation(row: _Numbers) -> str:
    return table(
        "Preparation, text file to rows on disk, tokens/s",
        "tokens | stock | this package | this package / stock",
        [[f"{row['tokens']:,}", _rate(row[STOCK]), _rate(row[OURS]),
          _times(row[OURS], row[STOCK])]],
    )  # fmt: skip


def _generation(row: _Numbers) -> str:
    return table(
        f"Generation, {row['stories']} stories of up to {row['max_new_tokens']} tokens, tokens/s",
        "stock `pipeline`, one at a time | this package | this package / stock",
        [[_rate(row[STOCK]), _rate(row[OURS]), _times(row[OURS], row[STOCK])]],
    )


def _roofline(rows: list[_Numbers]) -> str:
    return table(
        "Roofline of this package's step",
        "precision | matrix rate, GFLOP/s | bandwidth, GB/s | MFLOP per token | MB per step"
        " | least time, s | measured, s | share",
        [
            [
                row["precision"],
                f"{row['operations_per_second'] / 1e9:,.0f}",
                f"{row['bytes_per_second'] / 1e9:,.1f}",
                f"{row['operations_per_token'] / 1e6:.2f}",
                f"{row['bytes_per_step'] / 1e6:,.0f}",
                f"{row['least_seconds']:.3f}",
                f"{row['seconds']:.3f}",
                f"{row['share']:.0%}",
            ]
            for row in rows
        ],
    )


def _growth(rows: list[_Numbers]) -> str:
    return table(
        "How the cost grows, tokens/s of a step in fp32",
        "what | value | rows x context | stock | this package",
        [
            [
                row["axis"],
                f"{row['value']:,}",
                f"{row['rows']} x {row['context']}",
                _rate(row[STOCK]) if STOCK in row else "not run",
                _rate(row[OURS]),
            ]
            for row in rows
        ],
    )


def _alternatives(found: _Numbers) -> str:
    titles = {
        "attention": "Attention of a local layer, forward and backward, ms",
        "loss": "Head and loss, forward and backward, ms",
        "products": "Matrix products of the head over one chunk of tokens, GFLOP/s",
        "compile": "This package's step without its optimizer, blocks compiled and not, ms",
    }
    pages = []
    for name, title in titles.items():
        columns = list(dict.fromkeys(key for row in found[name] for key in row))
        cells = [
            [
                "not there" if key not in row else f"{row[key]:,.4g}"
                if isinstance(row[key], float) else str(row[key])
                for key in columns
            ]
            for row in found[name]
        ]  # fmt: skip
        pages.append(table(title, " | ".join(columns), cells))
    return "\n\n".join(pages)


def _gpu(found: _Numbers) -> str:
    def gigabytes(size: int | None) -> str:
        return "" if size is None else f"{size / 1e9:.2f}"

    card, same, errors = found["card"], found["same_gradients"], found["tf32_errors"]
    facts = [
        ["compute capability", card["capability"]],
        ["memory, GB", gigabytes(card["memory_bytes"])],
        ["CUDA", str(card["cuda"])],
        ["window of flash attention", "yes" if card["flash_window"] else "no"],
        ["compilation", card["missing_for_compilation"] or "yes"],
        ["error of a matrix product in training", f"{errors['training']:.1e}"],
        ["error of a matrix product of losses", f"{errors['losses']:.1e}"],
        ["the same gradients twice", "yes" if same["default"] else "no"],
        ["the same with deterministic", "yes" if same["deterministic"] else "no"],
    ]
    steps = [
        [
            *(row["step"], row["precision"], str(row["rows"])),
            *(f"{row['milliseconds']:.1f}", f"{row['host_milliseconds']:.1f}"),
            *(f"{row['tokens_per_second']:,.0f}", gigabytes(row["peak_bytes"])),
            f"{row['first_step_seconds']:.0f}",
        ]
        for row in found["steps"]
    ]
    attention = [
        [
            *(row["layer"], row["precision"], "yes" if row["fused"] else "no"),
            *(f"{row['output_error']:.1e}", f"{row['gradient_error']:.1e}"),
        ]
        for row in found["attention"]
    ]
    operations = [
        [f"`{row['operation']}`", f"{row['launches']:,}", f"{row['milliseconds']:.3f}"]
        for row in found["operations"]
    ]
    header = "step | precision | rows | ms | ms of the host | tokens/s | peak, GB | first step, s"
    return "\n\n".join(
        [
            table("GPU", "what | found", facts),
            table("Training steps on the GPU", header, steps),
            table("Attention against fp64, relative error",
                  "layer | precision | fused | output | gradient", attention),
            table("Longest operations of a step", "operation | launches | ms", operations),
        ]
    )  # fmt: skip


def plot_growth(rows: list[_Numbers], path: Path, title: str) -> None:
    """Plot tokens per second over batch, context, hidden size and vocabulary."""
    from matplotlib.figure import Figure

    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3.2 * len(axes_names), 3.4), layout="constrained")
    panels = figure.subplots(1, len(axes_names), sharey=True, squeeze=False)[0]
    styles = {OURS: ("o-", "#4477aa"), STOCK: ("s--", "#cc6633")}
    for panel, axis in zip(panels, axes_names, strict=True):
        for name, (style, color) in styles.items():
            points = [
                (row["value"], row[name]["median"])
                for row in rows
                if row["axis"] == axis and name in row
            ]
            panel.plot(*zip(*points, strict=True), style, color=color, label=name, markersize=4)
        values = [row["value"] for row in rows if row["axis"] == axis]
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("tokens/s of a training step, fp32")
    panels[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
