"""Bounds at the edge: what is in work, what is held, how heads and bodies come, how answers are read; over real sockets where time or bytes matter."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.connection import MAX_FIELDS, MAX_PIPELINED, SLOWEST_BODY, Limits
from sgl_actors.actors.gateway.gate import MAX_VALUES, Gate, count_values
from sgl_actors.actors.gateway.memory import available_memory
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.server import Server, bind
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.microkernel.messages import ActorRow
from sgl_actors.errors import InvalidRequest, Overloaded
from tests.gateway.conftest import MakeService, client_of
from tests.gateway.fake_node import FakeNode

ONE = {"text": "x", "sampling_params": {"max_new_tokens": 1}}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Edge:
    """A server on a loopback port whose clock stands still until `pass_time`."""

    def __init__(self, server: Server, clock: Clock, port: int) -> None:
        self.server, self.clock, self.port = server, clock, port

    async def pass_time(self, seconds: float) -> None:
        self.clock.time += seconds
        self.server.sweep()

    async def connect(self, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=client, limit=1 << 20)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def edge(service: Service, **limits: Any) -> AsyncIterator[Edge]:
    clock, listener = Clock(), bind("127.0.0.1", 0)
    server = Server(build_app(service), service.log, grace=0, limits=Limits(**limits), now=clock)
    await server.open(listener)
    try:
        yield Edge(server, clock, listener.getsockname()[1])
    finally:
        await server.close(listener)


async def status(reader: asyncio.StreamReader) -> int:
    """Of the next answer."""
    async with asyncio.timeout(10):
        return int((await reader.readline()).split()[1])


def post(body: bytes, path: str = "/generate", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + body


async def test_more_requests_than_fit_are_sent_away(make_service: MakeService, node: FakeNode) -> None:
    """429 with Retry-After, while health, metrics and abort are still answered; a place that is free again is given again."""
    service = make_service(Options(port=0, max_requests=2))
    async with asyncio.timeout(10), client_of(service) as client, asyncio.TaskGroup() as group:
        held = [group.create_task(client.post("/generate", json={"text": "<hold>"})) for _ in range(2)]
        while node.running < 2:
            await asyncio.sleep(0.001)
        refused = await client.post("/generate", json=ONE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert "max_requests" in refused.json()["error"]["message"]
        for path in ("/health", "/metrics", "/version"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post("/abort_request", json={"rid": "none"})).status_code == 200
        node.release.set()
        await asyncio.wait(held)
        assert (await client.post("/generate", json=ONE)).status_code == 200
    assert (service.gate.requests, service.gate.held, service.gate.refused) == (0, 0, 1)


async def test_bodies_take_room_while_they_are_in_work(make_service: MakeService, node: FakeNode) -> None:
    """A body that finds no room is refused before it is read, by its declared length or as it comes; room is given back at the end."""
    service = make_service(Options(port=0, max_held=3000))
    prompt = "<hold>" + "x" * 1400

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 100

    async with asyncio.timeout(10), client_of(service) as client, asyncio.TaskGroup() as group:
        held = group.create_task(client.post("/generate", json={"text": prompt}))
        await node.holding.wait()
        for content in (b" " * 2000, parts()):
            refused = await client.post("/generate", content=content)
            assert refused.status_code == 429
            assert "max_held" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) >= 1
        assert 1400 < service.gate.held < 1700
        assert (await client.post("/generate", json=ONE)).status_code == 200
        node.release.set()
        await held
    assert service.gate.held == 0


async def test_a_body_counts_by_what_it_takes_once_decoded(make_service: MakeService) -> None:
    """Many small values in few bytes take room as what they become; too many are refused outright."""
    service = make_service(Options(port=0, max_held=1 << 20))
    many = b'{"input_ids": [' + b"1," * 30_000 + b"1]}"
    far_too_many = b'{"input_ids": [' + b"1," * (MAX_VALUES + 1) + b"1]}"
    async with client_of(service) as client:
        assert (await client.post("/generate", content=many)).status_code == 429
    async with client_of(make_service()) as client:
        refused = await client.post("/generate", content=far_too_many)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
        assert (
            await client.post("/generate", content=many)
        ).status_code == 400  # over the context, which is the node's to say
    with pytest.raises(InvalidRequest, match="values"):
        count_values(b"[" * (MAX_VALUES + 1))


def test_memory_that_runs_short_stops_new_requests() -> None:
    """By what the machine has left, measured now and then, and by what the node's processes take together."""
    clock, free, asked = Clock(), [1000], []

    def available() -> int:
        asked.append(clock.time)
        return free[0]

    gate = Gate(Options(reserve=500, max_memory=100), clock, available)
    gate.enter().close()
    free[0] = 499
    gate.enter().close()
    assert len(asked) == 1
    clock.time += 1
    with pytest.raises(Overloaded, match="reserve"):
        gate.enter()
    gate.enter(always=True).close()
    rows = [ActorRow(name, "running", 1, 0, 0, pid, 60) for name, pid in (("a", 1), ("b", 1), ("c", 2))]
    gate.check_memory(rows[:2])
    with pytest.raises(Overloaded, match="max_memory"):
        gate.check_memory(rows)
    assert (gate.requests, gate.refused) == (0, 2)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    """What a control group leaves, with the file pages that it can drop; without a limit, or without a group, what the machine has."""
    assert available_memory(tmp_path) > 1 << 20
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 1 << 20


