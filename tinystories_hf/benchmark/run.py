"""Run a benchmark from its command line, and write its JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.config.flags import StrictParser
from tinystories_hf.config.parsing import Setting, build_dataclass, option
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import check_writable, write_json

PARTS = (
    "step",
    "memory",
    "trainer",
    "evaluation",
    "preparation",
    "generation",
    "roofline",
    "growth",
    "alternatives",
    "gpu",
)


@dataclass(frozen=True)
class BenchmarkArguments:
    """Which parts are measured, and how often."""

    parts: list[str] = option(
        f"which of {', '.join(PARTS)}; gpu needs a GPU and is not among the default",
        list(PARTS[:-1]),
    )
    rows: int = option("rows per step", 8)
    rounds: int = option("number of rounds in which the implementations take turns", 3)
    json: str | None = option("file for the results; a plot of the growth is saved beside it", None)

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise UserError(f"parts: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
        if "roofline" in self.parts and "step" not in self.parts:
            raise UserError("parts: roofline compares the steps with the machine; add step")
        if self.rows < 1 or self.rounds < 1:
            raise UserError("rows and rounds must be at least 1")


class BenchmarkRequest(NamedTuple):
    """The request of scripts/benchmark.py."""

    benchmark: BenchmarkArguments
    arguments: Arguments


def parse_benchmark_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> BenchmarkRequest:
    """Read the command line: the flags of a run and those of `BenchmarkArguments`.

    Raises:
        UserError: as `parse_arguments`, an unknown part, or a pretrained model.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = StrictParser("", add_help=False)
    parser.add_dataclass("benchmark (default in brackets)", BenchmarkArguments)
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
    namespace, rest = parser.parse_known_args(argv)
    own = {key: Setting(value, f"--{key}") for key, value in vars(namespace).items()}
    arguments = parse_arguments(rest, description=description)
    if arguments.model.model_name_or_path is not None:
        raise UserError(
            "model_name_or_path: the benchmark measures models with random weights; give the shape,"
            " such as --hidden_size and --num_layers"
        )
    return BenchmarkRequest(build_dataclass(BenchmarkArguments, own), arguments)


def run_benchmark(request: BenchmarkRequest) -> dict[str, Any]:
    """Measure the requested parts, print their tables, and write the JSON.

    Raises:
        UserError: the corpus or tokenizer cannot be used, the folder of the JSON does not exist, or
            the part `gpu` is asked for without a GPU.
    """
    from tinystories_hf.benchmark.gpu import measure_gpu
    from tinystories_hf.benchmark.implementations import quiet_benchmark
    from tinystories_hf.benchmark.report import benchmark_tables, plot_growth
    from tinystories_hf.core import environment
    from tinystories_hf.core.device import device_type
    from tinystories_hf.training import session

    wanted, arguments = request
    target = Path(wanted.json) if wanted.json else None
    if target and not target.parent.is_dir():
        raise UserError(f"json: the folder {target.parent} does not exist; create it first")
    if target:
        check_writable(target.parent, "json")
    made = environment.describe_environment(device_type())
    found: dict[str, Any] = {}
    if "gpu" in wanted.parts:
        with quiet_benchmark():
            found["gpu"] = measure_gpu(arguments)
    others = set(wanted.parts) - {"gpu"}
    dataset = measure_on_rows(wanted, arguments, found) if others else None
    results = {
        "made": made,
        "configuration": session.published_configuration(arguments),
        "dataset": dataset,
        "parts": found,
    }
    print(f"\n{benchmark_tables(results)}")
    if target:
        write_json(target, results)
        if "growth" in found:
            plot_growth(found["growth"], target.with_suffix(".png"), f"XS on {made['device']}")
    return results


def measure_on_rows(
    wanted: BenchmarkArguments, arguments: Arguments, found: dict[str, Any]
) -> dict[str, Any]:
    """Add the measured parts that need rows to `found`, and return which rows these were."""
    from tinystories_hf.benchmark import parts
    from tinystories_hf.benchmark.alternatives import measure_alternatives
    from tinystories_hf.benchmark.implementations import quiet_benchmark
    from tinystories_hf.data.prepare import prepare

    prepared = prepare(arguments.data, arguments.model.vocab_size)
    bench = parts.Bench(arguments, prepared, wanted.rows, wanted.rounds)
    makers: dict[str, Callable[[parts.Bench], Any]] = {
        "step": parts.training_steps,
        "memory": parts.memory_use,
        "trainer": parts.end_to_end,
        "evaluation": parts.evaluation_rates,
        "preparation": parts.preparation_rates,
        "generation": parts.generation_rates,
        "growth": parts.growth,
        "alternatives": lambda b: measure_alternatives(b.shape, b.context, b.rows),
    }
    with quiet_benchmark():
        for name in PARTS:
            if name == "roofline" and name in wanted.parts:
                found[name] = parts.roofline(bench, found["step"])
            elif name in wanted.parts and name in makers:
                found[name] = makers[name](bench)
    return {"fingerprint": prepared.manifest.fingerprint}
