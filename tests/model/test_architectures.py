"""Any causal language model is evaluated, generates and judges, whatever it calls its length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tinystories_hf.core.errors import UserError
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.subject import load_model_to_evaluate
from tinystories_hf.evaluation.suites.judge_models import MAX_TOKENS, local_judge
from tinystories_hf.evaluation.suites.loss import split_loss
from tinystories_hf.evaluation.validation import Validation
from tinystories_hf.generation.generate import generate
from tinystories_hf.model.positions import context_length, max_positions

POSITIONS = 48
SIZE = 300
LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
LENGTH = {"max_position_embeddings": POSITIONS}
# The kind of each model, its shape, and the most tokens that it reads.
MODELS: dict[str, tuple[dict[str, Any], int | None]] = {
    "gpt2": ({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}, POSITIONS),
    "opt": (
        {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, **LENGTH}, POSITIONS,
    ),
    "llama": ({**LLAMA, **LENGTH}, POSITIONS),
    "gemma3": (
        {"text_config": {**LLAMA, **LENGTH, "head_dim": 8, "vocab_size": SIZE},
         "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 28, "patch_size": 14}},
        POSITIONS,
    ),
    "mpt": ({"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": POSITIONS}, POSITIONS),
    "bloom": ({"hidden_size": 16, "n_head": 2, "n_layer": 1}, None),
    "mamba": ({"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, None),
    "rwkv": (
        {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2,
         "context_length": POSITIONS}, POSITIONS,
    ),
    "roberta": (
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "is_decoder": True, "pad_token_id": 1, **LENGTH}, POSITIONS - 2,
    ),
}  # fmt: skip


def tiny(kind: str) -> PreTrainedModel:
    """Return a model of a kind with fresh weights."""
    marks = {"vocab_size": SIZE, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **{**marks, **MODELS[kind][0]})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_of_any_architecture_is_measured_generates_and_judges(
    kind: str, tmp_path: Path
) -> None:
    tiny(kind).save_pretrained(tmp_path)
    train_tokenizer(toy_stories(100), SIZE, POSITIONS).save_pretrained(tmp_path)
    most = MODELS[kind][1]
    subject = load_model_to_evaluate(str(tmp_path))
    assert max_positions(subject.model) == most
    assert subject.context_length == (most or 512)
    assert subject.facts.hidden_size == 16
    assert subject.facts.num_layers == (2 if kind == "rwkv" else 1)
    if most is not None:
        with pytest.raises(UserError, match=f"has {most} positions, fewer than"):
            load_model_to_evaluate(str(tmp_path), context_length=most + 1)

    subject = load_model_to_evaluate(str(tmp_path), context_length=40)
    texts = list(toy_stories(3, 1))
    validation = Validation(texts, np.zeros(len(texts), dtype=bool), {}, [])
    loss = split_loss(
        subject.model, subject.tokenizer, validation, context_length=40, batch_size=8, quiet=True
    )
    assert loss.packed.loss == pytest.approx(np.log(SIZE), rel=0.2)
    stories = generate(subject.model, subject.tokenizer, ["Once", "Tom had a red"])
    assert [story.prompt for story in stories] == ["Once", "Tom had a red"]
    assert all(story.completion or story.ended for story in stories)

    reply = local_judge(str(tmp_path))([{"role": "user", "content": "What is it? " * 20}])
    assert reply.tokens_out
    assert reply.tokens_out <= (MAX_TOKENS if most is None else most)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "roberta"])
def test_the_length_is_the_most_that_a_model_with_learned_positions_reads(kind: str) -> None:
    model = tiny(kind).eval()
    most = max_positions(model)
    assert most is not None
    ids = torch.full((1, most + 1), 5)
    assert model(ids[:, :most]).logits.shape[1] == most
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = tiny("roberta").config
    config.is_decoder = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    train_tokenizer(toy_stories(100), SIZE, POSITIONS).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not causal"):
        load_model_to_evaluate(str(tmp_path))


def test_a_model_that_states_no_length_generates_up_to_512() -> None:
    model = tiny("bloom")
    model.generation_config.max_length = None
    assert context_length(model) == 512
    model.generation_config.max_length = 100
    assert context_length(model) == 100


def test_no_configuration_states_its_length_under_a_name_that_is_not_read() -> None:
    """Those whose models read any length, as far as their configurations say."""
    without = set()
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & CONFIG_MAPPING.keys():
        try:
            config = CONFIG_MAPPING[kind]().get_text_config(decoder=True)
        except Exception:  # a few cannot be built without arguments
            continue
        names = ("max_position_embeddings", "max_seq_len", "max_target_positions")
        if not any(isinstance(getattr(config, name, None), int) for name in names):
            without |= {kind}
            keys = [key for key in config.to_dict() if key.startswith(("max_", "n_", "seq"))]
            assert not [key for key in keys if any(w in key for w in ("len", "pos", "ctx"))], kind
    assert {"bloom", "mamba"} <= without
