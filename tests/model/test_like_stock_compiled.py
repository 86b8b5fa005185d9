"""Compiled, exported, copied and in other dtypes the model does what Transformers' class does."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.conftest import TINY_CONFIG
from tests.model.test_attention import (
    attention_ways,
    configuration,
    distance,
    tokens,
)
from tests.model.test_like_stock import (
    ALONE,
    CACHES,
    IDS,
    LEFT,
    POSITIONS,
    RIGHT,
    assert_close,
    small,
)
from tests.support.forked import run_forked, script
from tinystories_hf.model.modeling import GPTNeoForCausalLM


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
