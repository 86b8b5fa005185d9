"""C++ of the package is compiled once and loaded, on whatever machine; else it says why not."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import environment
from tinystories_hf.core import native
from tinystories_hf.model import kernels

pytestmark = pytest.mark.skipif(
    not kernels.kernels_available(), reason="needs a C++ compiler with OpenMP, which is not there"
)
SOURCE = '#include <omp.h>\nextern "C" int answer() { return 41 + (omp_get_max_threads() > 0); }\n'
# In a process of its own: `answer.cpp` of the working directory, loaded as the package loads its.
CODE = """
from pathlib import Path
from tinystories_hf.core import native
native._SOURCES = Path.cwd()
library = native.load_library("answer.cpp")
print(library and library.answer())
"""


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of compiled libraries, empty; `answer.cpp` is what is compiled."""
    (tmp_path / "answer.cpp").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(native, "_SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "tinystories_hf"


def answer() -> int:
    return int(native.compile_library("answer.cpp").answer())


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything is compiled from here on."""

    def run(command: list[str]) -> str:
        assert command[-1] == "--version", f"compiled: {command}"
        return RUN(command)

    monkeypatch.setattr(native, "_run", run)


RUN = native._run


def test_a_library_is_compiled_once_for_a_machine(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42
    (kept,) = caches.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o666 & ~_umask()
    no_compiler(monkeypatch)
    assert answer() == 42
    # The test can fail: another flag is another library.
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-g0"))
    with pytest.raises(AssertionError, match="compiled"):
        answer()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


@pytest.mark.parametrize("damage", ["empty", "cut short", "a bit", "no library", "a folder"])
def test_a_damaged_library_in_the_cache_is_compiled_again(caches: Path, damage: str) -> None:
    assert answer() == 42
    (kept,) = caches.iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.unlink()  # it is loaded in this process: its bytes stay what they are
    if damage == "a folder":
        kept.mkdir()
    else:
        kept.write_bytes(
            {
                "empty": b"",
                "cut short": bytes(content[: len(content) // 2]),
                "a bit": bytes(content),
                "no library": b"no library",
            }[damage]
        )
    assert answer() == 42


def test_it_is_loaded_from_elsewhere_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("a file", encoding="utf-8")
    assert answer() == 42
    assert (tmp_path / "caches").read_text(encoding="utf-8") == "a file"


def test_a_user_without_a_home_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of no passwd entry
    assert native._cache() is None
    assert answer() == 42


@pytest.mark.parametrize("where", ["TMPDIR", "XDG_CACHE_HOME", "both"])
def test_on_a_file_system_that_runs_no_programs_the_other_folder_is_used_or_the_cause_named(
    where: str, tmp_path: Path
) -> None:
    """On a true mount of that kind, in a namespace of the process."""
    (tmp_path / "noexec").mkdir()
    named = {"TMPDIR": "tmp", "XDG_CACHE_HOME": "caches"}
    for name in named if where == "both" else [where]:
        named[name] = "noexec"
    for name in named.values():
        (tmp_path / name).mkdir(exist_ok=True)
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, which is not there")
    mounted = 'mount -t tmpfs -o noexec none noexec || exit 77; "$@" && "$@"'
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh")
    done = subprocess.run(
        [*inside, sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=environment(tmp_path, **{k: str(tmp_path / v) for k, v in named.items()}),
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip("needs leave to mount a file system in a user namespace (unshare)")
    assert done.returncode == 0, done.stderr
    if where == "both":
        assert done.stdout == "None\nNone\n"
        for line in done.stderr.splitlines():
            assert "is compiled but cannot be loaded" in line
            assert "noexec" in line
            assert "XDG_CACHE_HOME" in line
    else:
        assert (done.stdout, done.stderr) == ("42\n42\n", "")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_that_can_do_it_the_message_names_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = native._compiler()[0]
    without_openmp = script(
        tmp_path / "without openmp",
        'case "$*" in *-fopenmp*) echo "hint" >&2;'
        f""" echo "error: unsupported option '-fopenmp'" >&2; exit 1;; esac; exec {real} "$@" """,
    )
    causes = {
        "no-such-compiler": r"CXX is no-such-compiler, which was not found; install g\+\+",
        f"'{without_openmp}'": r"\(error: unsupported option '-fopenmp'\)\. A C\+\+ compiler",
        script(tmp_path / "silent", "exit 3"): r"exit status 3",
        script(tmp_path / "empty", "echo >&2; exit 3"): r"exit status 3",
        script(tmp_path / "killed", "kill -9 $$"): r"SIGKILL",
    }
    for compiler, cause in causes.items():
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(
            native.NotCompiledError, match=f"^answer.cpp cannot be compiled.*{cause}"
        ):
            answer()
    (tmp_path / "answer.cpp").write_text("int answer() { return forty; }", encoding="utf-8")
    monkeypatch.setenv("CXX", f"{real} -O1")
    with pytest.raises(native.NotCompiledError, match=r"error: .*forty"):
        answer()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    with pytest.raises(
        native.NotCompiledError, match=r"no C\+\+ compiler was found; install g\+\+"
    ):
        answer()


def test_where_no_temporary_file_can_be_made_what_is_compiled_is_loaded_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    assert answer() == 42
    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert answer() == 42
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-g0"))
    with pytest.raises(native.NotCompiledError, match="No usable temporary directory"):
        answer()


def test_one_line_says_what_cannot_be_used_and_what_that_costs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert native.load_library.__wrapped__("answer.cpp") is None
    (record,) = caplog.records
    said = record.getMessage()
    assert "no-such-compiler" in said
    assert said.endswith("give the same results.")
    assert "\n" not in said


def test_many_processes_compile_at_once_and_leave_one_library(caches: Path, tmp_path: Path) -> None:
    def load(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
        )

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(load, range(4)))
    assert [(one.stdout, one.stderr) for one in done] == [("42\n", "")] * 4
    assert len(list(caches.iterdir())) == 1
