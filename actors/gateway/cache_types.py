"""Bodies of the routes about cache and scheduling."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sgl_actors.actors.cache.messages import LONGEST_PIN, PIN_NAME, SHORTEST_PIN
from sgl_actors.actors.gateway.openai_types import ChatTurn, Count, ToolSpec

Ttl = Annotated[float, Meta(extra_json_schema={"minimum": SHORTEST_PIN, "maximum": LONGEST_PIN})]
PinName = Annotated[str, Meta(extra_json_schema={"pattern": f"^{PIN_NAME}$"})]
"""The limits of both are for readers of the schema; `limits.check_pin` has the words for who breaks them."""


class PinBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /cache/pin: exactly one of `text`, `input_ids` and `messages`, and how many seconds to keep it.

    Messages are rendered without the generation prompt, so that every continuation of the chat begins with them; `tools` are told of as in a chat. Without a `name`
    the node draws one; a name that is there already is replaced.
    """

    ttl: Ttl
    text: str | None = None
    input_ids: list[int] | None = None
    messages: list[ChatTurn] | None = None
    tools: list[ToolSpec] | None = None
    name: PinName | None = None
    cache_salt: str | None = None


class PinAnswer(msgspec.Struct, frozen=True):
    """A pin: `tokens` of its prefix, of which the leading `held` are cached and kept; `expires_in` seconds are left."""

    name: str
    tenant: str
    cache_salt: str
    tokens: int
    held: int
    expires_in: float


class Pages(msgspec.Struct, frozen=True):
    """Pages of the pool: total == free + cached + leased. Of the cached ones, requests and pins have locked some."""

    total: int
    free: int
    cached: int
    leased: int
    locked: int
    pinned: int
    evicted: int


class CacheAnswer(msgspec.Struct, frozen=True):
    """GET /cache.

    Attributes:
        page_size: tokens per page.
        pages: accounting; `evicted` counts since the cache's start.
        tokens: cached ones.
        leases: of requests that run.
        prompt_tokens: of requests admitted since the scheduler's start.
        cached_tokens: how many of those came from the cache.
        hit_rate: their ratio; null while there is none.
        pins: those that the asker may see, oldest first.
    """

    page_size: int
    pages: Pages
    tokens: int
    leases: int
    prompt_tokens: int
    cached_tokens: int
    hit_rate: float | None
    pins: list[PinAnswer]


class PinsAnswer(msgspec.Struct, frozen=True):
    """GET /cache/pins: those that the asker may see, oldest first."""

    pins: list[PinAnswer]


class UnpinAnswer(msgspec.Struct, frozen=True):
    """DELETE /cache/pin/{name}: what has been let go."""

    unpinned: list[PinAnswer]


class CacheEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event of GET /cache/events: a block of 64 tokens was stored or removed, or everything was cleared.

    Attributes:
        digest: SHA-256 in hex, of the parent's digest and the block's tokens.
        parent: digest of the block before.
        token_ids: of a stored block.
    """

    kind: Literal["stored", "removed", "cleared"]
    tenant: str = ""
    cache_salt: str = ""
    digest: str = ""
    parent: str = ""
    token_ids: list[int] = []


class SchedulerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /scheduler: what to change; what is absent or null stays.

    Attributes:
        policy: order of admission: lpm, dfs-weight, fcfs or hrrn.
        overtake: uncached tokens of later arrivals that may be admitted before a waiting request; 0: no limit.
        sharing: who shares an uncached prefix with a request that is being computed waits for it.
        reuse: false computes everything, without the cache.
        stall: times a step with prompt tokens may take of one without, while others generate; 0: no limit.
        speculation: guess tokens and check several in one pass, in requests that begin from now on.
    """

    policy: str | None = None
    overtake: Count | None = None
    sharing: bool | None = None
    reuse: bool | None = None
    stall: float | None = None
    speculation: bool | None = None


class SchedulerAnswer(msgspec.Struct, frozen=True):
    """What is in force until it is changed again, or the scheduler restarts."""

    policy: str
    overtake: int
    sharing: bool
    reuse: bool
    stall: float
    speculation: bool
