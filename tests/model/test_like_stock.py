"""Our class does what stock's does; most tests here compare the two."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize
from transformers import AutoModelForSequenceClassification, DynamicCache, StaticCache, Trainer
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.models.gpt_neo import modeling_gpt_neo

from tests.conftest import TINY_CONFIG
from tests.model.test_attention import (
    attention_ways,
    configuration,
    distance,
    gradients,
    pair,
    tokens,
)
from tests.support.forked import run_forked, script
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


class Adapted(nn.Module):
    """A head with a low rank beside it, as adapters have."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.base = head
        self.down = nn.Linear(head.in_features, 2, bias=False)
        self.up = nn.Linear(2, head.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, states: torch.Tensor) -> Any:
        return self.base(states) + self.up(self.down(states))


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def adapt(model: Any) -> None:
    model.lm_head = Adapted(model.lm_head)


def parametrize_head(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    parametrize.register_parametrization(model.lm_head, "weight", Doubled())


def patch(model: Any) -> None:
    """As accelerate hooks a module whose weights are elsewhere."""
    plain = model.lm_head.forward
    model.lm_head.forward = lambda states: 3 * plain(states)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "adapter": adapt,
    "hook": lambda model: model.lm_head.register_forward_hook(lambda *given: 2 * given[2]),
    "hook before": lambda model: model.lm_head.register_forward_pre_hook(
        lambda _, given: (2 * given[0],)
    ),
    "hook on the blocks": lambda model: model.transformer.register_forward_hook(
        lambda *given: given[2].__class__(last_hidden_state=2 * given[2][0])
    ),
    "parametrization": parametrize_head,
    "patched": patch,
    "resized": lambda model: model.resize_token_embeddings(120, mean_resizing=False),
    "loss": lambda model: setattr(
        model, "loss_function", lambda logits, **_: logits.square().mean()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_done_to_the_head_is_done_to_the_loss(change: str) -> None:
    ours, stock = small(vocab_size=97, pad_token_id=0)
    plain = ours(IDS, labels=IDS, **ALONE).loss.item()
    for model in (ours, stock):
        torch.manual_seed(5)
        CHANGES[change](model)
    right = stock(IDS, labels=IDS, use_cache=False)
    expected = gradients(stock, right.loss)
    if change != "resized":
        assert abs(right.loss.item() - plain) > 1e-3  # the change is one
    for how in ({}, ALONE):
        loss = ours(IDS, labels=IDS, use_cache=False, **how).loss
        assert abs(loss.item() - right.loss.item()) < 1e-5
        assert distance(gradients(ours, loss), expected) < 1e-5
    losses = ours.token_losses(IDS[:, :-1], IDS[:, 1:])
    if change != "loss":
        assert losses.mean().item() == pytest.approx(right.loss.item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning", "ignore:.*quantiz:UserWarning")
def test_a_quantized_head_has_a_loss() -> None:
    ours, stock = small()
    quantize: Any = torch.ao.quantization.quantize_dynamic
    ours, stock = (quantize(model, {nn.Linear}, torch.qint8) for model in (ours, stock))
    right = stock(IDS, labels=IDS).loss
    for how in ({}, ALONE):
        assert ours(IDS, labels=IDS, **how).loss.item() == pytest.approx(right.item(), abs=1e-3)
    assert ours.token_losses(IDS, IDS).shape == IDS.shape


def test_an_adapter_of_peft_on_the_head_trains() -> None:
    peft = pytest.importorskip("peft")
    ours, _ = small()
    adapted = peft.get_peft_model(ours, peft.LoraConfig(target_modules=["lm_head"], r=2))
    for how in ({}, ALONE):
        adapted.zero_grad()
        adapted(input_ids=IDS, labels=IDS, **how).loss.backward()
        trained = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
        assert len(trained) == 2
        assert all("lm_head.lora" in name for name in trained)


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


@pytest.mark.parametrize("how", [{}, ALONE], ids=["logits", "loss alone"])
def test_it_compiles_in_one_graph_for_texts_of_any_length(how: dict[str, Any]) -> None:
    ours, stock = small()
    counter = CompileCounter()
    compiled = torch.compile(ours, backend=counter, fullgraph=True)
    for length in (5, 7, 11, 20, 30):
        ids = IDS[:, :length]
        loss = compiled(ids, labels=ids, **how).loss
        assert abs(loss.item() - stock(ids, labels=ids).loss.item()) < 1e-5
    # For the first length alone, for any up to the window, and for longer ones.
    assert counter.frame_count <= 3


def test_padded_texts_compile_in_one_graph() -> None:
    ours, stock = small()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    mask, positions = LEFT[:, :13], POSITIONS[:, :13]
    given = {"attention_mask": mask, "position_ids": positions}
    one, two = (model(IDS[:, :13], **given).logits for model in (compiled, stock))
    assert_close(one[mask == 1], two[mask == 1])


@torch.no_grad()
def test_steps_from_a_static_cache_are_one_graph() -> None:
    ours, stock = small()
    counter = CompileCounter()
    compiled = torch.compile(ours, backend=counter, fullgraph=True)
    cache = CACHES["static"]()
    ours(IDS[:, :10], cache)
    found = [
        compiled(IDS[:, at : at + 1], cache, position_ids=torch.full((3, 1), at)).logits
        for at in range(10, 16)
    ]
    assert_close(torch.cat(found, 1), stock(IDS).logits[:, 10:16])
    assert counter.frame_count == 1


def test_it_is_exported_with_free_lengths() -> None:
    ours, stock = small()
    free = torch.export.Dim("length", min=2, max=60)
    program = torch.export.export(
        ours,
        (),
        {"input_ids": IDS, "use_cache": False},
        dynamic_shapes={"input_ids": {1: free}, "use_cache": None},
    )
    ids = tokens(3, 17)
    assert_close(program.module()(input_ids=ids, use_cache=False).logits, stock(ids).logits)


def test_gradients_of_single_rows_come_from_functorch() -> None:
    found = []
    for model in small():
        weights = dict(model.named_parameters())

        def loss(weights: Any, row: torch.Tensor, mask: torch.Tensor, model: Any = model) -> Any:
            given = {"labels": row[None], "attention_mask": mask[None], "use_cache": False}
            return torch.func.functional_call(model, weights, (row[None],), given).loss

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, IDS, LEFT)
        found.append(each)
    assert distance(*found) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "accuracy"),
    [(torch.float16, 2e-5), (torch.bfloat16, 3e-4), (torch.float64, 1e-6)],
    ids=str,
)
@torch.no_grad()
def test_the_loss_in_other_types_is_stocks(dtype: torch.dtype, accuracy: float) -> None:
    ours, stock = (model.to(dtype) for model in small())
    for mask in (None, RIGHT):
        right = stock(IDS, labels=IDS, attention_mask=mask).loss.item()
        for how in ({}, ALONE):
            found = ours(IDS, labels=IDS, attention_mask=mask, **how).loss.item()
            assert found == pytest.approx(right, rel=accuracy)


