"""Adapters, hooks, quantization and other changes of the head change the loss too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.model.test_attention import (
    distance,
    gradients,
)
from tests.model.test_like_stock import (
    ALONE,
    IDS,
    small,
)


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
