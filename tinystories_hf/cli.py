"""The command `tinystories`: the scripts of the repository, wherever the package is installed.

tinystories train --config xs
tinystories generate --model runs/xs --prompt "Once upon a time"
tinystories COMMAND --help
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from tinystories_hf.core.environment import library_versions
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.script import report_user_errors
from tinystories_hf.core.shipped import SCRIPT_OF, shipped

PROGRAM = "tinystories"
SUMMARIES = {
    "train": "train a model, from random or pretrained weights",
    "prepare": "tokenize and pack a dataset ahead of training",
    "generate": "generate stories",
    "evaluate": "evaluate models as the TinyStories paper did",
    "push": "publish a run, its rows or a page on the Hub",
    "export": "export a model to ONNX",
    "page": "build a page that runs models in the browser",
    "study": "train many models from one file, and draw the paper's figures",
    "benchmark": "measure speed and memory beside stock Transformers",
}
USAGE = "\n".join(
    [
        f"usage: {PROGRAM} COMMAND [--FLAG VALUE ...]",
        "",
        *(f"  {name:<10}{summary}" for name, summary in SUMMARIES.items()),
        "",
        f"`{PROGRAM} COMMAND --help` lists the flags of a command. Several processes:",
        "`accelerate launch -m tinystories_hf.train`. `--version` prints the versions in use.",
    ]
)


def main() -> None:
    """Run the command that the first argument names."""
    name, *flags = sys.argv[1:] or ["--help"]
    with report_user_errors():
        if name in ("--help", "-h"):
            print(USAGE)
        elif name == "--version":
            for library, version in library_versions().items():
                print(library, version)
        elif name in SCRIPT_OF:
            run_command(name, flags)
        else:
            raise UserError(f"unknown command {name}; {PROGRAM} --help lists all")


def run_command(name: str, flags: Sequence[str]) -> None:
    """Run the script of a command in this process."""
    script = str(shipped("scripts") / SCRIPT_OF[name])
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")
