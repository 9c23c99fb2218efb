"""Programs over HTTP where connections break, the gateway dies, or the node is not ready: nothing of it is seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.server import Server, bind
from sgl_actors.actors.programs import attempts
from sgl_actors.actors.programs.http_client import HttpClient
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions, Tokenize
from sgl_actors.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from tests.gateway.chunky_node import ChunkyNode
from tests.gateway.test_retry import service_over
from tests.programs.breaking_proxy import BreakingProxy
from tests.programs.test_http_client import event

TEXT = "Zwölf Boxkämpfer 😀 jagen Viktor quer über den großen Sylter Deich 👩‍🚀."


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short, so that a test of many attempts is."""
    monkeypatch.setattr(attempts, "SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(attempts, "LONGEST_PAUSE", 0.01)


class Gateway:
    """A gateway on a fixed port that can be killed and started again."""

    def __init__(self) -> None:
        self.node = ChunkyNode(1)
        self.port = 0
        self._stop: list[Any] = []

    async def start(self) -> None:
        listener = bind("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        service = service_over(self.node)
        server = Server(build_app(service), service.log, grace=0)
        await server.open(listener)
        self._stop = [server, listener, asyncio.ensure_future(server.main_loop())]

    async def stop(self) -> None:
        server, listener, ticking = self._stop
        ticking.cancel()
        await asyncio.wait([ticking])
        await server.close(listener)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    await made.start()
    yield made
    await made.stop()


def request(name: str) -> Generate:
    """One whose answer is `TEXT`, with log probabilities."""
    return Generate(name, text="x", sampling=SamplingOptions(max_tokens=200), logprobs=True, top_logprobs=1)


@pytest.mark.parametrize("seed", range(2))
async def test_streams_over_connections_that_break_anywhere(gateway: Gateway, seed: int) -> None:
    """However often a connection breaks off, in headers, between events or inside of one: the answer is the same, each token once."""
    gateway.node.forced = TEXT
    chance = random.Random(seed)
    # An answer of so many tokens has about 200 kB, as every event repeats what came before.
    proxy = BreakingProxy(
        gateway.port, lambda: chance.choice((1, 40, 300, 2000, 6000, 20_000, chance.randint(1, 60_000)))
    )
    await proxy.open()
    direct = HttpClient(f"http://127.0.0.1:{gateway.port}")
    client = HttpClient(f"http://127.0.0.1:{proxy.port}")
    expected = await direct.complete(request("direct"))
    assert expected.text == TEXT
    async with asyncio.timeout(30):
        for number in range(3):
            got = await client.complete(request(f"r{number}"))
            assert (got.text, got.token_ids, got.logprobs, got.finish) == (
                expected.text,
                expected.token_ids,
                expected.logprobs,
                expected.finish,
            )
            assert got.completion_tokens == expected.completion_tokens
    assert proxy.broken > 3
    await direct.close()
    await client.close()
    await proxy.close()


async def test_a_gateway_that_dies_and_comes_back(gateway: Gateway) -> None:
    """Streams that run, and what is asked while it is away, end as if nothing had been."""
    gateway.node.forced = TEXT
    client = HttpClient(f"http://127.0.0.1:{gateway.port}")
    expected = await client.complete(request("first"))
    seen = asyncio.Event()

    async def read(name: str) -> str:
        text = ""
        async for chunk in client.generate(request(name)):
            text += chunk.text
            seen.set()
        return text

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        reading = [group.create_task(read(f"r{number}")) for number in range(8)]
        for _ in range(3):
            seen.clear()
            await seen.wait()
            await gateway.stop()
            tokenising = group.create_task(client.tokenize(Tokenize("x")))
            await asyncio.sleep(0.02)
            await gateway.start()
            assert (await tokenising).token_ids == [ord("x")]
            if all(task.done() for task in reading):
                break
    assert [task.result() for task in reading] == [expected.text] * 8
    await client.close()


class Script:
    """Answers with what it is given, in order; the last one for ever."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def client(self, **options: Any) -> HttpClient:
        return HttpClient("http://node", httpx2.MockTransport(self.handle), **options)

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def stream(*lines: str) -> httpx2.Response:
    return httpx2.Response(200, text="\n".join(lines) + "\n")


def refusal(code: str, status: int, after: str | None = None) -> httpx2.Response:
    headers = {} if after is None else {"Retry-After": after}
    return httpx2.Response(status, json={"error": {"message": "m", "code": code}}, headers=headers)


END = {"type": "length"}


async def test_the_place_is_sent_and_half_an_event_does_not_count() -> None:
    """Again goes the same body, with the id of the last whole event."""
    script = Script(
        stream("id: 1", event("a", [1]), "", ": ping", "", "id: 2", 'data: {"text": "ab'),
        stream("id: 2", event("ab", [1, 2]), "", "id: 3e", event("abc", [1, 2, 3], END), "", "data: [DONE]", ""),
    )  # fmt: skip
    client = script.client()
    whole = await client.complete(Generate("r", text="x"))
    assert (whole.text, whole.token_ids) == ("abc", [1, 2, 3])
    one, two = script.requests
    assert "last-event-id" not in one.headers
    assert two.headers["last-event-id"] == "1"
    assert one.content == two.content
    await client.close()


async def test_a_node_that_begins_anew_is_understood() -> None:
    """One that does not know `Last-Event-ID` repeats what is known; it is passed over."""
    script = Script(
        stream(event("ab", [1, 2]), ""),
        stream(event("a", [1]), "", event("ab", [1, 2]), "", event("abc", [1, 2, 3], END), "", "data: [DONE]", ""),
    )  # fmt: skip
    client = script.client()
    chunks = [chunk async for chunk in client.generate(Generate("r", text="x"))]
    assert [token for chunk in chunks for token in chunk.token_ids] == [1, 2, 3]
    assert "".join(chunk.text for chunk in chunks) == "abc"
    await client.close()


async def test_not_ready_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the node wants, and no longer than patience and deadline allow; then its own words are the error."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("sgl_actors.actors.programs.attempts.asyncio.sleep", note)
    good = stream(event("a", [1], END), "", "data: [DONE]", "")
    for bad in (
        refusal("not_ready", 503, "3"),
        stream('data: {"error": {"message": "m", "code": "not_ready"}}', ""),
    ):
        client = Script(bad, good).client()
        assert (await client.complete(Generate("r", text="x"))).text == "a"
        await client.close()
    assert pauses[0] == 3
    assert pauses[1] < 0.1
    client = Script(refusal("not_ready", 503, "100")).client()
    with pytest.raises(NotReady, match="m"):
        await client.complete(Generate("r", text="x"), timeout=50)
    await client.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [(refusal("overloaded", 429, "0"), Overloaded), (refusal("invalid_request", 400), InvalidRequest)],
)
async def test_other_refusals_are_final(answer: httpx2.Response, error: type[Exception]) -> None:
    """A node without room says so at once; what is wrong stays wrong."""
    script = Script(answer)
    client = script.client()
    for asking in (client.complete(Generate("r", text="x")), client.tokenize(Tokenize("x"))):
        with pytest.raises(error):
            await asking
    assert len(script.requests) == 2
    await client.close()


async def test_a_request_that_had_its_place_waits_for_it() -> None:
    """After a fault a node may have no room for a moment."""
    script = Script(
        stream("id: 1", event("a", [1]), ""),
        refusal("overloaded", 429),
        stream("id: 2e", event("ab", [1, 2], END), "", "data: [DONE]", ""),
    )
    client = script.client()
    assert (await client.complete(Generate("r", text="x"))).text == "ab"
    await client.close()


async def test_nobody_there_fails_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that never answered is not waited for like a node that did."""
    monkeypatch.setattr("sgl_actors.actors.programs.http_client.FIRST_PATIENCE", 0.0)
    client = Script(httpx2.ConnectError("refused")).client()
    with pytest.raises(NotReady, match="refused"):
        await client.tokenize(Tokenize("x"))
    await client.close()


@pytest.mark.parametrize("begun", [False, True])
async def test_who_stops_waiting_aborts(gateway: Gateway, begun: bool) -> None:
    """A program that gives a request up has it aborted by its id, before or after its first token; one that has ended is left alone."""
    client = HttpClient(f"http://127.0.0.1:{gateway.port}")
    gateway.node.forced = "abc"
    whole = await client.complete(Generate("whole", text="x"))
    assert whole.text == "abc"
    held = Generate("held", text="x" if begun else "<hold>")
    inner = gateway.node.generate
    release = asyncio.Event()

    async def slow(request: Generate, **options: Any) -> Any:
        async for chunk in inner(request, **options):
            if not begun:
                gateway.node.holding.set()
                await release.wait()
            yield chunk
            gateway.node.holding.set()
            await release.wait()

    gateway.node.generate = slow  # type: ignore[method-assign]
    chunks = client.generate(held)
    async with asyncio.timeout(10):
        reading = asyncio.ensure_future(anext(chunks))
        if begun:
            await reading
            await chunks.aclose()  # type: ignore[attr-defined]
        else:
            await gateway.node.holding.wait()
            reading.cancel()
            await asyncio.wait([reading])
        ((ids, everything),) = gateway.node.cancelled
    assert ids[0] == gateway.node.asked[1].id
    assert not everything
    await client.close()


async def test_the_deadline_holds_over_all_attempts() -> None:
    """However often it is tried."""
    client = Script(httpx2.ReadError("gone")).client()
    with pytest.raises((DeadlineExceeded, NotReady)):
        await client.complete(Generate("r", text="x"), timeout=0.05)
    await client.close()
