"""Who is admitted next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.errors import ConfigError


class Policy(Protocol):
    """An order of admission."""

    name: str

    def choose(self, waiting: Sequence[Generation], room: int) -> list[Generation]:
        """At most `room` of `waiting` (in order of arrival, not empty), the first to admit first.

        Leaving some out defers them to a later round, for instance until another has computed the prefix they share.
        The cache grants from the front and stops at the first that does not fit, so the order is binding.
        """


class FirstCome:
    """In order of arrival; who does not fit holds up those behind, so nobody is overtaken."""

    name = "fcfs"

    def choose(self, waiting: Sequence[Generation], room: int) -> list[Generation]:
        """See `Policy.choose`."""
        return list(waiting[:room])


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises `ConfigError` for an unknown one."""
    if name != FirstCome.name:
        raise ConfigError(
            f"[scheduler] policy: {name!r} is unknown; there is {FirstCome.name!r}", param="policy"
        )
    return FirstCome()
