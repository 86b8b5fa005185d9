from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY_CONFIG
from tests.support.forked import leave_memory, run_forked
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.data.readers.text_files import read_text
from tinystories_hf.data.splits import Split
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.subject import EvaluatedModel, load_model_to_evaluate
from tinystories_hf.evaluation.suites.memorization import compare, draw_stories
from tinystories_hf.evaluation.suites.metrics import RougeOverlap, compute_metric
from tinystories_hf.evaluation.suites.ngrams import kgrams, rouge_precision, words_of
from tinystories_hf.evaluation.suites.training_index import (
    INDEX_FORMAT,
    TrainingIndex,
    load_training_index,
    write_index,
)
from tinystories_hf.evaluation.validation import occurs_in

INDEX_SHA256 = "830c49171e5c147dae22168962b6ce1cb3264a1294629629afc6707b19a59a89"
INDEX_FILES = ("manifest.json", "words.raw", "starts.npy", "vocabulary.txt")
Damage = Callable[[Path], object]


def index_of(stories: Sequence[str], folder: Path) -> TrainingIndex:
    folder.mkdir()
    write_index(folder, stories, Split({}, lambda _: iter(stories)), [])
    return TrainingIndex(folder)


def brute_force(texts: list[list[str]], stories: list[list[str]]) -> dict[str, Any]:
    """Return the results of all searches, by comparing every text with every story."""
    counts = {
        k: Counter(gram for story in stories for gram in kgrams(story, k)) for k in (2, 3, 4, 5)
    }
    nearest = {
        k: [max(rouge_precision(text, story, k) for story in stories) for text in texts]
        for k in (2, 3)
    }
    joined = [f" {' '.join(story)} " for story in stories]
    longest = []
    for text in texts:
        best = 0
        for start in range(len(text)):
            while start + best < len(text) and any(
                f" {' '.join(text[start : start + best + 1])} " in story for story in joined
            ):
                best += 1
        longest.append(best)
    return {"counts": counts, "nearest": nearest, "longest": longest}


