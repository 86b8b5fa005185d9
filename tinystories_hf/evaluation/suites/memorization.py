"""How much of what a model tells stands in its training text (arXiv 2305.07759, section 4.4.1).

A hundred training stories are cut at 40% and told on. What is told is compared with the true
ending, with the other tellings, and with the whole training split, exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.cleaning import CleaningCounts, clean
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.evaluation.intervals import clustered_mean
from tinystories_hf.evaluation.records import Record, RecordFile
from tinystories_hf.evaluation.subject import EvaluatedModel, identity
from tinystories_hf.evaluation.suites.ngrams import Words, kgrams, rouge_precision, words_of
from tinystories_hf.evaluation.suites.stories import generate_completions
from tinystories_hf.evaluation.suites.training_index import TrainingIndex
from tinystories_hf.evaluation.validation import encode

_STORIES, FEWEST = 100, 10
SHARE_GIVEN = 0.4
KS = (2, 3, 4, 5)
# What counts as a copy: nearly all word pairs of a telling in one story, or twenty words on end.
SAME = 0.9
LONG_RUN = 20
_NOT_SPACE = re.compile(r"\S+")


@dataclass(frozen=True)
class CutStory:
    """A training story, the part that a model is given, and how it went on in truth."""

    number: int
    beginning: str
    ending: str


def draw_stories(
    subject: EvaluatedModel, stories: Iterable[str], total: int, seed: int, wanted: int = _STORIES
) -> list[CutStory]:
    """Draw training stories at random, without replacement, and cut each at 40% of its words.

    Only stories that fit the context whole are drawn, and of ten words at least: the model must
    have room to end them as they ended. `total` is how many stories there are; of a small corpus
    fewer are returned than wanted.

    Raises:
        UserError: there are fewer than ten such stories.
    """
    # More than are wanted, for those that do not fit; their order is the draw.
    candidates = np.random.default_rng([seed, total]).permutation(total)[: 20 * wanted].tolist()
    rank = {number: place for place, number in enumerate(candidates)}
    found: dict[int, CutStory] = {}
    for number, story in enumerate(stories):
        if number in rank and (cut := _cut(subject, number, story)) is not None:
            found[rank[number]] = cut
    drawn = [found[place] for place in sorted(found)[:wanted]]
    if len(drawn) < FEWEST:
        raise UserError(
            f"memorization: {len(drawn)} of {len(candidates)} training stories drawn fit a context"
            f" of {subject.context_length}, {FEWEST} are needed; leave the suite out"
        )
    return drawn


def _cut(subject: EvaluatedModel, number: int, story: str) -> CutStory | None:
    words = list(_NOT_SPACE.finditer(story))
    if len(words) < 10:
        return None
    if len(encode(subject.tokenizer, story)) >= subject.context_length:
        return None
    end = words[math.ceil(SHARE_GIVEN * len(words)) - 1].end()
    return CutStory(number, story[:end], story[end:])


def training_stories(data: DataArguments) -> Iterable[str]:
    """Yield the training stories in the order of the index."""
    once = replace(data, drop_validation_overlap=False)
    return clean(open_corpus(data).train.read(), once, CleaningCounts())


def measure_memorization(
    subject: EvaluatedModel,
    data: DataArguments,
    index: TrainingIndex,
    folder: Path,
    *,
    seed: int,
    quiet: bool = False,
) -> Record:
    """Tell on a hundred training stories into `memorization.jsonl` and compare."""
    total = index.manifest.stories
    made_with = {**identity(subject.facts), "training": index.manifest.source, "seed": seed}
    drawn = draw_stories(subject, training_stories(data), total, seed)
    records = RecordFile(folder / "memorization.jsonl", made_with)
    beginnings = [story.beginning for story in drawn]
    generate_completions(subject, beginnings, 1, seed, records, what="memorization", quiet=quiet)
    told = sorted(records.records, key=lambda record: record["prompt"])
    return {
        "training": {"source": index.manifest.source, "stories": total,
                     "words": index.manifest.words},
        "share_given": SHARE_GIVEN,
        "temperature": 1.0,
        "seed": seed,
        "drawn": [story.number for story in drawn],
        **compare(
            [words_of(record["text"]) for record in told],
            [words_of(story.ending) for story in drawn],
            index,
        ),
    }  # fmt: skip


def compare(texts: Sequence[Words], endings: Sequence[Words], index: TrainingIndex) -> Record:
    """Compare what was told, (stories,), with the true endings, with itself, and with training.

    The lists hold one number for each story, from which the histograms are drawn. `copies` counts
    each kind apart: whole stories, then passages of stories that are no whole copies, then pairs
    of tellings that are the same.
    """
    frequencies, shares = {}, {}
    for k in KS:
        frequencies[str(k)], shares[str(k)] = _in_training(texts, index, k)
    nearest = {str(k): index.nearest(texts, k) for k in (2, 3)}
    runs = index.longest_runs(texts)
    between = _likeness(texts)
    whole = [found.precision >= SAME for found in nearest["2"]]
    return {
        "true_ending_rouge_2": _spread([
            rouge_precision(text, ending, 2) for text, ending in zip(texts, endings, strict=True)
        ]),
        "between_rouge_2": _spread(between.max(axis=1)),
        "endings_between_rouge_2": _spread(_likeness(endings).max(axis=1)),
        "in_training": {k: _spread(values) for k, values in shares.items()},
        "frequencies": frequencies,
        "longest_run": _spread(runs),
        "nearest": {
            k: {
                **_spread([one.precision for one in found]),
                "stories": [one.story for one in found],
            }
            for k, found in nearest.items()
        },
        "copies": {
            "stories": sum(whole),
            "passages": sum(
                run >= LONG_RUN and not copied for run, copied in zip(runs, whole, strict=True)
            ),
            "pairs": int((between >= SAME).sum()) // 2,
        },
    }  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, its interval, the highest, and every value."""
    values = [float(value) for value in values]
    found = clustered_mean(values, range(len(values)))
    return {**found, "highest": max(values), "values": [round(value, 6) for value in values]}


def _in_training(
    texts: Sequence[Words], index: TrainingIndex, k: int
) -> tuple[dict[str, int], list[float]]:
    """Return how many distinct k-grams stand how often in training, and each text's share of known.

    Frequencies are counted by powers of ten: "never", "0" for 1 to 9 times, "1" for 10 to 99.
    """
    own = [sorted(set(kgrams(words, k))) for words in texts]
    everything = sorted(set().union(*map(set, own)))
    counts = dict(zip(everything, index.counts(everything), strict=True))
    frequencies: dict[str, int] = {"never": 0}
    for count in counts.values():
        name = "never" if count == 0 else str(len(str(count)) - 1)
        frequencies[name] = frequencies.get(name, 0) + 1
    known = [sum(counts[gram] > 0 for gram in grams) for grams in own]
    shares = [found / len(grams) if grams else 0.0 for found, grams in zip(known, own, strict=True)]
    return dict(sorted(frequencies.items())), shares


def _likeness(texts: Sequence[Words]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the Rouge-2 f-measure of each text with each other, (texts, texts); 0 with itself."""
    found = np.zeros((len(texts), len(texts)))
    pairs = [set(kgrams(words, 2)) for words in texts]
    for one in range(len(texts)):
        for other in range(one):
            total = len(pairs[one]) + len(pairs[other])
            if total:
                found[one, other] = 2 * len(pairs[one] & pairs[other]) / total
    return found + found.T
