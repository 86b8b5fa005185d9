"""Asking the Hub with patience: what is tried again, for how long, and what a failure says."""

from __future__ import annotations

import sys
import time
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

from tinystories_hf.core.retry import FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS, _chain, is_transient

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How often a request is made, and how long each read or write of it may take.

    The clients wait for ever unless told otherwise, and make the parts of an upload up to six times
    themselves.
    """

    attempts: int
    timeout: float


FOR_CHECKS = Patience(attempts=1, timeout=8.0)
FOR_THE_MODEL = Patience(attempts=5, timeout=60.0)
# Other processes wait meanwhile, for ten minutes where they speak over NCCL: 2 x (6 x 30 s and the
# waits between, 23 s) stays below.
FOR_A_CHECKPOINT = Patience(attempts=2, timeout=30.0)


@contextmanager
def plain_uploads_where_there_is_no_xet(repo_id: str, repo_type: str = "model") -> Iterator[None]:
    """Upload over plain HTTP to a Hub without Xet storage, such as a mirror.

    The client takes Xet whenever the package is installed, and fails where the Hub has none.
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
    """Limit each read and write of the session that all clients in this process share."""
    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


def ask(request: Callable[[HfApi], _T], patience: Patience = FOR_CHECKS) -> _T:
    """Ask the Hub; what may pass by itself is tried again after a growing wait.

    A wait that the Hub names (Retry-After) is kept to, unless it is longer than MAX_WAIT_SECONDS.
    """
    wait = FIRST_WAIT_SECONDS
    for number in range(1, patience.attempts + 1):
        try:
            with session_timeout(patience.timeout):
                return request(HfApi())
        except Exception as error:
            passing, named = is_transient(error)
            seconds = wait if named is None else named
            if not passing or number == patience.attempts or seconds > MAX_WAIT_SECONDS:
                raise
            print(
                f"the Hub: {_reason(error)}; trying again in {seconds:.0f} s"
                f" ({number} of {patience.attempts - 1})",
                file=sys.stderr,
            )
            time.sleep(seconds)
            wait *= 2
    raise AssertionError("the last attempt returns or raises")


def hub_error(error: Exception, repo_id: str) -> str:
    """Say in one sentence what went wrong, and what to do."""
    status = None
    for cause in _chain(error):
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return "there is no Hub token; log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            break
    if status == 401:
        return f"{constants.ENDPOINT} does not accept the Hub token; log in with `hf auth login`"
    if status == 403:
        return f"the Hub token may not write to {repo_id} ({_reason(error)})"
    if status is None and is_transient(error)[0]:
        return f"could not reach {constants.ENDPOINT} ({_reason(error)})"
    return _reason(error)


def _reason(error: BaseException) -> str:
    """Return the first line of the error that lies deepest, without the token."""
    deepest = list(_chain(error))[-1]
    known = [cause for cause in _chain(error) if isinstance(cause, errors.HfHubHTTPError)]
    text = str(known[0] if known else deepest).strip().partition("\n")[0]
    token = huggingface_hub.get_token()
    text = text.replace(token, "***") if token else text
    return text or type(deepest).__name__
