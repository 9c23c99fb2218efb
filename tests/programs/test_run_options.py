"""What a run says about all its requests, and when a prompt is computed ahead of those who share it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs import runtime
from sgl_actors.actors.programs.interpreter import TAIL
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.tokenizer.messages import TokenIds, Tokenize
from tests.programs.fakes import FakeClient, backend_of

LONG = "Bees dance to tell each other where flowers are. " * 4


class Client(FakeClient):
    """Keeps the questions for ids, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenized: list[Tokenize] = []

    async def tokenize(self, request: Tokenize) -> TokenIds:
        self.tokenized.append(request)
        return await super().tokenize(request)

    @property
    def hints(self) -> list[str]:
        """Prompts that were only computed."""
        asked = zip(self.requests, self.prompts, strict=True)
        return [p for r, p in asked if not r.sampling.max_tokens and r.prompt_logprobs_start < 0]


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture(autouse=True)
async def backend(client: Client) -> AsyncIterator[Backend]:
    async with backend_of(client) as backend:
        yield backend


@sgl.function
async def everything(s: sgl.ProgramState) -> None:
    s += LONG
    group = s.fork(2)
    group += sgl.gen("x")
    await group.join("x")
    s += LONG + sgl.select("y", choices=["a", "b"])


async def test_priority_and_salt_are_in_every_request(client: Client) -> None:
    """Hints, gens and scores carry them, and so do the questions for ids of prompts."""
    await everything.bind().run(priority=-3, cache_salt="mine")
    assert {(r.priority, r.salt) for r in client.requests} == {(-3, "mine")}
    assert len(client.requests) == 1 + 2 + 2
    assert {t.salt for t in client.tokenized} == {"mine"}
    client.requests.clear()
    await everything.run(priority=1)
    assert {(r.priority, r.salt) for r in client.requests} == {(1, "")}


async def test_a_state_can_be_pinned(client: Client) -> None:
    """What it holds by then, the template's frame included, is kept in the run's namespace; the pin's name comes back."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> list[str]:
        s += sgl.system("Be brief.") + sgl.user("Hi") + sgl.assistant(sgl.gen("x"))
        return [await s.pin(ttl=60), await s.pin(ttl=5, name="mine")]

    state = await program.bind().run(cache_salt="salt")
    assert state.value == ["drawn", "mine"]
    assert client.pinned == [(state.text(), 60, "salt"), (state.text(), 5, "salt")]


@pytest.mark.parametrize(
    ("options", "param"),
    [({"ttl": ttl}, "ttl") for ttl in (0, 0.9, -1, 2592001, float("inf"), float("nan"), "10m", None, True)]
    + [({"ttl": 5, "name": name}, "name") for name in (7, None, "a b", "x" * 65, "..", "a\n")],
)
async def test_wrong_pins_are_refused_where_they_are_said(client: Client, options: Any, param: str) -> None:
    """Before anything is asked of the node, whichever way it is reached."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Hi"
        await s.pin(**options)

    with pytest.raises(sgl.InvalidPrimitive, match=rf"pin: {param} is") as caught:
        await program.run()
    assert caught.value.param == param
    assert (client.pinned, client.tokenized) == ([], [])


async def test_an_empty_state_cannot_be_pinned(client: Client) -> None:
    """A prefix has at least one token."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        await s.pin(ttl=5)

    with pytest.raises(sgl.InvalidPrimitive, match="holds nothing yet"):
        await program.run()
    assert client.pinned == []


@pytest.mark.parametrize(
    "options", [{"priority": 1001}, {"priority": 0.5}, {"cache_salt": "x" * 257}, {"cache_salt": "\n"}, {"cache_salt": 3}, {"fork_hint": "no"}, {"fork_hint": None}]
)  # fmt: skip
async def test_wrong_options_are_refused_before_anything_runs(client: Client, options: Any) -> None:
    """The error names the option."""
    with pytest.raises(sgl.InvalidPrimitive, match=next(iter(options))):
        await everything.bind().run(**options)
    assert client.requests == []


async def test_the_hint_can_be_switched_off(client: Client) -> None:
    """With `fork_hint=False` branches start at once; text, variables and samples are the same."""
    with_hint = await everything.bind().run(seed=1)
    assert client.hints == [LONG]
    seeds = [r.sampling.seed for r in client.requests if r.sampling.max_tokens]
    client.requests.clear()
    client.prompts.clear()
    without = await everything.bind().run(seed=1, fork_hint=False)
    assert client.hints == []
    assert [r.sampling.seed for r in client.requests if r.sampling.max_tokens] == seeds
    assert (without.text(), without.variables) == (with_hint.text(), with_hint.variables)


@pytest.mark.parametrize(("more", "hints"), [("", 0), ("x" * TAIL, 0), ("x" * (TAIL + 1), 1)])
@pytest.mark.parametrize("call", [sgl.gen("x"), sgl.select("x", choices=["a", "b"])])
async def test_what_a_call_has_computed_needs_no_hint(
    client: Client, call: Any, more: str, hints: int
) -> None:
    """Right after a gen or a select only a short tail is left, which branches compute themselves; a longer one is worth a call."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += LONG + call + more
        await s["x"]
        client.prompts.clear()
        client.requests.clear()
        group = s.fork(3)
        group += sgl.gen("y")
        await group.join("y")

    await program.run()
    assert len(client.hints) == hints


async def test_branches_know_what_their_parent_has_computed(client: Client) -> None:
    """A branch that forks again, or selects, at once asks for nothing twice."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += LONG
        outer = s.fork(2)
        for branch in outer:
            inner = branch.fork(2)
            inner += sgl.select("x", choices=["a", "b"])
            await inner.join("x")
        await outer.join("x")

    await program.run()
    assert client.hints == [LONG]


async def test_the_choices_of_a_select_are_asked_for_at_once(client: Client) -> None:
    """Nothing is computed beforehand, and none of them waits for another here: the scheduler sees what they share."""
    client.hold(LONG)

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += LONG + sgl.select("x", choices=["a", "b", "c"])

    running = asyncio.ensure_future(program.run())
    while client.running < 3:
        await asyncio.sleep(0)
    client.release(LONG)
    assert (await running).usage.calls == 3
    assert [prompt.removeprefix(LONG) for prompt in client.prompts] == ["a", "b", "c"]


@pytest.mark.parametrize("ask", [sgl.connect, sgl.set_default_backend])
def test_a_default_backend_outlives_the_event_loop(monkeypatch: pytest.MonkeyPatch, ask: Any) -> None:
    """A script may call `asyncio.run` several times: what it has chosen stays, and no embedded node takes its place."""
    monkeypatch.setattr(runtime, "_stack", [])
    made: list[str] = []

    async def opens(endpoint: str, key: str, curve: tuple[str, str]) -> Any:
        made.append(endpoint)
        kernel = await open_kernel()
        return kernel, lambda _context: Client(), False

    monkeypatch.setattr(runtime, "_open_endpoint", opens)
    ask("http://node" if ask is sgl.connect else runtime.Connection("http://node"))

    @sgl.function
    async def words(s: sgl.ProgramState) -> None:
        s += "One. " + sgl.gen("word", max_tokens=2)

    for _ in range(2):
        asyncio.run(words.run())
    assert made == ["http://node", "http://node"]


async def test_a_closed_backend_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` and the end of `async with` give the place back."""
    monkeypatch.setattr(runtime, "_stack", [])
    connection = sgl.connect("http://node")
    await connection.close()
    assert runtime._stack == []
