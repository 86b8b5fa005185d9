"""Publishing, with the real clients against a Hub on loopback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.model.test_stock_loading import load_stock
from tests.support.forked import code, run_forked, train_forked
from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Account, Fault, StoredRepository
from tests.support.publishing import REPO, TOKEN, everything, on_disk, published, write_export
from tinystories_hf.config.arguments import HubArguments
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.run_record import read_record
from tinystories_hf.hub import publish as publishing
from tinystories_hf.hub.publish import RunRepository, check_repository, publish, staged_files

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, LoopbackHub, str]]:
    """Train with two processes, publish, and return the folder, the Hub and all that was said."""
    folder = tmp_path_factory.mktemp("round")
    with LoopbackHub(accounts={TOKEN: Account("me")}) as hub:
        done = train_forked(
            folder,
            *("--push_to_hub", "--hub_model_id", REPO, "--hub_private_repo"),
            *("--hub_strategy", "checkpoint-revisions"),
            num_processes=2,
            HF_ENDPOINT=hub.url,
            HF_TOKEN=TOKEN,
        )
        yield folder, hub, done.stdout + done.stderr


def test_two_processes_train_and_publish_in_one_commit(
    round_trip: tuple[Path, LoopbackHub, str],
) -> None:
    folder, hub, said = round_trip
    repository = hub.repositories["models", REPO]
    assert len(repository.history("main")) == 2, "the empty one, and ours"
    assert published(hub) == on_disk(folder / "run")
    assert set(repository.branches) == {"main", "step-10", "step-20"}
    assert not (folder / "run" / "unpublished").exists()
    assert f"published   {hub.url}/{REPO}" in said


def test_what_is_published_loads_by_name_with_the_same_logits(
    round_trip: tuple[Path, LoopbackHub, str], tmp_path: Path
) -> None:
    folder, hub, _ = round_trip
    name, fast, text, _ = load_stock(REPO, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert (name, fast) == ("GPTNeoForCausalLM", True)
    assert text.startswith("Once upon a time")
    model = AutoModelForCausalLM.from_pretrained(folder / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder / "run")
    ids = tokenizer("Once upon a time there was a cat.", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, torch.load(tmp_path / "logits.pt", weights_only=True))


LOAD_REVISION = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], revision=sys.argv[2])
model.save_pretrained("loaded")
"""


def test_a_checkpoint_loads_by_its_revision(
    round_trip: tuple[Path, LoopbackHub, str],
    run_code: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    folder, hub, _ = round_trip
    where = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    code, _, err = run_code(LOAD_REVISION, REPO, "step-10", **where)
    assert code == 0, err
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "loaded").state_dict()
    saved = AutoModelForCausalLM.from_pretrained(folder / "run" / "checkpoint-10").state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert "run.json" in published(hub, "step-10")
    assert "eval_results.json" not in published(hub, "step-10")


def test_a_private_model_is_not_there_for_others(
    round_trip: tuple[Path, LoopbackHub, str], run_code: Callable[..., tuple[int, str, str]]
) -> None:
    _, hub, _ = round_trip
    code, _, err = run_code(LOAD_REVISION, REPO, "main", HF_ENDPOINT=hub.url)
    assert code != 0
    assert REPO in err


def test_the_token_is_in_nothing_that_was_written_sent_or_said(
    round_trip: tuple[Path, LoopbackHub, str],
) -> None:
    folder, hub, said = round_trip
    assert TOKEN not in said
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert not [content for content in everything(hub) if TOKEN.encode() in content]


def test_no_pickle_and_no_place_of_this_machine_is_published(
    round_trip: tuple[Path, LoopbackHub, str],
) -> None:
    folder, hub, _ = round_trip
    for revision in ("main", "step-10", "step-20"):
        files = published(hub, revision)
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        for name, content in files.items():
            assert str(folder).encode() not in content, name
            assert str(Path.home()).encode() + b"/" not in content, name
            assert sys.prefix.encode() not in content, name


def test_the_published_card_states_the_results_and_its_code_runs(
    round_trip: tuple[Path, LoopbackHub, str], tmp_path: Path
) -> None:
    folder, hub, _ = round_trip
    text = published(hub)["README.md"].decode()
    (tmp_path / "README.md").write_text(text)
    card = ModelCard.load(tmp_path / "README.md")
    stated = {result.metric_type: result.metric_value for result in card.data.eval_results}
    measured = json.loads((folder / "run" / "eval_results.json").read_text())["loss"]["packed"]
    assert stated == {key: measured[key] for key in ("loss", "perplexity", "bits_per_byte")}
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|undefined", text)
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert snippets
    for snippet in snippets:
        variables = {
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
        }
        done = run_forked(tmp_path, code, snippet, [], variables=variables)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Once upon a time")


