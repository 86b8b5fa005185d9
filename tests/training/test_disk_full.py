"""A full disk, tested with a small file system in its own mount namespace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_CONFIG, environment
from tests.support.loopback_hub import LoopbackHub
from tests.support.publishing import REPO, TOKEN, published

MOUNT = "mount -t tmpfs -o size={size} tmpfs {place}"


def in_a_small_file_system(
    folder: Path, script: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell script in its own mount namespace; skip if the system does not allow it."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux) to make a small file system")
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc"]
    (folder / "small").mkdir()
    probe = MOUNT.format(size="1m", place="small")
    if subprocess.run([*words, probe], cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let users mount a file system")
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    train = f"{sys.executable} {ROOT / 'scripts/train.py'} --config tiny.yaml"
    return subprocess.run(
        [*words, script.replace("TRAIN", f"{train} --resume_from_checkpoint auto")],
        cwd=folder,
        env=environment(folder / "home", PYTHONPATH=str(ROOT), **extra),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_publishing_on_a_full_disk_keeps_the_run_and_works_once_there_is_space(
    tmp_path: Path, trained_run: Path, mine: LoopbackHub
) -> None:
    shutil.copytree(trained_run, tmp_path / "copy")
    card = (trained_run / "README.md").read_text()
    push = f"{sys.executable} {ROOT / 'scripts/push_to_hub.py'} --model small/run --repo {REPO}"
    script = "\n".join(
        [
            MOUNT.format(size="16m", place="small"),
            "cp -r copy small/run",
            "head -c 16000000 /dev/zero > small/other || true",
            f"{push} && exit 9; echo code $?; cat small/run/README.md > card.md",
            f"rm small/other; {push}",
        ]
    )
    done = in_a_small_file_system(
        tmp_path, script, HF_ENDPOINT=mine.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "code 1"
    assert "error: writing the card: no space left on the disk of small/run" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "card.md").read_text() == card
    assert b"me/tiny" in published(mine)["README.md"]


WRITE = """
import sys
from pathlib import Path
import numpy, torch, pyarrow, safetensors.torch
from tinystories_hf.training.checkpoints import writing_checkpoint
from tinystories_hf.core.errors import RunError
from tinystories_hf.core.files import write_text

large = torch.arange(2**20)
ways = {
    "safetensors": lambda path: safetensors.torch.save_file({"a": large}, path),
    "torch": lambda path: torch.save(large, path),
    "numpy": lambda path: numpy.save(path, large.numpy()),
    "pyarrow": lambda path: pyarrow.OSFile(str(path), "wb").write(large.numpy().tobytes()),
    "text": lambda path: write_text(path, "a" * 2**23),
}
run = Path("small")
for name, write in ways.items():
    try:
        with writing_checkpoint(run, 0) as aside:
            write(aside / "file")
    except RunError as error:
        assert "no space left on the disk of small" in str(error), error
        print(name, sorted(path.name for path in run.iterdir()))
"""


def test_a_full_disk_is_recognized_for_every_library_that_writes(
    tmp_path: Path,
) -> None:
    (tmp_path / "write.py").write_text(WRITE)
    script = "\n".join(
        [
            MOUNT.format(size="4m", place="small"),
            "mkdir small/checkpoint-10",
            f"{sys.executable} write.py",
        ]
    )
    done = in_a_small_file_system(tmp_path, script)
    assert done.returncode == 0, done.stderr
    ways = ("safetensors", "torch", "numpy", "pyarrow", "text")
    assert done.stdout.splitlines() == [f"{name} ['checkpoint-10']" for name in ways]


def test_preparation_on_a_full_disk_leaves_nothing_and_works_once_there_is_space(
    tmp_path: Path,
) -> None:
    script = "\n".join(
        [
            MOUNT.format(size="100k", place="small"),
            "TRAIN --prepared_dir small/rows --max_steps 2 && exit 9",
            "echo code $?; ls -A small",
            "mount -o remount,size=16m small",
            "TRAIN --prepared_dir small/rows --max_steps 2",
        ]
    )
    done = in_a_small_file_system(tmp_path, script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["starting", "code", "starting", "model"]
    assert lines[1] == "code 1", "no file was left behind"
    (line, *_) = done.stderr.splitlines()
    assert line.startswith("error: preparing: no space left on the disk of small/rows/toy-64-")
    assert "free some space and run the same command again" in line
    assert "Traceback" not in done.stderr


def test_a_run_on_a_full_disk_keeps_its_checkpoints_and_resumes_once_there_is_space(
    tmp_path: Path,
) -> None:
    run = (
        "TRAIN --output_dir small/run --max_steps 4000 --save_steps 20 --eval_steps 4000"
        " --lr_scheduler_type constant"
    )
    script = "\n".join(
        [
            MOUNT.format(size="12m", place="small"),
            f"{run} && exit 9; echo code $?; ls -A small",
            "mount -o remount,size=16m small",
            f"{run} > out.txt & while ! test -e small/run/checkpoint-40; do sleep 0.05; done",
            # Another file takes the space that was free when the run started.
            "head -c 12000000 /dev/zero > small/other || true",
            "wait $! && exit 9; echo code $?; ls -A small/run; ls -A small/run/checkpoint-*",
            "rm small/other",
            f"{run.replace('4000', '100')} | grep run",
        ]
    )
    done = in_a_small_file_system(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "output_dir: 2 checkpoints and the model need 14 MB, but only 13 MB are free" in said[0]
    assert "a checkpoint needs 5 MB, but" in said[1]
    lines = done.stdout.splitlines()
    assert lines[:3] == ["starting    small/run", "code 2", "code 1"], (
        "the first run was refused and left nothing behind"
    )
    kept = [line for line in lines if line.startswith("checkpoint-")]
    assert len(kept) == 2
    assert sum(line == "checkpoint.json" for line in lines) == 2, "both are valid"
    newest = max(kept, key=lambda name: int(name.partition("-")[2]))
    assert f"run         small/run, resumed from small/run/{newest}" in lines
