"""Files that come with the package: beside it in a checkout, inside it where it is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# The scripts by the names of their commands, as in `tinystories train`.
SCRIPT_OF = {
    "train": "train.py",
    "prepare": "prepare_data.py",
    "generate": "generate.py",
    "evaluate": "evaluate.py",
    "push": "push_to_hub.py",
    "export": "export_onnx.py",
    "page": "build_page.py",
    "benchmark": "benchmark.py",
    "study": "study.py",
}
_COMMAND_OF = {script: command for command, script in SCRIPT_OF.items()}


def is_checkout() -> bool:
    """Return whether the package is used from its repository."""
    return (PACKAGE.parent / "pyproject.toml").is_file()


def shipped(name: str) -> Path:
    """Return the path of `configs`, `scripts` or `model_card.md`."""
    return (PACKAGE.parent if is_checkout() else PACKAGE) / name


def started_as() -> list[str]:
    """Return the first words of the command line of this process, as a user types them."""
    script = Path(sys.argv[0])
    if is_checkout() or script.parent != shipped("scripts"):
        return [Path(sys.executable).name, sys.argv[0]]
    return ["tinystories", _COMMAND_OF[script.name]]


def as_installed(text: str) -> str:
    """Return a text with the commands and paths that exist where the package is installed.

    Messages and help texts name `scripts/train.py` and `configs/`, which only a checkout has.
    """
    if is_checkout():
        return text

    def command(found: re.Match[str]) -> str:
        return f"tinystories {_COMMAND_OF[found[1]]}"

    scripts = "|".join(map(re.escape, _COMMAND_OF))
    text = re.sub(
        r"(accelerate launch [^`\n]*)scripts/train\.py", r"\1-m tinystories_hf.train", text
    )
    text = re.sub(rf"(?:python )?scripts/({scripts})", command, text)
    text = re.sub(r"(?<![\w/])configs/", f"{shipped('configs')}/", text)
    editable = "pip install --constraint constraints.txt --editable"
    return re.sub(rf"{editable} ([\"'])\.", r"pip install \1tinystories_hf", text)
