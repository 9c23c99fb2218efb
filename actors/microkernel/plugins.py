"""Finding an actor's class: by module and name, or by the entry point of an installed package."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from sgl_actors.actors.microkernel.actor import Actor
from sgl_actors.errors import ConfigError

GROUP = "sgl_actors.actors"
"""Entry points of this group are names of actor classes."""


def load_class(path: str) -> type[Actor]:
    """Import ``"module:Class"``, or what an installed package offers by a name without a colon; `ConfigError` if it is no actor."""
    try:
        found = _by_module(path) if ":" in path else _by_entry_point(path)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"class {path!r}: {error}") from error
    except SystemExit:  # others live in this process
        raise ConfigError(f"class {path!r}: its module ends the process when it is imported") from None
    if not (isinstance(found, type) and issubclass(found, Actor)):
        raise ConfigError(f"class {path!r} is no Actor")
    return found


def _by_module(path: str) -> object:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name, None)


def _by_entry_point(name: str) -> object:
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "there are none"
        raise ConfigError(
            f"class {name!r} is neither 'module:Class' nor an entry point of group {GROUP!r} ({known})"
        )
    return next(iter(found)).load()
