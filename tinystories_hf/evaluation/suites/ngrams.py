"""Words, k-grams and BLEU of stories, for diversity and memorization."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]
KGram = tuple[str, ...]

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, in lower case.

    The same as in Rouge (Lin, 2004; the `rouge_score` package), also beyond ASCII: "don't" is two.
    """
    return _WORD.findall(text.lower())


def kgrams(words: Words, k: int) -> list[KGram]:
    """Return all runs of k words in their order, with repetitions."""
    return list(zip(*(words[start:] for start in range(k)), strict=False))


def rouge_precision(text: Words, reference: Words, k: int) -> float:
    """Return the share of a text's distinct k-grams that occur in the reference.

    The paper's Rouge-k precision (arXiv 2305.07759, section 4.4.1); 0 if the text has no k-gram.
    """
    found = set(kgrams(text, k))
    return len(found & set(kgrams(reference, k))) / len(found) if found else 0.0


def rouge_f(one: Words, other: Words, k: int) -> float:
    """Return the Rouge-k f-measure, the harmonic mean of the precisions in both directions."""
    return f_measure(set(kgrams(one, k)), set(kgrams(other, k)))


def f_measure(one: set[KGram], other: set[KGram]) -> float:
    """Return the Rouge f-measure of two sets of k-grams; 0 if both are empty."""
    total = len(one) + len(other)
    return 2 * len(one & other) / total if total else 0.0


def distinct(texts: Sequence[Words], k: int) -> float:
    """Return distinct k-grams over all k-grams of all texts (Li et al., 2016, distinct-n)."""
    found = [gram for words in texts for gram in kgrams(words, k)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(words: Words, k: int = 4) -> float:
    """Return the share of k-grams that occurred earlier in the text (Welleck et al., 2020)."""
    found = kgrams(words, k)
    return 1 - len(set(found)) / len(found) if found else 0.0


def bleu(text: Words, references: Sequence[Words], longest: int = 4) -> float:
    """Return BLEU-4 of one text against several (Papineni et al., 2002).

    Zero matches count as half a match, so that short texts without a common 4-gram get a score
    above zero (Chen and Cherry, 2014, smoothing 1 with epsilon 0.5).
    """
    if not text or not references:
        return 0.0
    logs = 0.0
    for k in range(1, longest + 1):
        found = Counter(kgrams(text, k))
        allowed: Counter[KGram] = Counter()
        for reference in references:
            allowed |= Counter(kgrams(reference, k))
        matched = sum((found & allowed).values())
        logs += math.log((matched or 0.5) / max(1, sum(found.values())))
    nearest = min((abs(len(other) - len(text)), len(other)) for other in references)[1]
    brevity = min(0.0, 1 - nearest / len(text))
    return math.exp(logs / longest + brevity)


def self_bleu(texts: Sequence[Words]) -> list[float]:
    """Return BLEU-4 of each text against all others (Zhu et al., 2018); 1 if all are equal."""
    return [bleu(text, [*texts[:at], *texts[at + 1 :]]) for at, text in enumerate(texts)]
