"""Routes about the cache: what it holds, pins, its events, an export.

A tenant sees and changes its own part; what concerns all is the business of the tenant ``admin``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.cache.messages import Event, Events, Exported, Pinned
from sgl_actors.actors.gateway.cache_types import (
    CacheAnswer,
    CacheEvent,
    Pages,
    PinAnswer,
    PinBody,
    PinsAnswer,
    UnpinAnswer,
)
from sgl_actors.actors.gateway.limits import check_ids, check_pin, check_salt
from sgl_actors.actors.gateway.service import Service, exchange_of, reply, service_of
from sgl_actors.actors.gateway.sse import EventStream, EventWriter, LineWriter, until_gone
from sgl_actors.actors.gateway.tools import told
from sgl_actors.actors.gateway.turns import parse_messages
from sgl_actors.actors.node.client import describe_edge, prompt_counts, split_namespace
from sgl_actors.actors.tokenizer.messages import Tokenize
from sgl_actors.errors import InvalidRequest, PinNotFound

_EVENT_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")
RECONNECT = b"retry: 1000\n\n"
"""Milliseconds after which a client whose connection broke comes back."""


async def cache(request: Request) -> Response:
    """Page accounting, hit rate and pins."""
    service = service_of(request)
    pool = await service.node.cache()
    models = await service.view.models()
    prompt, cached = prompt_counts(await service.view.actors(), models[0].suffix if models else "")
    pages = Pages(pool.total, pool.free, pool.cached, pool.leased, pool.locked, pool.pinned, pool.evicted)
    rate = cached / prompt if prompt else None
    return reply(
        CacheAnswer(
            pool.page_size, pages, pool.tokens, pool.leases, prompt, cached, rate, await _pins(request)
        )
    )


async def pins(request: Request) -> Response:
    """The pins that the asker may see."""
    return reply(PinsAnswer(await _pins(request)))


async def pin(request: Request) -> Response:
    """Compute a prefix, unless it is cached, and keep it."""
    service, exchange = service_of(request), exchange_of(request)
    body = await service.read(request, PinBody)
    check_pin(body.ttl, body.name)
    salt = check_salt(body.cache_salt)
    info = await service.view.admit()
    ids = await _ids(service, body, info.vocabulary)
    exchange.prompts, exchange.prompt_tokens = 1, len(ids)
    try:
        pinned = await until_gone(
            request.receive,
            service.node.pin(
                ids,
                ttl=body.ttl,
                name=body.name or "",
                tenant=exchange.tenant.name,
                salt=salt,
                timeout=service.options.timeout,
                trace=exchange.trace,
            ),
        )
    except InvalidRequest as error:
        if error.param != "key":
            raise
        raise InvalidRequest(error.message, param=_source(body)) from None
    return reply(_answer(pinned))


async def unpin(request: Request) -> Response:
    """Let go of one's own pin with that name and `cache_salt`, "" for none; the admin's `tenant` says whose."""
    service, tenant = service_of(request), exchange_of(request).tenant
    name = request.path_params["name"]
    query = _query(request, "cache_salt", "tenant")
    owner, salt = query.get("tenant", tenant.name), check_salt(query.get("cache_salt"))
    if owner != tenant.name:
        tenant.check_admin("unpinning what another tenant has pinned")
    place = (owner, salt)
    pins = tenant.visible(await service.node.pins())
    found = [pin for pin in pins if pin.name == name and split_namespace(pin.namespace) == place]
    if not found:
        with_salt = f"cache_salt {salt[:64]!r}" if salt else "no cache_salt"
        raise PinNotFound(
            f"tenant {owner[:64]!r} has no pin {name[:64]!r} with {with_salt}; /cache/pins lists them",
            param="name",
        )
    await service.node.unpin(found)
    return reply(UnpinAnswer([_answer(pin) for pin in found]))


async def events(request: Request) -> Response:
    """Server-sent events of what is stored and removed; `Last-Event-ID` goes on where a connection broke."""
    service, exchange = service_of(request), exchange_of(request)
    exchange.tenant.check_admin("watching the cache")
    since = event_id(request.headers.get("last-event-id"))
    await service.node.cache()  # what is wrong now is said with a status of its own

    async def produce(writer: EventWriter) -> None:
        await writer.write(RECONNECT)
        batches = cast("AsyncGenerator[Events, None]", service.node.events(since))
        with service.watching():
            async with aclosing(batches):
                async for batch in batches:
                    await writer.write(b"".join(_event_lines(batch)))

    return service.stream(request, produce)


async def export(request: Request) -> Response:
    """Everything cached as JSON lines, an edge of the tree each: of all, or of the asker's namespace with `cache_salt`."""
    service, exchange = service_of(request), exchange_of(request)
    query = _query(request, "cache_salt", "tokens")
    salt, with_tokens = check_salt(query.get("cache_salt")), _flag(query, "tokens")
    everything = exchange.tenant.admin and not salt
    namespace = None if everything else exchange.tenant.namespace(salt)
    await service.node.cache()

    async def produce(writer: EventWriter) -> None:
        parts = cast("AsyncGenerator[Exported, None]", service.node.export(namespace))
        async with aclosing(parts):
            async for part in parts:
                lines = [
                    msgspec.json.encode(describe_edge(edge, with_tokens=with_tokens)) for edge in part.edges
                ]
                await writer.write(b"\n".join([*lines, b""]))

    return EventStream(produce, trace=exchange.trace, on_error=exchange.fail, ping=None, writer=LineWriter)


