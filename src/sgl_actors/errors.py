"""The one error family. Each class says when it is raised, what to do, and whether retrying helps.

An error that crosses a process travels as its `code`, message and details (`microkernel.wire.Fault`)
and is raised again as the same class on the other side; an unknown code becomes `RemoteError`.
"""

from __future__ import annotations

from typing import ClassVar


class SglActorsError(Exception):
    """Base of all errors of this package.

    Attributes:
        code: stable machine-readable name, unique per class.
        status: HTTP status the gateway answers with.
        retryable: whether the same request may succeed later without a change.
        param: the offending field, if there is one.

    Example:
        >>> try:
        ...     select("answer", [])
        ... except SglActorsError as error:
        ...     print(error.code, error.param, error.retryable)
        invalid_primitive choices False
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def message(self) -> str:
        """The text for people."""
        return str(self.args[0])


class ConfigError(SglActorsError):
    """node.toml (or a flag) is wrong. The message reads `file:line key: why`; mend it and start again."""

    code = "config_error"
    status = 400


class CheckpointError(SglActorsError):
    """A model file is missing, unknown or broken. The message names the file and what was expected."""

    code = "checkpoint_error"


class InvalidRequest(SglActorsError):
    """A request's field has a wrong type or value. Change the request; retrying does not help."""

    code = "invalid_request"
    status = 400


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus max_tokens is longer than the model's context. Nothing is truncated; shorten the prompt."""

    code = "context_length_exceeded"


class Unauthorized(SglActorsError):
    """The request has no API key that this node knows. Send one: ``Authorization: Bearer KEY``."""

    code = "unauthorized"
    status = 401


class Forbidden(SglActorsError):
    """The request's tenant may not do that, because it concerns others. Ask whoever runs the node (the tenant ``admin``)."""

    code = "forbidden"
    status = 403


class PinNotFound(SglActorsError):
    """No pin of that name is there: it expired, was never made, or is another tenant's."""

    code = "pin_not_found"
    status = 404


class ModelNotFound(SglActorsError):
    """The request names a model that this node does not serve. `/v1/models` lists what it serves."""

    code = "model_not_found"
    status = 404


class PayloadTooLarge(SglActorsError):
    """The body is over the gateway's limit (`[gateway] max_body`)."""

    code = "payload_too_large"
    status = 413


class Overloaded(SglActorsError):
    """A bounded queue is full. Wait a moment and retry.

    Attributes:
        retry_after: seconds to wait, as far as whoever raised it can tell; 0 if not. It is an HTTP header, and does not travel between actors.
    """

    code = "overloaded"
    status = 429
    retryable = True
    retry_after: float = 0.0


class NotReady(SglActorsError):
    """The node is loading or draining. Retry after `/health` answers 200."""

    code = "not_ready"
    status = 503
    retryable = True


class ActorDown(SglActorsError):
    """The addressed incarnation of an actor has ended. A supervised name comes back with a new epoch: retry."""

    code = "actor_down"
    status = 503
    retryable = True


class NodeGone(ActorDown):
    """The node that was asked has ended; nothing of it comes back. Start one and connect again."""

    code = "node_gone"
    retryable = False


class SwapFailed(SglActorsError):
    """Another class could not take a running actor's place; the old one goes on. The message says why; the node's logs tell more."""

    code = "swap_failed"
    status = 409


class JournalUnavailable(SglActorsError):
    """The journal of durable programs cannot be opened, read or written: no room, no permission, a damaged file.

    The durable program was refused before it did anything; others are not touched. Make room or name another file
    (``durable=PATH``), and run it again.
    """

    code = "journal_unavailable"
    status = 503
    retryable = True


class ProgramRunning(SglActorsError):
    """A durable program of that id runs already: one runs in one process at a time. The message names it. Wait for its end."""

    code = "program_running"
    status = 409
    retryable = True


class DeadlineExceeded(SglActorsError):
    """The answer did not come before the deadline. The work was cancelled; retry with more time."""

    code = "deadline_exceeded"
    status = 504
    retryable = True


class Cancelled(SglActorsError):
    """The request was cancelled by its asker or by an operator."""

    code = "cancelled"
    status = 499


class RemoteError(SglActorsError):
    """An actor failed while it handled the request; the actor's log has the traceback."""

    code = "remote_error"


class Quarantined(SglActorsError):
    """The request crashed the worker twice while it ran alone. Its neighbours were spared; retrying does not help."""

    code = "quarantined"


class ProtocolError(SglActorsError):
    """A frame could not be decoded, or a message of an unknown or unwanted type arrived."""

    code = "protocol_error"


class NoContinuation(InvalidRequest):
    """An API model does not go on with an assistant's turn that has been begun. Programs then have it write the whole turn at once."""

    code = "no_continuation"


class QuotaExceeded(SglActorsError):
    """Nothing is left of what was paid for at the API's provider. Waiting does not help: see to the account, or use another key."""

    code = "quota_exceeded"
    status = 402


class BrokenAnswer(SglActorsError):
    """An API's answer broke off, or could not be read. It was thrown away; asking again helps."""

    code = "broken_answer"
    status = 502
    retryable = True


class Refused(SglActorsError):
    """The model refused to answer; the message has its words. Change the prompt."""

    code = "refused"
    status = 422


class ContentFiltered(SglActorsError):
    """The API's provider filtered the prompt or the answer; the message says which, as far as it told. Change the prompt."""

    code = "content_filtered"
    status = 422


class ProgramError(SglActorsError):
    """A program's body or one of its primitives failed. The message holds the tail of the prompt.

    Example:
        >>> issubclass(PrimitiveFailed, ProgramError)
        True
    """

    code = "program_error"


class UnknownVariable(ProgramError):
    """A program asked for a variable that no primitive of it defines.

    Example:
        >>> @function
        ... async def misread(s):
        ...     s += gen("colour")
        ...     await s["color"]
        >>> await misread.run()
        Traceback (most recent call last):
        UnknownVariable: program 'misread'...: no primitive defines variable 'color'; it has: colour...
    """

    code = "unknown_variable"


def error_class(code: str) -> type[SglActorsError]:
    """Return the class with that `code`, or `RemoteError` for an unknown one."""
    stack: list[type[SglActorsError]] = [SglActorsError]
    while stack:
        cls = stack.pop()
        if cls.__dict__.get("code") == code:
            return cls
        stack.extend(cls.__subclasses__())
    return RemoteError
