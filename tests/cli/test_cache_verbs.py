"""`sgl-actors cache …` and `sgl-actors scheduler`, against a node of our own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from sgl_actors.actors.cache.messages import (
    Edge,
    Export,
    Exported,
    Inspect,
    ListPins,
    Pin,
    Pinned,
    Pins,
    Pool,
    Unpin,
    unpack,
)
from sgl_actors.actors.microkernel import Message
from sgl_actors.actors.microkernel.messages import ActorRow, Actors, ListActors
from sgl_actors.actors.node.client import namespace_of
from sgl_actors.actors.node.messages import ListModels, LoadedModel, Models
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.scheduler.messages import Configuration, Configure, Finish, FlushCache, Flushed
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.cli import cache as cli_cache
from sgl_actors.cli import node as cli_node
from sgl_actors.cli.app import app
from sgl_actors.cli.cache import format_seconds
from sgl_actors.cli.cache_app import parse_seconds
from sgl_actors.errors import ConfigError, Overloaded, PinNotFound

SALTED = namespace_of("alice", "s")


class Node:
    """Answers as the actors of a node do, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.pinned = [Pinned("p", "default", 4, 4, 598.2), Pinned("q", SALTED, 9, 3, 5.0)]
        self.edges = [Edge("default", 0, -1, [1, 2, 3], 1, 2), Edge(SALTED, 1, -1, [4])]
        self.configuration = Configuration("lpm", 8192, True, True, 3.0)
        self.prompt_tokens = 200.0
        self.busy = 0
        self.suffix = ""
        self.names: set[str] = set()

    def now(self) -> float:
        return 0.0

    def is_up(self, name: str) -> bool:
        return True

    async def call(self, to: str, message: Message, expect: type[Message], **_: Any) -> Message:
        if isinstance(message, ListModels):
            return Models([LoadedModel("m", self.suffix, "/m.gguf", "serving")])
        self.asked.append(message)
        self.names.add(to)
        match message:
            case ListActors():
                counts = {"prompt_tokens_total": self.prompt_tokens, "cached_tokens_total": 150.0}
                row = ActorRow(f"scheduler{self.suffix}#1", "up", 1, 0, 0, 1, 1, statistics=counts)
                return Actors([row], ready=True)
            case Inspect():
                return Pool(1, 3000, 4, 2000, 900, 100, 50, 3600, 2, 25, 7)
            case ListPins():
                return Pins(self.pinned)
            case Unpin():
                return Pins([])
            case Pin():
                return Pinned(
                    message.name or "drawn", message.namespace, len(unpack(message.key)), 2, message.ttl
                )
            case Tokenize():
                return TokenIds([1, 2, 3], "")
            case FlushCache():
                return Flushed(done=not self.busy, busy=self.busy)
            case Configure():
                given = {k: v for k, v in msgspec.structs.asdict(message).items() if v is not None}
                self.configuration = msgspec.structs.replace(self.configuration, **given)
                return self.configuration
        raise AssertionError(message)

    def cast(self, to: str, message: Message) -> None:
        self.asked.append(message)

    async def stream(self, to: str, message: Message, **_: Any) -> AsyncIterator[Message]:
        self.asked.append(message)
        self.names.add(to)
        match message:
            case Export():
                for edge in self.edges:
                    if message.namespace in (None, edge.namespace):
                        yield Exported([edge])
            case Generate():
                yield Chunk(0, [], "", finish=Finish("length"))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    """A running node."""
    node = Node()

    @asynccontextmanager
    async def client(record: NodeRecord) -> AsyncIterator[Node]:
        yield node

    monkeypatch.setattr(cli_cache, "client", client)
    monkeypatch.setattr(cli_node, "find", lambda _node, _config: NodeRecord("ipc://x", 1))
    return node


def invoke(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(words), input=stdin)


def test_ls_is_for_people(node: Node) -> None:
    """Sums, hit rate, whose tokens, pins; a number of pages says how large they are."""
    out = invoke("cache", "ls").stdout
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "pool 3,000 pages of 4 tokens: 2,000 free, 900 cached, 100 leased",
        "cached 3,600 tokens; 50 pages in use, 25 pinned; 7 evicted so far",
        "hit rate 75.0%: 150 of 200 prompt tokens",
        "",
        "TENANT TOKENS SHARE",
        "default 3 75.0%",
        "alice (salt s) 1 25.0%",
        "",
        "PIN TENANT TOKENS HELD EXPIRES IN",
        "p default 4 4 9 min 58 s",
        "q alice (salt s) 9 3 5 s",
    ]


def test_ls_of_an_empty_cache_has_no_tables(node: Node) -> None:
    """Nothing is divided by nothing."""
    node.edges, node.pinned, node.prompt_tokens = [], [], 0.0
    out = invoke("cache", "ls").stdout
    assert "no prompts yet" in out
    assert "TENANT" not in out


def test_ls_shows_the_beginning_of_a_long_salt(node: Node) -> None:
    """A table stays readable; JSON has all of it."""
    node.pinned = [Pinned("p", namespace_of("alice", "0123456789" * 3), 1, 1, 5.0)]
    assert "alice (salt 012345678901234567890123…)" in invoke("cache", "ls").stdout
    assert "0123456789" * 3 in invoke("cache", "ls", "--json").stdout


