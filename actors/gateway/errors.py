"""Errors as HTTP clients see them: the OpenAI error object, on every route.

A client reads the type, the offending field and a stable code; what went wrong inside an actor stays in the logs.
"""

from __future__ import annotations

import http
import math
import re
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sgl_actors.errors import InvalidRequest, NotReady, Overloaded, SglActorsError, Unauthorized

HEADERS: dict[type[SglActorsError], dict[str, str]] = {Unauthorized: {"WWW-Authenticate": "Bearer"}}
"""What an error's answer has besides."""

RETRY_AFTER: dict[type[SglActorsError], int] = {Overloaded: 1, NotReady: 2}
"""Seconds after which a client may try again."""

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    499: "cancelled",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""Error types by status; other 4xx are invalid_request_error, other 5xx server_error."""

_PLACE = re.compile(r" - at (?P<key>`key` in )?`\$(?P<place>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")

LONGEST_MESSAGE = 2000
"""Characters of a message; the rest, which can only be what the client sent, is left out."""

E = TypeVar("E", bound=BaseException)


class ErrorObject(msgspec.Struct, frozen=True):
    """The inside of an error answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """An error answer: ``{"error": {"message", "type", "param", "code"}}``."""

    error: ErrorObject


def later(message: str, seconds: float) -> Overloaded:
    """`Overloaded`, and after how many seconds to come again."""
    error = Overloaded(message)
    error.retry_after = seconds
    return error


class ClientGone(Exception):
    """The client closed its connection; its work has been cancelled and there is nobody to answer."""


def status_of(error: BaseException) -> int:
    """HTTP status that `error` is answered with."""
    if isinstance(error, SglActorsError):
        return error.status
    if isinstance(error, HTTPException):
        return error.status_code
    return 500


def describe(error: BaseException, trace: str = "") -> ErrorBody:
    """Describe `error` for a client; what is not of our making shows neither its type nor its text."""
    status = status_of(error)
    default = "server_error" if status >= 500 else "invalid_request_error"
    kind = TYPES.get(status, default)
    if isinstance(error, SglActorsError) and status != 500:
        param = error.param[:LONGEST_MESSAGE] if error.param else error.param
        return ErrorBody(ErrorObject(error.message[:LONGEST_MESSAGE], kind, param, error.code))
    if isinstance(error, HTTPException):
        phrase = http.HTTPStatus(status).phrase
        detail = error.detail if error.detail != phrase else f"{phrase}: see / for the endpoints of this node"
        return ErrorBody(ErrorObject(detail, kind, None, phrase.lower().replace(" ", "_")))
    code = error.code if isinstance(error, SglActorsError) else "internal_error"
    return ErrorBody(
        ErrorObject(f"the request failed inside the node; its log has it under {trace!r}", kind, None, code)
    )


def error_response(error: BaseException, trace: str = "", *, retry: float = 0.0) -> Response:
    """Answer with the error object, the right status and, where retrying helps, `Retry-After`: at least `retry` seconds for an `Overloaded`."""
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    status = status_of(error)
    for cls, seconds in RETRY_AFTER.items():
        if isinstance(error, cls):
            known = error.retry_after or retry if isinstance(error, Overloaded) else 0.0
            headers["Retry-After"] = str(math.ceil(known) or seconds)
    headers |= HEADERS.get(type(error), {}) if isinstance(error, SglActorsError) else {}
    if status == 413:
        headers["Connection"] = "close"
    body = msgspec.json.encode(describe(error, trace))
    return Response(body, status, headers, media_type="application/json")


def invalid(error: msgspec.DecodeError) -> InvalidRequest:
    """Map what msgspec says of a body to our error, with the field it is about.

    msgspec ends its text with the place unless that is the body itself: ``Expected `int`, got `str` - at `$.messages[0].content` ``,
    for an object's key ``… - at `key` in `$.logit_bias` ``.
    """
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is no valid JSON: {error}")
    text, place, is_key = str(error), "", False
    found = _PLACE.search(text)
    if found is not None:
        text, place, is_key = text[: found.start()], found["place"].lstrip("."), found["key"] is not None
    missing = _MISSING.fullmatch(text)
    if missing is not None:
        field = f"{place}.{missing['field']}".lstrip(".")
        return InvalidRequest(f"missing field {field!r}", param=field)
    return InvalidRequest(f"{place or 'body'}: {'a key: ' * is_key}{text}", param=place or None)


def first_of(group: BaseExceptionGroup[E]) -> BaseException:
    """The exception that a client should hear of: the first of ours in the group, else the first of all."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    ours = [leaf for leaf in leaves if isinstance(leaf, SglActorsError)]
    return (ours or leaves)[0]
