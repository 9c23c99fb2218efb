"""Who a message is for: a name, and which incarnation of it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Address(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One incarnation of an actor.

    Attributes:
        name: ``"scheduler"``, ``"worker/0"``; unique in a node at any one time.
        epoch: incarnation number, larger for every restart. A message to an epoch that is over becomes a
            dead letter and is never delivered to a successor.
        endpoint: transport endpoint of the process that hosts it.
    """

    name: Annotated[str, Meta(min_length=1, max_length=4096)]
    epoch: Annotated[int, Meta(ge=0)]
    endpoint: Annotated[str, Meta(max_length=512)] = ""

    def __str__(self) -> str:
        return f"{self.name}#{self.epoch}"