def test_a_copy_is_the_same_model() -> None:
    ours, _ = small()
    ours.set_attn_implementation("eager")
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert attention_ways(again) == {"eager"}
        assert torch.equal(again(IDS).logits, ours(IDS).logits)


def test_tensors_without_numbers_go_without_the_kernels() -> None:
    with torch.device("meta"):
        model = GPTNeoForCausalLM(configuration())
    ids = IDS.to("meta")
    for how in ({}, ALONE):
        assert model(ids, labels=ids, use_cache=False, **how).loss.shape == ()


def train_watched(flags: list[str]) -> None:
    """Train, and see that no loss of training or evaluation came with logits."""
    forward, without = GPTNeoForCausalLM.forward, []

    @functools.wraps(forward)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **kwargs)
        if "labels" in kwargs:
            without.append((self.training, outputs.logits is None))
        return outputs

    GPTNeoForCausalLM.forward = watched  # type: ignore[method-assign]
    script("train.py", flags)
    assert set(without) == {(True, True), (False, True)}


def test_training_here_asks_for_the_loss_alone(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_CONFIG)
    flags = ["--config", "tiny.yaml", "--output_dir", "run", "--max_steps", "2"]
    done = run_forked(tmp_path, train_watched, flags)
    assert done.returncode == 0, done.stderr
