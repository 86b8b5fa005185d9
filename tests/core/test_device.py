from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tinystories_hf.core.device import (
    deterministic_algorithms,
    device_type,
    full_precision,
    missing_for_compilation,
    restoring_precision,
    should_compile,
)

GENERAL: Any = torch.backends
PRODUCTS: Any = torch.backends.cuda.matmul


def test_a_build_for_gpus_on_a_machine_without_one_trains_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_a_cuda_build(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", of_a_cuda_build)
    assert device_type() == "cpu"


@pytest.fixture
def _precision_put_back() -> Iterator[None]:
    before = GENERAL.fp32_precision, PRODUCTS.fp32_precision
    yield
    GENERAL.fp32_precision, PRODUCTS.fp32_precision = before


def compile_something() -> None:
    torch.compiler.reset()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))


@pytest.mark.usefixtures("_precision_put_back")
def test_losses_are_never_computed_in_tf32_also_after_a_compilation() -> None:
    GENERAL.fp32_precision = "tf32"
    compile_something()
    with full_precision():
        assert GENERAL.fp32_precision == PRODUCTS.fp32_precision == "ieee"
    assert GENERAL.fp32_precision == PRODUCTS.fp32_precision == "tf32"
    # The test can fail: the general setting alone does not reach matrix products.
    compile_something()
    GENERAL.fp32_precision = "ieee"
    assert PRODUCTS.fp32_precision == "tf32"


@pytest.mark.usefixtures("_precision_put_back")
@pytest.mark.parametrize(("general", "products"), [("none", "none"), ("tf32", "ieee")])
def test_the_precision_of_before_comes_back_at_both_levels(general: str, products: str) -> None:
    GENERAL.fp32_precision, PRODUCTS.fp32_precision = general, products
    with restoring_precision():
        GENERAL.fp32_precision = "tf32"
        compile_something()
    with full_precision():
        compile_something()
    assert (GENERAL.fp32_precision, PRODUCTS.fp32_precision) == (general, products)
    if general == products:  # matrix products still inherit the general setting
        GENERAL.fp32_precision = "tf32"
        assert PRODUCTS.fp32_precision == "tf32"


def test_only_deterministic_algorithms_run_where_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for enabled in (True, False):
        with deterministic_algorithms(enabled):
            assert torch.are_deterministic_algorithms_enabled() == enabled
        assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def executable(path: Path) -> str:
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_gpu_compiles_only_where_there_is_a_compiler_with_pythons_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = tmp_path / "Python.h"
    headers.touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert str(missing_for_compilation()).startswith("no C compiler was found; install gcc")
    assert not should_compile("auto", "cuda")
    assert should_compile(True, "cuda")  # then PyTorch reports it
    monkeypatch.setenv("CC", "icc -O1")
    assert "no C compiler was found as CC=icc;" in str(missing_for_compilation())
    executable(tmp_path / "icc")
    assert should_compile("auto", "cuda")
    assert not should_compile("auto", "cpu")
    monkeypatch.delenv("CC")
    executable(tmp_path / "clang")
    assert should_compile("auto", "cuda")
    headers.unlink()
    assert "Python.h" in str(missing_for_compilation())
    assert not should_compile("auto", "cuda")
