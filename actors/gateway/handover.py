"""What a gateway hands to the class that takes its place.

Plain data: `GatewayState`, layout ``gateway/1``. Handles:

- ``socket``: the bound, listening `socket.socket`;
- ``server``: the `server.Server` that has it, with its open connections. A successor puts its own application behind it (`server.front.app`) and its own limits
  (`server.lobby.limits`). Requests that have begun end on the application that they began on, which asks the node through the same actor as before;
- ``service``: the predecessor's `service.Service`: its counters, what is in work and what may be aborted go on in the successor's (`Service.follow`).

Nobody has to come to rest for that: no request waits, no connection breaks.
"""

from __future__ import annotations

import msgspec

LAYOUT = "gateway/1"


class GatewayState(msgspec.Struct, frozen=True):
    """Where it listens, as its options have it, and whether with TLS."""

    host: str
    port: int
    tls: bool = False
