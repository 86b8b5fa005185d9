from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import GPTNeoForCausalLM

from tinystories_hf.arguments import Arguments, parse_arguments
from tinystories_hf.modeling import (
    build_config,
    build_model,
    count_parameters,
    story_generation_config,
)
from tinystories_hf.tokenizer import train_tokenizer
from tinystories_hf.toy import toy_stories

TOKENIZER = train_tokenizer(toy_stories(200), 320, 64)


def test_xs_has_exactly_the_parameters_of_its_specification() -> None:
    with torch.device("meta"):
        report = count_parameters(build_model(parse_arguments([]).model, TOKENIZER, 512))
    assert report.total == 3_647_680
    assert (report.token_embedding, report.position_embedding) == (50_257 * 64, 512 * 64)
    assert report.blocks == 398_464


def test_the_model_is_a_stock_gpt_neo_with_tied_weights(
    tiny_arguments: Callable[..., Arguments],
) -> None:
    model = build_model(tiny_arguments().model, TOKENIZER, 64)
    assert isinstance(model, GPTNeoForCausalLM)
    assert type(model).__name__ == "GPTNeoForCausalLM"  # what config.json will name
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.dtype == torch.float32


def test_the_configuration_alternates_global_and_local_layers() -> None:
    config = build_config(parse_arguments([]).model, TOKENIZER)
    assert config.attention_layers == ["global", "local"] * 4
    assert config.window_size == 256
    marks = {config.bos_token_id, config.eos_token_id, config.pad_token_id}
    assert marks == {TOKENIZER.eos_token_id}


def test_local_layers_do_not_see_past_their_window(
    tiny_arguments: Callable[..., Arguments],
) -> None:
    flags = ("--attention_types", "local", "--window_size", "4", "--num_layers", "1")
    model = build_model(tiny_arguments(*flags).model, TOKENIZER, 64).eval()
    ids = torch.randint(1, 320, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 320
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
    assert (difference[:4] > 0).all()
    assert (difference[4:] == 0).all()


def test_a_story_stops_at_the_trained_context() -> None:
    generation = story_generation_config(TOKENIZER, 64)
    assert generation.max_length == 64
    assert generation.eos_token_id == generation.pad_token_id == TOKENIZER.eos_token_id
    generation.validate()
