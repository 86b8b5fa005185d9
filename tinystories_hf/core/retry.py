"""Which errors of a request are transient, and how long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import errors

from tinystories_hf.core.errors import UserError

TRANSIENT_STATUS = (429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 2.0
# Where the server asks for a longer wait than this, the request fails.
MAX_WAIT_SECONDS = 600.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: Exception) -> tuple[bool, float | None]:
    """Return whether an error is transient, and the seconds of its Retry-After header."""
    for cause in _chain(error):
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
