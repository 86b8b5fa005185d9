from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinystories_hf.core.errors import UserError
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import generate, load_for_generation
from tinystories_hf.model.positions import context_length

PROMPTS = ["Once upon a time", "One day, a", "Tom"]


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load_for_generation(str(trained_run))


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]


def test_the_same_seed_tells_the_same_stories_and_another_seed_others(loaded: Loaded) -> None:
    first = generate(*loaded, PROMPTS, GenerationArguments(seed=1))
    assert first == generate(*loaded, PROMPTS, GenerationArguments(seed=1))
    assert first != generate(*loaded, PROMPTS, GenerationArguments(seed=2))
    assert [story.prompt for story in first] == PROMPTS


def test_telling_leaves_the_generator_and_the_mode_as_they_were(loaded: Loaded) -> None:
    model, _ = loaded
    model.train()
    before = torch.get_rng_state()
    generate(*loaded, PROMPTS)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    model.eval()


def test_a_batch_tells_what_each_prompt_alone_would(loaded: Loaded) -> None:
    greedy = GenerationArguments(temperature=0, max_new_tokens=20)
    together = generate(*loaded, PROMPTS, greedy)
    alone = [generate(*loaded, [prompt], greedy)[0] for prompt in PROMPTS]
    assert together == alone


def test_no_story_runs_past_the_context(loaded: Loaded) -> None:
    model, tokenizer = loaded
    assert context_length(model) == 64
    positions: list[int] = []
    hook = model.transformer.wpe.register_forward_hook(
        lambda _module, inputs, _output: positions.append(int(inputs[0].max()))
    )
    try:
        settings = GenerationArguments(num_return_sequences=20, temperature=5.0)
        stories = generate(model, tokenizer, PROMPTS, settings)
    finally:
        hook.remove()
    assert any(not story.ended for story in stories), "some were stopped by the context"
    assert max(positions) == 62, "the last of 64 tokens is told from position 62"


def test_max_new_tokens_and_returned_sequences_are_respected(loaded: Loaded) -> None:
    calls: list[None] = []
    hook = loaded[0].lm_head.register_forward_hook(lambda *_: calls.append(None))
    settings = GenerationArguments(num_return_sequences=3, max_new_tokens=2, batch_size=9)
    stories = generate(*loaded, PROMPTS, settings)
    hook.remove()
    assert [story.prompt for story in stories] == [p for p in PROMPTS for _ in range(3)]
    assert len(calls) == 2


def test_a_story_ends_at_the_end_mark_and_says_so(loaded: Loaded) -> None:
    model, tokenizer = loaded
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.eos_token_id] = 1e4
    hook = model.lm_head.register_forward_hook(lambda _m, _i, logits: logits + bias)
    try:
        (story,) = generate(model, tokenizer, ["Tom"])
    finally:
        hook.remove()
    assert (story.completion, story.ended, str(story)) == ("", True, "Tom")
    (cut,) = generate(model, tokenizer, ["Tom"], GenerationArguments(max_new_tokens=1))
    assert str(cut).endswith(" […]")


def test_beams_give_the_best_first_and_need_no_seed(loaded: Loaded) -> None:
    beams = GenerationArguments(num_beams=3, num_return_sequences=3, max_new_tokens=8)
    first = generate(*loaded, ["Tom"], beams)
    again = generate(
        *loaded,
        ["Tom"],
        GenerationArguments(num_beams=3, num_return_sequences=3, max_new_tokens=8, seed=9),
    )
    assert first == again
    assert len({story.completion for story in first}) == 3


def test_a_prompt_that_leaves_no_room_is_an_error(loaded: Loaded) -> None:
    with pytest.raises(UserError, match="tokens; it must be shorter than the context of 64"):
        generate(*loaded, ["no " * 70])


def test_an_empty_prompt_is_an_error_that_says_how_to_begin_from_nothing(loaded: Loaded) -> None:
    with pytest.raises(UserError) as caught:
        generate(*loaded, ["Tom", ""])
    said = (
        "the prompt '' has no tokens; give a text, such as '<|endoftext|>' for an unconditional"
        " story"
    )
    assert str(caught.value) == said
    (story,) = generate(*loaded, ["<|endoftext|>"])
    assert story.completion, "it is the beginning, not the end"


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load"):
        load_for_generation(str(tmp_path))
