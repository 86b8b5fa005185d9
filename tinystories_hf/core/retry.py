"""Which errors of a request are transient, and how long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import errors

from tinystories_hf.core.errors import UserError

TRANSIENT_STATUS = (429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 2.0
# A Hub that asks for a longer wait than this is not waited for.
MAX_WAIT_SECONDS = 600.0


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
