"""Asking again: the key by which a client says that it is the same request, and where in its stream it is.

A request with a key (`Idempotency-Key`, or `rid` of /generate) has ids in the node that are made of tenant, key and choice, and without a seed of its own a seed
made of them. So who sends the same request with the same key again is attached to what still runs, gets the end of what has ended, or has it computed
again with the same tokens. Every event of its stream has an `id:`; `Last-Event-ID` gets what comes after that one.

An id tells for each choice how much of it the client has, with dots between: the number of output tokens; behind it ``e`` if that is all of it, with its end; behind that
``-2`` if the last two events that these tokens made are missing. ``.u`` behind all of them: and the usage. ``12.8e.30-1``, ``12e.8e.31e.u``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from starlette.datastructures import Headers

from sgl_actors.actors.gateway.sse import EventWriter
from sgl_actors.errors import InvalidRequest

KEY = "Idempotency-Key"
LAST = "Last-Event-ID"
CHAT, COMPLETION, NATIVE = "chatcmpl", "cmpl", "gen"
"""What ids of requests begin with, by route."""
MOST_MARKED = 128
"""Streams of more choices have no ids, for each event would carry that many numbers."""

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_PLACE = re.compile(r"(0|[1-9][0-9]{0,8})(e?)(?:-([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class Place:
    """How much of one choice a client has.

    Attributes:
        tokens: what that many output tokens made.
        ended: and its end; then it is all of it.
        left: but for that many events, the last ones of these.
    """

    tokens: int = 0
    ended: bool = False
    left: int = 0

    def __str__(self) -> str:
        return f"{self.tokens}{'e' * self.ended}{f'-{self.left}' if self.left else ''}"


@dataclass(frozen=True, slots=True)
class Retry:
    """What a client said so that it may ask again.

    Attributes:
        key: its name for the request; "" for none.
        param: where that came from.
        digest: hexadecimal; equal for the same key of the same tenant, and otherwise random.
        last: `Last-Event-ID`, "" without one.
    """

    key: str
    param: str
    digest: str
    last: str = ""

    @classmethod
    def of(cls, headers: Headers, tenant: str, *, stream: bool, rid: str | list[str] | None = None) -> Retry:
        """Read from a request's headers, and its `rid` if it has one.

        Raises:
            InvalidRequest: a key that is none, or `Last-Event-ID` where nothing can be resumed.
        """
        key, param = headers.get(KEY.lower(), ""), KEY
        if KEY.lower() in headers and not _KEY.fullmatch(key):
            raise InvalidRequest(f"{KEY}: it is not 1 to 255 visible characters of ASCII", param=KEY)
        if not key and rid:
            key, param = "\n".join([rid] if isinstance(rid, str) else rid), "rid"
        last = headers.get(LAST.lower(), "").strip()
        if last and not key:
            raise InvalidRequest(
                f"{LAST}: only a request with an {KEY} (or a rid) can be resumed, and with the same one again",
                param=LAST,
            )
        if last and not stream:
            raise InvalidRequest(f"{LAST}: only a stream can be resumed", param=LAST)
        if not key:
            return cls("", "", secrets.token_hex(16))
        return cls(key, param, _digest(tenant, key), last)

    def stem(self, prefix: str) -> str:
        """Id of the request, and the stem of its ids in the node."""
        return f"{prefix}-{self.digest[:24]}"

    def seed(self, number: int) -> int | None:
        """Seed of prompt `number` where the request names none, below 2**63; None without a key: any."""
        return self._number(f"seed/{number}") if self.key else None

    def call_id(self, choice: int, number: int) -> str:
        """Id of a tool call."""
        return f"call_{self._number(f'call/{choice}/{number}'):016x}"

    def _number(self, what: str) -> int:
        made = hashlib.blake2b(f"{self.digest}/{what}".encode(), digest_size=8)
        return int.from_bytes(made.digest(), "big") >> 1

    def named(self, error: InvalidRequest) -> InvalidRequest:
        """The node's refusal of an id that is in use, in the client's words; any other error as it is."""
        if not self.key or error.param != "id":
            return error
        return InvalidRequest(
            f"{self.param}: {self.key[:80]!r} is the key of another request that runs or has just lost its client; take a new one",
            param=self.param,
        )

    def places(self, choices: int) -> tuple[list[Place], bool]:
        """Where the client is in each of the choices, and whether it has the usage.

        Raises:
            InvalidRequest: that is not in the form of our ids, or of another number of choices.
        """
        if not self.last:
            return [Place()] * choices, False
        if choices > MOST_MARKED:
            raise InvalidRequest(
                f"{LAST}: streams of more than {MOST_MARKED} choices cannot be resumed", param=LAST
            )
        parts = self.last.split(".")
        told = parts[-1] == "u"
        found = [_PLACE.fullmatch(part) for part in parts[: len(parts) - told]]
        places = [Place(int(one[1]), bool(one[2]), int(one[3] or 0)) for one in found if one is not None]
        if len(places) != len(found) or (
            told and not all(one == Place(one.tokens, ended=True) for one in places)
        ):
            raise InvalidRequest(f"{LAST}: {self.last[:80]!r} is no id of an event of this node", param=LAST)
        if len(places) != choices:
            raise InvalidRequest(
                f"{LAST}: it tells of {len(places)} choices, the request has {choices}", param=LAST
            )
        return places, told


def stems(tenant: str, key: str) -> list[str]:
    """Ids of the requests that a tenant may have under a key."""
    retry = Retry(key, "", _digest(tenant, key))
    return [retry.stem(prefix) for prefix in (CHAT, COMPLETION, NATIVE)]


def _digest(tenant: str, key: str) -> str:
    return hashlib.blake2b(f"{len(tenant)}/{tenant}/{key}".encode(), digest_size=16).hexdigest()


class Trail:
    """Writes the events of a stream that its client does not have yet, with their ids.

    Args:
        retry: of the request.
        choices: how many it has.
    """

    def __init__(self, retry: Retry, choices: int) -> None:
        self._since, self._told = retry.places(choices)
        self._marked = bool(retry.key) and choices <= MOST_MARKED
        self._places = [*self._since]
        self._begun = [place == Place() for place in self._since]

    @property
    def since(self) -> Sequence[Place]:
        """Where the client was in each choice when it asked."""
        return self._since

    async def tell(
        self,
        writer: EventWriter,
        index: int,
        events: Sequence[msgspec.Struct],
        tokens: int,
        *,
        ended: bool,
    ) -> None:
        """Write the events of the next chunk of choice `index`, after which it has that many tokens.

        The first chunk of a choice that goes on is all that the client has of it, and of that only what it lacks is written.

        Raises:
            InvalidRequest: the client lacks more events than there were.
        """
        skip = 0
        if not self._begun[index]:
            self._begun[index] = True
            skip = len(events) - self._since[index].left
            if skip < (self._since[index].left > 0):
                raise InvalidRequest(
                    f"{LAST}: {self._since[index]} is no place of choice {index}: there are {len(events)} events",
                    param=LAST,
                )
        for number, event in enumerate(events[skip:], skip + 1):
            self._places[index] = Place(tokens, ended, len(events) - number)
            await writer.data(event, self._mark())

    async def usage(self, writer: EventWriter, event: msgspec.Struct) -> None:
        """Write the usage, behind the end of all choices."""
        if not self._told:
            self._told = True
            await writer.data(event, self._mark())

    async def done(self, writer: EventWriter) -> None:
        """Write the end marker; who has it only needs no more, so it is always written."""
        await writer.done(self._mark())

    def _mark(self) -> str:
        if not self._marked:
            return ""
        return ".".join([*map(str, self._places), *(["u"] if self._told else [])])
