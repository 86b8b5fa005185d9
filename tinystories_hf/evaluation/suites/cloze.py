"""Does the model know the next word? Facts, reasoning and context, as the paper asks them.

The paper (arXiv 2305.07759, figures 9 to 11) shows completions of 24 beginnings and judges them by
eye. Here the answers are given, and the model's own probabilities choose: see `cloze.yaml`.
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
from tinystories_hf.evaluation.validation import Reading, encode

ITEMS = Path(__file__).with_name("cloze.yaml")
PROTOCOL = (
    "the answer with the highest log-likelihood, a full stop included; relative: the one whose"
    " log-likelihood is furthest above its mean over the group; ties share the credit; intervals"
    " by bootstrap over groups"
)


@dataclass(frozen=True)
class ClozeItem:
    """A beginning and its answers; items of one `group` share the answers and the last sentence."""

    family: str
    group: int
    beginning: str
    answers: tuple[str, ...]
    right: int

    @property
    def continuations(self) -> list[str]:
        """Return the answers as they follow the beginning."""
        return [f" {answer}." for answer in self.answers]


# From items to one score for each of their answers, (items, answers) as lists.
Scorer = Callable[[Sequence[ClozeItem]], Sequence[Sequence[float]]]


@dataclass(frozen=True)
class FamilyScore:
    """How often the right answer was chosen; `chance` is what choosing blindly gives.

    `accuracy` chooses the likeliest answer. `relative_accuracy` chooses the one that its beginning
    makes likelier than the other beginnings of its group do: a small model likes some answers
    whatever they follow, and this leaves that out.
    """

    accuracy: float
    interval: Interval | None
    relative_accuracy: float
    relative_interval: Interval | None
    chance: float
    items: int


@cache
def cloze_items() -> tuple[ClozeItem, ...]:
    """Return all items, those of a group together."""
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
    """Return the share of right choices in each family, given a score for each answer.

    `items` holds whole groups.
    """
    found = {}
    for family in dict.fromkeys(item.family for item in items):
        groups: dict[int, list[tuple[ClozeItem, Sequence[float]]]] = {}
        for item, scored in zip(items, scores, strict=True):
            if item.family == family:
                groups.setdefault(item.group, []).append((item, scored))
        shares = [[credit(own, item.right) for item, own in group] for group in groups.values()]
        relative = [_relative_credits(group) for group in groups.values()]
        sizes = [len(group) for group in shares]
        found[family] = FamilyScore(
            accuracy=sum(map(sum, shares)) / sum(sizes),
            interval=ratio_interval([sum(group) for group in shares], sizes),
            relative_accuracy=sum(map(sum, relative)) / sum(sizes),
            relative_interval=ratio_interval([sum(group) for group in relative], sizes),
            chance=float(np.mean([1 / len(i.answers) for i in items if i.family == family])),
            items=sum(sizes),
        )
    return found


def _relative_credits(group: Sequence[tuple[ClozeItem, Sequence[float]]]) -> list[float]:
    """Return the credits when each answer counts by what it gains over the mean of its group."""
    means = np.mean([scored for _, scored in group], axis=0)
    return [credit((np.array(own) - means).tolist(), item.right) for item, own in group]


def credit(scores: Sequence[float], right: int) -> float:
    """Return 1 where the right answer alone is best, a share where it is as good as others.

    Scores closer than the rounding of fp32 sums are the same.
    """
    best = [answer for answer, score in enumerate(scores) if score > max(scores) - 1e-4]
    return 1 / len(best) if right in best else 0.0


def model_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[ClozeItem],
    context_length: int,
    batch_size: int,
    *,
    quiet: bool = False,
) -> tuple[list[list[float]], int]:
    """Return the log-likelihood of each answer after its beginning in nats, (items, answers).

    The tokens that all answers of an item share are left out: they add the same to each. Where an
    item is longer than the context its start is not read; the second result counts these items.
    """
    inputs: list[int] = []
    targets: list[int] = []
    windows: list[tuple[int, int, int]] = []
    cut = 0
    end = tokenizer.eos_token_id
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for item in items:
        texts = [item.beginning + continuation for continuation in item.continuations]
        encoded = [encode(tokenizer, text) for text in texts]
        shared = _shared_tokens(encoded)
        cut += max(map(len, encoded)) > context_length
        for ids in encoded:
            start = len(inputs)
            inputs += [begin, *ids[:-1]]
            targets += ids
            last = len(inputs)
            windows.append((max(start, last - context_length), last, start + shared))
    read = Reading(*(np.array(part, dtype=np.int64) for part in (inputs, targets, windows)))
    losses = score_tokens(model, read, batch_size, "cloze", quiet=quiet)
    likelihoods = iter(-losses[first:last].sum() for _, last, first in windows)
    return [[float(next(likelihoods)) for _ in item.answers] for item in items], cut


def _shared_tokens(encoded: Sequence[Sequence[int]]) -> int:
    """Return how many tokens at the start are the same in all texts."""
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
    """Return the accuracy of each family, and the protocol."""
    items = cloze_items()
    scores, cut = model_scores(model, tokenizer, items, context_length, batch_size, quiet=quiet)
    families = cloze_accuracy(items, scores)
    return {
        "protocol": PROTOCOL,
        "items_cut": cut,
        "families": {family: asdict(score) for family, score in families.items()},
    }
