"""What a peer over tcp may say to whom, and what of it is made its own."""

from __future__ import annotations

import pytest

from sgl_actors.actors.cache.messages import Commit, Export, ListPins, Pin, Subscribe, Unpin
from sgl_actors.actors.microkernel import Message
from sgl_actors.actors.microkernel.control import ActorExit, Hello, Terminate
from sgl_actors.actors.microkernel.messages import ListActors, RestartActor, StopNode, SwapActor
from sgl_actors.actors.microkernel.record import Record
from sgl_actors.actors.microkernel.wire import Down, Kind
from sgl_actors.actors.node.bridge import ADMIN, CASTS, CLIENT, STREAMS, Rules
from sgl_actors.actors.node.messages import ListModels, LoadModel, Reload
from sgl_actors.actors.programs.messages import ProgramStarted, RunGraph
from sgl_actors.actors.scheduler.messages import Configure, DescribeModel, FlushCache
from sgl_actors.actors.tokenizer.messages import Cancel, Generate, Tokenize
from sgl_actors.actors.worker.messages import Profile
from sgl_actors.errors import Forbidden

RULES = Rules(frozenset({"boss"}))
HERE = "ipc:///run/clients.1.ipc|laptop/1"


def say(to: str, message: Message, peer: str = "laptop", kind: int | None = None) -> Message:
    """What reaches the actor, said in the way it is meant to be."""
    meant = Kind.STREAM if type(message) in STREAMS else Kind.CALL
    return RULES(peer, HERE, to, meant if kind is None else kind, message)


@pytest.mark.parametrize("tenant", ["default", "somebody", "laptop"])
def test_a_client_is_the_tenant_of_its_name(tenant: str) -> None:
    """Whatever it says: its requests, their ids, its pins and its namespaces are its own."""
    sent = say("tokenizer", Generate("r1", text="x", tenant=tenant, salt="s"))
    assert (sent.tenant, sent.salt, sent.id) == ("laptop", "s", "laptop:r1")  # type: ignore[attr-defined]
    assert say("tokenizer", Cancel(["r1"])) == Cancel(["laptop:r1"])
    assert say("tokenizer", Tokenize(text="x", tenant=tenant)).tenant == "laptop"  # type: ignore[attr-defined]
    assert say("tokenizer", Tokenize(text="x")).tenant == ""  # type: ignore[attr-defined]
    for message in (Pin(b"", 1.0, f"{tenant}\x1fs"), Unpin(["p"], f"{tenant}\x1fs")):
        assert say("cache", message).namespace == "laptop\x1fs"  # type: ignore[attr-defined]
    assert say("cache", ListPins()).namespace == "laptop"  # type: ignore[attr-defined]


def test_an_admin_speaks_for_everybody() -> None:
    """As the node's own user does."""
    for to, message in (
        ("tokenizer", Generate("r1", text="x", tenant="somebody")),
        ("cache", ListPins()),
        ("tokenizer", Cancel([], all=True)),
    ):
        assert say(to, message, "boss") == message


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("root", RestartActor("cache")),
        ("root", SwapActor("cache", "my:Class")),
        ("root", StopNode()),
        ("root", Record(1.0)),
        ("root", Reload()),
        ("root", LoadModel("b", "x.gguf")),
        ("scheduler@b", Configure()),
        ("scheduler", FlushCache()),
        ("cache", Export()),
        ("cache@b", Subscribe()),
        ("worker/0", Profile(1.0)),
        ("worker/0@b", Profile(1.0)),
    ],
)
def test_what_concerns_others_is_for_admins(to: str, message: Message) -> None:
    """Restart, swap, stop, load, look into what all have cached: refused without `admin`, and passed on with it."""
    with pytest.raises(Forbidden, match="admin"):
        say(to, message)
    assert say(to, message, "boss") == message


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("root", ListActors()),
        ("root", ListModels()),
        ("scheduler", DescribeModel()),
        ("programs", ProgramStarted("p", "n")),
    ],
)
def test_what_everybody_may_ask(to: str, message: Message) -> None:
    """It is passed on as it is."""
    assert say(to, message) == message


@pytest.mark.parametrize("peer", ["laptop", "boss"])
@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("root", ActorExit(None, "x")),  # type: ignore[arg-type]
        ("root", Down(None, "x")),  # type: ignore[arg-type]
        ("root", Terminate("x")),
        ("cache", Commit(1, [])),
        ("scheduler", Generate("r1", text="x")),
        ("gateway", ListActors()),
        ("tokenizer/extra/thing", Terminate("x")),
        ("", ListActors()),
        ("mine", ListActors()),
    ],
)
def test_everything_else_is_refused(peer: str, to: str, message: Message) -> None:
    """What kernels and actors say among themselves is for nobody outside, whoever it is."""
    with pytest.raises(Forbidden, match="no client says"):
        say(to, message, peer)


def test_only_peers_with_admin_cancel_everything() -> None:
    """Nobody else's requests are a client's business."""
    with pytest.raises(Forbidden, match="everybody"):
        say("tokenizer", Cancel([], all=True))


def test_a_client_says_hello_for_itself() -> None:
    """As a client, under its own endpoint and a name that shows whose it is."""
    hello = say("root", Hello("worker/0", HERE, 1))
    assert (hello.client, hello.process) == (True, "laptop/worker/0")  # type: ignore[attr-defined]
    with pytest.raises(Forbidden, match="for itself"):
        say("root", Hello("x", "ipc:///run/root.ipc", 1))


def test_the_tables_do_not_overlap() -> None:
    """A message is either everybody's or an admin's."""
    for role, kinds in ADMIN.items():
        assert not set(kinds) & set(CLIENT.get(role, {}))
    assert RunGraph in ADMIN["programs"]


@pytest.mark.parametrize("kind", [Kind.CAST, Kind.SEND, Kind.STREAM])
@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("tokenizer", Generate("r1", text="x")),
        ("cache", Pin(b"1", -1.0)),
        ("root", RestartActor("cache")),
        ("root", Hello("x", HERE, 1)),
    ],
)
def test_nothing_that_may_fail_is_cast(kind: int, to: str, message: Message) -> None:
    """An actor that cannot handle a cast ends: a peer could have every actor restarted until the node gives up."""
    if type(message) in STREAMS and kind == Kind.STREAM:
        return
    with pytest.raises(Forbidden, match="in that way"):
        say(to, message, "boss", kind)


def test_what_is_cast_needs_no_answer() -> None:
    """These are what clients cast."""
    for message in (Cancel(["r"]), Unpin(["p"]), ProgramStarted("p", "n")):
        assert type(message) in CASTS
        assert say(
            "tokenizer"
            if isinstance(message, Cancel)
            else "cache"
            if isinstance(message, Unpin)
            else "programs",
            message,
            kind=Kind.CAST,
        )
