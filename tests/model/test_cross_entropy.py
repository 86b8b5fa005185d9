from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.test_attention import configuration, pair, tokens
from tinystories_hf.model import cross_entropy, kernels
from tinystories_hf.model.cross_entropy import causal_lm_loss, token_losses
from tinystories_hf.model.modeling import GPTNeoForCausalLM

BATCH, LENGTH, HIDDEN, VOCABULARY = 3, 37, 24, 1003


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Go through the kernel and through PyTorch's own operations, in several chunks."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "kernels_available", lambda: False)
    elif not kernels.kernels_available():
        pytest.skip("needs a C++ compiler with OpenMP, which is not there")
    monkeypatch.setattr(cross_entropy, "CPU_CHUNK_BYTES", 48 * VOCABULARY * 4)
    return request.param


def given(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64) / 2
    labels = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    labels[0, :5] = labels[1, -9:] = labels[2, 3] = -100
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def stock_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = states.double() @ weight.double().t()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize(
    ("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)]
)
def test_loss_and_gradients_are_those_of_the_whole_logits(
    dtype: torch.dtype, accuracy: float
) -> None:
    inputs = given(dtype)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs[:2])
    loss, right = causal_lm_loss(*inputs), stock_loss(exact[0], exact[1], inputs[2])
    assert abs(loss.item() - right.item()) <= max(accuracy, 1e-7) * right.item()
    loss.backward()
    right.backward()
    for ours, of_logits in zip(inputs[:2], exact, strict=True):
        assert ours.grad is not None
        assert of_logits.grad is not None
        assert ours.grad.dtype == dtype
        assert (ours.grad - of_logits.grad).norm() < accuracy * of_logits.grad.norm()


def test_accumulated_batches_make_the_gradient_of_one_batch() -> None:
    states, weight, labels = given()
    causal_lm_loss(states, weight, labels).backward()
    assert weight.grad is not None
    whole = weight.grad.clone()
    weight.grad.zero_()
    counted = (labels[:, 1:] != -100).sum()
    for row in range(BATCH):
        part = slice(row, row + 1)
        causal_lm_loss(states[part], weight, labels[part], num_items_in_batch=counted).backward()
    torch.testing.assert_close(weight.grad, whole, rtol=1e-5, atol=1e-8)
    # The test can fail: each batch by its own mean is another gradient.
    weight.grad.zero_()
    for row in range(BATCH):
        part = slice(row, row + 1)
        (causal_lm_loss(states[part], weight, labels[part]) / BATCH).backward()
    assert (weight.grad - whole).norm() > 1e-2 * whole.norm()


@pytest.mark.parametrize("tokens_in", [1, 15, 16, 17, 48, 49, 100])
def test_each_token_has_its_own_loss_whatever_the_chunks(tokens_in: int) -> None:
    states, weight, _ = given()
    rows = states.flatten(0, 1)[:tokens_in].detach()
    labels = torch.arange(tokens_in) * 10
    labels[0] = -100
    right = functional.cross_entropy(rows @ weight.t(), labels, reduction="none")
    losses = token_losses(rows, weight, labels)
    assert losses.dtype == torch.float32
    assert not losses.requires_grad
    torch.testing.assert_close(losses, right.detach(), rtol=1e-6, atol=1e-6)


def test_without_anything_to_predict_the_loss_is_nan_as_in_the_stock_model() -> None:
    states, weight, labels = given()
    assert causal_lm_loss(states, weight, torch.full_like(labels, -100)).isnan()


def test_very_large_and_very_small_logits_keep_their_loss() -> None:
    states, weight, labels = given()
    states = states.detach() * 200
    right = functional.cross_entropy(
        (states @ weight.t()).flatten(0, 1), labels.flatten(), reduction="none"
    )
    losses = token_losses(states.flatten(0, 1), weight, labels.flatten())
    torch.testing.assert_close(losses, right.detach(), rtol=1e-6, atol=1e-3)


def both_losses(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, gradient: bool
) -> list[Callable[[], torch.Tensor]]:
    """Return the two ways from labels to losses, as calls."""
    states, weight = (x.detach().requires_grad_(gradient) for x in (states, weight))
    return [
        lambda: causal_lm_loss(states, weight, labels),
        lambda: token_losses(states.flatten(0, 1), weight, labels.flatten()),
    ]


