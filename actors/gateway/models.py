"""POST /models/load and /models/unload: which models the node serves, changed while it serves them. `/v1/models` lists them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.service import exchange_of, reply, service_of
from sgl_actors.actors.node.messages import LoadedModel, LoadModel, Models, UnloadModel

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Drain = Annotated[float, Meta(ge=0, le=3600)]


class LoadBody(msgspec.Struct, frozen=True):
    """`model` is a name that `sgl-actors models` lists; files are for the command line. See `LoadModel` for the rest."""

    model: Name
    name: str = ""
    replace: bool = False


class UnloadBody(msgspec.Struct, frozen=True):
    """`model` as `/v1/models` lists it; `drain`: seconds that its requests get."""

    model: Name
    drain: Drain = 600.0


class ModelsAnswer(msgspec.Struct, frozen=True):
    """What is loaded, the default one first."""

    models: list[ModelState]


class ModelState(msgspec.Struct, frozen=True):
    """One model; `state` is loading, serving or unloading."""

    id: str
    state: str


async def load(request: Request) -> Response:
    """Load a model beside those that are there; the answer comes when it serves."""
    service, exchange = service_of(request), exchange_of(request)
    exchange.tenant.check_admin("loading a model")
    body = await service.read(request, LoadBody)
    service.log.info("model load asked for", model=body.model, trace=exchange.trace)
    return reply(
        _answer(await service.node.change_models(LoadModel(body.model, body.name, body.replace, named=True)))
    )


async def unload(request: Request) -> Response:
    """Unload a model once its requests are done; the answer comes when it is gone."""
    service, exchange = service_of(request), exchange_of(request)
    exchange.tenant.check_admin("unloading a model")
    body = await service.read(request, UnloadBody)
    service.log.info("model unload asked for", model=body.model, trace=exchange.trace)
    return reply(_answer(await service.node.change_models(UnloadModel(body.model, body.drain))))


def _answer(models: Models) -> ModelsAnswer:
    return ModelsAnswer([_state(row) for row in models.rows])


def _state(row: LoadedModel) -> ModelState:
    return ModelState(row.name, row.state)
