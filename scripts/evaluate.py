"""Evaluate models as the TinyStories paper did: loss, cloze, stories, memorization, judge.

    python scripts/evaluate.py --model runs/xs
    python scripts/evaluate.py --model roneneldan/TinyStories-1M runs/xs --suite loss,cloze
    python scripts/evaluate.py --model runs/xs --suite judge --judge_model gpt-4o --judge_confirm
    python scripts/evaluate.py --results runs/*/eval_results.json --output_dir comparison

Takes run directories, model folders and Hub names of any causal language models. Writes
eval_results.json, evaluation.md with plots, and every story and reply as JSON lines. The same
command resumes an interrupted evaluation. The key of an endpoint is read from JUDGE_API_KEY.
"""

import sys
from pathlib import Path

from tinystories_hf.core.script import report_user_errors
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Parse the command line and evaluate."""
    request = parse_evaluation_arguments(description=__doc__ or "")
    from tinystories_hf.evaluation.evaluate import evaluate

    evaluate(request)


if __name__ == "__main__":
    # Python puts this folder on the path, where this file would hide the library `evaluate`.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != FOLDER]
    with report_user_errors():
        main()
