"""The same global batch and losses with one process, several processes and several machines."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import LAUNCH, ROOT, TINY_CONFIG, environment, made_once
from tests.support.forked import (
    ForkedProcess,
    free_port,
    launched,
    run_forked,
    script,
    start_forked,
    train_forked,
)
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.processes import GLOO_INTERFACE, reporting_lost_process
from tinystories_hf.data.manifest import rows_file

FLAGS = ("--max_steps", "50", "--seed", "3", "--save_steps", "50", "--eval_steps", "25")

DROPOUT = ("--attention_dropout", "0.1", "--resid_dropout", "0.1")
SHORT = ("--max_steps", "10", "--save_steps", "5", "--eval_steps", "5", "--seed", "3")


def losses(folder: Path) -> dict[int, float]:
    state = json.loads((folder / "run" / "checkpoint-50" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with one process."""
    return made_once(tmp_path_factory, "alone", lambda folder: train_forked(folder, *FLAGS))


def check_the_same(folder: Path, alone: Path, processes: int) -> None:
    """Check that a run has the losses of the one in `alone`, and wrote its files once."""
    expected, found = losses(alone), losses(folder)
    assert len(expected) == len(found) == 50
    assert max(abs(expected[step] - found[step]) for step in expected) < 1e-4
    assert expected[1] > expected[50] + 0.5, "both losses fall"
    record = json.loads((folder / "run" / "run.json").read_text())
    (session,) = record["sessions"]
    assert session["batch"]["num_processes"] == processes
    assert session["batch"]["global_batch_size"] == 8
    samples = (folder / "run" / "samples.md").read_text()
    assert [samples.count(f"## Step {step}\n") for step in (25, 50)] == [1, 1]
    (prepared,) = (folder / "home" / "tinystories_hf").iterdir()
    (same,) = (alone / "home" / "tinystories_hf").iterdir()
    assert rows_file(prepared, "train").read_bytes() == rows_file(same, "train").read_bytes()


def test_several_processes_train_as_one(tmp_path: Path, alone: Path) -> None:
    train_forked(tmp_path, *FLAGS, num_processes=2)
    check_the_same(tmp_path, alone, 2)


def test_more_processes_train_as_one(tmp_path: Path, alone: Path) -> None:
    train_forked(tmp_path, *FLAGS, num_processes=4)
    check_the_same(tmp_path, alone, 4)


