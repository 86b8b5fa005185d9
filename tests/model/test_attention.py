from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import GPTNeoConfig

from tinystories_hf.model import kernels
from tinystories_hf.model.attention import GPTNeoAttention
from tinystories_hf.model.modeling import GPTNeoForCausalLM

VOCABULARY = 97


def configuration(**changes: Any) -> GPTNeoConfig:
    """A GPT-Neo with the head dimension, window and context of XS, and weights that matter."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 256,
        "max_position_embeddings": 512,
        "attention_dropout": 0.0,
        "embed_dropout": 0.0,
        "resid_dropout": 0.0,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return GPTNeoConfig(**{**shape, **changes})


def pair(**changes: Any) -> tuple[GPTNeoForCausalLM, transformers.GPTNeoForCausalLM]:
    """Return our model and the stock one with eager attention, with equal weights."""
    torch.manual_seed(0)
    stock = transformers.GPTNeoForCausalLM(configuration(**changes)).eval()
    ours = GPTNeoForCausalLM(configuration(**changes)).eval()
    ours.load_state_dict(stock.state_dict())
    return ours, stock


def tokens(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


@pytest.fixture(params=["kernel", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Go through the kernels and through PyTorch's own operations."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "kernels_available", lambda: False)
    elif not kernels.kernels_available():
        pytest.skip("needs a C++ compiler with OpenMP, which is not there")
    return request.param


Gradients = dict[str, torch.Tensor]


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> Gradients:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def distance(one: Gradients, two: Gradients) -> float:
    """Return how far the gradients lie from each other, relative to the second."""
    apart = sum((one[name] - two[name]).norm().item() ** 2 for name in two)
    whole = sum(two[name].norm().item() ** 2 for name in two)
    return float((apart / whole) ** 0.5)


LENGTHS = (1, 7, 256, 257, 512)


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_loss_and_gradients_are_those_of_eager_attention(path: str, length: int) -> None:
    ours, stock = pair()
    ids = tokens(2, length)
    torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-5, rtol=0)
    if length == 1:  # nothing to predict
        return
    loss = ours(ids, labels=ids, skip_logits=True).loss
    right = stock(ids, labels=ids).loss
    assert abs(loss.item() - right.item()) < 1e-6
    one, two = gradients(ours, loss), gradients(stock, right)
    assert distance(one, two) < 1e-6
    # A single tensor of the stock model lies up to 1.1e-6 from its own gradient in fp64.
    assert all(distance({name: one[name]}, {name: two[name]}) < 2e-6 for name in one)


@pytest.mark.parametrize("length", LENGTHS)
def test_left_padding_changes_nothing_of_what_follows(path: str, length: int) -> None:
    ours, stock = pair()
    ids = tokens(3, length)
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, length // 2, length - 1)):
        mask[row, :missing] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "position_ids": positions}
    one, two = ours(ids, **given).logits, stock(ids, **given).logits
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one[mask == 1], two[mask == 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [7, 256, 257, 300])
def test_a_cache_changes_nothing(path: str, length: int) -> None:
    ours, stock = pair()
    ids = tokens(2, length)
    whole = stock(ids).logits
    prompt = max(1, length - 5)
    step = ours(ids[:, :prompt], use_cache=True)
    logits = [step.logits]
    cache = step[1]
    chunk = ours(ids[:, prompt : prompt + 2], cache)
    logits.append(chunk.logits)
    for at in range(prompt + 2, length):
        last = ours(ids[:, at : at + 1], cache)
        logits.append(last.logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}])
def test_greedy_and_beam_search_tell_the_same_stories(path: str, search: dict[str, int]) -> None:
    ours, stock = pair(window_size=8)
    ids = tokens(3, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    how = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, **search}
    assert torch.equal(ours.generate(ids, **how), stock.generate(ids, **how))


def test_a_custom_mask_of_numbers_is_added_as_in_eager_attention(path: str) -> None:
    ours, stock = pair(window_size=4)
    ids = tokens(1, 9)
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 2] = torch.finfo(torch.float32).min
    one, two = ours(ids, attention_mask=mask).logits, stock(ids, attention_mask=mask).logits
    torch.testing.assert_close(one[:, 3:], two[:, 3:], atol=1e-5, rtol=0)


def test_equality_would_notice_a_scale_or_a_forgotten_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, stock = pair()
    ids = tokens(1, 300)
    right = stock(ids).logits
    for block in ours.transformer.h:
        block.attn.attention.window = 512
    forgotten = (ours(ids).logits - right).abs().amax(-1)[0]
    assert forgotten[:256].max() < 1e-5
    assert forgotten[256:].max() > 1e-3
    scaled, _ = pair()
    for block in scaled.transformer.h:
        block.attn.attention.q_proj.weight.data /= 2
    assert (scaled(ids).logits - right).abs().max() > 1e-2


def test_under_autocast_it_is_as_close_to_fp32_as_the_stock_model_is(path: str) -> None:
    ours, stock = pair(hidden_size=64, num_heads=16, initializer_range=0.1)
    ids = tokens(2, 300)
    exact = stock(ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(ids, labels=ids, skip_logits=True).loss
        right = stock(ids, labels=ids).loss
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-3
    in_fp32 = gradients(stock, exact)
    ours_apart = distance(gradients(ours, loss), in_fp32)
    stock_apart = distance(gradients(stock, right), in_fp32)
    assert ours_apart < 1.1 * stock_apart


def test_attention_dropout_is_on_in_training_alone(path: str) -> None:
    ours, _ = pair(attention_dropout=0.5)
    ids = tokens(2, 40)
    still = ours(ids).logits
    assert torch.equal(still, ours(ids).logits)
    ours.train()
    torch.manual_seed(1)
    one, two = ours(ids).logits, ours(ids).logits
    assert not torch.equal(one, two)
    torch.manual_seed(1)
    assert torch.equal(one, ours(ids).logits)


@pytest.mark.parametrize(
    ("head_dim", "dropout", "expected"),
    [(4, 0.0, True), (32, 0.0, True), (64, 0.0, False), (64, 0.1, True), (12, 0.1, False)],
)
def test_the_kernel_is_taken_where_it_is_the_faster_one(
    head_dim: int, dropout: float, expected: bool
) -> None:
    if not kernels.kernels_available():
        pytest.skip("needs a C++ compiler with OpenMP, which is not there")
    shape = configuration(hidden_size=2 * head_dim, num_heads=2)
    attention = GPTNeoForCausalLM(shape).transformer.h[0].attn.attention
    assert attention._has_kernel(torch.zeros(1, 3, 2 * head_dim), dropout) is expected


def test_a_model_that_is_compiled_whole_goes_without_the_kernel(path: str) -> None:
    ours, stock = pair()
    ids = tokens(1, 300)
    with torch.no_grad():
        compiled = torch.compile(ours.transformer.whole_rows, backend="eager", fullgraph=True)(ids)
        right = stock.transformer(ids).last_hidden_state
    torch.testing.assert_close(compiled, right, atol=1e-5, rtol=0)


def test_flash_attention_is_refused_with_the_reason(tmp_path: Any) -> None:
    pair()[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ignores the window of the local layers"):
        GPTNeoForCausalLM.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


def attention_ways(model: Any) -> set[str]:
    layers = [layer for layer in model.modules() if isinstance(layer, GPTNeoAttention)]
    assert len(layers) == model.config.num_layers
    return {layer.implementation for layer in layers}


def test_the_ordinary_word_chooses_the_implementation(tmp_path: Any) -> None:
    pair()[0].save_pretrained(tmp_path)
    eager = GPTNeoForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    default = GPTNeoForCausalLM.from_pretrained(tmp_path)
    assert attention_ways(eager) == {"eager"}
    assert attention_ways(default) == {"sdpa"}
    default.set_attn_implementation("eager")
    assert attention_ways(default) == {"eager"}
    with pytest.raises(ValueError, match='"flex_attention" is not supported; use sdpa or eager'):
        default.set_attn_implementation("flex_attention")
    assert attention_ways(default) == {"eager"}
    default.set_attn_implementation({"": "sdpa"})
    assert attention_ways(default) == {"sdpa"}
    with pytest.raises(ValueError, match=r"sdpa|scaled_dot_product"):
        transformers.GPTNeoForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_fresh_weights_and_what_is_saved_are_those_of_the_stock_model(tmp_path: Any) -> None:
    models = []
    for build in (transformers.GPTNeoForCausalLM, GPTNeoForCausalLM):
        torch.manual_seed(3)
        models.append(build(configuration()))
        models[-1].save_pretrained(tmp_path / build.__module__)
    stock, ours = (model.state_dict() for model in models)
    assert list(stock) == list(ours)
    assert all(torch.equal(stock[name], ours[name]) for name in stock)
    folders = sorted(tmp_path.iterdir())
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        one, two = (folder / name for folder in folders)
        assert one.read_bytes() == two.read_bytes()
