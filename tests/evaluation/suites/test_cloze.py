from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPTNeoConfig, PreTrainedTokenizerFast

from tests.conftest import ROOT
from tinystories_hf.data.readers.text_files import read_text
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.suites.cloze import (
    ClozeItem,
    cloze_accuracy,
    cloze_items,
    measure_cloze,
    model_scores,
)
from tinystories_hf.evaluation.suites.ngrams import words_of
from tinystories_hf.model.modeling import GPTNeoForCausalLM

FAMILIES = ("facts", "reasoning", "context")


def scored(score: Callable[[ClozeItem, str], float]) -> dict[str, float]:
    """Return the accuracy of each family for answers chosen by `score`."""
    items = cloze_items()
    scores = [[score(item, answer) for answer in item.answers] for item in items]
    found = cloze_accuracy(items, scores)
    for one in found.values():
        assert one.relative_accuracy == pytest.approx(one.accuracy)
    return {name: one.accuracy for name, one in found.items()}


def chances() -> dict[str, float]:
    items = cloze_items()
    found = cloze_accuracy(items, [[0.0] * len(item.answers) for item in items])
    return {name: score.chance for name, score in found.items()}


def test_there_are_at_least_forty_items_of_each_family() -> None:
    counts = Counter(item.family for item in cloze_items())
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) >= 40, counts


def test_the_docs_state_the_number_of_items() -> None:
    count = len(cloze_items())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{count} prompts with a single right next word" in readme
    assert f"{count} items" in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_items_of_a_group_share_answers_and_last_sentence() -> None:
    groups: dict[tuple[str, int], list[ClozeItem]] = {}
    for item in cloze_items():
        groups.setdefault((item.family, item.group), []).append(item)
    for items in groups.values():
        assert len({item.answers for item in items}) == 1
        assert sorted(item.right for item in items) == list(range(len(items[0].answers)))
        assert len({item.prompt for item in items}) == len(items)
        lasts = {item.prompt.rpartition(". ")[2] for item in items}
        assert len({last.rpartition('" ')[2] for last in lasts}) == 1
        for item in items:
            assert all(len(answer.split()) == 1 for answer in item.answers)


def test_answers_are_of_equal_length_in_the_published_tokenizer(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "gpt-neo-tokenizer")
    for item in cloze_items():
        lengths = {len(tokenizer(text).input_ids) for text in item.continuations}
        assert lengths == {2}, item.answers


def test_an_oracle_is_always_right() -> None:
    assert scored(lambda item, answer: float(item.answers[item.right] == answer)) == dict.fromkeys(
        FAMILIES, 1.0
    )


def text_frequencies(stories: Sequence[str]) -> Counter[str]:
    return Counter(word for story in stories for word in words_of(story))


FREQUENCIES: Counter[str] = text_frequencies(list(toy_stories(2000, 0)))
SHORTCUTS: dict[str, Callable[[ClozeItem, str], float]] = {
    "the shortest answer": lambda _, answer: -len(answer),
    "the longest answer": lambda _, answer: len(answer),
    "the most frequent word": lambda _, answer: FREQUENCIES[answer.lower()],
    "the rarest word": lambda _, answer: -FREQUENCIES[answer.lower()],
}


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_no_family_is_solved_by_looking_at_the_answers(shortcut: str) -> None:
    assert scored(SHORTCUTS[shortcut]) == pytest.approx(chances())


def test_no_family_is_solved_by_the_last_sentence() -> None:
    """A model that sees only the last sentence scores at chance."""
    tokenizer = train_tokenizer(toy_stories(300, 0), 400, 256)
    model = tiny(len(tokenizer), 0.5)
    items = cloze_items()
    ends = [
        ClozeItem(item.family, item.group, re.split(r'[.!?]"? ', item.prompt)[-1], item.answers,
                  item.right)
        for item in items
    ]  # fmt: skip
    scores, _ = model_scores(model, tokenizer, ends, 256, 16)
    found = cloze_accuracy(items, scores)
    assert {name: one.accuracy for name, one in found.items()} == pytest.approx(chances())
    assert {name: one.relative_accuracy for name, one in found.items()} == pytest.approx(chances())


MENTIONS: dict[str, Callable[[ClozeItem, str], float]] = {
    "first": lambda item, answer: -item.prompt.find(answer),
    "last": lambda item, answer: item.prompt.rfind(answer),
    "most often": lambda item, answer: mentions(item, answer),
    "least often": lambda item, answer: -mentions(item, answer),
}


