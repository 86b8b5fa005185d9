"""The command lines of scripts/export_onnx.py and scripts/build_page.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tinystories_hf.config.flags import StrictParser
from tinystories_hf.core.errors import UserError


def parse_export_arguments(argv: Sequence[str] | None = None, *, description: str = "") -> Path:
    """Read the command line of scripts/export_onnx.py: the folder of the model.

    Raises:
        UserError: an unknown flag, or no model.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="DIR", help="run directory or model folder")
    flags = parser.parse_layer(argv)
    if "model" not in flags:
        raise UserError("give --model, such as --model runs/xs")
    return Path(flags["model"].value)


class PageRequest(NamedTuple):
    """The request of scripts/build_page.py; `models` maps displayed names to folders."""

    models: dict[str, Path]
    out: Path
    dtype: Literal["q8", "fp32"]
    serve: bool
    port: int


def parse_page_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> PageRequest:
    """Read the command line of scripts/build_page.py.

    Raises:
        UserError: an unknown flag, no model or folder, or an invalid or repeated name.
    """
    parser = StrictParser(description)
    parser.add_argument(
        "--model", metavar="DIR", help="exported run directory; its name is displayed"
    )
    parser.add_argument("--models", metavar="NAME=DIR", nargs="+", help="more models, side by side")
    parser.add_argument("--out", metavar="DIR", help="output folder of the page")
    parser.add_argument("--dtype", metavar="KIND", help="q8 or fp32 weights [q8]")
    parser.add_argument("--serve", action="store_true", help="serve the page on 127.0.0.1")
    parser.add_argument("--port", metavar="N", help="port of --serve; 0 is any free one [8000]")
    flags = {name: setting.value for name, setting in parser.parse_layer(argv).items()}
    if "out" not in flags or not {"model", "models"} & set(flags):
        raise UserError("give --model and --out, such as --model runs/xs --out site")
    named = [f"{Path(flags['model']).resolve().name}={flags['model']}"] if "model" in flags else []
    models: dict[str, Path] = {}
    for text in [*named, *flags.get("models", [])]:
        name, equals, folder = text.partition("=")
        if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"models: {text!r} is not NAME=DIR, such as small=runs/small")
        if name in models:
            raise UserError(f"models: the name {name} is given twice; rename one of them")
        models[name] = Path(folder)
    dtype, port = flags.get("dtype", "q8"), flags.get("port", "8000")
    if dtype not in ("q8", "fp32"):
        raise UserError(f"dtype: {dtype!r} is neither q8 nor fp32")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise UserError(f"port: {port!r} is not a port; give a number up to 65535")
    return PageRequest(models, Path(flags["out"]), dtype, "serve" in flags, int(port))
