"""What travels: messages, envelopes, faults, and their msgpack form.

A message is a frozen Struct with a tag of its own; the envelope carries that tag, so that a receiver decodes
straight into the right type. Nothing on the wire is `Any`, and nothing is ever unpickled.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, ClassVar, dataclass_transform

import msgspec
from msgspec import Meta

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.errors import ProtocolError, SglActorsError, error_class

VERSION = 2

MOST_CREDIT = 1 << 20
"""Items that a stream's consumer may grant at a time."""

LONGEST = 1e9
"""Seconds of a timeout at most."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Base of everything actors say to each other.

    The tag is ``"<folder>.<Class>"`` (``"scheduler.Submit"``) and is registered when the class is defined.
    Fields may be added at the end with a default; that keeps old senders readable.
    """

    TAG: ClassVar[str] = ""
    TYPES: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        folder = ".".join(cls.__module__.split(".")[-2:-1]) or cls.__module__
        cls.TAG = f"{folder}.{cls.__qualname__}"
        known = Message.TYPES.get(cls.TAG)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(f"{cls.__module__} and {known.__module__} both define message {cls.TAG}")
        Message.TYPES[cls.TAG] = cls


class Kind(IntEnum):
    """What an envelope is, and so which path it takes through the receiving process."""

    CAST = 0
    CALL = 1
    STREAM = 2
    REPLY = 3
    ITEM = 4
    END = 5
    FAULT = 6
    CANCEL = 7
    CREDIT = 8
    DOWN = 9
    MONITOR = 10
    SEND = 11
    """A cast whose sender waits until it has a place in the mailbox."""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Routing data of one message; the encoded message follows as a frame of its own.

    Attributes:
        v: version of this layout.
        kind: see `Kind`.
        id: correlates a call or stream with its answers; 0 for casts. A retry carries the same id.
        to: receiver; epoch 0 means whoever holds the name.
        frm: sender, with the endpoint that answers go to.
        tag: type of the payload, "" without one.
        control: whether it takes the control lane.
        timeout: seconds left until the deadline when it was sent, negative if it had passed; 0 for none.
        trace: id that ties together all work done for one outside request.
        credit: items a stream's consumer is ready to take (STREAM, CREDIT).

    The ranges are checked when an envelope is decoded: a quarter of mutated frames still are msgpack of the right types.
    """

    v: int
    kind: Annotated[int, Meta(ge=0, le=len(Kind) - 1)]
    id: Annotated[int, Meta(ge=0)]
    to: Address
    frm: Address
    tag: Annotated[str, Meta(max_length=256)] = ""
    control: bool = False
    timeout: Annotated[float, Meta(ge=-LONGEST, le=LONGEST)] = 0.0
    trace: Annotated[str, Meta(max_length=4096)] = ""
    credit: Annotated[int, Meta(ge=0, le=MOST_CREDIT)] = 0


class Fault(Message):
    """An error on its way back to the asker."""

    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """Describe `error`; anything outside our family becomes `remote_error` with its type and text."""
        if isinstance(error, SglActorsError):
            return cls(error.code, error.message, error.param)
        return cls("remote_error", f"{type(error).__name__}: {error}")

    def error(self) -> SglActorsError:
        """The exception to raise at the asker."""
        return error_class(self.code)(self.message, param=self.param)


class Down(Message):
    """A monitored or watched incarnation has ended; delivered on the control lane."""

    address: Address
    reason: str


class Up(Message):
    """A watched name has a new incarnation that is ready; delivered on the control lane."""

    address: Address


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_decoders: dict[str, msgspec.msgpack.Decoder[Message]] = {}


def encode(envelope: Envelope, message: Message | None) -> tuple[bytes, bytes]:
    """Return the two frames of one message."""
    return _encoder.encode(envelope), b"" if message is None else _encoder.encode(message)


def decode_envelope(frame: bytes | memoryview) -> Envelope:
    """Decode the routing frame; `ProtocolError` for garbage or another version."""
    try:
        envelope = _envelopes.decode(frame)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"envelope: {error}") from None
    if envelope.v != VERSION:
        raise ProtocolError(f"envelope version {envelope.v}, this process speaks {VERSION}")
    return envelope


def decode_message(tag: str, frame: bytes | memoryview) -> Message:
    """Decode a payload by its tag; `ProtocolError` for an unknown tag or a payload that does not fit it."""
    decoder = _decoders.get(tag)
    if decoder is None:
        cls = Message.TYPES.get(tag)
        if cls is None:
            raise ProtocolError(f"unknown message type {tag!r}")
        decoder = _decoders[tag] = msgspec.msgpack.Decoder(cls)
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"{tag}: {error}") from None
