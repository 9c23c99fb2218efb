"""Who asks: tenants, known by their keys.

Without `[tenants]` in node.toml there is one tenant, ``default``, who needs no key and may do everything. With it every
request names its tenant by a key, and only the tenant ``admin`` may do what concerns others.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from sgl_actors.actors.cache.messages import DEFAULT, Pinned
from sgl_actors.actors.node.client import namespace_of, split_namespace
from sgl_actors.errors import Forbidden, Unauthorized

ADMIN = "admin"
OPEN = frozenset({"/", "/health", "/openapi.json", "/version"})
"""Paths that need no key: they tell whether a node is there, and nothing of what is in it."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose request it is.

    Attributes:
        name: what nobody else's requests share cached prefixes with.
        admin: may act on what belongs to others or to all.
    """

    name: str = DEFAULT
    admin: bool = True

    def check_admin(self, what: str) -> None:
        """Raise `Forbidden` unless it may do `what`, which concerns others."""
        if not self.admin:
            raise Forbidden(f"{what} concerns all tenants; only the tenant {ADMIN!r} may do it")

    def namespace(self, salt: str) -> str:
        """The cache's namespace of its requests with that salt."""
        return namespace_of(self.name, salt)

    def visible(self, pins: Iterable[Pinned]) -> list[Pinned]:
        """Those of the pins that it may see: its own, or all."""
        return [pin for pin in pins if self.admin or split_namespace(pin.namespace)[0] == self.name]


NOBODY = Tenant("", admin=False)
"""Who asks for what needs no key."""


class Tenants:
    """Knows the tenants of a node by the SHA-256 of their keys: by name, in hex, with spaces between several keys of one."""

    def __init__(self, digests: Mapping[str, str] | None = None) -> None:
        listed = ((name, digest) for name, text in (digests or {}).items() for digest in text.split())
        self._digests = [(name, bytes.fromhex(digest)) for name, digest in listed]

    def __repr__(self) -> str:
        return f"<Tenants {', '.join(dict(self._digests)) or 'none'}>"

    def __bool__(self) -> bool:
        return bool(self._digests)

    def identify(self, headers: Headers) -> Tenant:
        """The tenant whose key the request has.

        How long that takes tells nothing about the keys: all digests are compared, each in constant time.

        Raises:
            Unauthorized: it has none, or one that nobody has.
        """
        if not self._digests:
            return Tenant()
        key = key_of(headers)
        if not key:
            raise Unauthorized("this node wants an API key: Authorization: Bearer KEY, or x-api-key: KEY")
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        found = [name for name, known in self._digests if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized("the API key is none of this node's")
        return Tenant(found[0], found[0] == ADMIN)


def key_of(headers: Headers) -> str:
    """The key of a request, "" if it has none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
