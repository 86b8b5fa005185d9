from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.model.test_attention import configuration
from tests.support.forked import leave_memory, run_forked
from tests.support.reference import slow_attention
from tinystories_hf.model import kernels
from tinystories_hf.model.kernels import AttentionSettings
from tinystories_hf.model.modeling import GPTNeoForCausalLM

pytestmark = pytest.mark.skipif(
    not kernels.kernels_available(), reason="needs a C++ compiler with OpenMP, which is not there"
)


def drawn(*shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def relative(ours: torch.Tensor, right: torch.Tensor) -> float:
    return float((ours - right.detach()).norm() / right.detach().norm())


@pytest.mark.parametrize("head_dim", kernels.HEAD_DIMS)
@pytest.mark.parametrize(
    ("length", "window"), [(1, 1), (5, 9), (16, 3), (17, 16), (33, 1), (100, 20), (131, 1000)]
)
def test_attention_and_its_gradients_are_those_of_the_definition(
    head_dim: int, length: int, window: int
) -> None:
    *inputs, grad = drawn(2, length, 3 * head_dim)
    inputs[0] /= head_dim**0.5
    settings = AttentionSettings(3, window)
    output, log_sums = kernels.attention_forward(settings, *inputs)
    grads = kernels.attention_backward(settings, grad, output, log_sums, *inputs)
    exact = [x.double().requires_grad_() for x in inputs]
    query, key, value = exact
    right = slow_attention(query, key, value, heads=3, window=window)
    right_grads = torch.autograd.grad(right, exact, grad.double())
    assert relative(output, right) < 1e-6
    # Where one key is seen, the exact gradient of query and key is zero: no measure of its own.
    scale = max(grad.norm() for grad in right_grads)
    for ours, of_definition in zip(grads, right_grads, strict=True):
        assert (ours - of_definition).norm() < 2e-6 * scale


def dropped_weights(
    head_dim: int, length: int, dropout: float, seed: int = 7, batch: int = 4, heads: int = 8
) -> torch.Tensor:
    """Return the attention weights after dropout, (batch, heads, length, length).

    Queries are zero, so that a query weighs all it sees alike; values are one-hot, so that the
    output is the weights themselves, for `head_dim` keys a call.
    """
    nothing = torch.zeros(batch, length, heads * head_dim)
    settings = AttentionSettings(heads, length, dropout, seed)
    columns = []
    for start in range(0, length, head_dim):
        values = torch.zeros(batch, length, heads, head_dim)
        for d in range(min(head_dim, length - start)):
            values[:, start + d, :, d] = 1
        output, _ = kernels.attention_forward(settings, nothing, nothing, values.flatten(2))
        columns.append(output.view(batch, length, heads, head_dim).transpose(1, 2))
    return torch.cat(columns, -1)[..., :length]


def deviations(dropped: torch.Tensor, rate: float) -> float:
    """Return how many standard deviations the share that is dropped lies from `rate`."""
    seen = torch.ones_like(dropped, dtype=torch.bool).tril()
    draws = (dropped[seen] == 0).double()
    return float((draws.mean() - rate) / (rate * (1 - rate) / len(draws)) ** 0.5)


@pytest.mark.parametrize("head_dim", [4, 64])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_the_share_that_is_asked_for_is_dropped_and_the_rest_rescaled(
    head_dim: int, rate: float
) -> None:
    length = 100
    dropped = dropped_weights(head_dim, length, rate)
    assert abs(deviations(dropped, rate)) < 4
    # The test can fail: it tells a rate from one that is a tenth larger.
    assert abs(deviations(dropped, rate * 1.1)) > 4
    alike = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    kept = dropped != 0
    expected = (alike / (1 - rate)).expand_as(dropped)
    torch.testing.assert_close(dropped[kept], expected[kept], rtol=1e-6, atol=0)


def test_what_is_dropped_is_independent_of_neighbours_heads_stories_and_calls() -> None:
    rate, length = 0.2, 128
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    draws = (dropped_weights(8, length, rate) == 0).double() - rate
    other = (dropped_weights(8, length, rate, seed=8) == 0).double() - rate
    pairs = {
        "next key": (draws[..., :-1], draws[..., 1:], seen[:, :-1] & seen[:, 1:]),
        "16 keys on": (draws[..., :-16], draws[..., 16:], seen[:, :-16] & seen[:, 16:]),
        "next query": (draws[..., :-1, :], draws[..., 1:, :], seen[:-1] & seen[1:]),
        "next head": (draws[:, :-1], draws[:, 1:], seen),
        "next story": (draws[:-1], draws[1:], seen),
        "next call": (draws, other, seen),
    }
    for name, (one, two, both) in pairs.items():
        products = (one * two)[..., both]
        deviation = products.mean() / (rate * (1 - rate) / products.numel() ** 0.5)
        assert abs(float(deviation)) < 4, name


def test_gradients_pass_through_the_very_weights_that_were_kept() -> None:
    batch, heads, length, head_dim, rate = 2, 3, 50, 8, 0.3
    *inputs, grad = drawn(batch, length, heads * head_dim)
    settings = AttentionSettings(heads, length, rate, 5)
    output, log_sums = kernels.attention_forward(settings, *inputs)
    grads = kernels.attention_backward(settings, grad, output, log_sums, *inputs)

    kept = dropped_weights(head_dim, length, rate, 5, batch, heads) != 0
    exact = [x.double().requires_grad_() for x in inputs]
    right = slow_attention(
        exact[0], exact[1], exact[2], heads=heads, window=length, kept=kept / (1 - rate)
    )
    right_grads = torch.autograd.grad(right, exact, grad.double())
    assert relative(output, right) < 1e-6
    for ours, of_definition in zip(grads, right_grads, strict=True):
        assert relative(ours, of_definition) < 2e-6
    # The test can fail: another seed keeps other weights.
    others = kernels.attention_backward(settings._replace(seed=6), grad, output, log_sums, *inputs)
    assert relative(others[2], right_grads[2]) > 0.1


def test_the_number_of_threads_changes_no_bit() -> None:
    *inputs, grad = drawn(3, 70, 32)
    settings = AttentionSettings(8, 32, 0.1, 3)
    logits, labels = torch.randn(300, 32), torch.arange(32)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        output, log_sums = kernels.attention_forward(settings, *inputs)
        grads = kernels.attention_backward(settings, grad, output, log_sums, *inputs)
        results.append((output, *grads))
        losses = kernels.cross_entropy_(logits.clone(), labels, with_gradient=False)
        torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(
            logits.t(), labels, reduction="none"))  # fmt: skip
    torch.set_num_threads(1)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


