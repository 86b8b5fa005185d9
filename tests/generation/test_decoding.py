from __future__ import annotations

import pytest
import torch
import transformers

from tests.model.test_attention import configuration
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.decoding import choose_tokens, decode, uniform_draws
from tinystories_hf.model.modeling import GPTNeoForCausalLM

CONTEXT = 48
SHAPE = {"window_size": 8, "max_position_embeddings": CONTEXT, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def model() -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    built: GPTNeoForCausalLM = GPTNeoForCausalLM(configuration(**SHAPE)).eval()
    return built


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(1, 97, (1 + story % 11,), generator=generator).tolist()
        for story in range(count)
    ]


def tell(model: GPTNeoForCausalLM, asked: list[list[int]], **settings: float) -> list[list[int]]:
    arguments = GenerationArguments(**settings)  # type: ignore[arg-type]
    draws = uniform_draws(arguments.seed, range(len(asked)), CONTEXT)
    with torch.inference_mode():
        return decode(model, asked, draws, arguments, CONTEXT)


def test_tokens_are_drawn_with_their_probability() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 700, generator=generator) * 3
    logits[0, 7] = logits[0, 255] = -torch.inf
    stories = 50_000
    draws = torch.rand(stories, generator=generator, dtype=torch.float64)
    for temperature in (1.0, 0.5):
        settings = GenerationArguments(temperature=temperature)
        chosen = choose_tokens(logits.expand(stories, -1), draws, settings)
        expected = (logits[0].double() / temperature).softmax(-1) * stories
        found = torch.bincount(chosen, minlength=700)
        assert found[7] == found[255] == 0
        common = expected > 10
        squares = ((found - expected)[common] ** 2 / expected[common]).sum()
        degrees = int(common.sum()) - 1
        assert squares < degrees + 5 * (2 * degrees) ** 0.5
        other = (logits[0].double() / (temperature * 1.1)).softmax(-1) * stories
        assert ((found - other)[common] ** 2 / other[common]).sum() > 3 * degrees, "it can fail"


def test_draws_at_the_edges_find_a_token_that_can_be_drawn() -> None:
    edges = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    for size, possible in ((1, 0), (256, 255), (257, 256), (600, 300)):
        logits = torch.full((3, size), -torch.inf)
        logits[:, possible] = 0.0
        chosen = choose_tokens(logits, edges, GenerationArguments())
        assert chosen.tolist() == [possible] * 3


def test_the_likeliest_are_kept_as_top_k_and_top_p_say() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(1000, -1)
    draws = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = choose_tokens(logits, draws, GenerationArguments(top_k=2))
    assert set(best.tolist()) == {1, 2}
    nucleus = choose_tokens(logits, draws, GenerationArguments(top_p=0.6))
    assert set(nucleus.tolist()) == {1}
    greedy = choose_tokens(logits, draws, GenerationArguments(temperature=0))
    assert set(greedy.tolist()) == {1}


def test_a_story_is_the_same_whatever_tells_beside_it(model: GPTNeoForCausalLM) -> None:
    asked = prompts(25)
    together = tell(model, asked)
    settings = GenerationArguments()
    for story in (0, 3, 10, 24):
        draws = uniform_draws(settings.seed, [story], CONTEXT)
        with torch.inference_mode():
            (alone,) = decode(model, [asked[story]], draws, settings, CONTEXT)
        assert alone == together[story]
    assert tell(model, asked, seed=1) != together


def test_some_end_by_themselves_and_none_outgrows_the_context(model: GPTNeoForCausalLM) -> None:
    asked = prompts(60)
    told = tell(model, asked, temperature=1.5)
    ended = [story for story in told if story[-1] == 0]
    assert 5 < len(ended) < 55
    assert all(story.count(0) <= 1 for story in told)
    for prompt, story in zip(asked, told, strict=True):
        if story[-1] != 0:
            assert len(prompt) + len(story) == CONTEXT
    short = tell(model, asked, max_new_tokens=3)
    assert max(map(len, short)) == 3


def test_each_greedy_token_is_the_likeliest_of_the_stock_model(model: GPTNeoForCausalLM) -> None:
    stock = transformers.GPTNeoForCausalLM(configuration(**SHAPE)).eval()
    stock.load_state_dict(model.state_dict())
    asked = prompts(12)
    for prompt, story in zip(asked, tell(model, asked, temperature=0), strict=True):
        logits = stock(torch.tensor([prompt + story])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == story
