"""What all vendors do about failures: HTTP statuses as errors of our family, and a deadline for an answer that comes in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
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

T = TypeVar("T")

CAUSES: Final[dict[int, tuple[type[SglActorsError], str, str]]] = {
    401: (Unauthorized, "the key is wrong", "see to `key` and to the provider's variable"),
    402: (QuotaExceeded, "nothing is left of what was paid for", "see to the account, or use another key"),
    403: (Forbidden, "the key may not do that", "ask whoever gave it, or use another one"),
    404: (ModelNotFound, "there is no such model (any more)", "see to `model` and `base_url`"),
    429: (Overloaded, "too many requests", "wait, or lower `requests_per_minute` and `concurrency`"),
    529: (Overloaded, "the provider has no room", "wait and ask again"),
}


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
