"""Kill a run at random instants, start it again by the same command, and compare what comes out.

    python -m tests.support.soak --kills 50 --seed 0
    python -m tests.support.soak --kills 10 --seed 0 --signal TERM

A run of 200 steps with dropout, a checkpoint every 10, ends undisturbed once; the same run is then
killed in its first second, while rows are prepared, between steps, while a checkpoint is written,
and while it is being finished. Nothing is touched between a kill and the next start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.conftest import LAUNCH, start, untimed
from tests.support.forked import ForkedProcess, start_forked, train_forked
from tinystories_hf.core.errors import EXIT_STOPPED

FLAGS = (
    *("--save_steps", "10", "--eval_steps", "50", "--resume_from_checkpoint", "auto"),
    *("--toy_stories", "1500", "--attention_dropout", "0.1", "--resid_dropout", "0.1"),
)


@dataclass(frozen=True)
class Kill:
    """When to kill, by which signal: so many seconds after something has been seen."""

    when: str
    seconds: float
    steps: int = 0
    signal: signal.Signals = signal.SIGKILL


def plan_kills(number: int, seed: int, by: signal.Signals = signal.SIGKILL) -> list[Kill]:
    """Return the kills in the order in which a run can meet them."""
    draw = random.Random(seed)
    early = [Kill("preparing", draw.uniform(0, 0.6)) for _ in range(max(1, number // 10))]
    late = [Kill("finishing", draw.uniform(0, 1.5)) for _ in range(max(1, number // 10))]
    middle = [
        # Nine steps at most, or one save and a little more: the run lasts for all of them.
        draw.choice(
            [
                Kill("first second", draw.uniform(0, 1)),
                Kill("saving", draw.uniform(0, 0.15)),
                Kill("training", draw.uniform(0, 0.02), draw.randint(1, 9)),
            ]
        )
        for _ in range(number - len(early) - len(late))
    ]
    return [replace(kill, signal=by) for kill in (*early, *middle, *late)]


def launch(folder: Path, flags: Sequence[str], processes: int) -> subprocess.Popen[str]:
    """Start the run by its command, through the launcher for several processes."""
    launcher = [*LAUNCH, "--num_processes", str(processes)] if processes > 1 else [sys.executable]
    return start(folder, *flags, launcher=tuple(launcher))


def fork(folder: Path, flags: Sequence[str], processes: int) -> ForkedProcess:
    """Start the run as a process that has imported the stack already."""
    assert processes == 1
    return start_forked(folder, *flags)


Begin = Callable[[Path, Sequence[str], int], "subprocess.Popen[str] | ForkedProcess"]


def forget_output(folder: Path) -> None:
    """Remove what an earlier session printed."""
    for name in ("out.txt", "err.txt"):
        (folder / name).unlink(missing_ok=True)


def steps_said(folder: Path) -> int:
    """Return how many steps this session has logged."""
    return (folder / "out.txt").read_text().count("  loss ")


def has_come(folder: Path, kill: Kill, steps: int) -> bool:
    """Return whether what a kill waits for is there."""
    if kill.when == "preparing":
        return any((folder / "home").glob("tinystories_hf/.*.unfinished"))
    if kill.when == "saving":
        return (folder / "run" / ".unfinished").exists()
    if kill.when == "training":
        return steps_said(folder) >= kill.steps
    if kill.when == "finishing":
        return (folder / "run" / f"checkpoint-{steps}").exists()
    return True


def disturb(
    folder: Path, kill: Kill, steps: int, flags: Sequence[str], processes: int, begin: Begin
) -> int | None:
    """Start the run and send it a signal; return its exit code, None if it ended before."""
    forget_output(folder)
    running = begin(folder, flags, processes)
    while not has_come(folder, kill, steps):
        if running.poll() is not None:
            return None
        time.sleep(0.001)
    time.sleep(kill.seconds)
    if running.poll() is not None:
        return None
    if kill.signal == signal.SIGKILL:
        os.killpg(running.pid, kill.signal)
    else:
        running.send_signal(kill.signal)
    code = running.wait(timeout=120)
    wait_for_the_group(running.pid)
    return code


def wait_for_the_group(group: int) -> None:
    """Wait until no process of a group is left: a launcher ends before what it started."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of group {group} live on")


