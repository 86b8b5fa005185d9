"""Publishing to a Hub that fails, with the real clients."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Fault
from tests.support.publishing import REPO, on_disk, published
from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import RunError
from tinystories_hf.hub import publish as publishing
from tinystories_hf.hub.client import Patience
from tinystories_hf.hub.publish import RunRepository, publish

WHATS = ("429", "429=3", "500", "502", "503", "drop=100", "drop=0", "lost", "slow=1")
REQUESTS = ("validate", "preupload", "lfs-batch", "lfs-upload", "lfs-verify", "commit", "refs")
ONES = ("429=3", "500", "503", "drop=100", "lost", "slow=1")
SINGLE = [f"{request}:1:{what}" for request in REQUESTS for what in ONES]


def publish_until_it_succeeds(mine: LoopbackHub, run_dir: Path, pushes: int = 4) -> int:
    """Publish as a user would, again and again; `main` is whole or untouched after each."""
    for number in range(1, pushes + 1):
        said = ""
        try:
            publish(run_dir, RunRepository(REPO))
        except RunError as error:
            said = str(error)
        there = published(mine) if ("models", REPO) in mine.repositories else {}
        if not said:
            assert there == on_disk(run_dir)
            return number
        assert f"to publish it: {command_line('push', '--model')}" in said
        assert there in ({}, on_disk(run_dir))
    raise AssertionError(f"not published after {pushes} pushes")


@pytest.mark.parametrize("fault", SINGLE)
def test_one_passing_fault_is_not_even_noticed(
    mine: LoopbackHub,
    client: list[float],
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(publishing, "FOR_THE_MODEL", Patience(attempts=5, timeout=0.5))
    mine.faults = [Fault.parse(fault)]
    assert publish_until_it_succeeds(mine, run_dir) == 1
    assert not mine.faults, "it did happen"
    if fault.endswith("429=3"):
        assert any(3 <= wait <= 4 for wait in client), "the wait that the Hub named"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_goes_wrong_the_push_ends_whole_or_says_how_to_go_on(
    mine: LoopbackHub,
    client: list[float],
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(publishing, "FOR_THE_MODEL", Patience(attempts=5, timeout=0.5))
    draw = random.Random(seed)
    whats = (*WHATS[:-1], "401", "403", "409", "slow=0.6")
    mine.faults = [
        Fault.parse(f"{draw.choice(REQUESTS)}:{draw.randrange(1, 4)}:{draw.choice(whats)}")
        for _ in range(draw.randrange(2, 12))
    ]
    before = on_disk(run_dir)
    publish_until_it_succeeds(mine, run_dir, pushes=12)
    assert {name for name in before if before[name] != on_disk(run_dir)[name]} <= {"README.md"}


@pytest.mark.parametrize("status", [401, 403, 409])
def test_what_does_not_pass_is_not_tried_again(
    mine: LoopbackHub, client: list[float], run_dir: Path, status: int
) -> None:
    mine.faults = [Fault("commit", status=status)]
    with pytest.raises(RunError, match="is complete but not published"):
        publish(run_dir, RunRepository(REPO))
    assert client == []
    publish(run_dir, RunRepository(REPO))
    assert published(mine) == on_disk(run_dir)


def test_a_hub_that_is_gone_is_told_and_the_retry_publishes(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    mine.stop()
    before = on_disk(run_dir)
    with pytest.raises(RunError, match=r"could not reach http://127\.0\.0\.1") as caught:
        publish(run_dir, RunRepository(REPO))
    assert "\n" not in str(caught.value)
    assert 10 < sum(client) < 300, "it did try for a while"
    assert {name for name in before if before[name] != on_disk(run_dir)[name]} <= {"README.md"}
    mine.start()
    publish(run_dir, RunRepository(REPO))
    assert published(mine) == on_disk(run_dir)


def test_a_hub_that_asks_for_too_long_a_wait_is_not_waited_for(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    mine.faults = [Fault("commit", status=429, retry_after=3600)]
    with pytest.raises(RunError, match="429"):
        publish(run_dir, RunRepository(REPO))
    assert client == []