def generations(stories: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """Return texts of runs of training words and words that do not occur in training."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words: list[str] = []
        for _ in range(draw.randrange(1, 8)):
            source = words_of(draw.choice(stories))
            start = draw.randrange(max(1, len(source)))
            words += source[start : start + draw.randrange(1, 12)]
            if draw.random() < 0.3:
                words.append("zzyx")
        texts.append(words)
    return [*texts, [], ["zzyx"], ["the"]]


def both_answers(
    texts: list[list[str]], stories: list[str], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the results of the index and of brute force."""
    index = index_of(stories, folder)
    split = [words_of(story) for story in stories]
    right = brute_force(texts, split)
    grams = {k: sorted({g for text in texts for g in kgrams(text, k)}) for k in (2, 3, 4, 5)}
    nearest = {k: index.nearest(texts, k) for k in (2, 3)}
    found = {
        "counts": {k: index.counts(grams[k]) for k in grams},
        "nearest": {k: [one.precision for one in nearest[k]] for k in nearest},
        # The nearest story has the reported precision.
        "named": {
            k: [
                0.0 if one.story is None else rouge_precision(text, index.story(one.story), k)
                for text, one in zip(texts, nearest[k], strict=True)
            ]
            for k in nearest
        },
        "longest": index.longest_runs(texts),
    }
    expected = {
        "counts": {k: [right["counts"][k][gram] for gram in grams[k]] for k in grams},
        "nearest": right["nearest"],
        "named": right["nearest"],
        "longest": right["longest"],
    }
    return found, expected


def test_searches_equal_brute_force(tmp_path: Path) -> None:
    stories = ["", "The", *toy_stories(120, 0), "", "the the the the the the"]
    found, expected = both_answers(generations(stories, 60, 0), stories, tmp_path / "index")
    assert found == expected


def test_searches_equal_brute_force_on_real_text(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "tinystories" / "TinyStories-train.txt"
    stories = [story for _, story in zip(range(700), read_text(source), strict=False)]
    found, expected = both_answers(generations(stories, 40, 1), stories, tmp_path / "index")
    assert found == expected


def test_the_index_of_the_same_stories_is_the_same(tmp_path: Path) -> None:
    index_of(["Zoé didn't run.", "She ran 12 miles;\n\nhe ran -- and ran!"], tmp_path / "index")
    found = hashlib.sha256()
    for name in INDEX_FILES[1:]:
        found.update((tmp_path / "index" / name).read_bytes())
    found.update(json.dumps(json.loads((tmp_path / "index/manifest.json").read_text())).encode())
    assert (INDEX_FORMAT, found.hexdigest()) == (1, INDEX_SHA256), (
        "the index changed: raise INDEX_FORMAT in training_index.py, and update the digest here"
    )


def test_the_index_contains_exactly_the_words_of_training(tmp_path: Path) -> None:
    index = index_of(["A cat sat.", "ZOË can’t"], tmp_path / "index")
    assert all(word in index for word in ("cat", "zoë", "can", "t"))
    assert "dog" not in index
    assert (index.manifest.stories, index.manifest.vocabulary) == (2, 6)


def test_the_index_is_cached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = toy_data(tmp_path)
    first = load_training_index(data, quiet=True)
    changed = (first.folder / "words.raw").stat().st_mtime_ns
    again = load_training_index(data, quiet=True)
    assert again.folder == first.folder
    assert (again.folder / "words.raw").stat().st_mtime_ns == changed
    (tmp_path / "other").mkdir()
    assert (
        load_training_index(toy_data(tmp_path, "--toy_seed", "1"), quiet=True).folder
        != first.folder
    )
    assert not capsys.readouterr().out


def resaved(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Damage:
    def damage(path: Path) -> None:
        np.save(path, change(np.load(path)))

    return damage


def cut(size: int) -> Damage:
    return lambda path: os.truncate(path, size)


def altered(**values: object) -> Damage:
    def damage(path: Path) -> None:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**manifest, **values}), encoding="utf-8")

    return damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, Path.unlink) for name in INDEX_FILES),
        *((name, cut(0)) for name in INDEX_FILES),
        *((name, cut(9)) for name in INDEX_FILES),
        ("words.raw", cut(40)),
        ("starts.npy", cut(150)),
        ("starts.npy", resaved(lambda starts: starts + 1)),
        ("starts.npy", resaved(lambda starts: starts[:-1])),
        ("starts.npy", resaved(lambda starts: starts[::-1])),
        ("starts.npy", resaved(lambda starts: np.where(starts == starts[3], 2**40, starts))),
        ("starts.npy", resaved(lambda starts: np.where(starts == starts[3], -5, starts))),
        ("starts.npy", resaved(lambda starts: np.where(starts == starts[3], starts[2], starts))),
        ("starts.npy", resaved(lambda starts: starts.astype(np.int32))),
        ("starts.npy", resaved(lambda starts: starts.astype(">i8"))),
        ("starts.npy", resaved(lambda starts: starts[:, None])),
        ("manifest.json", lambda path: path.write_text("[1, 2]")),
        ("manifest.json", altered(stories=10**6)),
        ("manifest.json", altered(stories=None)),
        ("manifest.json", altered(words=7)),
        ("manifest.json", altered(vocabulary=7)),
        ("manifest.json", altered(more=7)),
    ],
)
def test_a_damaged_index_is_refused(name: str, damage: Damage, tmp_path: Path) -> None:
    index = index_of([*toy_stories(20)], tmp_path / "index")
    assert index.longest_runs([words_of("once upon a time")])[0] > 0
    damage(index.folder / name)
    with pytest.raises(
        UserError, match=r"prepared_dir: \S*index is a damaged index .*remove the folder"
    ):
        TrainingIndex(index.folder)


def test_searches_for_empty_texts(tmp_path: Path) -> None:
    index = index_of(["", "", ""], tmp_path / "index")
    assert index.counts([]) == []
    assert index.counts([("a", "b"), ("a", "b")]) == [0, 0]
    assert index.longest_runs([]) == []
    assert index.longest_runs([[], ["a"]]) == [0, 0]
    assert [one.precision for one in index.nearest([[], ["a", "b"]], 2)] == [0, 0]
    assert index.story(1) == []
    for wrong in ([()], [("a",), ("a", "b")]):
        with pytest.raises(ValueError, match=r"k-gram|shape"):
            index.counts(wrong)


def starve(folder: Path) -> None:
    """Search with enough memory for the k-grams, but not for the hash table in C++."""
    index = TrainingIndex(folder)
    ids = np.zeros((2**21, 2), dtype=np.uint32)
    counts = np.zeros(len(ids), dtype=np.int64)
    index.counts([("a", "b")])
    leave_memory(32 << 20)
    with pytest.raises(RunError, match=r"not enough memory .*\(counts\)"):
        index._scan("counts", ids.ctypes.data, *ids.shape, counts.ctypes.data)
    print("refused")


