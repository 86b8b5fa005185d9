"""Retries of requests over the network: which errors are transient, and how long to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import errors

from tinystories_hf.core.errors import UserError

_T = TypeVar("_T")

TRANSIENT_STATUS = (429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 2.0
# Where the server asks for a longer wait than this, the request fails.
MAX_WAIT_SECONDS = 600.0


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it, the root error last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: Exception) -> tuple[bool, float | None]:
    """Return whether an error is transient, and the seconds of its Retry-After header."""
    for cause in error_chain(error):
        if isinstance(cause, UserError):
            return False, None
        if isinstance(cause, errors.HfHubHTTPError):
            named = cause.response.headers.get("Retry-After", "")
            seconds = float(named) if named.isdigit() else None
            return cause.response.status_code in TRANSIENT_STATUS, seconds
        # Transport errors by name: the HTTP library differs between versions of huggingface_hub. A
        # response that is not JSON comes from a proxy in between.
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & {"TransportError", "JSONDecodeError"}:
            return True, None
    return False, None


def retry(
    request: Callable[[], _T],
    attempts: int,
    report: Callable[[Exception, float, int], None] | None = None,
) -> _T:
    """Return the result of a request, retrying transient errors after exponentially growing waits.

    A Retry-After header is respected up to MAX_WAIT_SECONDS. `report` is called before each wait
    with the error, the seconds and the number of the failed attempt.

    Raises:
        Exception: the error of the last attempt, or one that is not transient.
    """
    wait = FIRST_WAIT_SECONDS
    for number in range(1, attempts + 1):
        try:
            return request()
        except Exception as error:
            transient, named = is_transient(error)
            seconds = wait if named is None else named
            if not transient or number == attempts or seconds > MAX_WAIT_SECONDS:
                raise
            if report is not None:
                report(error, seconds, number)
            time.sleep(seconds)
            wait *= 2
    raise AssertionError("the last attempt returns or raises")
