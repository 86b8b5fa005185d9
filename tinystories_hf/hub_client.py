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
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from tinystories_hf.errors import UserError

T = TypeVar("T")

TRANSIENT_STATUS = (429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 2.0
# A Hub that asks for a longer wait than this is not waited for.
MAX_WAIT_SECONDS = 600.0


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
def without_progress_bars() -> Iterator[None]:
    """Keep the progress bars of Transformers and of the Hub's client out of the output."""
    hub_shows, transformers_shows = not are_progress_bars_disabled(), is_progress_bar_enabled()
    disable_progress_bar()  # of both
    try:
        yield
    finally:
        if transformers_shows:
            enable_progress_bar()
        (enable_progress_bars if hub_shows else disable_progress_bars)()


@contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Limit each read and write of the session that all clients in this process share."""
    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


def ask(request: Callable[[HfApi], T], patience: Patience = FOR_CHECKS) -> T:
    """Ask the Hub; what may pass by itself is tried again after a growing wait.

    A wait that the Hub names (Retry-After) is kept to, unless it is longer than MAX_WAIT_SECONDS.
    """
    wait = FIRST_WAIT_SECONDS
    for number in range(1, patience.attempts + 1):
        try:
            with timeout(patience.timeout):
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: Exception) -> tuple[bool, float | None]:
    """Tell whether an error may pass by itself, and how long the Hub asks to wait."""
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return False, None
        if isinstance(cause, errors.HfHubHTTPError):
            named = cause.response.headers.get("Retry-After", "")
            seconds = float(named) if named.isdigit() else None
            return cause.response.status_code in TRANSIENT_STATUS, seconds
        # The transport's own errors, by name: the client's library changes with its version. An
        # answer that is no JSON comes from a proxy in between.
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & {"TransportError", "JSONDecodeError"}:
            return True, None
    return False, None


def explain(error: Exception, repo_id: str) -> str:
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