def test_retry_after_follows_how_long_requests_take() -> None:
    """About as long as requests take these days, from 1 to 30 seconds."""
    clock = Clock()
    gate = Gate(Options(reserve=0), clock, lambda: 0)
    assert gate.retry == 1
    for _ in range(50):
        place = gate.enter()
        clock.time += 7
        place.close()
    assert 6 < gate.retry <= 7
    for _ in range(50):
        place = gate.enter()
        clock.time += 500
        place.close()
    assert gate.retry == 30


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(MAX_FIELDS + 1)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"y" * 5000 + b"\r\n\r\n",
        b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"y" * 5000,
    ],
    ids=["fields", "field", "target", "endless field"],
)  # fmt: skip
async def test_large_heads_are_refused(service: Service, head: bytes) -> None:
    """By number of fields and by bytes, whole or unfinished: 431 with the error object, then the connection ends."""
    async with edge(service, headers=4096) as server:
        reader, writer = await server.connect()
        writer.write(head)
        async with asyncio.timeout(10):
            raw = await reader.read()
        assert raw.startswith(b"HTTP/1.1 431 ")
        error = json.loads(raw.partition(b"\r\n\r\n")[2])["error"]
        assert "max_headers" in error["message"]
        assert server.server.lobby.cut["head"] == 1
        writer.close()


async def test_an_endless_trailer_ends_the_connection(service: Service) -> None:
    """What follows a chunked body is bounded as a head is."""
    async with edge(service, headers=4096) as server:
        reader, writer = await server.connect()
        writer.write(b"POST /version HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: y")
        assert await status(reader) == 405
        writer.write(b"y" * 5000)
        async with asyncio.timeout(10):
            await reader.read()
        assert server.server.lobby.cut["head"] == 1
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", b"\r\n\r\n"], ids=["nothing", "half a head", "empty lines"]
)
async def test_a_head_that_does_not_come_ends_the_connection(service: Service, sent: bytes) -> None:
    """408 after the header timeout, not before."""
    async with edge(service, header_timeout=5.0) as server:
        reader, writer = await server.connect()
        writer.write(sent)
        await server.until(lambda: server.server.server_state.connections)
        await asyncio.sleep(0.02)
        await server.pass_time(4.9)
        assert not server.server.lobby.cut
        await server.pass_time(0.2)
        assert await status(reader) == 408
        writer.close()


async def test_a_body_that_dribbles_ends_its_request(service: Service, node: FakeNode) -> None:
    """One that comes at the least rate may go on to the body's deadline; one that is slower gets 408, and its room is free again."""
    async with edge(service, body_timeout=50.0) as server:
        good, bad = await server.connect(), await server.connect()
        for _, writer in (good, bad):
            writer.write(post(b'{"text": "', length=1 << 20))
        await server.until(lambda: service.gate.held == 20)
        for number in range(1, 5):
            good[1].write(b"x" * SLOWEST_BODY * 11)
            expected = 10 + number * SLOWEST_BODY * 11
            while service.gate.held < expected:
                await asyncio.sleep(0.001)
            await server.pass_time(10.5)
        assert await status(bad[0]) == 408
        assert server.server.lobby.cut["body"] == 1
        await server.pass_time(9)
        assert await status(good[0]) == 408
        await server.until(lambda: service.gate.held == 0)
        assert node.asked == []
        for _, writer in (good, bad):
            writer.close()


