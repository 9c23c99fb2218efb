"""A kernel of its own for programs that reach their node over HTTP: it hosts their streams and nothing else."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport


class LocalKernel:
    """A `NodeHandle` without a node."""

    def __init__(self, system: System) -> None:
        self._system = system

    def context(self, name: str) -> Context:
        """A client's context."""
        return self._system.spawn(Outside, name).context

    async def close(self) -> None:
        """End all streams."""
        await self._system.close()


async def open_kernel(config: Mapping[str, Any] | None = None, *, force_codec: bool = False) -> LocalKernel:
    """Open it. `force_codec` has messages encoded as between processes (tests)."""
    endpoint = f"local://{os.getpid()}-{secrets.token_hex(4)}"
    system = System("programs", LocalTransport(LocalHub(), endpoint), config=config, force_codec=force_codec)
    await system.open()
    return LocalKernel(system)
