"""GET and POST /scheduler: how requests are ordered, read and switched while the node runs."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.cache_types import SchedulerAnswer, SchedulerBody
from sgl_actors.actors.gateway.service import exchange_of, reply, service_of
from sgl_actors.actors.scheduler.messages import Configuration


async def show(request: Request) -> Response:
    """What is in force."""
    return reply(_answer(await service_of(request).node.configure()))


async def switch(request: Request) -> Response:
    """Change what the body names, from the next round on; a restart of the scheduler goes back to node.toml."""
    service, exchange = service_of(request), exchange_of(request)
    exchange.tenant.check_admin("switching the scheduler")
    body = await service.read(request, SchedulerBody)
    answer = _answer(await service.node.configure(**msgspec.structs.asdict(body)))
    service.log.info("scheduler switched", trace=exchange.trace, **msgspec.structs.asdict(answer))
    return reply(answer)


def _answer(configuration: Configuration) -> SchedulerAnswer:
    return SchedulerAnswer(
        configuration.policy,
        configuration.overtake,
        configuration.sharing,
        configuration.reuse,
        configuration.stall,
        configuration.speculation,
    )
