"""Publishing a page as a static Space, with the real clients against a Hub on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import STATIC_SPACE, Account, Fault, StoredRepository
from tests.support.publishing import TOKEN, everything
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.hub.arguments import parse_push_arguments
from tinystories_hf.hub.space import (
    SpaceRepository,
    check_space_repository,
    page_files,
    publish_space,
)

Run = Callable[..., subprocess.CompletedProcess[str]]
SPACE = "me/demo"
WANTED = SpaceRepository(SPACE, repo_type="space")
GRAPH = "models/xs/onnx/model_quantized.onnx"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a small page: texts, and below them files that the Hub keeps as large ones."""
    folder = tmp_path / "site"
    (folder / GRAPH).parent.mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / GRAPH).write_bytes(b"\0a graph")
    (folder / "lib" / "runtime.wasm").write_bytes(b"\0asm")
    (folder / "models" / "xs" / "config.json").write_text("{}")
    (folder / "index.html").write_text("<p>Stories</p>")
    (folder / "README.md").write_text("---\nsdk: static\napp_file: index.html\n---\n")
    (folder / "page.json").write_text(json.dumps({"built_by": "tinystories_hf", "models": []}))
    return folder


def on_disk(site: Path) -> dict[str, bytes]:
    return {
        path.relative_to(site).as_posix(): path.read_bytes()
        for path in site.rglob("*")
        if path.is_file()
    }


def in_the_space(hub: LoopbackHub) -> dict[str, bytes]:
    files = hub.repositories["spaces", SPACE].at()
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def push(site: Path, wanted: SpaceRepository = WANTED) -> str:
    return publish_space(site, check_space_repository(site, wanted))


def test_a_space_is_the_folder_of_the_page_and_any_page_may_read_it(
    mine: LoopbackHub, client: list[float], site: Path
) -> None:
    assert push(site, SpaceRepository("demo", repo_type="space")) == f"{mine.url}/spaces/{SPACE}"
    assert in_the_space(mine) == on_disk(site)
    assert GRAPH in in_the_space(mine)
    assert "style.css" not in in_the_space(mine), "what the Hub put there goes"
    assert len(mine.repositories["spaces", SPACE].history("main")) == 2, "the first one, and ours"
    with urllib.request.urlopen(f"{mine.url}/spaces/{SPACE}/resolve/main/{GRAPH}") as answer:
        assert answer.read() == (site / GRAPH).read_bytes()
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_pushing_a_page_again_uploads_only_what_differs_and_deletes_what_is_gone(
    mine: LoopbackHub, client: list[float], site: Path
) -> None:
    push(site)
    mine.uploads.clear()
    push(site)
    assert mine.uploads == []
    assert len(mine.repositories["spaces", SPACE].history("main")) == 2
    shutil.rmtree(site / "lib")
    (site / "index.html").write_text("<p>Other stories</p>")
    push(site)
    assert mine.uploads == ["index.html"]
    assert in_the_space(mine) == on_disk(site)


def test_what_is_hidden_in_the_folder_stays_there(
    mine: LoopbackHub, client: list[float], site: Path
) -> None:
    before = on_disk(site)
    (site / ".env").write_text("KEY=1")
    (site / ".cache").mkdir()
    (site / ".cache" / "note.txt").write_text("mine")
    push(site)
    assert in_the_space(mine) == before


