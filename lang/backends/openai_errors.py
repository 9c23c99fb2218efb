"""What errors of the OpenAI API mean: of the SDK, as answers, and as events in the middle of a stream."""

from __future__ import annotations

import re
from typing import Any, Final

import httpx2

from sgl_actors.errors import (
    BrokenAnswer,
    ContentFiltered,
    ContextLengthExceeded,
    InvalidRequest,
    NoContinuation,
    NotReady,
    SglActorsError,
)
from sgl_actors.lang.backends.vendor_errors import failure, retry_after
from sgl_actors.lang.backends.vendor_help import said

_KEYS: Final = re.compile(r"\bsk-[\w*.-]+")
_TOO_LONG: Final = re.compile(
    r"context_length_exceeded|maximum context length|exceed\w*.{0,40}context|context.{0,40}(exceed|too long)|prompt is too long",
    re.IGNORECASE,
)
_NO_CONTINUATION: Final = re.compile(
    r"continue_final|add_generation_prompt|prefill|(final|last) (assistant )?message|assistant.{0,20} turn",
    re.IGNORECASE,
)
_FILTERED: Final = re.compile(r"content_filter|content_policy|content management policy|ResponsibleAIPolicy")
_NO_QUOTA: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"})
_NO_ROOM: Final = re.compile(r"overloaded|no capacity|at capacity", re.IGNORECASE)
_NO_MODEL: Final = frozenset({"model_not_found", "DeploymentNotFound"})
_STATUS: Final = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "model_not_found": 404,
    "authentication_error": 401,
    "permission_error": 403,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded": 429,
    "overloaded_error": 529,
    "server_is_overloaded": 529,
    "not_ready": 503,
    "server_error": 500,
}
"""Of an error by its code or type: in the middle of a stream there is no status."""
TIMED_OUT: Final = frozenset({408, 409, 425})
"""Statuses under 500 that say that asking again helps."""


def failure_of(
    error: Exception, title: str, base: str, key: str, *, begun: bool, continued: bool
) -> SglActorsError:
    """What an exception of the SDK means, time-outs excepted.

    Args:
        error: it.
        title: of the model.
        base: its address.
        key: is kept out of the message.
        begun: a part of the answer had come.
        continued: an assistant's turn was to be gone on with.
    """
    body, response = getattr(error, "body", None), getattr(error, "response", None)
    words = _words(body, error, key)
    if isinstance(response, httpx2.Response):
        after = retry_after(response.headers)
        return _meaning(response.status_code, body, words, title, after, base=base, continued=continued)
    if body:
        return _in_stream(body if isinstance(body, dict) else {}, words, title)
    cause = error.__cause__ or error
    if isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol) or (
        isinstance(cause, httpx2.RemoteProtocolError) and "without sending a response" in str(cause)
    ):
        return NotReady(f"{title}: nothing answers at {_shown(base)} ({said(cause, key)}); ask again later")
    what = "broke off" if begun or isinstance(cause, httpx2.HTTPError) else "is no JSON"
    return BrokenAnswer(f"{title}: the answer {what} ({said(cause, key)}); ask again")


def mid_stream(part: object, title: str, key: str) -> SglActorsError | None:
    """The error that came with a status of 200, if `part` is one."""
    body = part.get("error") if isinstance(part, dict) else None
    if not body:
        return None
    body = body if isinstance(body, dict) else {"message": body}
    return _in_stream(body, _words(body, None, key), title)


def _in_stream(body: dict[str, Any], words: str, title: str) -> SglActorsError:
    code = body.get("code")
    names = [str(code), str(body.get("type"))]
    status = code if isinstance(code, int) else next((_STATUS[name] for name in names if name in _STATUS), 0)
    if not 400 <= status < 600:
        return BrokenAnswer(f"{title}: the answer broke off with an error ({words}); ask again")
    return _meaning(status, body, words, title, 0.0, base="", continued=False)


def _meaning(
    status: int, body: object, words: str, title: str, after: float, *, base: str, continued: bool
) -> SglActorsError:
    fields = body if isinstance(body, dict) else {}
    names = {str(fields.get("code")), str(fields.get("type"))}
    told = f"{words} {names} {fields.get('innererror', '')}"
    if names & _NO_QUOTA:
        status = 402
    elif names & _NO_MODEL:
        status = 404
    elif status in TIMED_OUT:
        return NotReady(f"{title}: the provider answered with status {status} ({words}); ask again")
    elif status == 503 and (after or _NO_ROOM.search(told)):
        status = 529
    elif 400 <= status < 500 and (special := _wrong(status, told, words, title, continued=continued)):
        return special
    found = failure(status, words if status != 404 else f"{words}, at {_shown(base)}", title, after)
    if isinstance(found, InvalidRequest) and isinstance(fields.get("param"), str):
        found.param = fields["param"]
    return found


def _wrong(status: int, told: str, words: str, title: str, *, continued: bool) -> SglActorsError | None:
    """Of requests that are wrong, those that something special is wrong with."""
    if status not in {400, 413, 422}:
        return None
    if _FILTERED.search(told):
        return ContentFiltered(f"{title}: the provider filtered the prompt ({words}); change it")
    if _TOO_LONG.search(told):
        return ContextLengthExceeded(f"{title}: prompt and answer are too long ({words}); shorten the prompt")
    if continued and _NO_CONTINUATION.search(told):
        return NoContinuation(f"{title} does not go on with an assistant's turn ({words})")
    return None


def _words(body: object, error: Exception | None, key: str) -> str:
    words = body.get("message") if isinstance(body, dict) else body
    return _KEYS.sub("[key]", said(words or error or "it says nothing", key))


def _shown(base: str) -> str:
    """An address without what may be secret in it."""
    url = httpx2.URL(base)
    return f"{url.scheme}://{url.host}{f':{url.port}' if url.port else ''}{url.path}" if base else "the API"
