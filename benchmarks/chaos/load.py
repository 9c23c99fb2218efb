"""Load as users make it: programs with forks, joins and selects; HTTP streams with retries; a client on the bus. Each request is written into a history."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx2
import msgspec

import sgl_actors as sgl
from benchmarks.chaos.history import History, Life
from benchmarks.chaos.node import ChaosNode
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.programs.runtime import Connection
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.constraints.constraint import REGEX, Constraint

PROGRAMS = 16
BRANCHES = 4
CHOICES = ["good", "fair", "poor"]
RETRY_DELAY = 0.05
"""Seconds between two attempts of a client whose connection broke off."""
ATTEMPTS = 400
"""Most attempts of one request: a bound against hanging."""
PATIENCE = 300.0


@sgl.function
async def story(s: sgl.ProgramState, topic: str, tokens: int) -> None:
    """Four branches from one prefix, joined, a choice among three, and an end."""
    s += f"A story about {topic}. It has four parts, each told by somebody else.\n"
    forks = s.fork(BRANCHES)
    forks += lambda number: f"Part {number}: " + sgl.gen("part", max_tokens=tokens, ignore_eos=True)
    parts = await forks.join("part")
    s += "\n".join(parts) + "\nIt is " + sgl.select("verdict", choices=CHOICES) + ". "
    s += "In the end " + sgl.gen("end", max_tokens=tokens // 2, ignore_eos=True)


class RecordingClient(NodeClient):
    """A client on the bus that writes what it gets into a history. `fake` lets it know what each request must get."""

    history: History
    fake: bool = False
    asker: str = "program"

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: object = None
    ) -> AsyncIterator[Chunk]:
        """See `NodeClient.generate`."""
        life = self.history.begin(request.id, self.asker)
        known = len(request.output)
        stream = super().generate(request, timeout=timeout, trace=trace, call=call)
        try:
            async with aclosing(stream):  # type: ignore[type-var]
                async for chunk in stream:
                    if chunk.prompt_ids and self.fake and expectable(request.sampling):
                        life.expected = expect(chunk.prompt_ids, request.sampling.max_tokens or 0)[known:]
                    self.history.piece(life, chunk.first_index - known, chunk.token_ids)
                    if chunk.finish is not None:
                        self.history.end(life, chunk.finish.reason)
                    yield chunk
        except SglActorsError as error:
            self.history.end(life, error.code)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            life.over = not life.ended
            raise


def expectable(sampling: SamplingOptions) -> bool:
    """Whether the fake worker's output follows from the prompt and a number of tokens alone."""
    return bool(
        sampling.ignore_eos
        and sampling.max_tokens
        and not (sampling.stop or sampling.stop_regex or sampling.stop_token_ids or sampling.logit_bias)
    )


def expect(prompt: Sequence[int], tokens: int) -> list[int]:
    """What the fake worker has to answer."""
    return complete(prompt, Sampling(seed=0), tokens)


