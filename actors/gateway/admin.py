"""Routes that act on the node: empty the cache, abort requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.native_types import AbortBody
from sgl_actors.actors.gateway.retry import stems
from sgl_actors.actors.gateway.service import Service, exchange_of, reply, service_of
from sgl_actors.actors.gateway.tenants import Tenant
from sgl_actors.errors import InvalidRequest


async def flush_cache(request: Request) -> Response:
    """Empty the prefix cache; 400 while requests run or wait."""
    service = service_of(request)
    exchange_of(request).tenant.check_admin("flushing the cache")
    flushed = await service.node.flush()
    if not flushed.done:
        raise InvalidRequest(f"the cache is not flushed: {flushed.busy} requests run or wait")
    return reply({"success": True, "message": "Cache flushed."})


async def abort_request(request: Request) -> Response:
    """Abort by the `rid` of /generate, the `id` of an answer or its `Idempotency-Key`, or everything; by the key also what has lost its client.

    An unknown id is no error. Another tenant's is unknown.
    """
    service, exchange = service_of(request), exchange_of(request)
    body = await service.read(request, AbortBody)
    if body.abort_all:
        exchange.tenant.check_admin("aborting all requests")
        service.cancel([], everything=True)
    elif body.rid:
        ids = _ids(service, exchange.tenant, body.rid)
        service.cancel(ids, stems=stems(exchange.tenant.name, body.rid))
    else:
        raise InvalidRequest("rid: give rid or abort_all", param="rid")
    service.log.info("abort asked for", all=bool(body.abort_all), trace=exchange.trace)
    return reply({"success": True})


def _ids(service: Service, tenant: Tenant, rid: str) -> list[str]:
    """The node's ids of what `tenant` calls `rid`; for the admin of what anybody does, or else that very id."""
    names = [name for name in service.running if name[1] == rid and (tenant.admin or name[0] == tenant.name)]
    ids = [request for name in names for request in service.running[name]]
    return ids or ([rid] if tenant.admin else [])