def mentions(item: ClozeItem, answer: str) -> int:
    return len(re.findall(rf"\b{answer}\b", item.prompt))


@pytest.mark.parametrize("mention", MENTIONS)
@pytest.mark.parametrize("family", ["reasoning", "context"])
def test_no_family_is_solved_by_how_its_answers_are_mentioned(mention: str, family: str) -> None:
    items = [
        item
        for item in cloze_items()
        if item.family == family and all(mentions(item, answer) for answer in item.answers)
    ]
    assert len(items) > 20
    scores = [[MENTIONS[mention](item, answer) for answer in item.answers] for item in items]
    found = cloze_accuracy(items, scores)[family]
    assert found.accuracy < found.chance + 0.1


def tiny(vocab_size: int, spread: float) -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=vocab_size, hidden_size=16, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=256,
        initializer_range=spread, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoForCausalLM(config)
    model.eval()
    return model


def whole_words() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word of the items."""
    texts = [item.prompt + text for item in cloze_items() for text in item.continuations]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: at for at, word in enumerate(["</s>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_a_uniform_model_scores_at_chance() -> None:
    """All weights zero: every token is as likely as any other."""
    tokenizer = whole_words()
    model = tiny(len(tokenizer), 0.5)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    scores, cut = model_scores(model, tokenizer, cloze_items(), 256, 16)
    assert cut == 0
    for found in cloze_accuracy(cloze_items(), scores).values():
        assert found.interval is not None
        assert found.interval[0] - 1e-9 <= found.chance <= found.interval[1] + 1e-9
        assert found.accuracy == pytest.approx(found.chance)
        assert found.relative_accuracy == pytest.approx(found.chance)


def test_relative_accuracy_ignores_a_preference_for_an_answer() -> None:
    """The scores favour the right answer slightly, and the first answer strongly."""
    items = [item for item in cloze_items() if item.group < 3]
    scores = [
        [(at == item.right) + 5.0 * (at == 0) for at in range(len(item.answers))] for item in items
    ]
    for found in cloze_accuracy(items, scores).values():
        assert found.accuracy == pytest.approx(found.chance, abs=0.01)
        assert found.relative_accuracy == 1.0


def test_an_untrained_model_scores_near_chance() -> None:
    tokenizer = whole_words()
    scores, _ = model_scores(tiny(len(tokenizer), 0.5), tokenizer, cloze_items(), 256, 16)
    for found in cloze_accuracy(cloze_items(), scores).values():
        assert found.accuracy == pytest.approx(found.chance, abs=0.2)


def test_scores_are_the_log_likelihoods_of_the_answers() -> None:
    tokenizer = train_tokenizer(toy_stories(300, 0), 400, 256)
    model = tiny(len(tokenizer), 0.3)
    item = cloze_items()[0]
    (scores,), _ = model_scores(model, tokenizer, [item], 256, 2)
    totals = []
    for continuation in item.continuations:
        ids = [tokenizer.eos_token_id, *tokenizer(item.prompt + continuation).input_ids]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        totals.append(float(logits.gather(-1, torch.tensor(ids[1:])[:, None]).sum()))
    differences = [total - totals[0] for total in totals]
    assert [score - scores[0] for score in scores] == pytest.approx(differences, abs=1e-3)


def test_items_longer_than_the_context_are_truncated_and_counted() -> None:
    tokenizer = train_tokenizer(toy_stories(300, 0), 400, 256)
    found = measure_cloze(tiny(len(tokenizer), 0.3), tokenizer, 32, 16)
    assert 0 < found["items_cut"] <= len(cloze_items())


def test_the_items_are_in_the_words_of_the_dataset_and_not_in_its_sentences(shared: Path) -> None:
    stories = list(read_text(shared / "data" / "tinystories" / "TinyStories-train.txt"))
    known = text_frequencies(stories)
    items = cloze_items()
    unknown = {word for item in items for word in words_of(item.prompt) if word not in known}
    assert not unknown
    text = " ".join(" ".join(words_of(story)) for story in stories)
    for item in items:
        for sentence in re.split(r"(?<=[.!?]) ", item.prompt)[:-1]:
            words = words_of(sentence)
            if len(words) > 5:
                assert " ".join(words) not in text, sentence
