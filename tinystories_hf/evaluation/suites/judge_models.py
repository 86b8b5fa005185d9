"""Who answers a judge's questions: an endpoint that speaks OpenAI's protocol, or a local model."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import InferenceClient, errors, get_token

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.retry import FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS, is_transient
from tinystories_hf.evaluation.suites.rubric import Message

API_KEY = "JUDGE_API_KEY"
ATTEMPTS = 5
_TIMEOUT_SECONDS = 120.0
# An opinion of a few sentences; the grades are shorter.
MAX_TOKENS = 400


@dataclass(frozen=True)
class Reply:
    """What a judge said, and the tokens that were paid for it (None where it does not tell)."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None


class RefusedError(Exception):
    """The endpoint will not answer this question, whenever it is asked."""


class NoAnswerError(Exception):
    """The endpoint did not answer this time; later it may."""


# From a conversation to the next reply.
Judge = Callable[[list[Message]], Reply]


def open_judge(name: str, base_url: str | None) -> Judge:
    """Return the judge of that name: a folder is a local model, all else an endpoint's.

    Raises:
        UserError: a folder that holds no model, or no key for the Hub's inference providers.
    """
    if base_url is None and Path(name).is_dir():
        return local_judge(name)
    return endpoint_judge(name, base_url)


def is_local(name: str, base_url: str | None) -> bool:
    """Return whether a judge costs nothing but time."""
    return base_url is None and Path(name).is_dir()


def endpoint_judge(
    name: str, base_url: str | None, *, attempts: int = ATTEMPTS, timeout: float = _TIMEOUT_SECONDS
) -> Judge:
    """Return a judge behind an endpoint; with no `base_url` the Hub's inference providers.

    The key for a `base_url` is JUDGE_API_KEY. The Hub's own token goes to the Hub alone: the client
    would send it anywhere unless it is given another.

    Raises:
        UserError: there is no token for the Hub's inference providers.
    """
    key = os.environ.get(API_KEY)
    if base_url is None:
        key = key or get_token()
        if key is None:
            raise UserError(
                "judge: log in with `hf auth login` for the Hub's inference providers, or name an"
                f" endpoint with --judge_base_url and its key in {API_KEY}"
            )
        client = InferenceClient(token=key, timeout=timeout)
    else:
        client = InferenceClient(base_url=base_url, api_key=key or "none", timeout=timeout)

    def answer(messages: list[Message]) -> Reply:
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, attempts + 1):
            try:
                return _ask(client, name, messages)
            except Exception as error:
                passing, named = is_transient(error)
                seconds = wait if named is None else named
                if not passing:
                    raise _final(error, name, key) from error
                if attempt == attempts or seconds > MAX_WAIT_SECONDS:
                    raise NoAnswerError(str(error).partition("\n")[0]) from error
                time.sleep(seconds)
                wait *= 2
        raise AssertionError("the last attempt returns or raises")

    return answer


def _ask(client: InferenceClient, name: str, messages: list[Message]) -> Reply:
    answer = client.chat_completion(
        [dict(message) for message in messages], model=name, temperature=0.0, max_tokens=MAX_TOKENS
    )
    text = answer.choices[0].message.content or "" if answer.choices else ""
    usage = answer.usage
    if usage is None:
        return Reply(text)
    return Reply(text, usage.prompt_tokens, usage.completion_tokens)


def _final(error: Exception, name: str, key: str | None) -> Exception:
    """Say what an error means that no repetition mends: for this story, or for all of them."""
    reason = str(error).strip().partition("\n")[0]
    reason = reason.replace(key, "***") if key else reason
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (400, 413, 422):
            return RefusedError(reason)
        if status in (401, 403):
            return UserError(f"judge: the endpoint does not accept the key for {name} ({reason})")
    return UserError(f"judge: {name} cannot be asked: {reason}")


def local_judge(name: str) -> Judge:
    """Return a judge that is a model on this machine, asked greedily, one question at a time.

    Raises:
        UserError: the folder holds no model.
    """
    import torch

    from tinystories_hf.generation.generate import load_for_generation
    from tinystories_hf.model.positions import max_positions

    model, tokenizer = load_for_generation(name)
    one_at_a_time = threading.Lock()

    def answer(messages: list[Message]) -> Reply:
        with one_at_a_time, torch.inference_mode():
            return _tell(messages)

    def _tell(messages: list[Message]) -> Reply:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        asked = ids["input_ids"].shape[1]
        most = max_positions(model) or asked + MAX_TOKENS
        room = most - MAX_TOKENS
        kept = {key: ids[key][:, -max(1, room) :] for key in ("input_ids", "attention_mask")}
        width = kept["input_ids"].shape[1]
        length = min(width + MAX_TOKENS, most)
        told = model.generate(
            **kept, max_length=length, do_sample=False, temperature=None, top_k=None, top_p=None,
            pad_token_id=tokenizer.pad_token_id,
        )[0, width:]  # fmt: skip
        return Reply(tokenizer.decode(told, skip_special_tokens=True), width, len(told))

    return answer