def outcome(folder: Path, steps: int) -> dict[str, object]:
    """Return all of a run that may not depend on how often it was killed."""
    run = folder / "run"
    state = json.loads((run / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    results = json.loads((run / "eval_results.json").read_text())
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "log": untimed(state["log_history"]),
        "samples": (run / "samples.md").read_text(),
        "loss": results["loss"]["packed"]["loss"],
        "files": sorted(path.name for path in run.iterdir()),
    }


def compare(reference: Path, disturbed: Path, steps: int) -> None:
    """Raise an AssertionError unless two runs came out the same, to the bit."""
    expected, found = outcome(reference, steps), outcome(disturbed, steps)
    for key, value in expected.items():
        assert found[key] == value, f"{key} differs"


def soak(
    folder: Path,
    kills: list[Kill],
    steps: int,
    processes: int = 1,
    begin: Begin = launch,
    say: Callable[[str], None] = lambda _: None,
    more: Sequence[str] = (),
) -> Counter[str]:
    """Run the whole comparison; return how often the run was killed where.

    `begin` starts the sessions that are killed; the undisturbed run and the last session of the
    other one are forked. `more` are further flags of the run.
    """
    reference, disturbed = folder / "reference", folder / "disturbed"
    for path in (reference, disturbed):
        path.mkdir()
    flags = (*FLAGS, "--max_steps", str(steps), *more)
    train_forked(reference, *flags, num_processes=processes)
    met: Counter[str] = Counter()
    for kill in kills:
        before = steps_saved(disturbed)
        code = disturb(disturbed, kill, steps, flags, processes, begin)
        if code is None:
            say(f"{kill}: the run had ended")
            continue
        met[kill.when] += 1
        after = steps_saved(disturbed)
        say(f"{kill}: exit code {code}, step {before} to {after}")
        if kill.signal != signal.SIGKILL:
            check_stop(disturbed, kill, code, processes)
    train_forked(disturbed, *flags, num_processes=processes)
    compare(reference, disturbed, steps)
    return met


def steps_saved(folder: Path) -> int:
    """Return the step of the newest checkpoint."""
    found = (folder / "run").glob("checkpoint-*")
    return max((int(path.name.partition("-")[2]) for path in found), default=0)


def check_stop(folder: Path, kill: Kill, code: int, processes: int) -> None:
    """Raise an AssertionError unless a run that was asked to stop did so as documented."""
    said = (folder / "err.txt").read_text()
    if kill.when == "first second" and code == -signal.SIGTERM:
        return  # before the program listens: nothing was begun
    if kill.when == "finishing" and '"status": "finished"' in (folder / "run/run.json").read_text():
        return  # and after it has ended: nothing was left to do
    assert code == (EXIT_STOPPED if processes == 1 else 1), said
    assert "stopped: by SIGTERM" in said, said
    logged = [int(line.split()[1].partition("/")[0]) for line in loss_lines(folder)]
    if logged and kill.when in ("training", "saving"):
        assert logged[-1] == steps_saved(folder), "all that was done is saved"


def loss_lines(folder: Path) -> list[str]:
    """Return the lines of this session that tell of a step."""
    lines = (folder / "out.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("step") and "  loss " in line]


def main() -> None:
    """Parse, soak, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        met = soak(
            Path(folder),
            plan_kills(given.kills, given.seed, signal.Signals[f"SIG{given.signal}"]),
            steps=200,
            processes=given.processes,
            say=print,
        )
    places = ", ".join(f"{count} {place}" for place, count in sorted(met.items()))
    print(f"{met.total()} signals ({places}); same weights, log, samples and loss, to the bit;"
          f" {time.monotonic() - began:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
