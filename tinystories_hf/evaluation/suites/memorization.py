"""Memorization suite: how much a model copies from training (arXiv 2305.07759, section 4.4.1).

The first 40% of a hundred training stories are completed. The completions are compared with the
true endings, with each other, and with the complete training split, without sampling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.cleaning import CleaningCounts, clean
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.evaluation.intervals import clustered_mean
from tinystories_hf.evaluation.records import Record, RecordFile
from tinystories_hf.evaluation.subject import EvaluatedModel, identity
from tinystories_hf.evaluation.suites.ngrams import Words, f_measure, kgrams, words_of
from tinystories_hf.evaluation.suites.stories import generate_completions
from tinystories_hf.evaluation.suites.training_index import TrainingIndex
from tinystories_hf.evaluation.validation import encode

_STORIES, MIN_STORIES = 100, 10
SHARE_GIVEN = 0.4
KS = (2, 3, 4, 5)
# A copy shares nine tenths of its word pairs with one training story, or a run of twenty words.
COPY_SHARE = 0.9
COPY_RUN = 20
_NOT_SPACE = re.compile(r"\S+")


@dataclass(frozen=True)
class CutStory:
    """A training story, cut into the prompt for the model and the true ending."""

    number: int
    prompt: str
    ending: str


def draw_stories(
    subject: EvaluatedModel, stories: Iterable[str], total: int, seed: int, wanted: int = _STORIES
) -> list[CutStory]:
    """Sample training stories without replacement, and cut each at 40% of its words.

    Only stories of at least ten words that fit the context are used, so that the model could
    reproduce their ending.

    Args:
        subject: the model, whose tokenizer and context length are used.
        stories: the training stories.
        total: the number of training stories.
        seed: the seed of the sample.
        wanted: the size of the sample; a small training split may give fewer stories.

    Raises:
        UserError: there are fewer than ten such stories.
    """
    # Twenty times as many candidates as wanted, since some do not fit the context.
    candidates = np.random.default_rng([seed, total]).permutation(total)[: 20 * wanted].tolist()
    rank = {number: place for place, number in enumerate(candidates)}
    found: dict[int, CutStory] = {}
    for number, story in enumerate(stories):
        if number in rank and (cut := _cut(subject, number, story)) is not None:
            found[rank[number]] = cut
    drawn = [found[place] for place in sorted(found)[:wanted]]
    if len(drawn) < MIN_STORIES:
        raise UserError(
            f"memorization: only {len(drawn)} of {len(candidates)} sampled training stories have at"
            f" least ten words and fit the context of {subject.context_length} tokens,"
            f" {MIN_STORIES} are needed; leave this suite out with --suite"
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
    """Return the training stories in the order of the index."""
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
    """Return the memorization section of the results; completions go to `memorization.jsonl`."""
    total = index.manifest.stories
    made_with = {**identity(subject.facts), "training": index.manifest.source, "seed": seed}
    drawn = draw_stories(subject, training_stories(data), total, seed)
    records = RecordFile(folder / "memorization.jsonl", made_with)
    prompts = [story.prompt for story in drawn]
    generate_completions(subject, prompts, 1, seed, records, what="memorization", quiet=quiet)
    completions = sorted(records.records, key=lambda record: record["prompt"])
    return {
        "training": {"source": index.manifest.source, "stories": total,
                     "words": index.manifest.words},
        "share_given": SHARE_GIVEN,
        "temperature": 1.0,
        "seed": seed,
        "drawn": [story.number for story in drawn],
        **compare(
            [record["text"] for record in completions],
            [story.ending for story in drawn],
            index,
        ),
    }  # fmt: skip


def compare(completions: Sequence[str], endings: Sequence[str], index: TrainingIndex) -> Record:
    """Compare completions with the true endings, with each other and with training.

    The lists in the result have one value for each completion, for the histograms. `copies` counts
    copied stories, copied passages in the other completions, and nearly equal pairs of completions.
    """
    from tinystories_hf.evaluation.suites.metrics import RougeOverlap, compute_metric

    rouge = compute_metric(
        RougeOverlap, predictions=completions, references=endings, use_aggregator=False
    )
    texts = [words_of(text) for text in completions]
    frequencies, shares = {}, {}
    for k in KS:
        frequencies[str(k)], shares[str(k)] = _in_training(texts, index, k)
    nearest = {str(k): index.nearest(texts, k) for k in (2, 3)}
    runs = index.longest_runs(texts)
    between = _pairwise_rouge_f(texts)
    copied = [found.precision >= COPY_SHARE for found in nearest["2"]]
    return {
        "true_ending_rouge_2": _distribution(rouge["rouge_2_precision"]),
        "between_rouge_2": _distribution(between.max(axis=1)),
        "endings_between_rouge_2": _distribution(
            _pairwise_rouge_f([words_of(ending) for ending in endings]).max(axis=1)
        ),
        "in_training": {k: _distribution(values) for k, values in shares.items()},
        "frequencies": frequencies,
        "longest_run": _distribution(runs),
        "nearest": {
            k: {
                **_distribution([one.precision for one in found]),
                "stories": [one.story for one in found],
            }
            for k, found in nearest.items()
        },
        "copies": {
            "stories": sum(copied),
            "passages": sum(
                run >= COPY_RUN and not story for run, story in zip(runs, copied, strict=True)
            ),
            "pairs": int((between >= COPY_SHARE).sum()) // 2,
        },
    }  # fmt: skip


def _distribution(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with its interval, the maximum, and all values."""
    values = [float(value) for value in values]
    found = clustered_mean(values, range(len(values)))
    return {**found, "highest": max(values), "values": [round(value, 6) for value in values]}


def _in_training(
    texts: Sequence[Words], index: TrainingIndex, k: int
) -> tuple[dict[str, int], list[float]]:
    """Return a histogram of the k-grams' counts in training, and the known share of each text.

    Distinct k-grams are counted by powers of ten: "never", "0" for 1 to 9 times, "1" for 10 to 99.
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


def _pairwise_rouge_f(texts: Sequence[Words]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the Rouge-2 f-measure of each pair of texts, (texts, texts); 0 on the diagonal."""
    found = np.zeros((len(texts), len(texts)))
    pairs = [set(kgrams(words, 2)) for words in texts]
    for one in range(len(texts)):
        for other in range(one):
            found[one, other] = f_measure(pairs[one], pairs[other])
    return found + found.T