def test_ls_asks_the_default_model_s_actors(node: Node) -> None:
    """Another model than the first may be the default one; its cache and its scheduler's counts are shown."""
    node.suffix = "@b"
    assert "75.0%" in invoke("cache", "ls").stdout
    assert node.names == {"root", "cache@b"}


def test_ls_json(node: Node) -> None:
    """The same for programs, with tenant and salt apart."""
    answer = json.loads(invoke("cache", "ls", "--json").stdout)
    assert answer["pool"]["free"] == 2000
    assert answer["hit_rate"] == 0.75
    assert answer["namespaces"][1] == {"tenant": "alice", "cache_salt": "s", "tokens": 1}
    assert answer["pins"][1] == {
        "name": "q",
        "tenant": "alice",
        "cache_salt": "s",
        "tokens": 9,
        "held": 3,
        "expires_in": 5.0,
    }


def test_pin_a_text(node: Node) -> None:
    """It is tokenised, pinned, computed and pinned again under the same drawn name, which is printed."""
    result = invoke("cache", "pin", "Once upon a time", "--tenant", "alice", "--salt", "s", "--ttl", "2h")
    tokenised, pin, computed, again = node.asked
    assert tokenised == Tokenize(text="Once upon a time")
    assert isinstance(pin, Pin)
    assert result.stdout == f"pinned {pin.name}: 3 tokens, 2 held, for 2 h\n"
    assert (unpack(pin.key), pin.ttl, pin.namespace) == ([1, 2, 3], 7200.0, SALTED)
    assert isinstance(computed, Generate)
    assert (computed.sampling.max_tokens, computed.tenant, computed.salt) == (0, "alice", "s")
    assert again == pin


def test_pin_files(node: Node, tmp_path: Path) -> None:
    """A text from a file or stdin; a chat without generation prompt."""
    (tmp_path / "t").write_text("text\n")
    assert invoke("cache", "pin", "--file", str(tmp_path / "t")).exit_code == 0
    assert node.asked[0] == Tokenize(text="text\n")
    node.asked.clear()
    assert invoke("cache", "pin", "--file", "-", stdin="piped").exit_code == 0
    assert node.asked[0] == Tokenize(text="piped")
    node.asked.clear()
    chat = '[{"role": "system", "content": "Be brief."}]'
    answer = json.loads(invoke("cache", "pin", "--messages", "-", "--name", "n", "--json", stdin=chat).stdout)
    assert (answer["name"], answer["tokens"], answer["tenant"]) == ("n", 3, "default")
    (first, *_) = node.asked
    assert isinstance(first, Tokenize)
    assert first.messages is not None
    assert (first.messages[0].role, first.add_generation_prompt) == ("system", False)
    drawn, named, ended = [one for one in node.asked if isinstance(one, Pin | Unpin)]
    assert isinstance(drawn, Pin)
    assert named == msgspec.structs.replace(drawn, name="n")
    assert ended == Unpin([drawn.name], "default")


@pytest.mark.parametrize(
    ("words", "stdin", "error", "part"),
    [
        ([], "", ConfigError, "give one of TEXT, --file and --messages"),
        (["x", "--file", "-"], "y", ConfigError, "give one of"),
        (["x", "--ttl", "soon"], "", ConfigError, "--ttl 'soon'"),
        (["x", "--ttl", ""], "", ConfigError, "--ttl ''"),
        (["x", "--ttl", "0.9"], "", ConfigError, "from 1s to 30d"),
        (["x", "--name", "a b"], "", ConfigError, "--name 'a b'"),
        (["x", "--name", ".."], "", ConfigError, "--name '..'"),
        (["x", "--tenant", "alice\x1fs1"], "", ConfigError, r"--tenant 'alice\x1fs1'"),
        (["x", "--tenant", "a b"], "", ConfigError, "--tenant 'a b'"),
        (["x", "--salt", "a\n"], "", ConfigError, "--salt"),
        (["x", "--salt", "x" * 257], "", ConfigError, "at most 256 characters"),
        ([""], "", ConfigError, "empty"),
        (["--file", "-"], "", ConfigError, "empty"),
        (["--messages", "-"], "{}", ConfigError, "--messages: expected"),
        (["--messages", "-"], "[]", ConfigError, "there is none"),
        (["--messages", "-"], '[{"role": "user"}]', ConfigError, "content"),
    ],
)
def test_pins_that_cannot_be(
    node: Node, words: list[str], stdin: str, error: type[Exception], part: str
) -> None:
    """Wrong usage and wrong contents, each with what was expected; the node is asked nothing."""
    result = invoke("cache", "pin", *words, stdin=stdin)
    assert isinstance(result.exception, error)
    assert part in str(result.exception)
    assert node.asked == []


def test_a_file_that_is_not_there_is_wrong_usage(node: Node) -> None:
    """typer says which."""
    result = invoke("cache", "pin", "--file", "/none")
    assert result.exit_code == 2
    assert "/none" in result.output


