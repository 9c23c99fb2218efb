"""A kernel of its own for programs that reach their node over HTTP: it hosts their streams and nothing else."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import traceback
from collections.abc import Mapping
from typing import Any, cast

import structlog

from sgl_actors.actors.microkernel import Actor, Address, Context
from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.logs import hide_private
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.errors import ConfigError, NotReady

LOG = "sgl_actors"
"""Name of the standard library's logger that gets the lines; without a handler of the user's own they go nowhere."""

_sink = logging.getLogger(LOG)
_sink.addHandler(logging.NullHandler())


def quiet(address: Address) -> structlog.stdlib.BoundLogger:
    """A logger for a user's process, who gets errors as exceptions: one line each, no traceback, no text of prompts."""
    logger = structlog.wrap_logger(
        _sink,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            name_error,
            hide_private,
            structlog.processors.KeyValueRenderer(key_order=["event", "actor"]),
            without_traceback,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )
    return cast("structlog.stdlib.BoundLogger", logger.bind(actor=address.name, epoch=address.epoch))


def name_error(_logger: Any, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Of an exception only its class and where it was raised: its text, and a frame's variables, may hold a prompt."""
    error = line.pop("exc_info", None)
    if error is True or isinstance(error, tuple):
        error = sys.exc_info()[1] if error is True else error[1]
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__, limit=-1)
        if frames:
            line["at"] = f"{frames[0].filename}:{frames[0].lineno}"
    elif "error" in line:
        line["error"] = str(line["error"]).partition("(")[0][:80]
    return line


def without_traceback(_logger: Any, _method: str, line: Any) -> tuple[tuple[Any], dict[str, bool]]:
    """`exception` of a standard logger would add one, and with it the error's text."""
    return (line,), {"exc_info": False}


class LocalKernel:
    """A `NodeHandle` without a node."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._hosted: list[Cell] = []

    @property
    def gone(self) -> bool:
        """Whether an actor that it hosts has ended, which nobody starts again, or it was told that its node has."""
        return self._system.registry.node_gone or any(cell.ended.is_set() for cell in self._hosted)

    async def host(self, actor: type[Actor], name: str, config: Mapping[str, Any]) -> None:
        """Start an actor beside the streams, and wait until it is ready.

        Raises:
            ConfigError: what it said of its settings.
            NotReady: it did not start.
        """
        cell = self._system.spawn(actor, name, config)
        await cell.ready.wait()
        if cell.state != "running":
            await cell.ended.wait()
            raise (ConfigError if cell.exit.fatal else NotReady)(cell.exit.reason)
        self._hosted.append(cell)

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
    system = System("programs", transport, config=config, logger=quiet, force_codec=force_codec)
    await system.open()
    return LocalKernel(system)
