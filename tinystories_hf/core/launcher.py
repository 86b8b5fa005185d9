"""What the launcher and the environment variables ask for; unsupported requests are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil
from accelerate.commands.config.config_args import default_config_file
from accelerate.utils import DynamoBackend

from tinystories_hf.core.device import Precision
from tinystories_hf.core.errors import UserError

ONES_OF_A_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SIZES_OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Variables that `accelerate launch` sets for unsupported kinds of parallelism.
OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
# Variables that accelerate reads, the settings they choose, and the supported values.
_CHOICES = (
    ("ACCELERATE_MIXED_PRECISION", "mixed_precision", ["bf16", "fp16", "no"]),
    ("ACCELERATE_DYNAMO_BACKEND", "dynamo_backend", [x.lower() for x in DynamoBackend.list()]),
)


def check_launch() -> None:
    """Check that this package supports what the launcher and the environment ask for.

    Raises:
        UserError: it does not; the message names the file or the variable.
    """
    _check_group()
    _check_mpi()
    asked = {name: what for name, what in OTHER_WAYS.items() if os.environ.get(name) == "true"}
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION") != "2":
        asked["ACCELERATE_USE_FSDP"] = "FSDP 1"
    for name, what in asked.items():
        raise UserError(
            f"{setting_source(name)} asks for {what}, which is not supported; launch with"
            " --config_file configs/accelerate/fsdp.yaml to shard a model, or with another file of"
            " that folder"
        )
    for name, what, choices in _CHOICES:
        value = os.environ.get(name, choices[0])
        if value.lower() not in choices:
            raise UserError(
                f"{setting_source(name)} asks for {what} {value}, which is not supported; choose"
                f" {', '.join(choices[:-1])} or {choices[-1]}"
            )


def launcher_precision() -> Precision | None:
    """Return the precision that the launcher was asked for, or None.

    `accelerate launch` always sets the variable, to `no` by default, and `accelerate config`
    writes `no` for everybody who presses Enter. So `no` counts only where the flag was given.
    """
    found = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if found in ("bf16", "fp16"):
        return "bf16" if found == "bf16" else "fp16"
    flag = re.compile("--mixed[-_]precision(=.*)?")
    asked = found == "no" and any(flag.fullmatch(word) for word in launcher_command())
    return "no" if asked else None


def launcher_command() -> list[str]:
    """Return the command line of `accelerate launch`, or [] if it did not start this process."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return []
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:
        return []


def setting_source(variable: str) -> str:
    """Describe where a setting comes from: the launcher's flags, its file, or the variable."""
    command = launcher_command()
    if not any("accelerate" in word for word in command):
        return f"{variable}={os.environ.get(variable)} in the environment"
    for word, following in zip(command, [*command[1:], ""], strict=False):
        flag, _, value = word.partition("=")
        if flag.replace("-", "_") == "__config_file":
            return f"accelerate launch (its flags, or {value or following})"
    if Path(default_config_file).is_file():
        return f"accelerate launch (its flags, or {default_config_file})"
    return "accelerate launch"


def _check_group() -> None:
    """Raise a `UserError` if only some variables of a process group are set."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not re.fullmatch(r"-?\d{1,9}", os.environ.get(name, "0")):
            raise UserError(f"{name}: {os.environ[name]!r} in the environment is not an integer")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    several = size > 1 or int(os.environ.get("LOCAL_RANK", "-1")) >= 0
    there = [name for name in ONES_OF_A_GROUP if name in os.environ]
    missing = [name for name in ONES_OF_A_GROUP if name not in os.environ]
    if (several and missing) or not 0 <= rank < size:
        found = ", ".join(f"{name}={os.environ[name]}" for name in there)
        lacking = f" without {', '.join(missing)}" if missing else ""
        raise UserError(
            f"the environment has {found}{lacking}; start several processes with `accelerate"
            f" launch`; to start a single one, run `unset {' '.join(there)}` first"
        )


def _check_mpi() -> None:
    """Raise a `UserError` if MPI started several processes that form no process group."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    for name in SIZES_OF_MPI:
        value = os.environ.get(name, "1")
        if value != "1":
            raise UserError(
                f"{name}={value} in the environment is set by MPI, which is not supported;"
                f" start several processes with `accelerate launch`, or one after `unset {name}`"
            )
