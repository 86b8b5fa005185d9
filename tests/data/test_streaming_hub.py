"""Stories streamed from the Hub during training, with the real client libraries."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_corpus import HUB_READ, parquet
from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Fault, StoredRepository
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.splits import OptionalStory

Parse = Callable[..., Arguments]
STREAMING = ("--streaming", "--max_steps", "1", "--dataset", "some/stories")
SHARD = "data/train-00000-of-00002.parquet"
STORIES = [f"Story {number}." for number in range(5)]


@pytest.fixture
def stories(hub: LoopbackHub) -> LoopbackHub:
    """Serve the same stories in every file format."""
    hub.repositories["datasets", "some/stories"] = StoredRepository(
        {
            "data/train-00000-of-00002.parquet": parquet(STORIES[:3]),
            "data/train-00001-of-00002.parquet": parquet(STORIES[3:]),
            "data/validation-00000-of-00001.parquet": parquet(["Other."]),
            "train.txt.gz": gzip.compress("\n<|endoftext|>\n".join(STORIES).encode()),
            "train.jsonl": "\n".join(json.dumps({"text": text}) for text in STORIES).encode(),
            "train.parquet": parquet(STORIES),
            "other.txt": b"Other.",
        }
    )
    return hub


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), ""),
        (("--train_file", "train.txt.gz", "--validation_file", "other.txt"), ""),
        (("--train_file", "train.jsonl", "--validation_file", "other.txt"), ""),
        (("--train_file", "train.parquet", "--validation_file", "other.txt"), ""),
        (("--train_file", "data/*-*", "--validation_file", "data/val*"), ""),
        (("--train_file", SHARD, "--validation_file", "other.txt"), ""),
        (("--train_file", "nothing-*"), "no file nothing-*"),
        (("--train_split", "nosuch"), "cannot read split nosuch"),
        (("--text_column", "story"), "no column 'story'"),
        (("--train_file", "nope.txt"), "no file nope.txt"),
        (("--dataset", "no/such"), "a repository on http"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_stream_has_the_same_stories_as_a_download(
    stories: LoopbackHub,
    run_code: Callable[..., tuple[int, str, str]],
    flags: tuple[str, ...],
    error: str,
) -> None:
    flags = ("--dataset_revision", "main", *STREAMING, *flags)
    code, out, err = run_code(HUB_READ, *flags, HF_ENDPOINT=stories.url)
    if error:
        assert (code, error in err, "Traceback" in err) == (2, True, False), err
        return
    assert code == 0, err
    _, train, validation = json.loads(out.splitlines()[-1])
    alone = SHARD in flags
    assert (train, validation) == (STORIES[:3] if alone else STORIES, ["Other."])
    assert (f"{SHARD} is one shard of 2 and is read " in err) == alone


FILES = ("--train_file", "train.txt", "--validation_file", "none.txt")
LONG = [f"Story {number}. " + "Once upon a time there was a dog. " * 30 for number in range(24_000)]


@pytest.fixture
def large(hub: LoopbackHub, client: list[float], monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """Serve 25 MB of stories, as a text file and as a split, to this process."""
    files = {"train.txt": "\n<|endoftext|>\n".join(LONG).encode()}
    for part in range(4):  # pyarrow reads up to 32 MB of a Parquet file ahead
        table, buffer = pa.table({"text": LONG[part * 6000 : (part + 1) * 6000]}), io.BytesIO()
        pq.write_table(table, buffer, compression="none", use_dictionary=False)
        files[f"data/train-0000{part}-of-00004.parquet"] = buffer.getvalue()
    hub.repositories["datasets", "some/stories"] = StoredRepository(files)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
    return hub


def read_stories(parse: Parse, *flags: str) -> Iterator[OptionalStory]:
    places = ("--tokenizer", "made")
    return open_corpus(parse(*STREAMING, *places, *flags).data).train.read()


@pytest.mark.parametrize("flags", [(), FILES], ids=["split", "file"])
def test_the_first_stories_arrive_before_the_whole_file(
    large: LoopbackHub, tiny_arguments: Parse, flags: tuple[str, ...]
) -> None:
    assert list(islice(read_stories(tiny_arguments, *flags), 100)) == LONG[:100]
    assert 0 < large.bytes_served < 12_000_000 < 24_000_000 < sum(map(len, LONG))
    assert list(read_stories(tiny_arguments, *flags)) == LONG
    assert large.bytes_served > 24_000_000, "the comparison can fail"


@pytest.mark.parametrize("flags", [(), FILES], ids=["split", "file"])
def test_losing_the_hub_during_a_pass_fails_the_run(
    large: LoopbackHub, tiny_arguments: Parse, flags: tuple[str, ...]
) -> None:
    stories = read_stories(tiny_arguments, *flags)
    assert next(stories) == LONG[0]
    large.faults = [Fault(kind, status=503) for kind in ("file", "lfs-file") for _ in range(50)]
    with pytest.raises(UserError, match=r"could not reach .* for the dataset some/stories"):
        list(stories)


def test_a_run_on_a_streamed_split_stores_none_of_it(
    hub: LoopbackHub,
    tiny_config: Path,
    trained_run: Path,
    tmp_path: Path,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    texts = [f"{story} It was a good day, and they all went home." for story in LONG[:100]]
    hub.repositories["datasets", "some/stories"] = StoredRepository(
        {
            "data/train-00000-of-00001.parquet": parquet(texts),
            "data/validation-00000-of-00001.parquet": parquet(texts[:10]),
        }
    )
    flags = ("--config", str(tiny_config), "--dataset", "some/stories", "--streaming")
    made = ("--tokenizer", str(trained_run), "--max_steps", "3")
    done = run_script("train.py", *flags, *made, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert "tokens each, streamed from some/stories" in done.stdout
    kept = {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert {name for name in kept if name.endswith((".arrow", ".parquet"))} == {
        "data-00000-of-00001.arrow",
        "validation_stories.parquet",
    }
    card = (tmp_path / "work" / "run" / "README.md").read_text()
    commit = hub.repositories["datasets", "some/stories"].commit
    assert f"revision `{commit}`" in card
    assert "| train | streamed, not counted |" in card
