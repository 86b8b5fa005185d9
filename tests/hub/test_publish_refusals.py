"""What is refused before a run is published, by the script and by a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.conftest import seconds_of_children
from tests.hub.test_publish import ONNX, Run
from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Account, Fault, StoredRepository
from tests.support.publishing import REPO, TOKEN, everything, on_disk, published, write_export
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.run_record import read_record
from tinystories_hf.hub.arguments import parse_push_arguments
from tinystories_hf.hub.publish import RunRepository, publish, staged_files
from tinystories_hf.hub.push import push


def test_an_unfinished_run_is_not_published(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    record = json.loads((run_dir / "run.json").read_text())
    record["sessions"][-1]["status"] = "running"
    (run_dir / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is not finished"):
        publish(run_dir, RunRepository(REPO))
    (run_dir / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        publish(run_dir, RunRepository(REPO))


def test_a_file_that_holds_the_token_is_refused(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    (run_dir / "samples.md").write_text(f"# Samples\n\n## Step 20\n\n> **Once** {TOKEN}\n")
    with pytest.raises(RunError, match="contains your Hub token") as caught:
        publish(run_dir, RunRepository(REPO))
    assert TOKEN not in str(caught.value)
    assert not [content for content in everything(mine) if TOKEN.encode() in content]


REFUSALS = {
    "no token": ({}, (), "there is no Hub token; log in with `hf auth login`"),
    "unknown token": ({"HF_TOKEN": "hf_unknown"}, (), "does not accept the Hub token"),
    "read-only token": ({"HF_TOKEN": "hf_reader"}, (), "is read-only"),
    "token for another repository": (
        {"HF_TOKEN": "hf_narrow"},
        ("--hub_model_id", REPO),
        "no `repo.write` for me/tiny",
    ),
    "illegal name": ({"HF_TOKEN": TOKEN}, ("--hub_model_id", "me/a--b"), "is not a valid name"),
    "somebody else's": ({"HF_TOKEN": TOKEN}, ("--hub_model_id", "you/tiny"), "not a member of you"),
    "other content": ({"HF_TOKEN": TOKEN}, ("--hub_model_id", "me/taken"), "other content (a.txt"),
    "no Hub": ({"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, (), "could not reach"),
    "token as a flag": ({}, (f"--hub_token={TOKEN}",), "the Hub token cannot be a flag"),
    "token after a flag": ({}, ("--hub_token", TOKEN), "the Hub token cannot be a flag"),
}


# By the true command, whose processor time is measured.
LAUNCHED = ("no token", "token as a flag")


@pytest.mark.parametrize("case", REFUSALS)
def test_a_run_that_could_not_be_published_is_not_started(
    mine: LoopbackHub,
    run_script: Run,
    launch_script: Run,
    tiny_config: Path,
    tmp_path: Path,
    case: str,
) -> None:
    mine.accounts["hf_reader"] = Account("me", role="read")
    mine.accounts["hf_narrow"] = Account("me", role="fineGrained", writable=("me/other",))
    mine.repositories["models", "me/taken"] = StoredRepository({"a.txt": b"a"})
    extra, flags, message = REFUSALS[case]
    start = seconds_of_children()
    where = {"HF_ENDPOINT": mine.url, **extra}
    run = launch_script if case in LAUNCHED else run_script
    done = run("train.py", "--config", str(tiny_config), "--push_to_hub", *flags, **where)
    assert seconds_of_children() - start < 10
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert TOKEN not in done.stdout + done.stderr
    assert not (tmp_path / "work" / "run").exists()
    assert not (tmp_path / "home" / "tinystories_hf").exists(), "no rows were prepared"


@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "home"])
def test_the_script_publishes_wherever_the_token_was_put(
    mine: LoopbackHub,
    run_script: Run,
    launch_script: Run,
    run_dir: Path,
    tmp_path: Path,
    place: str,
) -> None:
    extra = {"HF_ENDPOINT": mine.url}
    if place.endswith("TOKEN"):
        extra[place] = TOKEN
    elif place == "home":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(TOKEN)
    else:
        (tmp_path / "secret").write_text(TOKEN + "\n")
        extra[place] = str(tmp_path / "secret")
    flags = ("--model", str(run_dir), "--repo", REPO, "--private")
    run = launch_script if place == "HF_TOKEN_PATH" else run_script  # read at the import
    done = run("push_to_hub.py", *flags, **extra)
    assert done.returncode == 0, done.stderr
    assert published(mine) == on_disk(run_dir)
    assert mine.repositories["models", REPO].private
    assert TOKEN not in done.stdout + done.stderr
    assert not [content for content in everything(mine) if TOKEN.encode() in content]
    assert not [p for p in run_dir.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_a_dry_run_shows_all_and_changes_nothing(run_script: Run, run_dir: Path) -> None:
    write_export(run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    done = run_script("push_to_hub.py", "--model", str(run_dir), "--repo", REPO, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert set(staged_files(run_dir)) >= ONNX
    for name in staged_files(run_dir):
        assert name in done.stdout
    assert f'pipeline("text-generation", model="{REPO}")' in done.stdout
    assert "training_args" not in done.stdout
    after = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert after == before


def test_a_licence_is_stated_when_a_run_is_published_and_stays(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    flags = ["--model", str(run_dir), "--repo", REPO]
    stated = ["--license", "cc-by-4.0", "--language", "en", "fr"]
    before = (run_dir / "run.json").read_bytes()
    push(parse_push_arguments([*flags, *stated, "--dry_run"]))
    assert (run_dir / "run.json").read_bytes() == before
    for given in (stated, []):
        push(parse_push_arguments([*flags, *given]))
        card: Any = ModelCard(published(mine)["README.md"].decode()).data
        assert card.license == "cc-by-4.0"
        assert card.language == ["en", "fr"]


def test_a_run_whose_push_fails_is_whole_and_names_the_command_that_publishes_it(
    mine: LoopbackHub, run_script: Run, tiny_config: Path, tmp_path: Path
) -> None:
    mine.faults = [Fault("commit", status=403)]
    extra = {"HF_ENDPOINT": mine.url, "HF_TOKEN": TOKEN}
    flags = ("--config", str(tiny_config), "--push_to_hub", "--hub_model_id", REPO)
    done = run_script("train.py", *flags, **extra)
    assert done.returncode == 1, "2 says that nothing was begun"
    run_dir = tmp_path / "work" / "run"
    assert read_record(run_dir).sessions[-1].status == "finished"
    assert published(mine) == {}
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "run is complete but not published to me/tiny: the Hub token has no write access" in line
    _, path, *words = line.partition("to publish it: ")[2].split()
    again = run_script(Path(path).name, *words, **extra)
    assert again.returncode == 0, again.stderr
    assert published(mine) == on_disk(run_dir)