class Load:
    """Programs, HTTP streams and bus clients in endless turns until `stop`.

    Args:
        node: where.
        history: of what.
        fake: the fake worker, whose answers are known beforehand; else `calm` finds them in a run without faults.
        tokens: per gen of a program, and per stream.
        streams: raw HTTP streams beside the programs; half as many bus clients go with them.
    """

    def __init__(
        self,
        node: ChaosNode,
        history: History,
        *,
        fake: bool,
        tokens: int,
        programs: int = PROGRAMS,
        streams: int = 8,
    ) -> None:
        self.node, self.history, self.fake, self.tokens = node, history, fake, tokens
        self.programs, self.streams = programs, streams
        self.wanted: dict[str, str] = {}
        self.known: dict[str, list[int]] = {}
        self.stopping = False
        self._numbers = itertools.count()
        self._backends: list[Connection] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=5.0), limits=httpx2.Limits(max_connections=256)
        )

    async def open(self) -> None:
        """Connect: a quarter of the programs over HTTP, the others over the bus."""
        for endpoint in (self.node.record.endpoint, self.node.url):
            backend = Connection(endpoint)
            opened = await backend.open()
            if endpoint.startswith("ipc"):
                client = RecordingClient(opened.context)
                client.history, client.fake = self.history, self.fake
                opened.client = client
            self._backends.append(backend)

    async def calm(self) -> None:
        """A run without faults: what every program must return, and what every stream must get."""
        await asyncio.gather(*(self._program(number) for number in range(self.programs)))
        await asyncio.gather(*(self._stream(number) for number in range(self.streams)))

    def begin(self) -> None:
        """Start everything."""
        jobs: list[Callable[[], Awaitable[None]]] = []
        jobs += [lambda n=n: self._program(n) for n in range(self.programs)]  # type: ignore[misc]
        jobs += [lambda n=n: self._stream(n) for n in range(self.streams)]  # type: ignore[misc]
        jobs += [lambda n=n: self._bus(n) for n in range(self.streams // 2)]  # type: ignore[misc]
        self._tasks = [asyncio.create_task(self._turns(job)) for job in jobs]

    async def end(self) -> None:
        """Begin nothing new and wait for what runs; what does not end is left unfinished in the history."""
        self.stopping = True
        _, late = await asyncio.wait(self._tasks, timeout=PATIENCE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in self._tasks:
            if task not in late:
                task.result()

    async def close(self) -> None:
        """Let go of all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()
        for backend in self._backends:
            await backend.close()

    async def _turns(self, job: Callable[[], Awaitable[None]]) -> None:
        while not self.stopping:
            await job()

    async def _program(self, number: int) -> None:
        over_http = number % 4 == 3
        topic = f"number {number}"
        life = self.history.begin(
            f"story {number} #{next(self._numbers)}", "http program" if over_http else "bus program"
        )
        life.wanted = self.wanted.get(topic)
        backend = self._backends[1 if over_http else 0]
        try:
            state = await story.bind(topic=topic, tokens=self.tokens).run(
                backend=backend, temperature=0.0, seed=number, timeout=PATIENCE
            )
        except SglActorsError as error:
            self.history.end(life, f"{error.code}: {error.message}"[:300])
            return
        life.outcome = msgspec.json.encode([state.text(), state["part"], state["verdict"]]).decode()
        self.wanted.setdefault(topic, life.outcome)
        self.history.end(life, "stop")

    async def _stream(self, number: int) -> None:
        body = self._body(number)
        name = f"stream {number}"
        life = self.history.begin(f"{name} #{next(self._numbers)}", "http", expected=self.known.get(name))
        if self.fake:
            life.expected = expect(body["input_ids"], self.tokens * 2)
        await retrying_stream(self._http, self.node.url, body, self.history, life)
        if life.last.ends == ["length"]:
            self.known.setdefault(name, [token for piece in life.last.pieces for token in piece.ids])

    def _body(self, number: int) -> dict[str, Any]:
        prompt = [1000 + (number * 37 + n * n) % 4000 for n in range(24)]
        params: dict[str, Any] = {
            "max_new_tokens": self.tokens * 2,
            "temperature": 0.0,
            "ignore_eos": True,
            "sampling_seed": number,
        }
        return {"input_ids": prompt, "sampling_params": params, "stream": True}

    async def _bus(self, number: int) -> None:
        client = RecordingClient(self.node.context)
        client.history, client.fake, client.asker = self.history, self.fake, "bus client"
        constraint = Constraint(REGEX, f"[a-z ]{{{self.tokens},{self.tokens * 8}}}") if number % 2 else None
        sampling = SamplingOptions(
            max_tokens=self.tokens, temperature=0.0, seed=number, ignore_eos=True, constraint=constraint
        )
        request = Generate(
            f"bus-{number}-{next(self._numbers)}", text=f"Tale {number}: once", sampling=sampling
        )
        try:
            async for _ in client.generate(request, timeout=PATIENCE):
                pass
        except SglActorsError:
            return  # it is in the history


async def retrying_stream(
    http: httpx2.AsyncClient,
    url: str,
    body: dict[str, Any],
    history: History,
    life: Life,
    *,
    attempts: int = ATTEMPTS,
) -> None:
    """One HTTP stream as a careful client has it: a connection that breaks off is asked for again with the same key.

    Every other one says what it has (`Last-Event-ID`), the others get all of it again.
    """
    headers = {"Idempotency-Key": f"chaos-{life.name.replace(' ', '-').replace('#', '')}-{id(history):x}"}
    for _ in range(attempts):
        try:
            async with http.stream("POST", f"{url}/generate", json=body, headers=headers) as response:
                if response.status_code == httpx2.codes.SERVICE_UNAVAILABLE and len(life.attempts) > 1:
                    await response.aread()
                    await asyncio.sleep(RETRY_DELAY)
                    continue
                if response.status_code != httpx2.codes.OK:
                    history.end(life, f"{response.status_code}: {(await response.aread())[:300]!r}")
                    return
                if await read_events(response, history, life):
                    return
            life.again("the stream ended without a finish")
        except httpx2.TransportError as error:
            life.again(repr(error)[:200])
        await asyncio.sleep(RETRY_DELAY)
        if life.mark and len(life.name) % 2:
            headers["Last-Event-ID"] = life.mark


async def read_events(response: httpx2.Response, history: History, life: Life) -> bool:
    """Note every event of a `/generate` stream, whose events repeat all tokens; whether a terminal one came."""
    have: list[int] = []
    over, mark = False, life.mark
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            mark = line.removeprefix("id: ")
        elif not line:
            life.mark = mark
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = msgspec.json.decode(line.removeprefix("data: "))
        if "error" in event:
            history.end(life, f"{event['error']}"[:300])
            over = True
            continue
        ids = event["output_ids"]
        if ids[: len(have)] != have:
            history.end(life, "an event takes back tokens")
            return True
        history.piece(life, len(have), ids[len(have) :])
        have = ids
        reason = event["meta_info"]["finish_reason"]
        if reason is not None:
            history.end(life, reason["type"])
            over = True
    return over


async def pick_moment(random_: random.Random, longest: float) -> None:
    """Wait for a random time."""
    await asyncio.sleep(random_.uniform(0.0, longest))


now = time.monotonic
"""The clock of histories."""
