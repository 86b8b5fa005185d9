"""Requests to the Hub: timeouts, retries, and error messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import huggingface_hub
from huggingface_hub import HfApi, constants, errors
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
)

from tinystories_hf.core.retry import error_chain, is_transient, retry

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """The attempts of a request, and the timeout in seconds of each read or write.

    huggingface_hub has no timeout by default, and tries each part of an upload up to six times.
    """

    attempts: int
    timeout: float


FOR_CHECKS = Patience(attempts=1, timeout=8.0)
FOR_THE_MODEL = Patience(attempts=5, timeout=60.0)
# Other processes wait meanwhile, with NCCL at most ten minutes: 2 x (6 x 30 s + 23 s between the
# attempts) is below that.
FOR_A_CHECKPOINT = Patience(attempts=2, timeout=30.0)


@contextmanager
def plain_uploads_where_there_is_no_xet(repo_id: str, repo_type: str = "model") -> Iterator[None]:
    """Upload over plain HTTP to a Hub without Xet storage, such as a mirror.

    huggingface_hub uses Xet whenever hf_xet is installed, and fails if the Hub does not have it.
    """
    had = constants.HF_HUB_DISABLE_XET
    if not had:
        url = f"{constants.ENDPOINT}/api/{repo_type}s/{repo_id}/xet-write-token/main"
        answer = get_session().get(url, headers=build_hf_headers())
        constants.HF_HUB_DISABLE_XET = answer.status_code == 404
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = had


@contextmanager
def session_timeout(seconds: float) -> Iterator[None]:
    """Limit each read and write of the HTTP session that this process shares."""
    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


def ask(request: Callable[[HfApi], _T], patience: Patience = FOR_CHECKS) -> _T:
    """Send a request to the Hub; transient errors are retried as by `retry`, and printed."""

    def send() -> _T:
        with session_timeout(patience.timeout):
            return request(HfApi())

    def report(error: Exception, seconds: float, number: int) -> None:
        print(
            f"the Hub: {_reason(error)}; retry {number} of {patience.attempts - 1} in"
            f" {seconds:.0f} s",
            file=sys.stderr,
        )

    return retry(send, patience.attempts, report)


def hub_error(error: Exception, repo_id: str) -> str:
    """Return the reason and the fix of a Hub error in one sentence."""
    status = None
    for cause in error_chain(error):
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return "there is no Hub token; log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            break
    if status == 401:
        return f"{constants.ENDPOINT} does not accept the Hub token; log in with `hf auth login`"
    if status == 403:
        return f"the Hub token has no write access to {repo_id} ({_reason(error)})"
    if status is None and is_transient(error)[0]:
        return f"could not reach {constants.ENDPOINT} ({_reason(error)})"
    return _reason(error)


def _reason(error: BaseException) -> str:
    """Return the first line of the root error, without the token."""
    deepest = list(error_chain(error))[-1]
    known = [cause for cause in error_chain(error) if isinstance(cause, errors.HfHubHTTPError)]
    text = str(known[0] if known else deepest).strip().partition("\n")[0]
    token = huggingface_hub.get_token()
    text = text.replace(token, "***") if token else text
    return text or type(deepest).__name__
