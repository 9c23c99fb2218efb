"""What `sgl-actors cache` and `sgl-actors scheduler` do: they ask the running node over its local socket.

Whoever may open that socket runs the node; it needs no key, and sees all tenants.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TextIO, cast

import msgspec

from sgl_actors.actors.cache.messages import Exported, Pinned, Pool
from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.actors.node.banner import counted
from sgl_actors.actors.node.client import (
    NodeClient,
    check_changes,
    describe_edge,
    namespace_of,
    prompt_counts,
    split_namespace,
)
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.scheduler.messages import Configuration, Configure
from sgl_actors.actors.tokenizer.messages import ChatMessage, Tokenize
from sgl_actors.cli.node import ASK_TIMEOUT, ROOT, client
from sgl_actors.cli.show import table, write_json
from sgl_actors.errors import ConfigError, InvalidRequest, Overloaded, PinNotFound

LABEL_WIDTH = 13
MOST_NAMES = 10
"""Pins that a message names."""
SALT_WIDTH = 24
"""Characters of a salt that are shown to people."""


class Namespace(msgspec.Struct):
    """What one tenant, with one salt, has in the cache."""

    tenant: str
    cache_salt: str
    tokens: int = 0


class Summary(msgspec.Struct, frozen=True):
    """What the cache holds and how much it was of use."""

    pool: Pool
    prompt_tokens: int
    cached_tokens: int
    namespaces: list[Namespace]
    pins: list[Pinned]


class Turn(msgspec.Struct, frozen=True):
    """A message of a file for `cache pin --messages`."""

    role: str
    content: str


async def summarise(record: NodeRecord) -> Summary:
    """Ask cache and scheduler; the tree is gone through once, for whose tokens are in it."""
    async with client(record) as context:
        node = NodeClient(context)
        actors = await context.call(ROOT, ListActors(), Actors, timeout=ASK_TIMEOUT)
        spaces: dict[str, Namespace] = {}
        async with aclosing(cast("AsyncGenerator[Exported, None]", node.export())) as parts:
            async for part in parts:
                for edge in part.edges:
                    space = spaces.setdefault(edge.namespace, Namespace(*split_namespace(edge.namespace)))
                    space.tokens += len(edge.token_ids)
        largest = sorted(spaces.values(), key=lambda space: -space.tokens)
        return Summary(await node.cache(), *prompt_counts(actors, node.suffix), largest, await node.pins())


def show_summary(summary: Summary, *, as_json: bool, stream: TextIO) -> None:
    """For people: sums first, then a table of namespaces and one of pins."""
    pool, prompt, cached = summary.pool, summary.prompt_tokens, summary.cached_tokens
    if as_json:
        write_json(
            {
                "pool": msgspec.structs.asdict(pool),
                "prompt_tokens": prompt,
                "cached_tokens": cached,
                "hit_rate": cached / prompt if prompt else None,
                "namespaces": msgspec.to_builtins(summary.namespaces),
                "pins": [_pin_fields(pin) for pin in summary.pins],
            },
            stream,
        )
        return
    size = "" if pool.page_size == 1 else f" of {counted(pool.page_size, 'token')}"
    rate = (
        f"{cached / prompt:.1%}: {cached:,} of {counted(prompt, 'prompt token')}"
        if prompt
        else "no prompts yet"
    )
    lines = {
        "pool": f"{counted(pool.total, 'page')}{size}: {pool.free:,} free, {pool.cached:,} cached, {pool.leased:,} leased",
        "cached": f"{counted(pool.tokens, 'token')}; {pool.locked:,} pages in use, {pool.pinned:,} pinned; {pool.evicted:,} evicted so far",
        "hit rate": rate,
    }
    print("\n".join(f"{label:<{LABEL_WIDTH}}{text}" for label, text in lines.items()), file=stream)
    if summary.namespaces:
        everything = sum(one.tokens for one in summary.namespaces)
        rows = (
            (_label(one.tenant, one.cache_salt), f"{one.tokens:,}", f"{one.tokens / everything:.1%}")
            for one in summary.namespaces
        )
        print(file=stream)
        table(("TENANT", "TOKENS", "SHARE"), rows, stream, right=1)
    if summary.pins:
        cells = (
            (
                pin.name,
                _label(*split_namespace(pin.namespace)),
                f"{pin.tokens:,}",
                f"{pin.held:,}",
                format_seconds(pin.expires_in),
            )
            for pin in summary.pins
        )
        print(file=stream)
        table(("PIN", "TENANT", "TOKENS", "HELD", "EXPIRES IN"), cells, stream, right=2)


def read_prefix(text: str | None, messages: str | None) -> Tokenize:
    """What to tokenise; a chat ends without the generation prompt, so that all its continuations begin with it.

    Raises:
        InvalidRequest: it is empty, or no list of messages.
    """
    if messages is None:
        if not text:
            raise InvalidRequest("cache pin: the text is empty; a prefix has at least one token")
        return Tokenize(text=text)
    try:
        turns = msgspec.json.decode(messages.encode(), type=list[Turn])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f'--messages: expected [{{"role": …, "content": …}}]: {error}') from None
    if not turns:
        raise InvalidRequest("--messages: there is none")
    return Tokenize(
        messages=[ChatMessage(turn.role, turn.content) for turn in turns], add_generation_prompt=False
    )


async def pin_prefix(
    record: NodeRecord, prefix: Tokenize, *, ttl: float, name: str, tenant: str, salt: str
) -> Pinned:
    """Tokenise, compute and hold a prefix."""
    async with client(record) as context:
        node = NodeClient(context)
        ids = (await node.tokenize(prefix)).token_ids
        return await node.pin(ids, ttl=ttl, name=name, tenant=tenant, salt=salt)


def show_pinned(pinned: Pinned, *, as_json: bool, stream: TextIO) -> None:
    """Its name, which may have been drawn, and how much of it is held."""
    if as_json:
        write_json(_pin_fields(pinned), stream)
        return
    held = "all held" if pinned.held == pinned.tokens else f"{pinned.held:,} held"
    print(
        f"pinned {pinned.name}: {counted(pinned.tokens, 'token')}, {held}, for {format_seconds(pinned.expires_in)}",
        file=stream,
    )


async def unpin_name(record: NodeRecord, name: str, tenant: str | None, salt: str | None) -> Pinned:
    """Let go of the one pin of that name, of that tenant and with that salt where they are given; return it as it was.

    Raises:
        PinNotFound: there is none.
        ConfigError: there are several.
    """
    async with client(record) as context:
        node = NodeClient(context)
        pins = [pin for pin in await node.pins() if _owned(pin, tenant, salt)]
        found = [pin for pin in pins if pin.name == name]
        if not found:
            whose = "" if tenant is None else f" of tenant {tenant}"
            with_salt = "" if salt is None else f" with salt {salt!r}" if salt else " without salt"
            known = _some(sorted({pin.name for pin in pins})) or "none"
            raise PinNotFound(f"no pin {name[:80]!r}{whose}{with_salt}; there are: {known}")
        if len(found) > 1:
            owners = _some([_label(*split_namespace(pin.namespace)) for pin in found])
            raise ConfigError(
                f"several pins are called {name!r}, of {owners}: say which with --tenant and --salt"
            )
        await node.unpin(found)
        return found[0]


def _owned(pin: Pinned, tenant: str | None, salt: str | None) -> bool:
    owner, salted = split_namespace(pin.namespace)
    return tenant in (None, owner) and salt in (None, salted)


def _some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


async def flush_cache(record: NodeRecord) -> int:
    """Empty the cache; return how many tokens are left.

    Raises:
        Overloaded: requests run or wait.
    """
    async with client(record) as context:
        node = NodeClient(context)
        flushed = await node.flush()
        if not flushed.done:
            raise Overloaded(
                f"the cache is not flushed: {counted(flushed.busy, 'request')} running or waiting"
            )
        return (await node.cache()).tokens


async def export_lines(
    record: NodeRecord,
    tenant: str | None,
    salt: str,
    *,
    with_tokens: bool,
    write: Callable[[bytes], object],
) -> None:
    """Write everything cached, or one namespace of it, a line per edge."""
    async with client(record) as context:
        namespace = None if tenant is None else namespace_of(tenant, salt)
        export = NodeClient(context).export(namespace)
        async with aclosing(cast("AsyncGenerator[Exported, None]", export)) as parts:
            async for part in parts:
                for edge in part.edges:
                    write(msgspec.json.encode(describe_edge(edge, with_tokens=with_tokens)) + b"\n")


async def configure(record: NodeRecord, changes: Mapping[str, Any]) -> tuple[Configuration, Configuration]:
    """What was in force, and what is after the changes; those that are None are none.

    Raises:
        ConfigError: a value that the scheduler cannot have.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        check_changes(Configure(**given))
    except InvalidRequest as error:
        raise ConfigError(f"--{error.message}") from None
    async with client(record) as context:
        node = NodeClient(context)
        before = await node.configure()
        return before, await node.configure(**given) if given else before


