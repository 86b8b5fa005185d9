from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tinystories_hf.core.threads import SPIN_COUNT, WAIT_POLICY_VARIABLES, let_waiting_threads_sleep

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# What all scripts import before their main function, and then all that has an OpenMP runtime:
# PyTorch, and the kernels, which may share PyTorch's.
CODE = """
import os, re, runpy, sys
from pathlib import Path

def runtimes():
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(set(re.findall("/.*lib(?:g|i)?omp.*", maps)))

for script in sys.argv[1:]:
    runpy.run_path(script, run_name="imported")
print(os.environ.get("OMP_WAIT_POLICY"), runtimes())
from tinystories_hf.core.script import report_user_errors
with report_user_errors():
    import torch
    from tinystories_hf.model import kernels
    kernels.kernels_available()
    print(runtimes())
"""


def test_threads_of_every_runtime_sleep_while_they_wait_in_every_script(
    launch_code: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WAIT_POLICY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    code, said, shown = launch_code(CODE, *map(str, SCRIPTS), OMP_DISPLAY_ENV="VERBOSE")
    assert code == 0, shown
    before, after = said.splitlines()
    assert before == "None 0", "importing the package sets nothing and loads no runtime"
    # How often, or for how many ms, a thread looks for work before it sleeps.
    spins = re.findall(r"(?:GOMP_SPINCOUNT|KMP_BLOCKTIME)\s*=\s*'(\d+)", shown)
    assert len(spins) == int(after)
    assert set(spins) <= {"0", str(SPIN_COUNT)}
    assert int(after) > 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_does_its_work_where_threads_sleep(script: Path) -> None:
    assert "    with report_user_errors():\n        main()\n" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WAIT_POLICY_VARIABLES)
def test_a_choice_of_the_users_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in WAIT_POLICY_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "ACTIVE")
    let_waiting_threads_sleep()
    assert {other: os.environ[other] for other in WAIT_POLICY_VARIABLES if other in os.environ} == {
        name: "ACTIVE"
    }