def train_on_two_machines(*folders: Path) -> list[tuple[int, str, str]]:
    """Start one process in each folder, as two launchers that form one group."""
    port = str(free_port())
    machines = [
        subprocess.Popen(
            [
                *(*LAUNCH, "--num_machines", "2", "--num_processes", "2"),
                *("--machine_rank", rank, "--main_process_ip", "127.0.0.1"),
                *("--main_process_port", port, str(ROOT / "scripts" / "train.py")),
                *("--config", "tiny.yaml", "--output_dir", "run", *FLAGS),
            ],
            cwd=folder,
            env=environment(folder / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in zip(("0", "1"), folders, strict=True)
    ]
    said = [machine.communicate(timeout=300) for machine in machines]
    codes = [machine.returncode for machine in machines]
    return [(code, out, err) for code, (out, err) in zip(codes, said, strict=True)]


def test_two_machines_train_as_one(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_CONFIG)
    said = train_on_two_machines(tmp_path, tmp_path)
    assert [code for code, _, _ in said] == [0, 0], said
    check_the_same(tmp_path, alone, 2)
    once = [out.count("step 50/50  loss") for _, out, _ in said]
    assert once == [1, 0], "only the main process prints it"


def test_machines_that_do_not_share_the_run_directory_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    port = free_port()
    running = [
        start_forked(folder, *FLAGS, variables=launched(rank, 2, port))
        for rank, folder in enumerate(folders)
    ]
    assert all(process.wait(120) != 0 for process in running)
    said = (folders[1] / "err.txt").read_text()
    assert "output_dir: run of the first machine does not exist on this one" in said
    assert not (folders[1] / "run").exists()


def train_and_note_generators() -> None:
    """Train, and write a digest of the generator before the first dropout, by rank."""
    from tinystories_hf.training.trainer import StoryTrainer

    step, noted = StoryTrainer.training_step, Path(f"generator{os.environ.get('RANK', '0')}")

    def training_step(self: StoryTrainer, *args: object, **how: object) -> torch.Tensor:
        if not noted.exists():
            noted.write_text(
                hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(), "utf-8"
            )
        return step(self, *args, **how)

    StoryTrainer.training_step = training_step  # type: ignore[method-assign]
    script("train.py", ["--config", "tiny.yaml", "--output_dir", "run", *SHORT, *DROPOUT])


def generators(folder: Path, processes: int) -> list[str]:
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    home = {"HF_HOME": str(folder / "home")}
    done = run_forked(folder, train_and_note_generators, num_processes=processes, variables=home)
    assert done.returncode == 0, done.stderr
    return [(folder / f"generator{rank}").read_text() for rank in range(processes)]


def test_each_process_has_its_own_dropout_and_resumes_bit_identically(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    for folder in (two, one):
        folder.mkdir()
    drawn = generators(two, 2)
    assert drawn[0] != drawn[1]
    assert generators(one, 1) == drawn[:1]  # the first process draws what a single one does
    again = two / "again"
    again.mkdir()
    shutil.copytree(two / "run" / "checkpoint-5", again / "checkpoint-5")
    shutil.copyfile(two / "run" / "run.json", again / "run.json")
    flags = (*SHORT, *DROPOUT, "--resume_from_checkpoint", "auto")
    train_forked(two, *flags, num_processes=2, run="again")
    trained = [(folder / "model.safetensors").read_bytes() for folder in (two / "run", again)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("text", ["Gloo connectFullMesh failed with", "Unable to find address for"])
def test_processes_that_cannot_connect_are_told_which_variable_to_set(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GLOO_INTERFACE, "lo")
    wrong = pytest.raises(
        UserError, match="interface is lo; set GLOO_SOCKET_IFNAME to the one that"
    )
    with wrong, reporting_lost_process():
        raise RuntimeError(f"[enforce fail at device.cc:84] {text}")


# A network of two machines, as two network namespaces of this one.


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Return the names of two network namespaces, with the addresses 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip, for network namespaces")
    names = [f"tinystories{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"v{os.getpid()}{letter}" for letter in "ab"]
    commands = [["netns", "add", name] for name in names]
    peer = ["type", "veth", "peer", "name", ends[1], "netns", names[1]]
    commands.append(["link", "add", ends[0], "netns", names[0], *peer])
    for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
        commands.append(["-n", name, "address", "add", f"10.77.0.{number}/24", "dev", end])
        commands += [["-n", name, "link", "set", device, "up"] for device in ("lo", end)]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def enter_and_train(namespace: str, flags: list[str]) -> None:
    """Move this process into a network namespace, and train the tiny model."""
    with Path("/var/run/netns", namespace).open("rb") as opened:
        kind_network = 0x40000000
        assert ctypes.CDLL(None, use_errno=True).setns(opened.fileno(), kind_network) == 0
    script("train.py", ["--config", "tiny.yaml", "--output_dir", "run", *flags])


def start(folder: Path, machines: list[str], **variables: str) -> list[ForkedProcess]:
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    port, started = free_port(), []
    for rank, machine in enumerate(machines):
        group = {**launched(rank, 2, port), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        group |= {"MASTER_ADDR": "10.77.0.1", "HF_HOME": str(folder / "home"), **variables}
        said = (folder / f"out{rank}.txt", folder / f"err{rank}.txt")
        flags = list(SHORT)
        started.append(
            ForkedProcess(folder, said, enter_and_train, machine, flags, variables=group)
        )
    return started


def test_two_machines_that_share_a_network_train_as_one(
    tmp_path: Path, machines: list[str]
) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    running = start(together, machines)
    codes = [process.wait(120) for process in running]
    assert codes == [0, 0], (together / "err1.txt").read_text()
    train_forked(alone, *SHORT)
    logged = []
    for folder in (together, alone):
        state = json.loads((folder / "run/checkpoint-10/trainer_state.json").read_text())
        logged.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert len(logged[0]) == 10
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)


def test_the_wrong_network_interface_is_named(tmp_path: Path, machines: list[str]) -> None:
    first, second = start(tmp_path, machines, **{GLOO_INTERFACE: "lo"})
    try:
        while first.poll() is None and second.poll() is None:
            first.process.join(0.1)
    finally:
        for process in (first, second):  # the other one waits for longer
            process.kill()
            process.wait(10)
    said = "".join((tmp_path / f"err{rank}.txt").read_text() for rank in (0, 1))
    assert "The network interface is lo; set GLOO_SOCKET_IFNAME to the one that reaches" in said
