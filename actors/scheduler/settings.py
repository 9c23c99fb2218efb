"""How the scheduler was told to work: options of node.toml, and what was changed of them at run time."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.scheduler.messages import Configuration, Configure, Options
from sgl_actors.errors import ConfigError, InvalidRequest

LEAST_STALL = 1.2
"""Least `stall`: below, a prompt would take for ever."""


class Settings:
    """Owns the options in force; who decides by them reads them here each time.

    Attributes:
        options: in force.
        configured: what was changed since the start, for a successor.

    Raises:
        ConfigError, InvalidRequest: an option out of range.
    """

    def __init__(self, options: Options) -> None:
        for name in ("max_batch", "chunk", "queue", "speculation_tokens"):
            if getattr(options, name) < 1:
                raise ConfigError(
                    f"[scheduler] {name}: must be at least 1, is {getattr(options, name)}", param=name
                )
        _check_order(options)
        self.options = options
        self.configured = Configure()

    def change(self, message: Configure) -> Options:
        """Take what is given in `message`; what is in force now.

        Raises:
            InvalidRequest: a number out of range; nothing was changed.
        """
        given = {name: value for name, value in msgspec.structs.asdict(message).items() if value is not None}
        options = msgspec.structs.replace(self.options, **given)
        _check_order(options)
        self.options = options
        self.configured = msgspec.structs.replace(self.configured, **given)
        return options

    @property
    def configuration(self) -> Configuration:
        """What can be changed at run time, as it is."""
        options = self.options
        return Configuration(
            options.policy,
            options.overtake,
            options.sharing,
            options.reuse,
            options.stall,
            options.speculation,
        )


def _check_order(options: Options) -> None:
    """Raise `InvalidRequest` for numbers that make no sense."""
    if options.overtake < 0:
        raise InvalidRequest(
            f"overtake is {options.overtake}, must be 0 (no limit) or more", param="overtake"
        )
    if options.stall and options.stall < LEAST_STALL:
        raise InvalidRequest(
            f"stall is {options.stall}, must be 0 (no limit) or at least {LEAST_STALL}", param="stall"
        )