def event_id(text: str | None) -> tuple[int, int] | None:
    """(incarnation, number) of a `Last-Event-ID`; None without one.

    Raises:
        InvalidRequest: it is none of ours.
    """
    if not text:
        return None
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            f"Last-Event-ID: expected INCARNATION-NUMBER, got {text[:64]!r}", param="Last-Event-ID"
        )
    return int(found[1]), int(found[2])


def _event_lines(batch: Events) -> list[bytes]:
    """Only the last of a batch has an id: who comes back with it has all before; some events may come twice."""
    lines = [b"data: %s\n\n" % msgspec.json.encode(_event(event)) for event in batch.events]
    if lines and batch.number >= 0:
        lines[-1] = b"id: %d-%d\n" % (batch.incarnation, batch.number) + lines[-1]
    return lines


def _event(event: Event) -> CacheEvent:
    tenant, salt = split_namespace(event.namespace)
    return CacheEvent(event.kind, tenant, salt, event.digest.hex(), event.parent.hex(), event.token_ids)


async def _pins(request: Request) -> list[PinAnswer]:
    everybody = await service_of(request).node.pins()
    return [_answer(pin) for pin in exchange_of(request).tenant.visible(everybody)]


def _answer(pin: Pinned) -> PinAnswer:
    tenant, salt = split_namespace(pin.namespace)
    return PinAnswer(pin.name, tenant, salt, pin.tokens, pin.held, round(pin.expires_in, 3))


def _source(body: PinBody) -> str:
    """The field that the prefix stands in."""
    return "text" if body.text is not None else "messages" if body.messages is not None else "input_ids"


async def _ids(service: Service, body: PinBody, vocabulary: int) -> list[int]:
    """The prefix of a body in ids."""
    if sum(given is not None for given in (body.text, body.input_ids, body.messages)) != 1:
        raise InvalidRequest("text: give exactly one of text, input_ids and messages", param="text")
    if body.input_ids is not None:
        check_ids(body.input_ids, vocabulary, "input_ids")
        ids = body.input_ids
    elif body.messages is not None:
        messages = parse_messages(body.messages)
        wanted = Tokenize(messages=messages, add_generation_prompt=False, tools=told(body.tools))
        ids = (await service.node.tokenize(wanted)).token_ids
    else:
        ids = (await service.node.tokenize(Tokenize(text=body.text))).token_ids
    if not ids:
        field = _source(body)
        raise InvalidRequest(f"{field}: it is empty; a prefix has at least one token", param=field)
    return ids


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query parameters, which may be these; `InvalidRequest` for another one or for one that is there twice."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise InvalidRequest(
                f"{name[:64]}: no parameter of this route, which has {' and '.join(names)}", param=name[:64]
            )
        if name in given:
            raise InvalidRequest(f"{name}: it is given twice", param=name)
        given[name] = value
    return given


def _flag(query: Mapping[str, str], name: str) -> bool:
    """A query parameter that is true or false; absent it is false."""
    text = query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name}: expected true or false, got {text[:64]!r}", param=name)
    return text in ("true", "1")
