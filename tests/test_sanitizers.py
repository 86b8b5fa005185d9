"""What Python hands to C++ never makes it leave its memory: AddressSanitizer and UBSan look on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tinystories_hf.core import native

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-g")
CALLS = {"kernels": 1400, "words": 400, "index": 400}
assert sum(CALLS.values()) >= 2000


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the libraries that a process with sanitized C++ has to load first, or skip."""
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "empty.cpp").write_text("#include <omp.h>\n", encoding="utf-8")
    try:
        compiler = native._compiler()
        wanted = ("libasan.so", "libstdc++.so.6")
        found = [native._run([*compiler, f"-print-file-name={name}"]).strip() for name in wanted]
        native._run(
            [*compiler, *native._FLAGS, *FLAGS, f"{folder}/empty.cpp", "-o", f"{folder}/so"]
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a C++ compiler with AddressSanitizer and UBSan: {error}")
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("needs GCC's AddressSanitizer as a library (libasan.so)")
    return " ".join(found)


def call(
    part: str, sources: Path, home: Path, preloaded: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    options = {
        "LD_PRELOAD": preloaded,
        # Python's own bytes and numpy's arrays each lie between forbidden bytes, too.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
        "OMP_NUM_THREADS": "2",
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.hostile_calls",
            part,
            str(CALLS[part]),
            str(sources),
            *FLAGS,
        ],
        cwd=ROOT,
        env=environment(home, **{**options, **extra}),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("part", CALLS)
def test_random_and_hostile_calls_stay_in_their_memory(
    part: str, tmp_path: Path, preloaded: str
) -> None:
    done = call(part, ROOT / "tinystories_hf", tmp_path, preloaded)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{CALLS[part]} returned, ")


# The negative control: a fault a file, of the kind that the real ones have been.
PLANTED = {
    "kernels": ("model/kernels.cpp", "labels[c] >= vocabulary", "labels[c] > vocabulary"),
    "words": ("data/tokenization/tokenize.cpp", "count > size", "false"),
    "index": (
        "evaluation/suites/training_scan.cpp",
        "at + 1 < starts[story + 1]",
        "at < starts[story + 1] + 1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", CALLS)
def test_the_same_calls_find_a_planted_fault(part: str, tmp_path: Path, preloaded: str) -> None:
    name, right, wrong = PLANTED[part]
    package = ROOT / "tinystories_hf"
    for source in package.rglob("*.cpp"):
        copy = tmp_path / source.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / name).write_text(text.replace(right, wrong), encoding="utf-8")
    done = call(part, tmp_path, tmp_path, preloaded, XDG_CACHE_HOME=str(tmp_path / "caches"))
    assert done.returncode == 99
    assert re.search(rf"AddressSanitizer: \S*overflow[\s\S]*{name}", done.stderr)
