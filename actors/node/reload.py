"""What changes when node.toml is read again while the node runs. Plain data: two configurations in, a plan out; `root` carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sgl_actors.actors.node.config import NodeConfig
from sgl_actors.actors.node.options import ActorSpec

OWNERS = {
    "cache": "cache",
    "scheduler": "scheduler",
    "grammar": "grammar",
    "gateway": "gateway",
    "tenants": "gateway",
}
"""Which actor a section is handed to when it changes."""
ROOT_SECTIONS = ("supervisor",)
"""Sections that the root itself puts into force."""
FIXED = {"cache": ("memory", "pages", "page_size", "claim"), "gateway": ("host", "port")}
"""Keys of the owners' sections that hold until the node's end: memory is taken, a port is bound."""
MODEL_HINT = "`sgl-actors model load` serves another model now"


@dataclass(frozen=True)
class Change:
    """One actor's: `why` says what has changed, `spec` how it is to be from here on, `sections` what it is to know."""

    actor: str
    why: str
    spec: ActorSpec
    sections: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """What to do, in this order.

    Attributes:
        removed: actors that are no longer enabled.
        swapped: actors whose class, options or section changed, and that stay in their process.
        moved: actors that go to another process or are supervised differently.
        added: actors that are new.
        supervisor: whether the supervisor's own numbers changed.
        later: keys whose change waits for the node's next start, with the reason.
    """

    removed: list[str] = field(default_factory=list)
    swapped: list[Change] = field(default_factory=list)
    moved: list[Change] = field(default_factory=list)
    added: list[Change] = field(default_factory=list)
    supervisor: bool = False
    later: list[str] = field(default_factory=list)


def plan(old: NodeConfig, new: NodeConfig) -> Plan:
    """Compare two configurations."""
    found = Plan(supervisor=old.supervisor != new.supervisor)
    changed: dict[str, list[str]] = {}
    for section, key in _changed_keys(old, new):
        owner = OWNERS.get(section)
        if section in ROOT_SECTIONS:
            continue
        if owner is None or key in FIXED.get(section, ()):
            hint = f"; {MODEL_HINT}" if section == "model" else ""
            found.later.append(f"{section}.{key} changes at the node's next start{hint}")
        else:
            changed.setdefault(owner, []).append(section if section == "tenants" else f"{section}.{key}")
    new = held(old, new)
    found.removed = [name for name in old.actors if name not in new.actors]
    for name, spec in new.actors.items():
        before = old.actors.get(name)
        if before is None:
            found.added.append(Change(name, "new", spec, _sections(name, new)))
            continue
        own = [key for key in spec.__struct_fields__ if getattr(spec, key) != getattr(before, key)]
        whys = [f"actors.{name}.{key.rstrip('_')}" for key in own] + sorted(set(changed.get(name, ())))
        if whys:
            change = Change(name, ", ".join(whys), spec, _sections(name, new))
            (found.swapped if set(own) <= {"class_", "options"} else found.moved).append(change)
    return found


def _changed_keys(old: NodeConfig, new: NodeConfig) -> Iterator[tuple[str, str]]:
    for section in NodeConfig.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        if section == "tenants" and before != after:
            yield section, "*"
        elif isinstance(after, msgspec.Struct) and before != after:
            yield from (
                (section, key)
                for key in after.__struct_fields__
                if getattr(before, key) != getattr(after, key)
            )


def held(old: NodeConfig, new: NodeConfig) -> NodeConfig:
    """`new` with those keys of `old` that hold until the node's end."""
    sections = {}
    for section, keys in FIXED.items():
        before = getattr(old, section)
        values = {key: getattr(before, key) for key in keys}
        sections[section] = msgspec.structs.replace(getattr(new, section), **values)
    return msgspec.structs.replace(new, **sections)


def _sections(name: str, config: NodeConfig) -> dict[str, Any]:
    """The sections that an actor is handed, whole."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    return {section: values[section] for section, owner in OWNERS.items() if owner == name}
