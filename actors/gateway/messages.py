"""What the gateway understands. Its mailbox proper is HTTP; towards the node it is a client."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.wire import Message


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway]` of node.toml.

    Attributes:
        host: address to bind; loopback unless told otherwise.
        port: 0 for any free one.
        max_body: bytes of a request body at most.
        max_choices: most `n` per prompt, and most prompts per request.
        timeout: seconds a request may take.
    """

    host: str = "127.0.0.1"
    port: int = 30000
    max_body: int = 8 << 20
    max_choices: int = 128
    timeout: float = 600.0


class Describe(Message):
    """Call, answered by `Listening`."""


class Listening(Message):
    """Where the gateway answers; `port` is the real one when the configuration says 0."""

    host: str
    port: int
    url: str
