"""The module that `accelerate launch -m tinystories_hf.train` starts; see `tinystories train`."""

from __future__ import annotations

import sys

from tinystories_hf.cli import run_command

if __name__ == "__main__":
    run_command("train", sys.argv[1:])
