"""Putting another class in the place of a running actor, while its mailbox is held.

The cell stays, and with it the address, the epoch, the mailbox, open requests, children and monitors; only the object that handles the messages changes. So nobody
else notices: no call fails, no stream ends. Steps, in order: the old actor comes to rest (`Actor.settle`, messages still come), its mailbox is held, it says what it
knows (`snapshot`), the new one takes that (`restore`), the old one lets go (`leave`), the mailbox goes on. Whatever goes wrong before the last step, the
old one goes on as if nothing had been (`resume`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sgl_actors.errors import SglActorsError, SwapFailed

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.actor import Actor
    from sgl_actors.actors.microkernel.cell import Cell

SETTLE_TIMEOUT = 5.0
"""Seconds an actor may take to come to rest."""
LEAVE_TIMEOUT = 5.0
"""Seconds it may take to let go."""

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an actor hands to the one that takes its place.

    Attributes:
        layout: what `state` is, with its version: ``"scheduler/1"``.
        state: plain data, the msgpack of a Struct that the component documents; nothing in it belongs to one class.
        handles: objects of this process (weights, sockets, open requests), by name. Whoever takes them owns them once the swap has succeeded, not before.
    """

    layout: str
    state: bytes
    handles: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: str, state: msgspec.Struct, **handles: Any) -> Snapshot:
        """Of plain data, and of handles by name."""
        return cls(layout, msgspec.msgpack.encode(state), handles)

    def read(self, layout: str, kind: type[S]) -> S:
        """The plain data; `SwapFailed` if it is of another layout or does not decode."""
        if self.layout != layout:
            raise SwapFailed(f"the snapshot has layout {self.layout!r}, this class reads {layout!r}")
        try:
            return msgspec.msgpack.decode(self.state, type=kind)
        except msgspec.DecodeError as error:
            raise SwapFailed(f"the snapshot is no {layout}: {error}") from None

    def handle(self, name: str, kind: type[Any]) -> Any:
        """A handle of that type; `SwapFailed` if there is none."""
        found = self.handles.get(name)
        if not isinstance(found, kind):
            raise SwapFailed(f"the snapshot has no handle {name!r} of type {kind.__name__}")
        return found


def swappable(old: type[Actor], new: type[Actor], base: type[Actor]) -> bool:
    """Whether `new` can take over from a running `old`: both have their half of the protocol."""
    return old.snapshot is not base.snapshot and new.restore is not base.restore


async def swap(cell: Cell, new: type[Actor], config: Mapping[str, Any], timeout: float) -> float:
    """Put an actor of class `new` with `config` in the place of the one that runs in `cell`; returns the seconds its mailbox was held.

    Raises:
        SwapFailed: it came to nothing; the old actor goes on.
    """
    old = cell.actor
    if old is None or cell.state != "running":
        raise SwapFailed(f"{cell.address} is {cell.state}, not running")
    if cell.swapping:
        raise SwapFailed(f"{cell.address} is being swapped already")
    cell.swapping = True
    try:
        await _within(SETTLE_TIMEOUT, old.settle(), f"{cell.address} did not come to rest")
        await _within(SETTLE_TIMEOUT, cell.turn.acquire(), f"{cell.address} did not come out of its message")
        try:
            began = cell.system.now()
            context = cell.new_context(config)
            successor = await _take_over(old, new, context, timeout)
            cell.succeed(successor, context, config)
            await _leave(cell, old)
            return cell.system.now() - began
        finally:
            cell.turn.release()
    except BaseException as error:
        if not isinstance(error, Exception):
            raise
        if cell.actor is old:
            _resume(cell, old)
        cell.log.warning("swap failed", successor=new.__qualname__, exc_info=error)
        why = error.message if isinstance(error, SglActorsError) else f"{type(error).__name__}: {error}"
        raise SwapFailed(f"{cell.address} goes on as it was: {why}") from error
    finally:
        cell.swapping = False


async def _take_over(old: Actor, new: type[Actor], context: Any, timeout: float) -> Actor:
    try:
        successor = new(context)
        await _within(timeout, successor.restore(old.snapshot()), f"{new.__qualname__} did not restore")
        context.check()
    except BaseException:
        context.discard()
        raise
    return successor


def _resume(cell: Cell, old: Actor) -> None:
    """Have the old actor go on. One that cannot is ended, and started anew: it would be at rest for ever."""
    try:
        old.resume()
    except Exception:
        cell.log.exception("resume failed")
        cell.stop("it could not go on after a swap that failed")


async def _leave(cell: Cell, old: Actor) -> None:
    """The successor is in charge: what the old one does wrong now is no reason to go back."""
    try:
        await _within(LEAVE_TIMEOUT, old.leave(), f"the predecessor in {cell.address} did not leave")
    except Exception:
        cell.log.exception("leave failed")


async def _within(seconds: float, work: Any, late: str) -> None:
    try:
        async with asyncio.timeout(seconds) as limit:
            await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise SwapFailed(f"{late} within {seconds:g} s") from None
