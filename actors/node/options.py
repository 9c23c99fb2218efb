"""The sections of node.toml that belong to the node itself: `[node]`, `[supervisor]`, `[actors.NAME]`.

The sections of the actors are the `Options` of their `messages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from sgl_actors.actors.microkernel.supervisor import ChildSpec

START_TIMEOUT = 60.0
WORKER_START_TIMEOUT = 600.0
LEAST_STALL = 1.2
"""What `[scheduler] stall` is at least if it is not 0: a step with prompt tokens takes longer than one without."""


class NodeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[node]`: the node itself.

    Attributes:
        name: tells nodes of one user apart; names the folder of its record and logs.
        runtime_dir: folder for the record `node.json` and sockets, mode 0700; "" for `default_runtime_dir(name)`.
        log_dir: folder of the log files, one per actor; "" for `logs` in the runtime folder.
        log_level: least level that is written.
        log_size: bytes per log file (also "16MiB"); one older file per actor is kept.
        drain: seconds that running requests get when the node stops.
        listen: ``"tcp://host:port"`` at which clients with one of the `peers`' keys reach the node; "" for its own user's only.
        key: file with the node's secret key (`sgl-actors keys new`); a relative path counts from node.toml's folder.
        peers: public keys by name of who may come in; see `node.peers.Peer`.
        insecure_tcp: listen without keys and unencrypted, on loopback: every user of this machine is let in.
    """

    name: str = "node"
    runtime_dir: str = ""
    log_dir: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_size: int = 16 << 20
    drain: float = 10.0
    listen: str = ""
    key: str = ""
    peers: dict[str, Any] = {}
    insecure_tcp: bool = False


class SupervisorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[supervisor]`: what happens when an actor ends.

    Attributes:
        strategy: restart the one that ended, it and those started after it, or all.
        intensity: restarts within `period` seconds that are borne; one more ends the node.
        period: seconds.
    """

    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"] = "one_for_one"
    intensity: int = 10
    period: float = 30.0


class ActorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"class_": "class"}):
    """`[actors.NAME]`: one actor and where it runs.

    Attributes:
        class_: ``"package.module:Class"``, or what an installed package offers by a name in the entry point group ``sgl_actors.actors`` (key ``class``).
        process: actors with the same process name share a process; "" for one of its own, named as the actor.
        restart: always, never, or only after a fault.
        shutdown: seconds it gets to stop before its process is killed.
        start_timeout: seconds it gets to become ready.
        enabled: false leaves it out.
        options: what a class of your own wants to know: its ``ctx.config["options"]``.
    """

    class_: str
    process: str = ""
    restart: Literal["permanent", "transient", "temporary"] = "permanent"
    shutdown: float = 5.0
    start_timeout: float = START_TIMEOUT
    enabled: bool = True
    options: dict[str, Any] = {}

    def child(self, name: str, sections: Mapping[str, Any] | None = None) -> ChildSpec:
        """What the supervisor is told of it; `sections` are what it is to know in place of its process's configuration."""
        own = {**(sections or {}), **({"options": self.options} if self.options else {})}
        settings = msgspec.json.encode(own).decode() if own else ""
        return ChildSpec(
            name, self.class_, self.process, self.restart, self.start_timeout, self.shutdown, settings
        )


DEFAULT_ACTORS: dict[str, ActorSpec] = {
    "cache": ActorSpec("sgl_actors.actors.cache.actor:CacheActor"),
    "worker/0": ActorSpec("sgl_actors.actors.worker.actor:WorkerActor", start_timeout=WORKER_START_TIMEOUT),
    "scheduler": ActorSpec("sgl_actors.actors.scheduler.actor:SchedulerActor"),
    "grammar": ActorSpec("sgl_actors.actors.grammar.actor:GrammarActor"),
    "tokenizer": ActorSpec("sgl_actors.actors.tokenizer.actor:TokenizerActor"),
    "programs": ActorSpec("sgl_actors.actors.programs.actor:ProgramsActor"),
    "gateway": ActorSpec("sgl_actors.actors.gateway.actor:GatewayActor"),
}
"""The seven actors of a node in the order in which they start; they stop in the reverse order."""

BRIDGE = "bridge"
OPTIONAL_ACTORS: dict[str, ActorSpec] = {
    BRIDGE: ActorSpec("sgl_actors.actors.node.bridge:BridgeActor"),
}
"""Actors that a node has only if it is set so: the bridge with `[node] listen`. They start after the others."""
