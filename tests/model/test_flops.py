from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import ROOT
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.model.flops import model_size, training_flops_per_token
from tinystories_hf.model.modeling import build_config, count_parameters

SHAPES = [
    ["--hidden_size", "64", "--num_layers", "8"],
    ["--hidden_size", "128", "--num_layers", "2", "--vocab_size", "10000"],
    ["--hidden_size", "32", "--num_layers", "4", "--num_heads", "4", "--vocab_size", "500"],
    ["--hidden_size", "96", "--num_layers", "1", "--attention_types", "global"],
    ["--hidden_size", "64", "--num_layers", "2", "--intermediate_size", "100"],
]


@pytest.mark.parametrize("flags", SHAPES)
def test_operations_and_parameters_are_those_of_the_stock_model(flags: list[str]) -> None:
    context = 96
    shape = parse_arguments(flags).model
    model = transformers.GPTNeoForCausalLM(build_config(shape, 0)).train()
    ids = torch.zeros(1, context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops() / context
    assert training_flops_per_token(shape, context) == pytest.approx(counted, rel=0.01)
    size, counts = model_size(shape), count_parameters(model)
    assert (size.embedding, size.positions) == (counts.token_embedding, counts.position_embedding)
    assert (size.blocks, size.total) == (counts.blocks, counts.total)


# Table 1.3 of the reference: all parameters with 50,257 tokens, and with 10,000.
LADDER = {
    "1m": (3_745_984, 1_169_536),
    "3m": (8_278_400, 3_125_504),
    "8m": (19_702_528, 9_396_736),
    "28m": (51_987_968, 31_376_384),
    "33m": (68_514_048, 37_596_672),
    "1layer-21m": (66_155_520, 24_932_352),
    "2layers-33m": (78_748_672, 37_525_504),
}


def test_every_step_of_the_ladder_is_known() -> None:
    folder = ROOT / "configs" / "ladder"
    assert {path.stem for path in folder.glob("*.yaml")} == LADDER.keys()


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_has_the_parameters_of_the_published_models(name: str) -> None:
    path = ROOT / "configs" / "ladder" / f"{name}.yaml"
    found = [
        model_size(parse_arguments(["--config", str(path), *more]).model).total
        for more in ((), ("--vocab_size", "10000"))
    ]
    assert tuple(found) == LADDER[name]
    text = path.read_text(encoding="utf-8")
    assert all(f"{number:,}" in text for number in found)
    with torch.device("meta"):
        shape = parse_arguments(["--config", str(path)]).model
        built = transformers.GPTNeoForCausalLM(build_config(shape, 0))
    assert count_parameters(built).total == found[0]
