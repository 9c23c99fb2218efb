"""Which incarnation holds a name, as one process knows it. Plain data: the root alone decides, `System` acts on changes."""

from __future__ import annotations

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.errors import ActorDown, NodeGone

GONE = 4096
"""Endpoints of processes that have ended are remembered up to this many; only a client comes back to the one it had."""


class Registry:
    """Names that are up, epochs that are over, processes that are gone.

    Attributes:
        names: the holder of each name.
        gone: endpoints of processes that have ended.
        node_gone: the node itself has ended; nothing will come up again.
    """

    def __init__(self) -> None:
        self.names: dict[str, Address] = {}
        self.gone: dict[str, None] = {}
        self.node_gone = False
        self._over: dict[str, int] = {}

    def up(self, address: Address) -> bool:
        """Take `address` as the holder of its name; False if that is no news or its epoch is over."""
        holder = self.names.get(address.name)
        if self.is_over(address) or (holder is not None and holder.epoch >= address.epoch):
            return False
        self.names[address.name] = address
        return True

    def down(self, address: Address) -> bool:
        """That incarnation is over. True if it held its name."""
        self._over[address.name] = max(address.epoch, self._over.get(address.name, 0))
        if self.names.get(address.name) != address:
            return False
        del self.names[address.name]
        return True

    def is_over(self, address: Address) -> bool:
        """Whether that incarnation has ended, as far as is known here."""
        if address.endpoint in self.gone:
            return True
        if address.epoch == 0:
            return False
        holder = self.names.get(address.name)
        return address.epoch <= self._over.get(address.name, 0) or (
            holder is not None and holder.epoch > address.epoch
        )

    def forget_process(self, endpoint: str) -> list[Address]:
        """A process is gone. Returns the holders of names that were in it."""
        self.gone[endpoint] = None
        if len(self.gone) > GONE:
            del self.gone[next(iter(self.gone))]
        return [address for address in self.names.values() if address.endpoint == endpoint]

    def back(self, endpoint: str) -> None:
        """A client that was taken for gone is there."""
        self.gone.pop(endpoint, None)

    def resolve(self, name: str) -> Address:
        """The holder of `name`.

        Raises:
            ActorDown: nobody holds it now.
            NodeGone: nobody ever will.
        """
        if self.node_gone:
            raise NodeGone("the node has ended")
        address = self.names.get(name)
        if address is None:
            raise ActorDown(f"no actor {name!r} is up")
        return address
