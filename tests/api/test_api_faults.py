"""Programs on an API of which every fifth answer goes wrong, in every way that an API can."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import sgl_actors as sgl
from tests.api.stub import CUT, DROPPED, ENDED, ERROR, HANG, MALFORMED, Asked, Fault, Reply, Stub

RUNS = 200
SHARE = 0.2
MOST = 4
"""Faults of one request, one after the other: one less than it is tried again, so that the outcome hangs on no chance."""
BREAKS = (CUT, ENDED, DROPPED, MALFORMED, ERROR, HANG)
FAULTS: tuple[Fault | str, ...] = (
    Fault(429, headers={"retry-after": "0.01"}),
    Fault(429, headers={"retry-after-ms": "5"}),
    Fault(500),
    Fault(529, code="overloaded_error"),
    Fault(),
    *BREAKS,
)


def fields(item: int) -> dict[str, str]:
    """What an item's fields are."""
    return {"name": f"Ann{item}", "role": f"cook number {item}", "company": f"Acme{item}"}


def motto(item: int) -> str:
    """What is asked for behind them, which nobody can know from them."""
    return f"Always {item} times {item * 7}"


class Model:
    """A model that knows all items, behind an API with faults.

    Attributes:
        faults: how many went out, by kind.
    """

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()

    def __call__(self, asked: Asked) -> Reply | Fault:
        reply = Reply((self._answer(asked),))
        key = f"{asked.path} {json.dumps(asked.body, sort_keys=True)}"
        self._tries[key] += 1
        drawn = random.Random(f"{key} {self._tries[key]}")
        if drawn.random() >= SHARE or self._tries[key] > MOST:
            return reply
        fault = drawn.choice(FAULTS)
        if isinstance(fault, Fault):
            self.faults[f"{fault.status}"] += 1
            return fault
        self.faults[fault] += 1
        return replace(reply, breaks=fault, after=drawn.randrange(3))

    def _answer(self, asked: Asked) -> str:
        item = int(re.findall(r"Item (\d+)\.", asked.prompt)[-1])
        schema = asked.body.get("response_format")
        if schema is not None:
            return json.dumps(
                {name: fields(item)[name] for name in schema["json_schema"]["schema"]["properties"]}
            )
        begun = asked.prompt.rpartition(f"Item {item}.\n")[2]
        if "messages" in asked.body:
            last = asked.body["messages"][-1]
            begun = last["content"] if last["role"] == "assistant" else ""
        if asked.prompt.endswith(("Motto: ", "And its motto?")):
            return f"{motto(item)}\nThat is all."
        whole = "".join(f"{name.title()}: {text}\n" for name, text in fields(item).items()) + "That is all."
        return whole[len(begun) :] if whole.startswith(begun) else f"nothing goes on from {begun!r}"


def lines(s: sgl.ProgramState) -> None:
    """Three fields, which one call can be for."""
    s += "Name: " + sgl.gen("name", stop="\n", max_tokens=16)
    s += "\nRole: " + sgl.gen("role", stop="\n", max_tokens=16)
    s += "\nCompany: " + sgl.gen("company", stop="\n", max_tokens=16)


@sgl.function
async def read_text(s: sgl.ProgramState, item: int) -> None:
    """As plain text."""
    s += f"Item {item}.\n"
    lines(s)
    s += "\nMotto: " + sgl.gen("motto", stop="\n", max_tokens=16)


@sgl.function
async def read_chat(s: sgl.ProgramState, item: int) -> None:
    """In two turns."""
    s += sgl.user(f"Item {item}.")
    with s.assistant():
        lines(s)
    s += sgl.user("And its motto?") + sgl.assistant(sgl.gen("motto", stop="\n", max_tokens=16))


WAYS: list[tuple[sgl.Function[[int]], dict[str, Any]]] = [
    (read_text, {"api": "completions"}),
    (read_text, {"api": "completions", "capabilities": {"counting": True}}),
    (read_chat, {"capabilities": {"continuation": "prefill"}}),
    (read_chat, {"capabilities": {"continuation": "none", "schema": True}}),
    (read_chat, {"capabilities": {"continuation": "none", "schema": False}}),
]


async def run_all(url: str) -> list[tuple[int, sgl.FinishedState]]:
    """All runs, in every way at once; each item with its end."""

    async def one_way(number: int) -> list[tuple[int, sgl.FinishedState]]:
        program, options = WAYS[number]
        items = range(number, RUNS, len(WAYS))
        async with sgl.OpenAI("m", base_url=f"{url}/v1", key="none", timeout=2.5, **options) as backend:
            states = await program.run_batch([{"item": item} for item in items], backend=backend)
        return list(zip(items, states, strict=True))

    ways = await asyncio.gather(*map(one_way, range(len(WAYS))))
    return [pair for way in ways for pair in way]


async def test_every_fifth_answer_fails(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred programs of all kinds end with all fields right; each fault is one more try, and all tries are told."""
    monkeypatch.setattr("sgl_actors.actors.api.tries.FIRST_PAUSE", 0.002)
    stub.script = model = Model()
    usage, wrong = sgl.Usage(), list[str]()
    for item, state in await run_all(stub.url):
        right = fields(item) | {"motto": motto(item)}
        wrong += [f"{item} {name}" for name, text in right.items() if state[name] != text]
        usage += state.usage
    assert not wrong
    assert set(model.faults) >= {"429", "500", "529", "0", *BREAKS}
    assert model.faults.total() > SHARE * usage.calls
    assert SHARE / 2 * usage.calls < usage.retries < usage.calls
    assert len(stub.asked) <= usage.calls + usage.retries  # a try may fail before it gets there
    assert 0 < sum(asked.stream for asked in stub.asked) < len(stub.asked)