def test_a_search_without_enough_memory_raises(tmp_path: Path) -> None:
    index_of(["once upon a time"], tmp_path / "index")
    done = run_forked(tmp_path, starve, tmp_path / "index")
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def toy_data(folder: Path, *flags: str) -> DataArguments:
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    config = ["--config", str(folder / "tiny.yaml"), "--prepared_dir", str(folder / "prepared")]
    return parse_arguments([*config, *flags]).data


def copy_counts(texts: list[list[str]], index: TrainingIndex) -> dict[str, int]:
    completions = [" ".join(words) for words in texts]
    copies: dict[str, int] = compare(completions, ["end"] * len(texts), index)["copies"]
    return copies


def test_each_kind_of_copy_changes_only_its_own_count(tmp_path: Path) -> None:
    stories = list(toy_stories(300, 5))
    index = index_of(stories, tmp_path / "index")
    draw = random.Random(0)
    vocabulary = sorted({word for story in stories for word in words_of(story)})
    # Training words in random order: some word pairs occur in training, but nothing is copied.
    clean = [[draw.choice(vocabulary) for _ in range(60)] for _ in range(20)]
    nothing = {"stories": 0, "passages": 0, "pairs": 0}
    assert copy_counts(clean, index) == nothing

    whole = words_of(stories[17])
    assert copy_counts([*clean, whole], index) == {**nothing, "stories": 1}
    assert index.nearest([whole], 2)[0].precision == 1.0

    run = clean[3][:20] + words_of(stories[42])[5:25] + clean[3][20:]
    assert copy_counts([*clean[:3], run, *clean[4:]], index) == {**nothing, "passages": 1}
    short = clean[3][:20] + words_of(stories[42])[5:23] + clean[3][20:]
    assert copy_counts([*clean[:3], short, *clean[4:]], index) == nothing

    assert copy_counts([*clean, clean[7]], index) == {**nothing, "pairs": 1}

    # A validation story in training changes the count of the loss suite, and none of these.
    validation = list(toy_stories(10, 99))
    assert not occurs_in(validation, stories).any()
    assert occurs_in([*validation[:5], stories[3]], stories).sum() == 1
    assert copy_counts(clean, index) == nothing


def test_statistics_change_with_planted_copies(tmp_path: Path) -> None:
    stories = list(toy_stories(100, 6))
    index = index_of(stories, tmp_path / "index")
    completions, endings = list(toy_stories(10, 77)), list(toy_stories(10, 78))
    before = compare(completions, endings, index)
    after = compare([endings[0], *completions[1:]], endings, index)
    assert after["true_ending_rouge_2"]["values"][0] == 1.0
    rouge = compute_metric(RougeOverlap, predictions=completions, references=endings)
    assert before["true_ending_rouge_2"]["mean"] == pytest.approx(rouge["rouge_2_precision"])
    assert before["true_ending_rouge_2"]["values"][1:] == after["true_ending_rouge_2"]["values"][1:]
    copied = compare([stories[0], *completions[1:]], endings, index)
    assert [copied["in_training"][k]["values"][0] for k in "2345"] == [1.0] * 4
    assert copied["longest_run"]["values"][0] == len(words_of(stories[0]))
    assert copied["frequencies"]["5"]["never"] < before["frequencies"]["5"]["never"]


@pytest.fixture
def subject(trained_run: Path) -> EvaluatedModel:
    return load_model_to_evaluate(str(trained_run))


def test_training_stories_are_cut_at_forty_percent_and_fit_the_context(
    subject: EvaluatedModel,
) -> None:
    stories = [f"{number} " + "a cat ran " * (4 + number % 9) for number in range(50)]
    drawn = draw_stories(subject, stories, 50, seed=3, wanted=10)
    assert len({story.number for story in drawn}) == 10
    for story in drawn:
        whole = stories[story.number]
        assert story.prompt + story.ending == whole
        words = len(whole.split())
        assert len(story.prompt.split()) == -(-2 * words // 5)
        assert len(subject.tokenizer(whole).input_ids) < subject.context_length
    again = draw_stories(subject, stories, 50, seed=3, wanted=10)
    assert again == drawn
    assert draw_stories(subject, stories, 50, seed=4, wanted=10) != drawn
