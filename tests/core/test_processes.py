"""The main process is determined in one way."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tinystories_hf.core.processes import is_main_process


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
