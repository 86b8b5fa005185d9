"""Cloze suite: whether the right next word is the most likely one, for 230 prompts.

The paper (arXiv 2305.07759, figures 9 to 11) shows completions of 24 prompts in the families facts,
reasoning and context, and judges them by eye. Here the answers in `cloze.yaml` are compared by the
likelihood that the model gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinystories_hf.evaluation.intervals import Interval, ratio_interval
from tinystories_hf.evaluation.suites.loss import score_tokens
from tinystories_hf.evaluation.validation import ScoringWindows, encode

ITEMS = Path(__file__).with_name("cloze.yaml")
PROTOCOL = (
    "Likelihood: the answer with the highest log-likelihood, including its full stop. Relative"
    " likelihood: the answer whose log-likelihood is furthest above its mean over the prompts of"
    " the group. Ties share the credit. Intervals by bootstrap over groups"
)


@dataclass(frozen=True)
class ClozeItem:
    """A prompt and its answers; items of one `group` share the answers and the last sentence."""

    family: str
    group: int
    prompt: str
    answers: tuple[str, ...]
    right: int

    @property
    def continuations(self) -> list[str]:
        """Return the answers as they follow the prompt."""
        return [f" {answer}." for answer in self.answers]


# Maps items to a score for each of their answers, (items, answers) as lists.
Scorer = Callable[[Sequence[ClozeItem]], Sequence[Sequence[float]]]


@dataclass(frozen=True)
class FamilyScore:
    """The share of items of a family for which the right answer was chosen.

    `accuracy` chooses the most likely answer. `relative_accuracy` chooses the answer whose
    likelihood increases most over its mean for all prompts of the group: a small model prefers some
    words whatever the prompt is, and this removes that preference. `chance` is the expected share
    of a random choice.
    """

    accuracy: float
    interval: Interval | None
    relative_accuracy: float
    relative_interval: Interval | None
    chance: float
    items: int


@cache
def cloze_items() -> tuple[ClozeItem, ...]:
    """Return all items; those of a group are adjacent."""
    items = []
    families = yaml.safe_load(ITEMS.read_text(encoding="utf-8"))
    for family, groups in families.items():
        for number, group in enumerate(groups):
            answers = tuple(group["answers"])
            for right, start in enumerate(group["answers"].values()):
                items.append(ClozeItem(family, number, f"{start} {group['last']}", answers, right))
    return tuple(items)


def cloze_accuracy(
    items: Sequence[ClozeItem], scores: Sequence[Sequence[float]]
) -> dict[str, FamilyScore]:
    """Return the accuracy of each family, given a score for each answer.

    Args:
        items: the items of complete groups.
        scores: a score for each answer, (items, answers).
    """
    found = {}
    for family in dict.fromkeys(item.family for item in items):
        groups: dict[int, list[tuple[ClozeItem, Sequence[float]]]] = {}
        for item, scored in zip(items, scores, strict=True):
            if item.family == family:
                groups.setdefault(item.group, []).append((item, scored))
        likelihood = [_credits(group, relative=False) for group in groups.values()]
        relative = [_credits(group, relative=True) for group in groups.values()]
        sizes = [len(group) for group in likelihood]
        found[family] = FamilyScore(
            accuracy=sum(map(sum, likelihood)) / sum(sizes),
            interval=ratio_interval([sum(group) for group in likelihood], sizes),
            relative_accuracy=sum(map(sum, relative)) / sum(sizes),
            relative_interval=ratio_interval([sum(group) for group in relative], sizes),
            chance=float(np.mean([1 / len(i.answers) for i in items if i.family == family])),
            items=sum(sizes),
        )
    return found


def _credits(group: Sequence[tuple[ClozeItem, Sequence[float]]], relative: bool) -> list[float]:
    """Return the credit of each item of a group, with scores relative to their mean if asked."""
    from tinystories_hf.evaluation.suites.metrics import ClozeAccuracy, compute_metric

    scores = np.array([scored for _, scored in group])
    if relative:
        scores = scores - scores.mean(axis=0)
    found: list[float] = compute_metric(
        ClozeAccuracy,
        predictions=scores.tolist(),
        references=[item.right for item, _ in group],
        use_aggregator=False,
    )["accuracy"]
    return found


def model_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[ClozeItem],
    context_length: int,
    batch_size: int,
    *,
    quiet: bool = False,
) -> tuple[list[list[float]], int]:
    """Return the log-likelihood of each answer in nats, (items, answers), and the items truncated.

    The leading tokens that all answers of an item share are left out: they add the same to each.
    The start of an item that is longer than the context is cut off; the second result counts these.
    """
    inputs: list[int] = []
    targets: list[int] = []
    windows: list[tuple[int, int, int]] = []
    cut = 0
    end = tokenizer.eos_token_id
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for item in items:
        texts = [item.prompt + continuation for continuation in item.continuations]
        encoded = [encode(tokenizer, text) for text in texts]
        shared = _shared_tokens(encoded)
        cut += max(map(len, encoded)) > context_length
        for ids in encoded:
            start = len(inputs)
            inputs += [begin, *ids[:-1]]
            targets += ids
            last = len(inputs)
            windows.append((max(start, last - context_length), last, start + shared))
    scored = ScoringWindows(
        *(np.array(part, dtype=np.int64) for part in (inputs, targets, windows))
    )
    losses = score_tokens(model, scored, batch_size, "cloze", quiet=quiet)
    likelihoods = iter(-losses[first:last].sum() for _, last, first in windows)
    return [[float(next(likelihoods)) for _ in item.answers] for item in items], cut


def _shared_tokens(encoded: Sequence[Sequence[int]]) -> int:
    """Return the number of leading tokens that all texts have in common."""
    shared = 0
    for tokens in zip(*encoded, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared


def measure_cloze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    context_length: int,
    batch_size: int,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Return the cloze section of the results."""
    items = cloze_items()
    scores, cut = model_scores(model, tokenizer, items, context_length, batch_size, quiet=quiet)
    families = cloze_accuracy(items, scores)
    return {
        "protocol": PROTOCOL,
        "items_cut": cut,
        "families": {family: asdict(score) for family, score in families.items()},
    }
