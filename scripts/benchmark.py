"""Benchmark this package against stock Transformers and a compiled GPT-2 of the same shape.

    python scripts/benchmark.py --parts step evaluation
    python scripts/benchmark.py --dataset stories/ --tokenizer ./tok --json benchmark.json

Takes the flags of scripts/train.py and those of the benchmark. The implementations take turns in
one process; medians and their spread are printed. Memory is measured in separate processes. All
parts of the XS model take 40 minutes on two CPU cores.
"""

from tinystories_hf.core.script import report_user_errors


def main() -> None:
    """Parse, measure."""
    from tinystories_hf.benchmark.run import parse_benchmark_arguments, run_benchmark

    run_benchmark(parse_benchmark_arguments(description=__doc__ or ""))


if __name__ == "__main__":
    with report_user_errors():
        main()