def test_a_nan_is_seen_and_not_hidden() -> None:
    *inputs, _ = drawn(1, 20, 4)
    inputs[1][0, 3, 0] = torch.nan
    output, _ = kernels.attention_forward(AttentionSettings(1, 20), *inputs)
    assert torch.isnan(output[0, 3:]).all()
    assert torch.isfinite(output[0, :3]).all()
    logits = torch.zeros(200, 16)
    logits[150, 2] = torch.nan
    losses = kernels.cross_entropy_(logits, torch.arange(16), with_gradient=True)
    assert torch.isnan(losses).tolist() == [i == 2 for i in range(16)]
    assert torch.isnan(logits).any(0).tolist() == [i == 2 for i in range(16)]


WRONG_SETTINGS = [
    *({"heads": heads} for heads in (0, -1, 3, 5, 8, 16)),
    *({"window": window} for window in (0, -1, -(2**70))),
    *({"dropout": dropout} for dropout in (-0.1, 1.1, float("nan"), float("inf"))),
]


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=str)
def test_settings_that_no_attention_can_have_are_refused(wrong: dict[str, Any]) -> None:
    settings = AttentionSettings(2, 3)._replace(**wrong)
    inputs = drawn(2, 5, 16)
    sums = torch.zeros(2, 2, 5)
    with pytest.raises(ValueError, match=r"heads|window"):
        kernels.attention_forward(settings, *inputs[:3])
    with pytest.raises(ValueError, match=r"heads|window"):
        kernels.attention_backward(settings, inputs[3], inputs[0], sums, *inputs[:3])


