"""A request's body: read within a limit, decoded and validated, unknown fields noticed, unsupported ones refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request

from sgl_actors.actors.gateway.errors import ClientGone, invalid
from sgl_actors.actors.gateway.gate import Pass
from sgl_actors.errors import InvalidRequest, PayloadTooLarge

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 2.0
"""What is thrown away of a body that is too large, so that its sender gets to read the answer."""
DRAIN_PAUSE = 0.02
"""Seconds between two parts of it."""

MAX_UNKNOWN = 256
"""Unknown field names that are remembered as logged."""

S = TypeVar("S", bound=msgspec.Struct)

IGNORED = frozenset(
    {
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "custom_labels", "function_call",
        "guided_decoding_backend", "metadata", "modalities", "no_logs", "prediction", "reasoning_effort",
        "return_tokens_as_token_ids", "routing_key", "safety_identifier", "service_tier",
        "spaces_between_special_tokens", "store", "stream_interval", "user", "verbosity",
    }
)  # fmt: skip
"""Fields that clients send and that change nothing in the answer."""


async def read_body(request: Request, limit: int, place: Pass) -> bytes:
    """Read the whole body, which takes room in `place` as it comes.

    Raises:
        PayloadTooLarge: over `limit` bytes; nothing beyond the limit is kept in memory.
        Overloaded: there is no room for it now.
        ClientGone: the client went away while sending.
    """
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() and len(declared) < 20 else 0
    try:
        if size > limit:
            raise _too_large(limit)
        place.expect(size)
        return await _read(request, limit, place)
    except PayloadTooLarge:
        if "expect" not in request.headers:
            with place.draining() as may:
                await _drain(request, DRAIN_BYTES if may else 0)
        raise


async def _read(request: Request, limit: int, place: Pass) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            place.hold(len(part))
            parts.append(part)
    except ClientDisconnect:
        raise ClientGone from None
    return b"".join(parts)


async def _drain(request: Request, most: int) -> None:
    """Throw away up to `most` bytes of the rest, not faster than others can bear."""
    size = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < most:
                message = await request.receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                await asyncio.sleep(DRAIN_PAUSE)
    except TimeoutError:
        return


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit} bytes, the limit of this node ([gateway] max_body)"
    )


def decode_body(
    body: bytes, cls: type[S], unsupported: Mapping[str, str], neutral: Mapping[str, tuple[Any, ...]]
) -> tuple[S, set[str]]:
    """Decode `body` as `cls`; return it and the names of its fields that nothing here knows.

    Args:
        body: JSON text in UTF-8.
        cls: what it should be; its fields may be absent or, where it says so, null.
        unsupported: fields that this node cannot honour yet, with the reason. They are refused unless their value is
            null, false or empty: a silent wrong answer is worse than none.
        neutral: further values of such fields that ask for nothing.

    Raises:
        InvalidRequest: not UTF-8, not JSON, not an object, or a wrong type or value (named in `param`).
    """
    try:
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise InvalidRequest("the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no valid JSON: {error}") from None
    for name in raw.keys() & unsupported.keys():
        refuse_field(name, msgspec.json.decode(raw[name]), unsupported[name], neutral.get(name, ()))
    try:
        value = msgspec.json.decode(body, type=cls)
    except msgspec.DecodeError as error:
        raise invalid(error) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no valid JSON: {error}") from None
    known = {field.encode_name for field in msgspec.structs.fields(cls)}
    return value, raw.keys() - known - unsupported.keys() - IGNORED


def refuse_field(name: str, value: Any, why: str, neutral: tuple[Any, ...] = ()) -> None:
    """Raise `InvalidRequest` unless `value` asks for nothing."""
    if value is None or value is False or value in ("", [], {}) or value in neutral:
        return
    raise InvalidRequest(f"{name}: {why}", param=name)


class UnknownFields:
    """Logs every unknown field name once per route."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._seen: set[tuple[str, str]] = set()

    def note(self, route: str, names: set[str], trace: str) -> None:
        """Warn of the names that are new; the memory is bounded."""
        fresh = sorted(name[:64] for name in names if (route, name[:64]) not in self._seen)
        if fresh and len(self._seen) < MAX_UNKNOWN:
            self._seen.update((route, name) for name in fresh)
            self._log.warning(
                "unknown request fields are ignored", route=route, fields=fresh[:16], trace=trace
            )
