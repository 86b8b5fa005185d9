"""Measure this package against stock Transformers and a compiled GPT-2 of the same shape.

    python scripts/benchmark.py --parts step evaluation
    python scripts/benchmark.py --dataset stories/ --tokenizer ./tok --json benchmark.json

Takes the flags of scripts/train.py for any configuration, and those of the benchmark. All is
measured in turn in one process, medians with their spread; memory in processes of its own. The
parts of XS take 40 minutes on two CPU cores.
"""

from tinystories_hf.core.script import report_user_errors


def main() -> None:
    """Parse, measure."""
    from tinystories_hf.benchmark.run import parse_benchmark_arguments, run_benchmark

    run_benchmark(parse_benchmark_arguments(description=__doc__ or ""))


if __name__ == "__main__":
    with report_user_errors():
        main()