def unfit(good: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a caller may hand over by mistake in place of a tensor."""
    wrong = {
        "on no device": good.to("meta"),
        "of another type": good.double() if good.is_floating_point() else good.int(),
        "of more dimensions": good[None],
        "expanded": good[:1].expand_as(good),
        "with gaps": torch.stack([good, good], -1)[..., 0],
        "sparse": good.to_sparse(),
    }
    if good.dim() == 1 or good.dim() == 3:  # of logits, another vocabulary is none the worse
        wrong |= {"longer": torch.cat([good, good]), "shorter": good[:-1], "empty": good[:0]}
    if good.dim() > 1:
        wrong["transposed"] = good.transpose(0, -1).contiguous().transpose(0, -1)
        wrong["negative by a flag"] = torch._neg_view(good)
    return wrong


@pytest.mark.parametrize("kind", unfit(torch.zeros(2, 3, 1)))
def test_no_tensor_that_is_not_as_described_reaches_the_kernels(kind: str) -> None:
    settings = AttentionSettings(2, 3)
    query, key, value, grad = drawn(2, 5, 16)
    output, sums = kernels.attention_forward(settings, query, key, value)
    logits, labels = torch.zeros(3, 32), torch.zeros(32, dtype=torch.int64)
    calls: list[tuple[Callable[..., object], list[torch.Tensor]]] = [
        (partial(kernels.attention_forward, settings), [query, key, value]),
        (partial(kernels.attention_backward, settings), [grad, output, sums, query, key, value]),
        (partial(kernels.cross_entropy_, with_gradient=True), [logits, labels]),
    ]
    for call, tensors in calls:
        call(*tensors)
        for at, tensor in enumerate(tensors):
            if kind in unfit(tensor):
                with pytest.raises(ValueError, match="the kernel takes"):
                    call(*tensors[:at], unfit(tensor)[kind], *tensors[at + 1 :])


def test_tensors_without_memory_reach_no_kernel() -> None:
    settings = AttentionSettings(2, 3)

    def attend(query: torch.Tensor) -> torch.Tensor:
        return kernels.attention_forward(settings, query, query, query)[0]

    with FakeTensorMode(), pytest.raises(ValueError, match="the kernel takes"):
        attend(torch.zeros(2, 5, 16))
    with pytest.raises(ValueError, match="the kernel takes"):
        torch.func.functionalize(attend)(torch.zeros(2, 5, 16))


def test_a_model_without_memory_goes_without_the_kernels() -> None:
    with FakeTensorMode():
        ids = torch.zeros(2, 5, dtype=torch.int64)
        model = GPTNeoForCausalLM(configuration())
        model(ids, labels=ids).loss.backward()
        assert model.lm_head.weight.grad is not None


def starve() -> None:
    """Call the kernels with room for their results, but not for their buffers."""
    inputs = [torch.zeros(1, 2**21, 4) for _ in range(3)]
    leave_memory(56 << 20)
    with pytest.raises(MemoryError, match="buffers of the attention"):
        kernels.attention_forward(AttentionSettings(1, 1), *inputs)
    print("refused")


def test_where_memory_ends_a_kernel_raises(tmp_path: Path) -> None:
    done = run_forked(tmp_path, starve)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16), (0, 0, 16), (1, 1, 16)])
def test_attention_over_nothing_is_nothing(shape: tuple[int, int, int]) -> None:
    *inputs, grad = drawn(*shape)
    settings = AttentionSettings(2, 3)
    output, sums = kernels.attention_forward(settings, *inputs)
    grads = kernels.attention_backward(settings, grad, output, sums, *inputs)
    assert [x.shape for x in (output, *grads)] == [shape] * 4
    assert all(x.isfinite().all() for x in (output, *grads))


def test_where_all_weights_are_dropped_nothing_is_left() -> None:
    *inputs, grad = drawn(2, 5, 16)
    for dropout in (1.0, 1 - 1e-12):
        settings = AttentionSettings(2, 3, dropout)
        output, sums = kernels.attention_forward(settings, *inputs)
        grads = kernels.attention_backward(settings, grad, output, sums, *inputs)
        assert not any(x.any() for x in (output, *grads))


def test_a_label_outside_the_vocabulary_leaves_the_logits_as_they_were() -> None:
    for label in (3, -1, -101, 2**62):
        logits, labels = torch.zeros(3, 32), torch.zeros(32, dtype=torch.int64)
        labels[17] = label
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            kernels.cross_entropy_(logits, labels, with_gradient=True)
        assert not logits.any()
