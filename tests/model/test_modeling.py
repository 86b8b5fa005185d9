from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from transformers import GPTNeoForCausalLM

from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.model.modeling import (
    build_config,
    build_model,
    count_parameters,
    story_generation_config,
)

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
    config = build_config(parse_arguments([]).model, TOKENIZER.eos_token_id)
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


def test_training_is_compiled_once_and_nothing_else_is(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, compile_for_real = CompileCounter(), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda run, **how: compile_for_real(run, backend=counter, **how)
    )
    model = build_model(tiny_arguments().model, TOKENIZER, 64)
    ids = torch.randint(1, 320, (4, 64))
    model.train()
    plain = model(ids, labels=ids, skip_logits=True).loss
    model.compile_training()
    for _ in range(3):
        loss = model(ids, labels=ids, skip_logits=True).loss
        loss.backward()
        model.eval()
        model(ids[:3], labels=ids[:3], skip_logits=True)
        model.token_losses(ids[:, :5], ids[:, :5])
        model.generate(ids[:2, :7], max_new_tokens=3)
        model.train()
    assert counter.frame_count == 1
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert (
        names.keys()
        == dict(build_model(tiny_arguments().model, TOKENIZER, 64).named_parameters()).keys()
    )