def show_configuration(before: Configuration, now: Configuration, *, as_json: bool, stream: TextIO) -> None:
    """What is in force, and beside what has changed what was."""
    if as_json:
        write_json(msgspec.structs.asdict(now), stream)
        return
    old = msgspec.structs.asdict(before)
    for name, value in msgspec.structs.asdict(now).items():
        was = "" if old[name] == value else f" (was {_literal(old[name])})"
        print(f"{name:<{LABEL_WIDTH}}{_literal(value)}{was}", file=stream)


def format_seconds(seconds: float) -> str:
    """A time for people: ``45 s``, ``9 min 58 s``, ``1 h 5 min``, ``2 d 3 h``."""
    whole = max(0, round(seconds))
    for size, unit, rest, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            part = whole % size // rest
            return f"{whole // size} {unit}" + (f" {part} {smaller}" if part else "")
    return f"{whole} s"


def _label(tenant: str, salt: str) -> str:
    shown = salt if len(salt) <= SALT_WIDTH else f"{salt[:SALT_WIDTH]}…"
    return f"{tenant} (salt {shown})" if salt else tenant


def _pin_fields(pin: Pinned) -> dict[str, Any]:
    tenant, salt = split_namespace(pin.namespace)
    fields = msgspec.structs.asdict(pin)
    del fields["namespace"]
    return {"name": fields.pop("name"), "tenant": tenant, "cache_salt": salt, **fields}


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
