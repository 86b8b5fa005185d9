from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoForCausalLM as Stock

from tests.conftest import SHARED
from tests.support.bars import Bars
from tests.support.kinds import byte_fallback, word_piece
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.suites import loss as loss_module
from tinystories_hf.evaluation.suites.loss import (
    score_tokens,
    split_loss,
    summarize_losses,
    window_positions,
)
from tinystories_hf.evaluation.validation import (
    BY_STORY,
    PACKED,
    PROTOCOLS,
    Validation,
    occurs_in,
    scoring_windows,
    tokenize_stories,
)
from tinystories_hf.model.modeling import GPTNeoForCausalLM

CONTEXT = 16
# Shorter and longer than the context, empty, not ASCII, and one with the text of the EOS token.
STORIES = [
    "A cat sat.",
    "Once there was a dog who ran and ran, over the hill and far away, and never once came home.",
    "",
    "Zoë said “no”!",
    "He wrote <|endoftext|> on the wall.",
    "Lily had a red ball and a blue kite, a small boat, a big hat, two cups, a key and a bell, and"
    " every day she played with all of them until the sun went down behind the trees.",
]


def byte_pairs() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE as this project trains it, whose BOS and EOS token are the same."""
    return train_tokenizer(toy_stories(200, 0), 400, CONTEXT)


def words_with_marks() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with different BOS and EOS tokens."""
    words = sorted({word for story in toy_stories(50, 0) for word in story.split()})
    vocabulary = {word: at for at, word in enumerate(["<s>", "</s>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def gpt_neo() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the published models."""
    if not SHARED.is_dir():
        pytest.skip("needs the published tokenizer in ../shared")
    return AutoTokenizer.from_pretrained(SHARED / "data" / "gpt-neo-tokenizer")


TOKENIZERS = [byte_pairs, words_with_marks, gpt_neo, word_piece, byte_fallback]


def tiny(vocab_size: int, seed: int = 0) -> GPTNeoForCausalLM:
    """Return a small model whose predictions differ from token to token."""
    torch.manual_seed(seed)
    config = GPTNeoConfig(
        vocab_size=vocab_size, hidden_size=16, num_layers=2, num_heads=4, window_size=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=CONTEXT,
        initializer_range=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoForCausalLM(config)
    model.eval()
    return model


def slowly(
    model: PreTrainedModel, tokenizer: Any, stories: list[str], protocol: str
) -> list[float]:
    """Return the loss of each token in fp64, computed from its prefix by Transformers' model."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    stock = Stock(config).double().eval()
    stock.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    encoded = [
        [*tokenizer(story, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for story in stories
    ]
    nats = []
    texts = encoded if protocol == BY_STORY else [[token for ids in encoded for token in ids]]
    for ids in texts:
        before = [begin, *ids]
        for at, target in enumerate(ids):
            if protocol == PACKED or at < CONTEXT:
                first = at // CONTEXT * CONTEXT
            else:  # each window ends CONTEXT // 2 later, the last one at the end of the story
                step = CONTEXT // 2
                end = min(CONTEXT + ((at - CONTEXT) // step + 1) * step, len(ids))
                first = end - CONTEXT
            with torch.no_grad():
                logits = stock(torch.tensor([before[first : at + 1]])).logits[0, -1]
            nats.append(-float(torch.log_softmax(logits, -1)[target]))
    return nats


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_loss_equals_a_naive_computation_in_float64(
    make: Callable[[], PreTrainedTokenizerFast], protocol: str
) -> None:
    tokenizer = make()
    model = tiny(len(tokenizer))
    stories = tokenize_stories(tokenizer, STORIES)
    read = scoring_windows(stories, protocol, CONTEXT)
    found = score_tokens(model, read, batch_size=3)
    right = slowly(model, tokenizer, STORIES, protocol)
    assert found.mean() == pytest.approx(np.mean(right), abs=1e-6)
    np.testing.assert_allclose(found, right, atol=2e-5)
    summed = summarize_losses(
        stories, found, window_positions(read), protocol, np.ones(len(STORIES), dtype=bool)
    )
    assert summed.loss == pytest.approx(np.mean(right), abs=1e-6)
    text_bytes = sum(len(story.encode()) for story in STORIES)
    assert summed.bits_per_byte == pytest.approx(sum(right) / math.log(2) / text_bytes, abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_token_is_counted_once(protocol: str) -> None:
    stories = tokenize_stories(byte_pairs(), STORIES)
    read = scoring_windows(stories, protocol, CONTEXT)
    counted = np.zeros(len(stories.ids), dtype=int)
    for begin, end, first in read.windows.tolist():
        assert begin <= first < end <= begin + CONTEXT
        counted[first:end] += 1
    assert (counted == 1).all()
    assert window_positions(read).max() == CONTEXT - 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_batch_size_does_not_change_the_loss(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = Bars()
    monkeypatch.setattr(loss_module, "tqdm", bars)
    tokenizer = byte_pairs()
    model = tiny(len(tokenizer))
    stories = tokenize_stories(tokenizer, list(toy_stories(40, 1)))
    read = scoring_windows(stories, protocol, CONTEXT)
    means = [score_tokens(model, read, size).mean() for size in (1, 3, 16)]
    assert means == pytest.approx([means[0]] * 3, abs=1e-6)
    assert bars.have_ended(3)


def test_the_loss_of_another_architecture_is_that_of_its_logits() -> None:
    tokenizer = words_with_marks()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT,
        initializer_range=0.5,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    ids = tokenizer(STORIES[0], add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0].double()
    targets = torch.tensor([*ids, tokenizer.eos_token_id])
    right = torch.nn.functional.cross_entropy(logits, targets)
    stories = tokenize_stories(tokenizer, [STORIES[0]])
    found = score_tokens(model, scoring_windows(stories, BY_STORY, CONTEXT), 4)
    assert found.mean() == pytest.approx(float(right), abs=1e-6)


def test_a_uniform_model_has_the_logarithm_of_the_vocabulary_as_loss() -> None:
    tokenizer = byte_pairs()
    model = tiny(len(tokenizer))
    torch.nn.init.zeros_(model.transformer.wte.weight)
    read = scoring_windows(tokenize_stories(tokenizer, STORIES), PACKED, CONTEXT)
    assert score_tokens(model, read, 4).mean() == pytest.approx(math.log(len(tokenizer)), rel=1e-6)


def test_a_model_with_nan_weights_has_a_nan_loss() -> None:
    tokenizer = byte_pairs()
    model = tiny(len(tokenizer))
    torch.nn.init.constant_(model.transformer.ln_f.weight, math.nan)
    read = scoring_windows(tokenize_stories(tokenizer, STORIES), PACKED, CONTEXT)
    assert np.isnan(score_tokens(model, read, 4)).all()


def test_dropout_is_disabled_and_restored() -> None:
    tokenizer = byte_pairs()
    model = tiny(len(tokenizer))
    model.transformer.drop.p = 0.5
    read = scoring_windows(tokenize_stories(tokenizer, STORIES), PACKED, CONTEXT)
    model.train()
    assert (score_tokens(model, read, 4) == score_tokens(model, read, 4)).all()
    assert model.training


def test_stories_that_occur_in_training_are_reported_separately() -> None:
    tokenizer = byte_pairs()
    model = tiny(len(tokenizer))
    texts = list(toy_stories(12, 3))
    known = occurs_in(texts, ["Something else.", f"  {texts[4]}\n", texts[7]])
    assert np.flatnonzero(known).tolist() == [4, 7]
    found = split_loss(
        model, tokenizer, Validation(texts, known, {}, []), context_length=CONTEXT, batch_size=4
    )
    assert (found.stories, found.in_training) == (12, 2)
    assert found.not_in_training is not None
    fresh = [text for text in texts if text not in (texts[4], texts[7])]
    alone = split_loss(
        model, tokenizer, Validation(fresh, np.zeros(10, dtype=bool), {}, []),
        context_length=CONTEXT, batch_size=4,
    )  # fmt: skip
    rest = found.not_in_training[BY_STORY]
    assert rest.loss == pytest.approx(alone.by_story.loss, abs=1e-6)
    assert rest.tokens == alone.by_story.tokens
    assert alone.not_in_training is None
    # The loss of the complete split includes the stories that occur in training.
    assert found.by_story.tokens > rest.tokens


def test_loss_by_position_adds_up_and_the_interval_holds_the_loss() -> None:
    tokenizer = byte_pairs()
    found = split_loss(
        tiny(len(tokenizer)), tokenizer,
        Validation(list(toy_stories(30, 2)), np.zeros(30, dtype=bool), {}, []),
        context_length=CONTEXT, batch_size=8,
    )  # fmt: skip
    for part in (found.packed, found.by_story):
        assert [(at.first, at.end) for at in part.by_position] == [
            (0, 1), (1, 2), (2, 4), (4, 8), (8, 16)
        ]  # fmt: skip
        assert sum(at.tokens for at in part.by_position) == part.tokens
        total = sum(at.loss * at.tokens for at in part.by_position)
        assert total / part.tokens == pytest.approx(part.loss)
        assert part.loss_interval is not None
        low, high = part.loss_interval
        assert low < part.loss < high
    stories = tokenize_stories(tokenizer, list(toy_stories(30, 2)))
    read = scoring_windows(stories, PACKED, CONTEXT)
    losses = score_tokens(tiny(len(tokenizer)), read, 8)
    parts = (stories, losses, window_positions(read), PACKED, np.ones(30, dtype=bool))
    assert summarize_losses(*parts, block=3).loss_interval == found.packed.loss_interval, (
        "ten blocks of three stories"
    )


def test_intervals_cover_the_mean_in_95_percent_of_samples() -> None:
    """About 95% of the intervals of 200 samples contain the true mean."""
    from tinystories_hf.evaluation.intervals import ratio_interval

    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        lengths = generator.integers(20, 200, size=150)
        nats = lengths * 2.0 + generator.normal(0, 1, size=150) * lengths * 0.3
        found = ratio_interval(nats, lengths)
        assert found is not None
        held += found[0] <= 2.0 <= found[1]
    assert 180 <= held <= 198
    assert ratio_interval([1.0], [2.0]) is None
