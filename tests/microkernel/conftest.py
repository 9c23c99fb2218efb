"""Two kernels linked by either transport."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport, Transport
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport


class Pair:
    """Kernel `here`, with a context to ask from, and kernel `there`."""

    def __init__(self, here: System, there: System) -> None:
        self.here, self.there = here, there
        self.ctx = here.spawn(Outside, "asker").context

    def spawn(self, actor: type, name: str) -> object:
        """Start an actor on `there` and announce it on both sides, as a root would."""
        return self.there.spawn(actor, name, on_ready=self._announce)

    def _announce(self, address: object) -> None:
        self.here.name_up(address)  # type: ignore[arg-type]
        self.there.name_up(address)  # type: ignore[arg-type]


@pytest.fixture(params=["inside", "local", "zmq"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Both in one kernel (with the codec forced), or in two kernels over each transport."""
    with tempfile.TemporaryDirectory() as folder:
        hub = LocalHub()

        def transport(name: str) -> Transport:
            if request.param == "zmq":
                return ZmqTransport(f"ipc://{Path(folder) / name}.ipc")
            return LocalTransport(hub, f"local://{name}")

        here = System("here", transport("here"), force_codec=True)
        there = here if request.param == "inside" else System("there", transport("there"), force_codec=True)
        await here.open()
        if there is not here:
            await there.open()
        yield Pair(here, there)
        await here.close()
        if there is not here:
            await there.close()
