"""Run a script as processes of `accelerate launch` with FSDP, on the CPU.

accelerate shards on accelerators alone: on the CPU it takes plain data parallelism instead, without
a word. Past that one question everything is real: its plugin, torch's FSDP2, gloo.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def main() -> None:
    """Run the script that the arguments name, with the rest of them."""
    begin = AcceleratorState.__init__

    def begin_sharded(state: Any, *args: Any, **kwargs: Any) -> None:
        known = PartialState._shared_state
        if known.get("distributed_type") == DistributedType.MULTI_CPU:
            known["distributed_type"] = DistributedType.MULTI_GPU
        begin(state, *args, **kwargs)

    AcceleratorState.__init__ = begin_sharded
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
