"""Run a study: every cell of a file as a run, then the table and figures of their results.

    python scripts/study.py --study configs/studies/miniature.yaml --list
    python scripts/study.py --study configs/studies/miniature.yaml
    python scripts/study.py --study configs/studies/figure-4.yaml --only 3
    python scripts/study.py --study configs/studies/figure-4.yaml --collect

Writes study.csv, study.md and the figures. The same command goes on after it was stopped or killed.
`--only N` runs one cell, so that a cluster's scheduler can spread them.
"""

from tinystories_hf.core.script import report_user_errors
from tinystories_hf.study.arguments import parse_study_arguments


def main() -> None:
    """Parse the command line and run the study."""
    request = parse_study_arguments(description=__doc__ or "")
    from tinystories_hf.study.run import run_study

    run_study(request)


if __name__ == "__main__":
    with report_user_errors():
        main()
