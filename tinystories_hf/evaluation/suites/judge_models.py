"""Models that grade stories: behind an OpenAI-compatible endpoint, or on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import InferenceClient, errors, get_token

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.retry import is_transient, retry
from tinystories_hf.evaluation.suites.rubric import Message

API_KEY = "JUDGE_API_KEY"
ATTEMPTS = 5
_TIMEOUT_SECONDS = 120.0
# Enough for an opinion of a few sentences; the grades are shorter.
MAX_TOKENS = 400


@dataclass(frozen=True)
class Reply:
    """The reply of a judge and the tokens that it reports (None if it does not)."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None


class RefusedError(Exception):
    """The endpoint rejects this request; a retry would not help."""


class NoAnswerError(Exception):
    """The endpoint did not answer after all retries; a later run may succeed."""


# Maps a conversation to the next reply.
Judge = Callable[[list[Message]], Reply]


def open_judge(name: str, base_url: str | None) -> Judge:
    """Return the judge of that name: a local model for a folder, otherwise at an endpoint.

    Raises:
        UserError: the folder contains no model, or there is no token for the inference providers.
    """
    if base_url is None and Path(name).is_dir():
        return local_judge(name)
    return endpoint_judge(name, base_url)


def is_local(name: str, base_url: str | None) -> bool:
    """Return whether a judge runs on this machine and costs nothing."""
    return base_url is None and Path(name).is_dir()


def endpoint_judge(
    name: str, base_url: str | None, *, attempts: int = ATTEMPTS, timeout: float = _TIMEOUT_SECONDS
) -> Judge:
    """Return a judge at an endpoint; without `base_url`, at the Hub's inference providers.

    The key for a `base_url` is JUDGE_API_KEY. The Hub token is only sent to the Hub:
    InferenceClient would send it to any endpoint unless it is given another key.

    Raises:
        UserError: there is no token for the Hub's inference providers.
    """
    key = os.environ.get(API_KEY)
    if base_url is None:
        key = key or get_token()
        if key is None:
            raise UserError(
                "judge: log in with `hf auth login` for the Hub's inference providers, or give an"
                f" endpoint with --judge_base_url and its key in {API_KEY}"
            )
        client = InferenceClient(token=key, timeout=timeout)
    else:
        client = InferenceClient(base_url=base_url, api_key=key or "none", timeout=timeout)

    def answer(messages: list[Message]) -> Reply:
        try:
            return retry(lambda: _ask(client, name, messages), attempts)
        except Exception as error:
            if is_transient(error)[0]:
                raise NoAnswerError(str(error).partition("\n")[0]) from error
            raise _final(error, name, key) from error

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
    """Return the exception for a permanent error: of this story, or of the whole evaluation."""
    reason = str(error).strip().partition("\n")[0]
    reason = reason.replace(key, "***") if key else reason
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (400, 413, 422):
            return RefusedError(reason)
        if status in (401, 403):
            return UserError(
                f"judge: the endpoint rejects the key for {name} ({reason}); check {API_KEY}, or"
                " log in with `hf auth login` for the Hub's inference providers"
            )
    return UserError(f"judge: {name} cannot be used: {reason}")


def local_judge(name: str) -> Judge:
    """Return a judge that runs on this machine, with greedy decoding and one request at a time.

    Raises:
        UserError: the folder contains no model.
    """
    import torch

    from tinystories_hf.generation.generate import load_for_generation
    from tinystories_hf.model.positions import max_positions

    model, tokenizer = load_for_generation(name)
    one_at_a_time = threading.Lock()

    def answer(messages: list[Message]) -> Reply:
        with one_at_a_time, torch.inference_mode():
            return _generate_reply(messages)

    def _generate_reply(messages: list[Message]) -> Reply:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        positions = max_positions(model) or ids["input_ids"].shape[1] + MAX_TOKENS
        room = max(1, positions - MAX_TOKENS)
        inputs = {key: ids[key][:, -room:] for key in ("input_ids", "attention_mask")}
        width = inputs["input_ids"].shape[1]
        length = min(width + MAX_TOKENS, positions)
        reply = model.generate(
            **inputs, max_length=length, do_sample=False, temperature=None, top_k=None, top_p=None,
            pad_token_id=tokenizer.pad_token_id,
        )[0, width:]  # fmt: skip
        return Reply(tokenizer.decode(reply, skip_special_tokens=True), width, len(reply))

    return answer
