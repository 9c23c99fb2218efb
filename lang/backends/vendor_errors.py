"""What all vendors do about failures: HTTP statuses as errors of our family, and a deadline for an answer that comes in pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from sgl_actors.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    QuotaExceeded,
    SglActorsError,
    Unauthorized,
)
from sgl_actors.lang.backends.vendor_help import seconds_of

T = TypeVar("T")

CAUSES: Final[dict[int, tuple[type[SglActorsError], str, str]]] = {
    401: (Unauthorized, "the key is wrong", "see to `key` and to the provider's variable"),
    402: (QuotaExceeded, "nothing is left of what was paid for", "see to the account, or use another key"),
    403: (Forbidden, "the key may not do that", "ask whoever gave it, or use another one"),
    404: (ModelNotFound, "there is no such model (any more)", "see to `model` and `base_url`"),
    429: (Overloaded, "too many requests", "wait, or lower `requests_per_minute` and `concurrency`"),
    529: (Overloaded, "the provider has no room", "wait and ask again"),
}


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait as an answer's headers say: ``retry-after-ms``, or ``retry-after`` in seconds or as a date; 0 if they do not.

    Example:
        >>> retry_after({"retry-after-ms": "250"}), retry_after({"retry-after": "3"}), retry_after({})
        (0.25, 3.0, 0.0)
    """
    if milliseconds := seconds_of(headers.get("retry-after-ms")):
        return milliseconds / 1000
    text = headers.get("retry-after", "")
    return seconds_of(text) or max(_date(text, 0.0) - _date(headers.get("date", ""), time.time()), 0.0)


def _date(text: str, default: float) -> float:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return default


def failure(status: int, words: str, title: str, retry_after: float = 0.0) -> SglActorsError:
    """What an HTTP status means.

    Args:
        status: it.
        words: what the provider said, without the key.
        title: of the model.
        retry_after: seconds that the provider asks to wait; 0 if it does not.
    """
    if 300 <= status < 400:
        return InvalidRequest(
            f"{title}: the address leads elsewhere (status {status}), and the key is not sent there; see to `base_url`"
        )
    if status >= 500 and status not in CAUSES:
        return NotReady(f"{title}: the provider failed with status {status} ({words}); ask again later")
    cause, what, way_out = CAUSES.get(
        status, (InvalidRequest, f"the request was refused with status {status}", "change it")
    )
    error = cause(f"{title}: {what} ({words}); {way_out}")
    if isinstance(error, Overloaded):
        error.retry_after = retry_after
    return error


async def timed(pieces: AsyncIterator[T], deadline: float) -> AsyncGenerator[T]:
    """The same pieces, up to a deadline by the loop's clock; `TimeoutError` when it passes."""
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        yield piece