async def test_a_client_that_does_not_read_is_cut_off(make_service: MakeService, node: FakeNode) -> None:
    """What is written to it stays bounded; after the grace time its connection ends, its work is aborted and its place is free."""
    service = make_service()
    node.forced = "x" * (4 << 20)
    async with edge(service, send_timeout=5.0) as server:
        _, writer = await server.connect(receive_buffer=4096)
        writer.write(
            post(
                json.dumps(
                    {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 2000}}
                ).encode()
            )
        )
        (connection,) = await _connections(server)
        await server.until(lambda: connection.flow.write_paused)
        await server.pass_time(4.9)
        assert service.gate.requests == 1
        await server.pass_time(0.2)
        await server.until(lambda: service.gate.requests == 0)
        assert server.server.lobby.cut == {"unread": 1}
        assert node.running == 0
        writer.close()


async def _connections(server: Edge) -> list[Any]:
    await server.until(lambda: server.server.server_state.connections)
    return list(server.server.server_state.connections)


async def test_who_waits_longest_makes_room(service: Service) -> None:
    """With all places taken, a new connection takes that of the one that has had no request for the longest time; requests in work are left alone."""
    async with edge(service, connections=3) as server:
        lingering = [await server.connect() for _ in range(3)]
        await server.until(lambda: len(server.server.server_state.connections) == 3)
        reader, writer = await server.connect()
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await status(reader) == 200
        assert await status(lingering[0][0]) == 503
        assert len(server.server.server_state.connections) == 3
        for _, one in [*lingering, (reader, writer)]:
            one.close()


async def test_an_idle_connection_makes_room_by_ending(service: Service) -> None:
    """One that has had its answers ends without a word, as it would at the end of its time; the one used last stays."""
    async with edge(service, connections=2) as server:
        kept = [await server.connect() for _ in range(2)]
        for reader, writer in kept:
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await status(reader) == 200
            server.clock.time += 1
        newest = await server.connect()
        async with asyncio.timeout(10):
            assert b"HTTP/1.1" not in await kept[0][0].read()
        assert server.server.lobby.cut == {"idle": 1}
        for reader, writer in (kept[1], newest):
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                await reader.readuntil(b"HTTP/1.1 200")
        for _, writer in [*kept, newest]:
            writer.close()


async def test_no_room_at_all_is_said(service: Service, node: FakeNode) -> None:
    """If every connection has a request in work, a new one is refused with Retry-After."""
    async with edge(service, connections=1) as server, httpx2.AsyncClient() as client:
        asking = asyncio.ensure_future(
            client.post(f"http://127.0.0.1:{server.port}/generate", json={"text": "<hold>"}, timeout=20)
        )
        await node.holding.wait()
        reader, writer = await server.connect()
        async with asyncio.timeout(10):
            raw = await reader.read()
        assert raw.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in raw
        node.release.set()
        assert (await asking).status_code == 200
        writer.close()


async def test_requests_ahead_of_their_answers_are_bounded(service: Service) -> None:
    """A few may be sent ahead and are answered in order; a flood of them ends the connection."""
    one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    async with edge(service) as server:
        reader, writer = await server.connect()
        writer.write(one * MAX_PIPELINED)
        async with asyncio.timeout(10):
            seen = b""
            while seen.count(b"HTTP/1.1 200") < MAX_PIPELINED:
                seen += await reader.read(1 << 16)
        writer.write(one * (MAX_PIPELINED + 2))
        async with asyncio.timeout(10):
            await reader.read()
        assert server.server.lobby.cut["pipeline"] == 1
        writer.close()


async def test_what_is_no_http_gets_the_error_object(service: Service) -> None:
    """400 as JSON, and no line of the log above debug: anybody could fill it."""
    async with edge(service) as server:
        reader, writer = await server.connect()
        writer.write(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n")
        async with asyncio.timeout(10):
            raw = await reader.read()
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert json.loads(raw.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
        writer.close()


async def test_a_flood_leaves_nothing_behind(service: Service, node: FakeNode) -> None:
    """After many broken, half and slow connections nothing is held, waited for or kept."""
    async with edge(service, connections=20) as server:
        rests = [b"", b"GET", b"POST /generate HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"\x00", post(b"{}")]
        for number in range(100):
            _, writer = await server.connect()
            writer.write(rests[number % len(rests)])
            writer.close()
        await server.until(lambda: not server.server.server_state.connections)
        lobby = server.server.lobby
        await server.until(lambda: not server.server.server_state.tasks)
        assert (lobby.strangers, lobby.idle, service.gate.requests, service.gate.held) == ({}, {}, 0, 0)
    assert node.running == 0
