"""A kernel of its own for programs that reach their node over HTTP: it hosts their streams and nothing else."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any, cast

import structlog

from sgl_actors.actors.microkernel import Address, Context
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport


def warnings_only(address: Address) -> structlog.stdlib.BoundLogger:
    """A logger for a user's process: warnings and worse, to standard error, never among the program's own output."""
    levels = structlog.make_filtering_bound_logger(logging.WARNING)
    logger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), wrapper_class=levels)
    return cast("structlog.stdlib.BoundLogger", logger.bind(actor=address.name, epoch=address.epoch))


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
    transport = LocalTransport(LocalHub(), endpoint)
    system = System("programs", transport, config=config, logger=warnings_only, force_codec=force_codec)
    await system.open()
    return LocalKernel(system)
