"""Generate stories: seeded and batched, each up to its EOS and never past the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import check_readable
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.data.tokenization.tokenize import unknown_words_reported
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.decoding import decode, uniform_draws
from tinystories_hf.model.loading import AS_STORED, load_model
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.model.positions import context_length


@dataclass(frozen=True)
class Story:
    """A prompt and its completion; `ended` is True if the model generated the EOS."""

    prompt: str
    completion: str
    ended: bool

    def __str__(self) -> str:
        return self.prompt + self.completion + ("" if self.ended else " […]")


@without_progress_bars()
def load_for_generation(
    name: str, revision: str | None = None, *, dtype: torch.dtype | str = AS_STORED
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a model and its tokenizer from a run directory or the Hub, in evaluation mode.

    `dtype` is the precision to compute in, by default that of the stored weights.

    Raises:
        UserError: there is no such model.
    """
    # Transformers mistakes a folder without read permission for a Hub name.
    check_readable(Path(name), "model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = load_model(name, revision, dtype=dtype)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model: cannot load {name}: {reason}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: GenerationArguments | None = None,
) -> list[Story]:
    """Generate `num_return_sequences` stories per prompt, in the order of the prompts.

    The same model and settings give the same stories; torch's random state and the model's mode are
    restored. The stories of a GPT-Neo do not depend on the batch size, up to the rounding of matrix
    products. Other architectures use Transformers' `generate`, whose random numbers depend on it.

    Raises:
        UserError: a prompt is empty or fills the context.
    """
    settings = settings or GenerationArguments()
    context = context_length(model)
    encoded = encode_prompts(tokenizer, prompts, context)
    per_prompt = settings.num_return_sequences
    given = [ids for ids in encoded for _ in range(per_prompt)]
    with _evaluating(model), _seeded(model, settings.seed):
        if isinstance(model, GPTNeoForCausalLM) and settings.num_beams == 1:
            told = continue_prompts(model, given, settings, context)
        else:
            # Beam search returns several sequences per prompt; sampling repeats the prompt.
            asked, per_call = (encoded, per_prompt) if settings.searches else (given, 1)
            told = []
            for start in range(0, len(asked), settings.batch_size):
                batch = asked[start : start + settings.batch_size]
                told += _tell(model, tokenizer, batch, settings, context, per_call)
    names = [prompt for prompt in prompts for _ in range(per_prompt)]
    return [_story(*parts, tokenizer) for parts in zip(names, given, told, strict=True)]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt with special tokens before it, but not after it.

    A template may prepend a token, as Llama's does. If it also appends one, the model would
    continue after the end of the text.
    """
    with unknown_words_reported():
        ids: list[int] = tokenizer(prompt).input_ids
        own = tokenizer(prompt, add_special_tokens=False).input_ids
    while own and len(ids) > len(own) and ids[-len(own) :] != own:
        ids.pop()
    return ids


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], context: int) -> list[list[int]]:
    """Return the ids of each prompt.

    Raises:
        UserError: a prompt is empty or fills the context.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            nothing = tokenizer.eos_token or tokenizer.bos_token
            instead = f", such as {nothing!r} for an unconditional story" if nothing else ""
            raise UserError(f"the prompt {prompt!r} has no tokens; give a text{instead}")
        if len(ids) >= context:
            raise UserError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens; it must be shorter than the"
                " context"
                f" of {context}"
            )
    return encoded


def continue_prompts(
    model: GPTNeoForCausalLM,
    prompts: list[list[int]],
    settings: GenerationArguments,
    context: int,
) -> list[list[int]]:
    """Return the completion of each prompt, in order; prompts of similar length share a batch."""
    told: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda story: len(prompts[story]))
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        steps = min(context, settings.max_new_tokens or context)
        draws = uniform_draws(settings.seed, batch, steps)
        stories = decode(model, [prompts[story] for story in batch], draws, settings, context)
        for story, ids in zip(batch, stories, strict=True):
            told[story] = ids
    return told


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextmanager
def _seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    on_cpu = model.device.type == "cpu"
    devices = [] if on_cpu else [model.device.index or 0]
    with torch.random.fork_rng(devices, device_type="cuda" if on_cpu else model.device.type):
        torch.manual_seed(seed)
        yield


def _tell(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    settings: GenerationArguments,
    context: int,
    per_call: int,
) -> list[list[int]]:
    width = max(map(len, prompts))
    room = context - width
    padding = [width - len(ids) for ids in prompts]
    end = tokenizer.pad_token_id or 0
    rows = [[end] * unused + ids for unused, ids in zip(padding, prompts, strict=True)]
    mask = (torch.arange(width) >= torch.tensor(padding)[:, None]).long()
    output = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=mask.to(model.device),
        max_length=width + min(room, settings.max_new_tokens or room),
        num_return_sequences=per_call,
        pad_token_id=end,
        **_how_to_choose(settings),
    )
    told: list[list[int]] = output[:, width:].tolist()
    return told


def _story(prompt: str, given: list[int], ids: list[int], tokenizer: Tokenizer) -> Story:
    ended = tokenizer.eos_token_id in ids
    if ended:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return Story(prompt, decode_after(tokenizer, given, ids), ended)


def decode_after(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    """Return the text of tokens that follow others.

    Decoded on their own, tokens of SentencePiece or word-level tokenizers lose their first space.
    """
    given, whole = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (before, before + ids)
    )
    text: str = whole.removeprefix(given)
    return text if whole.startswith(given) else tokenizer.decode(ids, skip_special_tokens=True)


def _how_to_choose(settings: GenerationArguments) -> dict[str, float | None]:
    """Return the sampling arguments for Transformers' `generate`."""
    if settings.searches:
        # Resets the sampling settings of generation_config.json, or generate() would warn.
        sampling = {"temperature": None, "top_k": None, "top_p": None}
        return {"do_sample": False, "num_beams": settings.num_beams, **sampling}
    return {
        "do_sample": True,
        "num_beams": 1,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
    }
