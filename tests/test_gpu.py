"""What only a GPU can show: `python -m pytest -m gpu`. The rest of the suite runs on the CPU."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.model.test_attention import configuration, distance, gradients, tokens
from tinystories_hf.core.device import full_precision
from tinystories_hf.model.modeling import GPTNeoForCausalLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def pair(**changes: float) -> tuple[GPTNeoForCausalLM, transformers.GPTNeoForCausalLM]:
    torch.manual_seed(0)
    stock = transformers.GPTNeoForCausalLM(configuration(**changes)).cuda().eval()
    ours = GPTNeoForCausalLM(configuration(**changes)).cuda().eval()
    ours.load_state_dict(stock.state_dict())
    return ours, stock


@pytest.mark.parametrize("length", [7, 256, 257, 512])
def test_logits_loss_and_gradients_are_those_of_eager_attention(length: int) -> None:
    ours, stock = pair(hidden_size=64, num_heads=16)
    ids = tokens(2, length).cuda()
    with full_precision():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-5, rtol=0)
        loss = ours(ids, labels=ids, skip_logits=True).loss
        right = stock(ids, labels=ids).loss
        assert abs(loss.item() - right.item()) < 1e-5
        assert distance(gradients(ours, loss), gradients(stock, right)) < 1e-5


def test_left_padding_and_a_cache_change_nothing() -> None:
    ours, stock = pair(window_size=8)
    ids = tokens(3, 20).cuda()
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    how = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False}
    with full_precision():
        assert torch.equal(ours.generate(ids, **how), stock.generate(ids, **how))


def test_a_compiled_step_is_the_step_that_is_not_compiled() -> None:
    losses = []
    for compiled in (False, True):
        ours, _ = pair(hidden_size=64, num_heads=16)
        ours.train()
        if compiled:
            ours.compile_training()
        optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, fused=True)
        ids = tokens(4, 512).cuda()
        for _ in range(5):
            loss = ours(ids, labels=ids, skip_logits=True).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        assert not any("_orig_mod" in name for name in ours.state_dict())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_step_in_bf16_takes_a_fraction_of_the_memory_of_stock() -> None:
    peaks = []
    for model, alone in zip(
        pair(hidden_size=64, num_heads=16, num_layers=2, vocab_size=50257),
        ({"skip_logits": True}, {}),
        strict=True,
    ):
        torch.cuda.reset_peak_memory_stats()
        ids = tokens(16, 512).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            model.train()(ids, labels=ids, **alone).loss.backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] < 0.3 * peaks[1]
