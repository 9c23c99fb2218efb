"""What is no message is a `ProtocolError`, whatever it is; what is one is within its ranges."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.microkernel import Address, Message
from sgl_actors.actors.microkernel.exchange import PendingStream
from sgl_actors.actors.microkernel.link import decode_knock
from sgl_actors.actors.microkernel.wire import (
    MOST_CREDIT,
    VERSION,
    Down,
    Envelope,
    Fault,
    Kind,
    decode_envelope,
    decode_message,
    encode,
)
from sgl_actors.errors import ProtocolError
from tests.microkernel.kernel_actors import Say

GOOD = Envelope(VERSION, Kind.CALL, 5, Address("a", 1, "ipc:///x"), Address("b", 2, "ipc:///y"), "t.T")


def test_what_is_encoded_is_decoded() -> None:
    """At the ends of all ranges, too."""
    for changes in (
        {},
        {"timeout": -3.0},
        {"timeout": 1e9},
        {"credit": MOST_CREDIT},
        {"id": (1 << 63) - 1},
        {"trace": "x" * 4096},
        {"kind": Kind.SEND},
    ):
        envelope = msgspec.structs.replace(GOOD, **changes)
        assert decode_envelope(encode(envelope, None)[0]) == envelope


@pytest.mark.parametrize(
    "changes",
    [
        {"v": VERSION + 1},
        {"kind": 12},
        {"kind": -1},
        {"id": -1},
        {"timeout": math.nan},
        {"timeout": math.inf},
        {"timeout": -math.inf},
        {"timeout": 1e12},
        {"credit": -1},
        {"credit": MOST_CREDIT + 1},
        {"tag": "x" * 300},
        {"trace": "x" * 5000},
        {"to": Address("", 1)},
        {"to": Address("a", -1)},
        {"frm": Address("x" * 5000, 1)},
        {"frm": Address("a", 1, "x" * 600)},
    ],
)
def test_what_is_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    """It decodes as msgpack of the right types, and is none of our envelopes all the same."""
    with pytest.raises(ProtocolError):
        decode_envelope(encode(msgspec.structs.replace(GOOD, **changes), None)[0])


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x91" * 20000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff" + b"x" * 100,
        encode(GOOD, None)[0].replace(b"t.T", b"\xd9\xd9\xd9"),
        encode(GOOD, None)[0][:-1],
    ],
    ids=["empty", "deep", "long list", "long text", "broken UTF-8", "cut"],
)
def test_garbage_is_a_protocol_error(frame: bytes) -> None:
    """Nothing else is raised: the pump of a process calls this for whatever comes."""
    with pytest.raises(ProtocolError):
        decode_envelope(frame)
    with pytest.raises(ProtocolError):
        decode_knock(frame)
    with pytest.raises(ProtocolError):
        decode_message(Down.TAG, frame)


@given(st.binary(max_size=200), st.sampled_from(sorted(Message.TYPES)))
def test_any_bytes_are_a_message_or_a_protocol_error(frame: bytes, tag: str) -> None:
    """Of every type there is."""
    for decode in (decode_envelope, decode_knock, lambda data: decode_message(tag, data)):
        try:
            decode(frame)
        except ProtocolError:
            continue


@given(st.data())
def test_a_damaged_envelope_is_an_envelope_or_a_protocol_error(data: st.DataObject) -> None:
    """What still decodes is within its ranges."""
    frame = bytearray(encode(GOOD, None)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        frame[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode_envelope(bytes(frame))
    except ProtocolError:
        return
    assert 0 <= found.kind < len(Kind)
    assert 0 <= found.credit <= MOST_CREDIT
    assert math.isfinite(found.timeout)
    assert found.to.name
    assert found.frm.epoch >= 0


def pending(credit: int) -> PendingStream:
    """A stream that was asked for with so much credit."""
    return PendingStream(Address("source", 1), None, "", credit)  # type: ignore[arg-type]


async def test_a_source_that_ignores_credit_ends_its_stream() -> None:
    """What came within the credit is delivered; more is not kept, and is an error."""
    stream = pending(3)
    for number in range(10):
        stream.take(Kind.ITEM, Say("x", number))
    assert len(stream.items) == 3
    assert [await stream.get() for _ in range(3)] == [Say("x", number) for number in range(3)]
    with pytest.raises(ProtocolError, match="more items than it had credit for"):
        await stream.get()


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Kind.REPLY, Say("x")), (Kind.ITEM, None), (Kind.FAULT, None), (Kind.FAULT, Say("x"))],
)
async def test_what_is_no_answer_to_a_stream_ends_it(kind: Kind, message: Message | None) -> None:
    """It would otherwise be waited for until the deadline."""
    stream = pending(3)
    stream.take(kind, message)
    with pytest.raises(ProtocolError, match="answered a stream"):
        await stream.get()


async def test_a_last_item_needs_no_credit() -> None:
    """As the protocol says, and a fault comes after what was sent before it."""
    stream = pending(1)
    stream.take(Kind.ITEM, Say("x", 0))
    stream.take(Kind.END, Say("x", 1))
    assert [await stream.get() for _ in range(3)] == [Say("x", 0), Say("x", 1), None]
    stream = pending(1)
    stream.take(Kind.ITEM, Say("x", 0))
    stream.take(Kind.FAULT, Fault("overloaded", "full"))
    assert await stream.get() == Say("x", 0)
    with pytest.raises(Exception, match="full"):
        await stream.get()
