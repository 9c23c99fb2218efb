"""Blocks of `BLOCK` tokens and the digests that name them.

A block's digest is the SHA-256 of its parent's digest and its own packed tokens, so it names the whole prefix that ends with it. It
belongs to the edge of the tree that holds its last token: it is cached as long as that token is, there or, where a page
crosses the border of a block, on a sibling edge.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Literal, NamedTuple

from sgl_actors.actors.cache.messages import BLOCK, Event, unpack
from sgl_actors.actors.cache.radix_tree import TOKEN_BYTES

BLOCK_BYTES = BLOCK * TOKEN_BYTES
"""Bytes of a block's packed tokens."""


class Change(NamedTuple):
    """An `Event` whose tokens are packed: a quarter of the memory."""

    kind: Literal["stored", "removed", "cleared"]
    namespace: str = ""
    digest: bytes = b""
    parent: bytes = b""
    tokens: bytes = b""

    def event(self) -> Event:
        """As subscribers are told."""
        return Event(self.kind, self.namespace, self.digest, self.parent, unpack(self.tokens))


def root_digest(revision: str, namespace: str) -> bytes:
    """What a namespace's first blocks have for a parent: SHA-256 of the SHA-256 of both names."""
    return sha256(sha256(revision.encode()).digest() + sha256(namespace.encode()).digest()).digest()


def stored(namespace: str, parent: bytes, key: bytes) -> list[Change]:
    """The whole blocks of `key`; the first one's parent is `parent`."""
    changes: list[Change] = []
    for start in range(0, len(key) - BLOCK_BYTES + 1, BLOCK_BYTES):
        tokens = key[start : start + BLOCK_BYTES]
        digest = sha256(parent + tokens).digest()
        changes.append(Change("stored", namespace, digest, parent, tokens))
        parent = digest
    return changes
