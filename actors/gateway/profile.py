"""POST /profile: where the node's time goes."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.service import exchange_of, reply, service_of
from sgl_actors.actors.node.client import NodeProfile, ProcessRow, Row, trace


class ProfileBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /profile.

    Attributes:
        seconds: how long, at most 60.
        trace: answer with every single operation, too.
    """

    seconds: float = 5.0
    trace: bool = False


class ProfileAnswer(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        seconds: wall time of the worker, which `rows` divide.
        steps, tokens, sampled: what it did in it.
        processes: CPU load in cores, messages and busy seconds by actor, of every process.
        trace: for chrome://tracing or Perfetto, if asked for.
    """

    seconds: float
    steps: int
    tokens: int
    sampled: int
    threads: int
    rows: list[Row]
    processes: list[ProcessRow]
    trace: dict[str, Any] | None = None


async def profile(request: Request) -> Response:
    """Watch the node for some seconds; 503 while another profile is being taken."""
    service, exchange = service_of(request), exchange_of(request)
    exchange.tenant.check_admin("profiling the node")
    body = await service.read(request, ProfileBody)
    found = await service.node.profile(body.seconds, slices=body.trace)
    service.log.info("profiled", seconds=body.seconds, steps=found.steps, trace=exchange.trace)
    return reply(_answer(found, with_trace=body.trace))


def _answer(found: NodeProfile, *, with_trace: bool) -> ProfileAnswer:
    return ProfileAnswer(
        found.seconds,
        found.steps,
        found.tokens,
        found.sampled,
        found.threads,
        found.rows,
        found.processes,
        trace(found) if with_trace else None,
    )