def test_unpin(node: Node) -> None:
    """By name, wherever it is, or of one tenant; an unknown one names those there are."""
    assert invoke("cache", "unpin", "q").stdout == "unpinned q, 3 tokens were held\n"
    assert node.asked[-1] == Unpin(["q"], SALTED)
    result = invoke("cache", "unpin", "q", "--tenant", "bob")
    assert isinstance(result.exception, PinNotFound)
    assert str(result.exception) == "no pin 'q' of tenant bob; there are: none"
    result = invoke("cache", "unpin", "r")
    assert str(result.exception) == "no pin 'r'; there are: p, q"


def test_unpin_ends_no_pin_that_was_not_meant(node: Node) -> None:
    """Of several of that name one has to be chosen, by tenant and salt; a message names few of many pins."""
    node.pinned = [Pinned("p", space, 1, 1, 5.0) for space in ("alice", SALTED, "bob")]
    result = invoke("cache", "unpin", "p", "--tenant", "alice")
    assert isinstance(result.exception, ConfigError)
    assert "of alice, alice (salt s): say which" in str(result.exception)
    assert not any(isinstance(message, Unpin) for message in node.asked)
    assert invoke("cache", "unpin", "p", "--tenant", "alice", "--salt", "s").exit_code == 0
    assert node.asked[-1] == Unpin(["p"], SALTED)
    assert invoke("cache", "unpin", "p", "--tenant", "alice", "--salt", "").stdout.endswith(
        "1 token was held\n"
    )
    assert node.asked[-1] == Unpin(["p"], "alice")
    node.pinned = [Pinned(f"p{index:02}", "default", 1, 1, 5.0) for index in range(12)]
    assert "p00, p01" in str(invoke("cache", "unpin", "x").exception)
    assert str(invoke("cache", "unpin", "x").exception).endswith("p09 and 2 more")


def test_a_pin_is_of_a_tenant_that_the_node_has(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else could ever find it; the message has those there are."""
    record = NodeRecord("ipc://x", 1, tenants=["alice", "bob"])
    monkeypatch.setattr(cli_node, "find", lambda _node, _config: record)
    result = invoke("cache", "pin", "x", "--tenant", "carol")
    assert isinstance(result.exception, ConfigError)
    assert "no such tenant; it has alice, bob" in str(result.exception)
    assert isinstance(invoke("cache", "pin", "x").exception, ConfigError)
    assert node.asked == []
    assert invoke("cache", "pin", "x", "--tenant", "bob").exit_code == 0


def test_flush(node: Node) -> None:
    """It says what is left; while requests run it is refused and says how many."""
    assert invoke("cache", "flush").stdout == "flushed, 3,600 tokens are left\n"
    node.busy = 2
    result = invoke("cache", "flush")
    assert isinstance(result.exception, Overloaded)
    assert "2 requests running or waiting" in str(result.exception)


def test_export(node: Node) -> None:
    """JSON lines as over HTTP; ids only on request; one namespace by tenant and salt."""
    lines = [json.loads(line) for line in invoke("cache", "export").stdout.splitlines()]
    assert [(line["tenant"], line["tokens"]) for line in lines] == [("default", 3), ("alice", 1)]
    assert not any("token_ids" in line for line in lines)
    (line,) = invoke("cache", "export", "--tokens", "--tenant", "alice", "--salt", "s").stdout.splitlines()
    assert json.loads(line)["token_ids"] == [4]
    assert isinstance(invoke("cache", "export", "--salt", "s").exception, ConfigError)


def test_scheduler_shows_and_switches(node: Node) -> None:
    """What changed shows what was; false and 0 are changes, too."""
    assert invoke("scheduler").stdout.splitlines()[0].split() == ["policy", "lpm"]
    out = invoke("scheduler", "--policy", "hrrn", "--no-sharing", "--overtake", "0").stdout
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "policy hrrn (was lpm)",
        "overtake 0 (was 8192)",
        "sharing false (was true)",
        "reuse true",
        "stall 3.0",
        "speculation true",
    ]
    assert json.loads(invoke("scheduler", "--json").stdout)["policy"] == "hrrn"


@pytest.mark.parametrize(
    "words", [["--policy", "best"], ["--overtake", "-1"], ["--stall", "0.5"], ["--stall", "nan"]]
)
def test_scheduler_refuses_wrong_values_as_usage(node: Node, words: list[str]) -> None:
    """Exit code 2, the option is named, and nothing is asked."""
    result = invoke("scheduler", *words)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(words[0])
    assert node.asked == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2 h", 7200), ("1.5D", 129600), ("30d", 2592000)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    """A number with or without a unit."""
    assert parse_seconds(text) == seconds


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    """Nothing else is raised, and no time is too long or none."""
    try:
        seconds = parse_seconds(text)
    except ConfigError:
        return
    assert 1 <= seconds <= 30 * 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (598, "9 min 58 s"),
        (3600, "1 h"),
        (7199, "1 h 59 min"),
        (183600, "2 d 3 h"),
    ],
)
def test_times_are_written(seconds: float, text: str) -> None:
    """The two largest units, rounded down."""
    assert format_seconds(seconds) == text
