"""Our class does what stock's does; most tests here compare the two."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification, DynamicCache, StaticCache, Trainer
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.models.gpt_neo import modeling_gpt_neo

from tests.model.test_attention import (
    attention_ways,
    configuration,
    distance,
    gradients,
    pair,
    tokens,
)
from tinystories_hf.model.modeling import GPTNeoForCausalLM

WINDOW, LENGTH = 8, 30
IDS = tokens(3, LENGTH)
LEFT, RIGHT = torch.ones_like(IDS), torch.ones_like(IDS)
LEFT[1, :4] = LEFT[2, :12] = 0
RIGHT[1, -4:] = RIGHT[2, -19:] = 0
POSITIONS = (LEFT.cumsum(-1) - 1).clamp(min=0)
ALONE = {"skip_logits": True}


def small(**changes: Any) -> tuple[GPTNeoForCausalLM, transformers.GPTNeoForCausalLM]:
    return pair(**{"window_size": WINDOW, "max_position_embeddings": 64, **changes})


def assert_close(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


CACHES: dict[str, Callable[[], Cache]] = {
    "dynamic": DynamicCache,
    "static": lambda: StaticCache(configuration(), max_cache_len=40),
    "static, longer than all positions": lambda: StaticCache(configuration(), max_cache_len=100),
    "sliding": lambda: Cache(layers=[DynamicLayer(), DynamicSlidingWindowLayer(WINDOW)]),
    "static and sliding": lambda: Cache(
        layers=[StaticLayer(50), StaticSlidingWindowLayer(50, WINDOW)]
    ),
}


def in_steps(model: nn.Module, cache: Cache, padded: bool) -> torch.Tensor:
    """Return the logits of `IDS`, read in pieces of several lengths by way of a cache."""
    found, begin = [], 0
    for length in (5, 7, 1, 1, 9, 3, 1, 3):
        end = begin + length
        given = {"attention_mask": LEFT[:, :end], "position_ids": POSITIONS[:, begin:end]}
        found.append(model(IDS[:, begin:end], cache, **(given if padded else {})).logits)
        begin = end
    return torch.cat(found, 1)


@pytest.mark.parametrize("way", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_every_cache_gives_the_logits_of_the_text_at_once(cache: str, way: str) -> None:
    ours, stock = small()
    ours.set_attn_implementation(way)
    assert_close(in_steps(ours, CACHES[cache](), padded=False), stock(IDS).logits)
    right = stock(IDS, attention_mask=LEFT, position_ids=POSITIONS).logits
    assert_close(in_steps(ours, CACHES[cache](), padded=True)[LEFT == 1], right[LEFT == 1])


@torch.no_grad()
def test_stock_itself_is_wrong_with_a_static_cache_longer_than_the_window() -> None:
    """Its local layers take the queries for the last keys of the cache, most of them empty."""
    _, stock = small()
    off = in_steps(stock, CACHES["static"](), padded=False) - stock(IDS).logits
    assert off.abs().max() > 0.1


@pytest.mark.parametrize(
    "how",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "num_beams": 2},
        {"prefill_chunk_size": 4},
        {"use_cache": False},
    ],
    ids=str,
)
def test_stories_are_the_same_by_every_cache(how: dict[str, Any]) -> None:
    ours, stock = small()
    mask = LEFT[:2, :10]
    common = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False}
    beams = {"num_beams": how.get("num_beams", 1)}
    generated = stock.generate(IDS[:2, :10], **common, **beams)
    assert torch.equal(ours.generate(IDS[:2, :10], **common, **how), generated)


def test_a_draft_changes_no_story() -> None:
    ours, stock = small()
    common: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    generated = stock.generate(IDS[:1, :10], **common)
    draft = small(num_layers=2, initializer_range=0.2)[0]
    for how in ({"assistant_model": draft}, {"prompt_lookup_num_tokens": 3}):
        assert torch.equal(ours.generate(IDS[:1, :10], **common, **how), generated)


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["none", "left", "right"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_padded_rows_have_stocks_loss_and_gradients(
    mask: torch.Tensor | None, checkpointing: bool
) -> None:
    """Also where padding is predicted from: such a query sees no key, and weighs all alike."""
    ours, stock = small()
    for model in (ours, stock):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
    right = stock(IDS, attention_mask=mask, labels=IDS).loss
    expected = gradients(stock, right)
    for how in ({}, ALONE):
        loss = ours(IDS, attention_mask=mask, labels=IDS, **how).loss
        assert abs(loss.item() - right.item()) < 1e-6
        assert distance(gradients(ours, loss), expected) < 1e-5


@pytest.mark.parametrize(
    "given",
    [
        {"labels": IDS},
        {"labels": IDS, "attention_mask": LEFT, "use_cache": False},
        {"labels": IDS, "output_hidden_states": True, "output_attentions": True},
        {"labels": IDS, "num_items_in_batch": 7},
        {"labels": IDS, "num_items_in_batch": torch.tensor(7)},
        {"labels": IDS, "ignore_index": 5},
        {"labels": IDS, "shift_labels": IDS.flip(0)},
        {"labels": IDS, "shift_labels": IDS.flip(0), "logits_to_keep": LENGTH},
        {"logits_to_keep": 3},
        {"logits_to_keep": torch.tensor([1, 4])},
        {"position_ids": torch.cat([torch.arange(12), torch.arange(18)])[None]},
        {"token_type_ids": IDS.flip(1), "labels": IDS},
    ],
    ids=lambda given: "-".join(given),
)
@torch.no_grad()
def test_a_call_returns_what_stocks_does(given: dict[str, Any]) -> None:
    ours, stock = small()
    found, right = ours(IDS, **given), stock(IDS, **given)
    assert list(found) == list(right)
    as_tuple = ours(IDS, **given, return_dict=False)
    assert [type(part) for part in as_tuple] == [type(part) for part in right.to_tuple()]
    for name in ("loss", "logits"):
        if name in right:
            assert_close(found[name], right[name])
            assert_close(as_tuple[list(right).index(name)], right[name])
    for name in ("hidden_states", "attentions"):
        for one, two in zip(found.get(name) or (), right.get(name) or (), strict=True):
            assert_close(one, two)
    if "labels" in given:
        alone = ours(IDS, **given, **ALONE)
        assert_close(alone.loss, right.loss)
        assert set(alone) == set(right) - {"logits", "past_key_values", "cache"}
        assert_close(ours(IDS, **given, **ALONE, return_dict=False)[0], right.loss)


def test_the_loss_alone_needs_labels_and_makes_a_cache_where_asked() -> None:
    ours, _ = small()
    with pytest.raises(ValueError, match="needs labels"):
        ours(IDS, **ALONE)
    outputs = ours(IDS, labels=IDS, use_cache=True, **ALONE)
    assert outputs.logits is None
    assert len(outputs) == 2  # the loss and the cache


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": IDS[row], "labels": IDS[row]}


def test_a_trainer_predicts_and_computes_metrics(tmp_path: Path) -> None:
    def right_share(found: transformers.EvalPrediction) -> dict[str, float]:
        guessed = found.predictions[:, :-1].argmax(-1)
        return {"right": float((guessed == found.label_ids[:, 1:]).mean())}

    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=2
    )
    results = []
    for model in small():
        model.config.use_cache = False
        trainer = Trainer(model, arguments, eval_dataset=Rows(), compute_metrics=right_share)
        assert trainer.label_names == ["labels"]
        found = trainer.predict(Rows())
        assert found.predictions.shape == (*IDS.shape, model.config.vocab_size)
        results.append((trainer.evaluate()["eval_right"], found.metrics["test_loss"]))
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_attention_weights_are_given_whatever_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(modeling_gpt_neo.logger, "warning_once", said.append)
    ours, stock = small()
    given = {"attention_mask": LEFT, "output_attentions": True}
    found, right = ours(IDS, **given).attentions, stock(IDS, **given).attentions
    for one, two in zip(found, right, strict=True):
        assert_close(one, two)
    assert "does not support `output_attentions=True`" in said[0]
    how = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 4}
    generated, expected = (model.generate(IDS, do_sample=False, **how) for model in (ours, stock))
    for step, other in zip(generated.attentions, expected.attentions, strict=True):
        for one, two in zip(step, other, strict=True):
            assert_close(one, two)
    ours.config.output_attentions = True
    assert len(ours(IDS).attentions) == 2
    assert len(ours(IDS, labels=IDS, **ALONE).attentions) == 2
    said.clear()
    ours.set_attn_implementation("eager")
    assert len(ours(IDS).attentions) == 2
    assert not said


def test_a_configuration_that_leaves_ours_is_one_of_stock(tmp_path: Path) -> None:
    ours, _ = small()
    ours.save_pretrained(tmp_path)
    for word in (None, "sdpa", "eager"):
        known = {} if word is None else {"attn_implementation": word}
        model = GPTNeoForCausalLM.from_pretrained(tmp_path, **known)
        assert attention_ways(model) == {word or "sdpa"}
        assert model.config._attn_implementation == "eager"
        other = AutoModelForSequenceClassification.from_config(model.config)
        assert type(other.transformer) is modeling_gpt_neo.GPTNeoModel
        for again in (model.config, copy.deepcopy(model.config)):
            assert attention_ways(GPTNeoForCausalLM(again)) == {word or "sdpa"}
    asked = configuration()
    asked._attn_implementation = "sdpa"
    assert attention_ways(GPTNeoForCausalLM(asked)) == {"sdpa"}
    assert attention_ways(GPTNeoForCausalLM(asked)) == {"sdpa"}
    with pytest.raises(ValueError, match=r"sdpa|scaled_dot_product"):
        transformers.GPTNeoForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_transformers_deprecates_nothing_that_is_done_here(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    ours, _ = small()
    ours(IDS)
    for how in ({}, ALONE):
        ours(IDS, labels=IDS, attention_mask=LEFT, **how).loss.backward()
    ours.token_losses(IDS, IDS)
    ours.generate(IDS, max_new_tokens=3)
    said = [*(record.getMessage() for record in caplog.records), *(str(w.message) for w in recwarn)]
    assert not [text for text in said if "past_key_values" in text or "cache_params" in text]