@pytest.mark.parametrize("dtype", cross_entropy.INTEGERS)
@pytest.mark.parametrize("gradient", [True, False])
def test_labels_of_any_integer_type_give_the_same_loss(dtype: torch.dtype, gradient: bool) -> None:
    states, weight, labels = given()
    labels = labels % 100
    if dtype.is_signed:
        labels[0, :5] = -100
    expected = [loss() for loss in both_losses(states, weight, labels, gradient)]
    found = [loss() for loss in both_losses(states, weight, labels.to(dtype), gradient)]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("label", [VOCABULARY, -1, -99, -101, 5_000_000, 2**62, -(2**63)])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("at", [1, LENGTH - 1])
def test_a_label_outside_the_vocabulary_is_refused(label: int, gradient: bool, at: int) -> None:
    states, weight, labels = given()
    labels[BATCH - 1, at] = label
    for loss in both_losses(states, weight, labels, gradient):
        with pytest.raises(IndexError, match=f"^Target {label} is out of bounds"):
            loss()
    # The ends of the vocabulary are inside it.
    labels[BATCH - 1, at], labels[0, at] = 0, VOCABULARY - 1
    for loss in both_losses(states, weight, labels, gradient):
        assert loss().isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.complex64])
def test_labels_that_are_not_integers_are_refused_as_in_the_stock_model(dtype: torch.dtype) -> None:
    states, weight, labels = given()
    for loss in both_losses(states, weight, labels.to(dtype), True):
        with pytest.raises(RuntimeError, match=f"labels must be integers.* not {dtype}"):
            loss()


def test_more_or_fewer_labels_than_tokens_are_refused_as_in_the_stock_model() -> None:
    states, weight, labels = given()
    for wrong in (labels[:, 1:], labels[:1], labels[:, :0], labels[:0], labels[0, 0]):
        for loss in both_losses(states, weight, wrong, True):
            with pytest.raises(ValueError, match="111 tokens but labels of shape"):
                loss()
    # As many are taken in any shape, as in the stock model, and shifted along the last dimension.
    logits = (states @ weight.t()).flatten(0, 1)
    flat = causal_lm_loss(states.flatten(0, 1), weight, labels.flatten())
    torch.testing.assert_close(flat, functional.cross_entropy(logits[:-1], labels.flatten()[1:]))


def test_a_batch_without_tokens_has_the_loss_of_the_stock_model() -> None:
    states, weight, labels = given()
    assert causal_lm_loss(states[:0], weight, labels[:0]).isnan()
    assert token_losses(states[:0].flatten(0, 1), weight, labels[:0].flatten()).shape == (0,)


def test_the_model_refuses_the_labels_that_the_stock_model_refuses() -> None:
    ours, stock = pair(num_heads=4)
    models: list[Any] = [ours, stock, lambda *ids, **given: ours(*ids, **given, skip_logits=True)]
    ids = tokens(2, 20)
    for label in (97, -1, 5_000_000):
        labels = ids.clone()
        labels[1, 7] = label
        for model in models:
            with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
                model(ids, labels=labels)
    for labels in (ids[:, 1:], ids[:1], ids[:0]):
        for model in models:
            with pytest.raises(ValueError):  # noqa: PT011  (two wordings)
                model(ids, labels=labels)
    with pytest.raises(RuntimeError, match="but got Int"):
        ours(ids, labels=ids.int())
    loss = ours(ids, labels=ids.int(), skip_logits=True).loss
    torch.testing.assert_close(loss, stock(ids, labels=ids).loss, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_logits_of_a_batch_are_never_held() -> None:
    sizes = {}
    ids = tokens(4, 300)
    for build in (GPTNeoForCausalLM, transformers.GPTNeoForCausalLM):
        model = build(configuration(vocab_size=VOCABULARY, num_heads=4))
        with Largest() as largest:  # type: ignore[no-untyped-call]
            alone = {"skip_logits": True} if build is GPTNeoForCausalLM else {}
            model(ids, labels=ids, **alone).loss.backward()
        sizes[build.__module__.partition(".")[0]] = largest.elements
    assert sizes["transformers"] >= 4 * 300 * VOCABULARY
    assert sizes["tinystories_hf"] < sizes["transformers"] / 2
