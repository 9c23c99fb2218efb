"""`[node] listen`, `key` and `peers` of node.toml: who may reach the node over tcp, and by which keys.

A peer is given by its public key, as it is or as ``"file:path"``, or by a table with `key` (or a list of two, while one replaces the other) and
`admin`. Files are read once; what goes on from here are public keys, and the path of the node's own secret one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sgl_actors.actors.microkernel.bridge import check_listen
from sgl_actors.actors.microkernel.curve import check_public, read_public, read_secret
from sgl_actors.actors.node.tenants import check_tenant
from sgl_actors.errors import ConfigError

FILE = "file:"


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may come in over tcp.

    Attributes:
        key: public keys, each of which is good; in node.toml also a single one, or ``"file:path"`` of a file with some.
        admin: may do what the node's operator may: restart, swap and stop, act for every tenant.
    """

    key: list[str]
    admin: bool = False


def resolve_peers(value: Any, folder: Path) -> dict[str, Peer]:
    """Read the table of peers; relative paths count from `folder`. `ConfigError` says whose entry is wrong, and why."""
    if not isinstance(value, dict):
        raise ConfigError('expected a table: peers = {laptop = "file:laptop.pub"}')
    peers = {name: _peer(name, entry, folder) for name, entry in value.items()}
    owners: dict[str, str] = {}
    for name, peer in peers.items():
        for key in peer.key:
            other = owners.setdefault(key, name)
            if other != name:
                raise ConfigError(f"{name} has the same key as {other}")
    return peers


def _peer(name: str, entry: Any, folder: Path) -> Peer:
    try:
        check_tenant(name)
    except ConfigError as error:
        raise ConfigError(f"{name!r}: {error.message}: a peer is a tenant") from None
    table = entry if isinstance(entry, dict) else {"key": entry}
    given = table.get("key")
    try:
        peer = msgspec.convert({**table, "key": [given] if isinstance(given, str) else given}, Peer)
        keys = [key for one in peer.key for key in _keys(one, folder)]
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{name}: {error}") from None
    if not keys:
        raise ConfigError(f"{name}: has no key")
    return Peer(keys, peer.admin)


def _keys(text: str, folder: Path) -> list[str]:
    if text.startswith(FILE):
        return read_public(folder / Path(text.removeprefix(FILE)).expanduser())
    return [check_public(text)]


def check_node(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the node may listen where `listen` says, with the keys it has."""
    listen, key = values.get("listen", ""), values.get("key", "")
    if not listen:
        return
    check_listen(listen, keyed=bool(key), insecure=bool(values.get("insecure_tcp")))
    if key:
        read_secret(Path(key))
        if not values.get("peers"):
            raise ConfigError("[node] peers lists nobody, so nobody could come in")
