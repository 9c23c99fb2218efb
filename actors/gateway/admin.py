"""Routes that act on the node: empty the cache, abort requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.native_types import AbortBody
from sgl_actors.actors.gateway.service import exchange_of, reply, service_of
from sgl_actors.errors import InvalidRequest


async def flush_cache(request: Request) -> Response:
    """Empty the prefix cache; 400 while requests run or wait."""
    service = service_of(request)
    flushed = await service.node.flush()
    if not flushed.done:
        raise InvalidRequest(f"the cache is not flushed: {flushed.busy} requests run or wait")
    return reply({"success": True, "message": "Cache flushed."})


async def abort_request(request: Request) -> Response:
    """Abort by the `rid` of /generate or the `id` of an answer, or everything.

    An unknown id is passed on to the node, which remembers it for a while, and is no error.
    """
    service = service_of(request)
    body = await service.read(request, AbortBody)
    if body.abort_all:
        service.node.cancel([], everything=True)
    elif body.rid:
        known = service.running.get(body.rid)
        service.node.cancel([body.rid] if known is None else known)
    else:
        raise InvalidRequest("rid: give rid or abort_all", param="rid")
    service.log.info("abort asked for", all=bool(body.abort_all), trace=exchange_of(request).trace)
    return reply({"success": True})
