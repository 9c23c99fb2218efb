"""What the gateway understands. Its mailbox proper is HTTP; towards the node it is a client."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sgl_actors.actors.microkernel.wire import Message

_Count = Annotated[int, Meta(ge=1)]
_Bytes = Annotated[int, Meta(ge=0)]
_Seconds = Annotated[float, Meta(gt=0)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway]` of node.toml. Sizes are in bytes, times in seconds.

    Attributes:
        host: address to bind; loopback unless told otherwise.
        port: 0 for any free one.
        max_body: bytes of a request body at most.
        max_choices: most `n` per prompt, and most prompts per request.
        timeout: seconds a request may take.
        max_requests: in work at once; further ones are refused with 429.
        max_held: bytes that the bodies of all requests in work may take once decoded; further ones are refused with 429.
        max_connections: open at once; a new one takes the place of the one that has waited longest without a request in work.
        max_headers: of a request line with its header fields.
        header_timeout: for a request's head.
        body_timeout: for a request's body.
        send_timeout: that an answer may stay unread before its client is cut off.
        reserve: memory of the machine that has to stay available for requests to be taken; 0 for none.
        max_memory: of the node's processes together, above which requests are refused; 0 for no limit.
        max_wrong_keys: wrong API keys per minute from one address; 0 for any number.
        tls_cert: file with the certificate (and its chain) in PEM; "" for HTTP without TLS.
        tls_key: file with its private key, readable by its owner only.
    """

    host: str = "127.0.0.1"
    port: int = 30000
    max_body: int = 8 << 20
    max_choices: int = 128
    timeout: float = 600.0
    max_requests: _Count = 2048
    max_held: _Count = 256 << 20
    max_connections: _Count = 4096
    max_headers: Annotated[int, Meta(ge=1024)] = 32 << 10
    header_timeout: _Seconds = 15.0
    body_timeout: _Seconds = 60.0
    send_timeout: _Seconds = 30.0
    reserve: _Bytes = 256 << 20
    max_memory: _Bytes = 0
    max_wrong_keys: _Bytes = 30
    tls_cert: str = ""
    tls_key: str = ""

    @property
    def tls(self) -> bool:
        """Whether it speaks HTTPS."""
        return bool(self.tls_cert)


class Describe(Message):
    """Call, answered by `Listening`."""


class Listening(Message):
    """Where the gateway answers; `port` is the real one when the configuration says 0."""

    host: str
    port: int
    url: str
