"""Requests that are given up at random moments: by a closed connection, a client's `aclose`, or the abort route. Nothing stays behind, and no token comes late."""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import aclosing
from typing import Any, cast

import httpx2

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.history import History, Life
from benchmarks.chaos.kills import check_idle
from benchmarks.chaos.load import expect, now, read_events
from benchmarks.chaos.node import ChaosNode, running, toml
from sgl_actors.actors.node.ask import Stream
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions
from sgl_actors.errors import SglActorsError

TOGETHER = 48
"""Requests at the same time."""
TOKENS = 200
LATEST = 0.8
"""Seconds after which a request is given up at the latest."""
STILL = 2.5
"""Seconds without a step after which nobody computes any more; counters are a second old."""


async def cancel_round(plan: Plan) -> Outcome:
    """One node, `plan.size` requests."""
    outcome = Outcome()
    async with running(plan.folder, toml(delay=0.004)) as node:
        await cancel_many(node, plan, outcome)
    return outcome


async def cancel_many(node: ChaosNode, plan: Plan, outcome: Outcome, together: int = TOGETHER) -> None:
    """`plan.size` requests, a few of which (given up too late) finish; then the node has to be empty and still."""
    history, queue = History(now), iter(range(plan.size))
    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=together * 2)) as http:

        async def turns(number: int) -> None:
            draw = random.Random(plan.seed * 1000 + number)
            for index in queue:
                await _one(node, http, history, outcome, draw, index)

        await asyncio.gather(*(turns(number) for number in range(together)))
        ended = now()
        await check_idle(node, outcome)
        outcome.sample("until idle", now() - ended)
    await _still(node, outcome)
    outcome.take(history.check())


async def _one(
    node: ChaosNode,
    http: httpx2.AsyncClient,
    history: History,
    outcome: Outcome,
    draw: random.Random,
    index: int,
) -> None:
    way = draw.choice(("disconnect", "aclose", "abort"))
    prompt = [draw.randrange(3, 40_000) for _ in range(draw.randrange(1, 60))]
    life = history.begin(f"{way}-{index}-{secrets.token_hex(4)}", way, expected=expect(prompt, TOKENS))
    moment = draw.choice((0.0, draw.uniform(0, 0.02), draw.uniform(0, LATEST)))
    outcome.count(way)
    if way == "aclose":
        await _aclose(node, history, life, prompt, moment)
    else:
        await _over_http(node, http, history, life, prompt, moment, outcome, abort=way == "abort")


async def _aclose(node: ChaosNode, history: History, life: Life, prompt: list[int], moment: float) -> None:
    """A client on the bus stops listening."""
    sampling = SamplingOptions(max_tokens=TOKENS, temperature=0.0, seed=0, ignore_eos=True)
    stream = cast(
        "Stream", node.client.generate(Generate(life.name, input_ids=prompt, sampling=sampling), timeout=60)
    )
    until = now() + moment
    try:
        async with asyncio.timeout(moment), aclosing(stream):
            async for message in stream:
                chunk = cast("Chunk", message)
                history.piece(life, chunk.first_index, chunk.token_ids)
                if chunk.finish is not None:
                    history.end(life, chunk.finish.reason)
                if now() > until:
                    break
    except TimeoutError:
        pass
    except SglActorsError as error:
        history.end(life, error.code)
    life.over = not life.ended


async def _over_http(
    node: ChaosNode,
    http: httpx2.AsyncClient,
    history: History,
    life: Life,
    prompt: list[int],
    moment: float,
    outcome: Outcome,
    *,
    abort: bool,
) -> None:
    """A connection that is closed, or a stream that is aborted by its id."""
    params = {"max_new_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}
    body: dict[str, Any] = {"input_ids": prompt, "sampling_params": params, "stream": True, "rid": life.name}

    async def listen() -> None:
        async with http.stream("POST", f"{node.url}/generate", json=body) as response:
            if response.status_code != httpx2.codes.OK:
                history.end(life, f"{response.status_code} {(await response.aread())[:200]!r}")
            else:
                await read_events(response, history, life)

    task = asyncio.create_task(listen())
    await asyncio.wait([task], timeout=moment)
    if not abort:
        task.cancel()
    elif not task.done():
        answer = await http.post(f"{node.url}/abort_request", json={"rid": life.name})
        if answer.status_code != httpx2.codes.OK:
            outcome.fail(f"abort_request: {answer.status_code} {answer.text[:200]}")
    await asyncio.wait([task], timeout=30)
    if not task.done():
        task.cancel()
        outcome.fail(f"{life.name}: its stream went on 30 s after it was given up")
    elif not task.cancelled() and task.exception() is not None:
        raise cast("BaseException", task.exception())
    if life.last.ends == ["abort"] or not life.ended or (abort and life.last.ends[0].startswith("499")):
        life.over = True


async def _still(node: ChaosNode, outcome: Outcome) -> None:
    """Idle: nobody computes a token that nobody waits for."""
    await asyncio.sleep(STILL / 2)
    steps = (await node.rows())["worker/0"].statistics.get("steps", 0.0)
    await asyncio.sleep(STILL)
    late = (await node.rows())["worker/0"].statistics.get("steps", 0.0) - steps
    outcome.count("steps when idle", late)
    if late:
        outcome.fail(f"{late:g} steps were computed though nobody waited")


CANCELS = Case(
    "cancels",
    "requests cancelled at random moments (disconnect, aclose, abort route): leases and slots are 0 at idle, no late token",
    cancel_round,
    Form(10, 1000),
    Form(1, 150),
)
