"""The bridge actor: lets clients with a listed key into the node over tcp, and says what each of them may do.

Owns the tcp socket of `[node] listen` and an ipc socket of its own, behind which the clients are known (`microkernel.bridge`). It takes no messages. When
it crashes, its clients lose their connection and join again; nothing else in the node notices.

A client is a tenant, the one of its peer's name: whatever it says of tenants, namespaces and request ids is made its own. A peer with
`admin` is an operator: it may also say to the root what the command line does, and speaks for any tenant.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from sgl_actors.actors.api.messages import AskModel, DescribeApi, TokenizeText
from sgl_actors.actors.cache.messages import (
    Export,
    Flush,
    Inspect,
    ListPins,
    Pin,
    Subscribe,
    Unpin,
)
from sgl_actors.actors.microkernel import Actor, Address, Context, Message
from sgl_actors.actors.microkernel import messages as operator
from sgl_actors.actors.microkernel.bridge import NOBODY, Bridge
from sgl_actors.actors.microkernel.control import Hello
from sgl_actors.actors.microkernel.curve import read_secret
from sgl_actors.actors.microkernel.ipc import PREFIX
from sgl_actors.actors.microkernel.record import Record
from sgl_actors.actors.microkernel.root import ROOT, root_endpoint
from sgl_actors.actors.microkernel.wire import Kind
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.actors.node import messages as node
from sgl_actors.actors.node.cache_client import namespace_of, split_namespace
from sgl_actors.actors.node.peers import Peer
from sgl_actors.actors.programs.messages import ListPrograms, ProgramEnded, ProgramStarted, RunGraph
from sgl_actors.actors.scheduler.messages import Configure, DescribeModel, FlushCache
from sgl_actors.actors.tokenizer.messages import (
    Cancel,
    DescribeTokenizer,
    DescribeVocabulary,
    Detokenize,
    Generate,
    Tokenize,
)
from sgl_actors.actors.worker.messages import Profile
from sgl_actors.errors import Forbidden


def _own_request(peer: str, message: Any) -> Message:
    """A live id re-attaches whoever names it, so that ids of one peer are no other's."""
    replaced: Message = msgspec.structs.replace(message, id=own_id(peer, message.id), tenant=peer)
    return replaced


def _own_ids(peer: str, message: Any) -> Message:
    if message.all:
        raise Forbidden("cancelling everybody's requests is for peers with `admin`")
    return Cancel([own_id(peer, one) for one in message.ids])


def _own_prompt(peer: str, message: Any) -> Message:
    replaced: Message = msgspec.structs.replace(message, tenant=peer) if message.tenant else message
    return replaced


def _own_namespace(peer: str, message: Any) -> Message:
    salt = split_namespace(message.namespace or "")[1]
    replaced: Message = msgspec.structs.replace(message, namespace=namespace_of(peer, salt))
    return replaced


def _own_ask(peer: str, message: Any) -> Message:
    named = {"id": own_id(peer, message.id), "program": own_id(peer, message.program)}
    replaced: Message = msgspec.structs.replace(message, **named)
    return replaced


def _as_it_is(_: str, message: Any) -> Message:
    kept: Message = message
    return kept


CLIENT: dict[str, dict[type[Message], Callable[[str, Any], Message]]] = {
    "tokenizer": {
        Generate: _own_request,
        Cancel: _own_ids,
        Tokenize: _own_prompt,
        Detokenize: _as_it_is,
        DescribeTokenizer: _as_it_is,
        DescribeVocabulary: _as_it_is,
    },
    "scheduler": {DescribeModel: _as_it_is},
    "cache": {Pin: _own_namespace, Unpin: _own_namespace, ListPins: _own_namespace, Inspect: _as_it_is},
    "api": {AskModel: _own_ask, DescribeApi: _as_it_is, TokenizeText: _as_it_is},
    "programs": {ProgramStarted: _as_it_is, ProgramEnded: _as_it_is, ListPrograms: _as_it_is},
    ROOT: {operator.ListActors: _as_it_is, node.ListModels: _as_it_is},
}
"""What every client may say, by whom it is for, and how it is made the client's own."""

ADMIN: dict[str, tuple[type[Message], ...]] = {
    "scheduler": (Configure, FlushCache),
    "cache": (Export, Subscribe, Flush),
    "programs": (RunGraph,),
    "worker": (Profile,),
    ROOT: (
        operator.RestartActor,
        operator.SwapActor,
        operator.StopNode,
        Record,
        node.Reload,
        node.LoadModel,
        node.UnloadModel,
    ),
}
"""What peers with `admin` may say besides."""


STREAMS = frozenset({AskModel, Generate, Export, Subscribe})
"""What is asked as a stream."""

CASTS = frozenset({Cancel, Unpin, ProgramStarted, ProgramEnded})
"""What may be said without an answer. Everything else is a call: an actor ends if it cannot handle a cast."""


def own_id(peer: str, name: str) -> str:
    """A request's id in the node, of what a peer calls `name`."""
    return f"{peer}:{name}"


class Rules:
    """`microkernel.bridge.Admit` of a node: what each peer may say. Everything else is refused."""

    def __init__(self, admins: frozenset[str]) -> None:
        self._admins = admins

    def __call__(self, peer: str, endpoint: str, to: str, kind: int, message: Message) -> Message:
        """See `Admit`; raises `Forbidden`."""
        role = to.partition("@")[0].partition("/")[0]
        said = type(message)
        if kind != Kind.CALL and not (
            (kind == Kind.CAST and said in CASTS) or (kind == Kind.STREAM and said in STREAMS)
        ):
            raise Forbidden(f"no client says {message.TAG} in that way")
        if role == ROOT and isinstance(message, Hello):
            if message.endpoint != endpoint:
                raise Forbidden("a client says hello for itself")
            return msgspec.structs.replace(message, process=f"{peer}/{message.process}"[:64], client=True)
        admin = peer in self._admins
        own = CLIENT.get(role, {}).get(said)
        if own is not None:
            return message if admin else own(peer, message)
        if said in ADMIN.get(role, ()):
            if admin:
                return message
            raise Forbidden(f"{message.TAG} is for peers with `admin`")
        raise Forbidden(f"no client says {message.TAG} to {to}")


class BridgeActor(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._bridge: Bridge | None = None
        self._socket = Path()

    async def start(self) -> None:
        """Listen. `ConfigError` if the key cannot be read or the port is taken."""
        options = self.ctx.config["node"]
        peers = msgspec.convert(options["peers"], dict[str, Peer])
        folder = Path(self.ctx.address.endpoint.removeprefix(PREFIX)).parent
        self._socket = folder / f"clients.{self.ctx.address.epoch}.ipc"
        pair = read_secret(Path(options["key"])) if options["key"] else None
        inner = ZmqTransport(f"{PREFIX}{self._socket}")
        try:
            self._bridge = Bridge(
                options["listen"],
                inner,
                Address(ROOT, 0, root_endpoint(folder)),
                pair=pair,
                peers={key: name for name, peer in peers.items() for key in peer.key},
                admit=Rules(frozenset(name for name, peer in peers.items() if peer.admin)),
                clock=self.ctx.now,
                log=self.log,
            )
        except BaseException:
            inner.close()
            raise
        self.log.info("listens", at=options["listen"], peers=sorted(peers) if pair else [NOBODY])

    async def stop(self) -> None:
        """Say good-bye to all clients."""
        if self._bridge is not None:
            self._bridge.close()
            self._socket.unlink(missing_ok=True)

    def statistics(self) -> dict[str, float]:
        """See `Bridge.statistics`."""
        return {} if self._bridge is None else self._bridge.statistics()