OTHERS = {
    "an app": {"app.py": b"import gradio"},
    "a page by hand": {**STATIC_SPACE, "index.html": b"<p>By hand</p>"},
    "another manifest": {"index.html": b"", "page.json": b'{"built_by": "somebody"}'},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_space_with_something_else_is_replaced_only_when_asked(
    mine: LoopbackHub, client: list[float], site: Path, case: str
) -> None:
    mine.repositories["spaces", SPACE] = StoredRepository(STATIC_SPACE)
    mine.repositories["spaces", SPACE].add("main", OTHERS[case])
    with pytest.raises(UserError, match=r"^space: me/demo already has .* with --overwrite$"):
        check_space_repository(site, WANTED)
    with pytest.raises(RunError, match="already has other content"):
        publish_space(site, WANTED)
    assert in_the_space(mine) == OTHERS[case]
    assert mine.uploads == []
    push(site, SpaceRepository(SPACE, overwrite=True, repo_type="space"))
    assert in_the_space(mine) == on_disk(site)


REFUSALS = {
    "a token that is read-only": ("hf_reader", SPACE, "is read-only"),
    "a token for another repository": ("hf_narrow", SPACE, r"no `repo\.write` for me/demo"),
    "an unknown token": ("hf_unknown", SPACE, "does not accept the Hub token"),
    "no token": ("", SPACE, "there is no Hub token; log in with `hf auth login`"),
    "an illegal name": (TOKEN, "me/a--b", "^space: 'me/a--b' is not a valid name"),
    "somebody else's": (TOKEN, "you/demo", "^space: me is not a member of you; use me/demo"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_page_that_could_not_be_published_is_refused_before_its_space_is_made(
    mine: LoopbackHub,
    client: list[float],
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    mine.accounts["hf_reader"] = Account("me", role="read")
    mine.accounts["hf_narrow"] = Account("me", role="fineGrained", writable=("me/other",))
    token, name, message = REFUSALS[case]
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=message):
        check_space_repository(site, SpaceRepository(name, repo_type="space"))
    assert not mine.repositories
    assert mine.uploads == []


def test_a_folder_that_is_no_page_is_refused_before_the_hub_is_asked(
    mine: LoopbackHub, client: list[float], site: Path
) -> None:
    (site / "page.json").write_text('{"built_by": "somebody"}')
    for refuse in (check_space_repository, publish_space):
        with pytest.raises(
            UserError, match=r"site is not a built page; build it with \S+ scripts/build"
        ):
            refuse(site, WANTED)
    assert mine.requests == []


def test_a_page_that_holds_the_token_is_refused(
    mine: LoopbackHub, client: list[float], site: Path
) -> None:
    (site / "models" / "xs" / "config.json").write_text(json.dumps({"token": TOKEN}))
    with pytest.raises(RunError, match=r"config\.json contains your Hub token") as caught:
        push(site)
    assert TOKEN not in str(caught.value)
    assert not [content for content in everything(mine) if TOKEN.encode() in content]


@pytest.mark.parametrize("fault", ["commit:1:503", "commit:1:429=3", "commit:1:lost"])
def test_a_fault_that_passes_is_not_noticed_and_makes_no_second_commit(
    mine: LoopbackHub, client: list[float], site: Path, fault: str
) -> None:
    mine.faults = [Fault.parse(fault)]
    push(site)
    assert not mine.faults, "it did happen"
    assert in_the_space(mine) == on_disk(site)
    assert len(mine.repositories["spaces", SPACE].history("main")) == 2


def test_a_push_that_fails_names_the_command_that_publishes_the_page(
    mine: LoopbackHub, run_script: Run, site: Path
) -> None:
    extra = {"HF_ENDPOINT": mine.url, "HF_TOKEN": TOKEN}
    mine.faults = [Fault("commit", status=403)]
    flags = ("--site", str(site), "--space", "demo", "--private")
    done = run_script("push_to_hub.py", *flags, **extra)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "site is not published to me/demo: the Hub token has no write access to me/demo" in line
    assert in_the_space(mine) == STATIC_SPACE
    _, path, *words = line.partition("to publish it: ")[2].split()
    assert words[-3:] == ["--space", SPACE, "--private"]
    again = run_script(Path(path).name, *words, **extra)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"published {mine.url}/spaces/{SPACE}\n"
    assert in_the_space(mine) == on_disk(site)
    assert mine.repositories["spaces", SPACE].private


def test_a_dry_run_of_a_page_lists_its_files_and_asks_nobody(
    mine: LoopbackHub, run_script: Run, site: Path
) -> None:
    flags = ("--site", str(site), "--space", SPACE, "--dry_run")
    done = run_script("push_to_hub.py", *flags, HF_ENDPOINT=mine.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    *lines, total = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert {name: int(size) for size, name in lines} == {
        name: len(content) for name, content in on_disk(site).items()
    }
    assert total == [str(sum(map(len, on_disk(site).values()))), f"bytes for {SPACE}"]
    assert set(page_files(site)) == set(on_disk(site))
    assert mine.requests == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--site site", "give --site and --space together"),
        ("--space me/demo", "give --site and --space together"),
        ("--site site --space me/demo --model runs/xs", "^--model: applies to a run"),
        (
            "--site site --space me/demo --repo me/xs --revision v1",
            "^--repo, --revision: applies to",
        ),
        ("--site site --model runs/xs --repo me/xs", "give --site and --space together"),
        ("--model runs/xs", "give --model and --repo"),
    ],
)
def test_a_page_and_a_run_are_not_mixed(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_push_arguments(flags.split())
