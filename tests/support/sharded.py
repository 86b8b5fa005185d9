"""Run a script as processes of `accelerate launch` with FSDP, on the CPU.

accelerate shards on accelerators alone: on the CPU it takes plain data parallelism instead, without
a word. Past that one question everything is real: its plugin, torch's FSDP2, gloo.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.support.forked import script


def shard_on_cpu() -> None:
    """Have the accelerator of this process shard, as on a GPU."""
    begin = AcceleratorState.__init__

    def begin_sharded(state: Any, *args: Any, **kwargs: Any) -> None:
        known = PartialState._shared_state
        if known.get("distributed_type") == DistributedType.MULTI_CPU:
            known["distributed_type"] = DistributedType.MULTI_GPU
        begin(state, *args, **kwargs)

    AcceleratorState.__init__ = begin_sharded


def sharded_script(name: str, flags: list[str]) -> None:
    """Run a script of the project in this process, which is forked."""
    shard_on_cpu()
    script(name, flags)


def launched_sharded(config: Path) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for a configuration, but for the ranks."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(config), "script.py"])
    checked, _, _ = _validate_launch_command(arguments)
    return {
        name: value
        for name, value in prepare_multi_gpu_env(checked).items()
        if name.startswith(("ACCELERATE_", "FSDP_"))
    }


def main() -> None:
    """Run the script that the arguments name, with the rest of them."""
    shard_on_cpu()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