def test_pushing_again_uploads_only_what_differs(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    publish(run_dir, RunRepository(REPO))
    assert len(mine.uploads) == len(staged_files(run_dir))
    mine.uploads.clear()
    publish(run_dir, RunRepository(REPO))
    assert mine.uploads == []
    assert len(mine.repositories["models", REPO].history("main")) == 2
    (run_dir / "samples.md").write_text("# Samples\n\n## Step 20\n\n> **Once** there was.\n")
    publish(run_dir, RunRepository(REPO))
    assert sorted(mine.uploads) == ["README.md", "samples.md"]
    assert published(mine) == on_disk(run_dir)


def test_a_checkpoint_that_could_not_be_published_waits_for_the_next_push(
    mine: LoopbackHub, client: list[float], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.faults = [Fault("branch", status=403)]
    repository = RunRepository(REPO)
    publishing.publish_checkpoint(run_dir / "checkpoint-10", run_dir, repository, 10)
    assert "step-10 is not yet published" in capsys.readouterr().err
    shutil.rmtree(run_dir / "checkpoint-10")  # as retention does
    publish(run_dir, repository)
    assert "model.safetensors" in published(mine, "step-10")
    assert not (run_dir / "unpublished").exists()


def test_a_repository_with_something_else_is_replaced_only_when_asked(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    other = {"pytorch_model.bin": b"old", "config.json": b"{}"}
    mine.repositories["models", REPO] = StoredRepository(other)
    with pytest.raises(RunError, match=r"already has other content \(config.json, pytorch"):
        publish(run_dir, RunRepository(REPO))
    assert published(mine) == other
    publish(run_dir, RunRepository(REPO, overwrite=True))
    assert published(mine) == on_disk(run_dir)


def test_a_run_may_go_on_in_its_own_repository_and_in_no_other(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    wanted = HubArguments(push_to_hub=True, hub_model_id="tiny")
    assert check_repository(wanted, run_dir, None).repo_id == REPO
    publish(run_dir, RunRepository(REPO))
    (run_dir.parent / "notes").mkdir()
    mine.repositories["models", REPO].add("main", {**published(mine), "mine.txt": b"kept"})
    check_repository(wanted, run_dir, read_record(run_dir).run_id)
    publish(run_dir, RunRepository(REPO))
    assert published(mine)["mine.txt"] == b"kept", "what the user added by hand stays"
    with pytest.raises(UserError, match="already has other content"):
        check_repository(wanted, run_dir, None)


@pytest.mark.parametrize("writable", ["me", REPO])
def test_a_token_for_this_repository_alone_is_enough(
    mine: LoopbackHub, client: list[float], run_dir: Path, writable: str
) -> None:
    mine.accounts[TOKEN] = Account("me", role="fineGrained", writable=(writable,))
    wanted = HubArguments(push_to_hub=True, hub_model_id=REPO)
    publish(run_dir, check_repository(wanted, run_dir, None))
    assert published(mine) == on_disk(run_dir)


def test_a_branch_holds_the_run_alone(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    mine.repositories["models", REPO] = StoredRepository({".gitattributes": b""})
    mine.repositories["models", REPO].add("main", {"other.bin": b"other"})
    publish(run_dir, RunRepository(REPO, revision="v1"))
    assert published(mine, "v1") == on_disk(run_dir)
    assert published(mine) == {"other.bin": b"other"}


ONNX = {"onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/export.json"}


def test_an_exported_run_takes_its_onnx_files_along_and_leaves_none_of_other_weights_behind(
    mine: LoopbackHub, client: list[float], run_dir: Path
) -> None:
    write_export(run_dir)
    publishing.publish_checkpoint(run_dir / "checkpoint-10", run_dir, RunRepository(REPO), 10)
    publish(run_dir, RunRepository(REPO))
    assert published(mine) == on_disk(run_dir)
    assert set(published(mine)) >= ONNX
    assert "model.safetensors" in published(mine, "step-10")
    assert not [name for name in published(mine, "step-10") if name.startswith("onnx")]
    mine.repositories["models", REPO].add("main", {**published(mine), "onnx/mine.txt": b"kept"})
    shutil.rmtree(run_dir / "onnx")
    publish(run_dir, RunRepository(REPO))
    assert published(mine) == {**on_disk(run_dir), "onnx/mine.txt": b"kept"}


@pytest.mark.parametrize("changed", ["model.safetensors", *sorted(ONNX), "onnx/more.onnx"])
def test_an_export_that_is_not_of_the_weights_is_refused_before_the_hub_is_asked(
    mine: LoopbackHub, client: list[float], run_dir: Path, changed: str
) -> None:
    write_export(run_dir)
    publishing.check_finished_run(run_dir)
    (run_dir / changed).write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        publishing.check_finished_run(run_dir)
    assert f"scripts/export_onnx.py --model {run_dir}" in str(caught.value)
    with pytest.raises(RunError, match=r"complete but not published .*export_onnx.* to publish it"):
        publish(run_dir, RunRepository(REPO))
    assert mine.requests == []


@pytest.mark.parametrize("gone", sorted(ONNX))
def test_half_an_export_is_refused(run_dir: Path, gone: str) -> None:
    write_export(run_dir)
    (run_dir / gone).unlink()
    with pytest.raises(UserError, match=r"; run \S+ scripts/export_onnx\.py --model"):
        publishing.check_finished_run(run_dir)
