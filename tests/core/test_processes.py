"""The main process is determined in one way, and the end of another process is reported."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.support.forked import free_port, run_forked
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.processes import (
    GLOO_INTERFACE,
    is_main_process,
    on_reachable_interface,
    reporting_lost_process,
)


@pytest.mark.parametrize(("rank", "expected"), [(None, True), ("0", True), ("1", False)])
def test_the_main_process_has_rank_0_or_none(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, expected: bool
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_main_process() is expected


def test_no_module_determines_the_main_process_by_itself() -> None:
    others = re.compile(r"state\.is_main_process|process_index (==|!=|>) 0|\"RANK\", \"0\"\) [=!]=")
    modules = (ROOT / "tinystories_hf").rglob("*.py")
    found = [path.name for path in modules if others.search(path.read_text(encoding="utf-8"))]
    assert found == ["processes.py"]


def host_a_group_and_end(port: int) -> None:
    """As the main process of two, let the other one connect, and end without forming a group."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", port, world_size=2, is_master=True, wait_for_workers=False)
    while store.num_keys() < 2:
        time.sleep(0.01)
    os._exit(0)


def join_a_group_that_ends(port: int) -> None:
    """As the other process of two, expect the error that names the cause."""
    import torch.distributed

    ended = pytest.raises(RunError, match="another process of this run has ended")
    with ended, reporting_lost_process():
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=1, world_size=2
        )


def host_or_join(port: int) -> None:
    (host_a_group_and_end if is_main_process() else join_a_group_that_ends)(port)


def test_a_process_that_ends_before_the_group_has_formed_is_reported(tmp_path: Path) -> None:
    done = run_forked(tmp_path, host_or_join, free_port(), num_processes=2)
    assert done.returncode == 0, done.stderr


def host_on_a_port_in_use() -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        os.environ["MASTER_PORT"] = str(port)
        in_use = pytest.raises(UserError, match=f"port {port} .* in use, .* --main_process_port")
        with in_use, reporting_lost_process():
            TCPStore("127.0.0.1", port, is_master=True)


def test_a_port_in_use_is_reported_with_the_flag_that_changes_it(tmp_path: Path) -> None:
    done = run_forked(tmp_path, host_on_a_port_in_use)
    assert done.returncode == 0, done.stderr


def test_the_interface_that_reaches_the_main_process_is_used_for_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if "127.0.0.1" in (each.address for each in addresses)
    )
    with on_reachable_interface():
        assert os.environ[GLOO_INTERFACE] == loopback
    assert GLOO_INTERFACE not in os.environ
    monkeypatch.setenv(GLOO_INTERFACE, "eth7")  # the user's choice is kept
    with on_reachable_interface():
        assert os.environ[GLOO_INTERFACE] == "eth7"
    monkeypatch.delenv(GLOO_INTERFACE)
    for address in ("no.such.host.invalid", None):  # gloo reports it where it matters
        monkeypatch.setenv("MASTER_ADDR", address) if address else monkeypatch.delenv("MASTER_ADDR")
        with on_reachable_interface():
            assert GLOO_INTERFACE not in os.environ
