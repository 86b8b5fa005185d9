"""Any fast tokenizer works, from the rows to the generated stories and the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPTNeoConfig, PreTrainedTokenizerFast

from tests.support.forked import train_forked
from tests.support.kinds import KINDS, saved, unigram, word_level, word_piece
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.manifest import token_stream
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.tokenization.tokenizer import load_tokenizer, train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import decode_after, encode_prompt, generate
from tinystories_hf.model.modeling import GPTNeoForCausalLM

Parse = Callable[..., Arguments]
Make = Callable[[], PreTrainedTokenizerFast]
PROMPT = "Once upon a time there was"


@pytest.mark.parametrize("make", KINDS)
def test_rows_are_the_tokens_of_each_story_and_an_eos(
    make: Make, tiny_arguments: Parse, tmp_path: Path
) -> None:
    tokenizer = make()
    flags = saved(tokenizer, tmp_path / "tok")
    arguments = tiny_arguments(*flags)
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    expected = []
    for story in open_corpus(arguments.data).train.read():
        expected += [*tokenizer(story, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert token_stream(prepared, "train").tolist() == expected
    assert (prepared.manifest.tokenizer["merges_sha256"] is None) == (make not in KINDS[3:])
    assert prepared.manifest.tokenizer["eos_token"] == tokenizer.eos_token


@pytest.mark.parametrize("make", KINDS)
def test_a_saved_tokenizer_encodes_prompts_like_training_stories(
    make: Make, tiny_arguments: Parse, tmp_path: Path
) -> None:
    plain = make()(PROMPT, add_special_tokens=False).input_ids
    arguments = tiny_arguments(*saved(make(), tmp_path / "tok"))
    load_tokenizer(arguments.data, arguments.model.vocab_size).save_pretrained(tmp_path / "run")
    stock = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert stock(PROMPT).input_ids == plain
    assert stock.encode(PROMPT, "He ran.") == plain + stock("He ran.").input_ids
    assert {stock.eos_token, stock.bos_token, stock.pad_token} == {make().eos_token}


@pytest.mark.parametrize("make", KINDS)
def test_a_completion_keeps_its_leading_space(make: Make) -> None:
    tokenizer = make()
    given = encode_prompt(tokenizer, PROMPT)
    assert given[-1] != tokenizer.eos_token_id
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_layers=2, num_heads=2,
            attention_types=[[["global"], 2]], max_position_embeddings=64, initializer_range=0.5,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    settings = GenerationArguments(temperature=0, max_new_tokens=8)
    (story,) = generate(model, tokenizer, [PROMPT], settings)
    ids = model.generate(torch.tensor([given]), do_sample=False, max_new_tokens=8)[0]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    before = tokenizer.decode(given, skip_special_tokens=True)
    assert before.lower() == PROMPT.lower() or make is word_level
    assert before + story.completion == whole
    assert story.prompt == PROMPT
    ids = tokenizer(f"{PROMPT} a girl", add_special_tokens=False).input_ids
    cut = len(tokenizer(PROMPT, add_special_tokens=False).input_ids)
    assert decode_after(tokenizer, ids[:cut], ids[cut:]) == " a girl"


def test_a_run_with_another_kind_of_tokenizer_and_eos_token_is_complete(tmp_path: Path) -> None:
    flags = saved(unigram(), tmp_path / "tok")
    train_forked(tmp_path, *flags, "--max_steps", "4")
    run = tmp_path / "run"
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "Each story is followed by `</s>`" in card
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["dataset"]["tokenizer"]["merges_sha256"] is None
    assert record["configuration"]["data"]["eos_token"] == "</s>"
    tokenizer = AutoTokenizer.from_pretrained(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == tokenizer.eos_token_id == unigram().eos_token_id
    loss = json.loads((run / "eval_results.json").read_text(encoding="utf-8"))["loss"]["packed"]
    assert 0 < loss["bits_per_byte"] < 10
    seal = json.loads((run / "checkpoint-4/checkpoint.json").read_text(encoding="utf-8"))
    names = {"vocab_sha256", "merges_sha256", "content_sha256", "eos_token"}
    assert seal["trajectory"]["tokenizer"].keys() == names
    train_forked(tmp_path, *flags, "--max_steps", "4", "--resume_from_checkpoint", "auto")


def test_the_settings_recorded_for_a_gpt2_tokenizer_are_unchanged(trained_run: Path) -> None:
    """An additional setting would make runs of earlier versions impossible to resume."""
    seal = json.loads((trained_run / "checkpoint-20/checkpoint.json").read_text(encoding="utf-8"))
    assert seal["trajectory"]["tokenizer"].keys() == {"vocab_sha256", "merges_sha256"}


def test_a_tokenizer_is_trained_with_the_given_eos_token(tmp_path: Path) -> None:
    train_tokenizer(toy_stories(100), 300, 64, "</s>").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == ("</s>", 0, 300)
    assert tokenizer.decode([0, 5], skip_special_tokens=True) == tokenizer.decode([5])
    assert "<|endoftext|>" not in tokenizer.get_vocab()


def test_an_unusable_tokenizer_is_refused_with_the_setting_to_change(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    size = str(len(word_piece()))
    word_piece().save_pretrained(tmp_path / "tok")
    flags = ("--tokenizer", str(tmp_path / "tok"), "--vocab_size", size)
    data = tiny_arguments(*flags).data
    with pytest.raises(
        UserError,
        match=r"no special token <\|endoftext\|>; set eos_token to its own EOS token, \[SEP\]",
    ):
        load_tokenizer(data, int(size))
    pinned = (*flags, "--eos_token", "[SEP]", "--tokenizer_merges_sha256", "0" * 64)
    with pytest.raises(UserError, match=r"the merges of .* does not exist, but"):
        load_tokenizer(tiny_arguments(*pinned).data, int(size))
    for word in ("the", "<end>"):  # a word of the stories as EOS would end them
        with pytest.raises(UserError, match=f"no special token {word}; set eos_token to"):
            load_tokenizer(tiny_arguments(*flags, "--eos_token", word).data, int(size))
    with pytest.raises(UserError, match="eos_token must not be empty"):
        tiny_arguments("--eos_token", "")
    gaps = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "b": 7}))
    PreTrainedTokenizerFast(tokenizer_object=gaps).save_pretrained(tmp_path / "gaps")
    data = tiny_arguments("--tokenizer", str(tmp_path / "gaps")).data
    with pytest.raises(UserError, match="ids up to 7 but only 3 entries"):
        load_tokenizer(data, 3)


def test_a_word_without_a_token_is_reported(tiny_arguments: Parse, tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "Once": 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    arguments = tiny_arguments(*saved(tokenizer, tmp_path / "tok"))
    with pytest.raises(UserError, match=r"cannot encode all of the text .*; add an unk_token"):
        prepare(arguments.data, 2, quiet=True)
