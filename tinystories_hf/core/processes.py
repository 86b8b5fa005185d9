"""The processes of a distributed run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from tinystories_hf.core.errors import RunError, UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
# How long processes wait for the one that prepares the rows, and for each other's signals.
# Preparing all of TinyStories takes minutes; the default of the process group is 30 of them.
HOST_TIMEOUT = timedelta(hours=12)
# What gloo reports if it cannot connect the processes.
_UNREACHABLE = ("connectFullMesh failed", "Unable to find address", "Connect timeout")
# What gloo and the store of PyTorch's process groups report once a peer is gone: the store while
# the group is formed, gloo afterwards.
_LOST = ("closed by peer", "reset by peer", "Connection was likely closed", "Broken pipe")


def is_main_process() -> bool:
    """Return whether this is the main process of the run, according to the launcher.

    It needs no accelerator, so it can be used before the process group exists. Callbacks and code
    that has a Trainer use `is_world_process_zero` of the Trainer or its state, which agrees.
    """
    return os.environ.get("RANK", "0") == "0"


def new_host_group() -> ProcessGroup | None:
    """Return a group in which processes agree without their GPUs; a collective call.

    NCCL would wait for the GPU each time. None if there is a single process.
    """
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    group: ProcessGroup = dist.new_group(backend="gloo", timeout=HOST_TIMEOUT)
    return group


@contextmanager
def first_on_each_machine(hosts: ProcessGroup | None) -> Iterator[None]:
    """Let one process of each machine run the block before the others."""
    import torch.distributed as dist

    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if hosts is not None and not is_first:
        dist.barrier(hosts)
    try:
        yield
    finally:
        if hosts is not None and is_first:
            dist.barrier(hosts)


@contextmanager
def on_reachable_interface() -> Iterator[None]:
    """Let gloo use the network interface through which this machine reaches the main process.

    By default gloo uses the address of the machine's name, which on many machines is the loopback
    interface. GLOO_SOCKET_IFNAME in the environment is kept.
    """
    found = None if GLOO_INTERFACE in os.environ else _reachable_interface()
    if found is None:
        yield
        return
    os.environ[GLOO_INTERFACE] = found
    try:
        yield
    finally:
        os.environ.pop(GLOO_INTERFACE, None)


def _reachable_interface() -> str | None:
    import psutil

    main = os.environ.get("MASTER_ADDR")
    if main is None:
        return None
    try:
        family, kind, _, _, address = socket.getaddrinfo(main, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # UDP: nothing is sent
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if own in (each.address for each in addresses):
            return name
    return None


@contextmanager
def reporting_lost_process() -> Iterator[None]:
    """Turn the errors of a process group that ends, or cannot form, into errors with one message.

    Raises:
        RunError: another process of the run has ended.
        UserError: the port of the process group is in use, or the processes cannot connect.
    """
    try:
        yield
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            raise UserError(
                f"port {port} of the process group is in use, perhaps by another run on this"
                " machine; start with another --main_process_port"
            ) from error
        is_lost = any(text in str(error) for text in _LOST)
        if not is_lost and any(text in str(error) for text in _UNREACHABLE):
            interface = os.environ.get(GLOO_INTERFACE, "that of this machine's name")
            raise UserError(
                "the processes cannot connect to each other. The network interface is"
                f" {interface}; set {GLOO_INTERFACE} to the one that reaches the other machines"
                " (`ip address` lists them). If another process has ended, see its error message"
            ) from error
        if not is_lost:
            raise
        raise RunError("another process of this run has ended; see its error message") from error
