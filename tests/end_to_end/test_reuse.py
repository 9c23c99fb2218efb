"""How much of what a program's calls have computed its next calls take from the cache, on the real node."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

import sgl_actors as sgl
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.node.client import NodeClient, merge
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.tokenizer.messages import Chunk, Generate

pytestmark = pytest.mark.model

SHOTS = """Question: Where was Marie Curie born?
Thought: I need to find the birthplace of Marie Curie.
Search: Marie Curie born
Observation: Marie Curie was born on 7 November 1867 in Warsaw.
Answer: Warsaw

"""


class Call(NamedTuple):
    """One request that has ended: how many of its program's had ended when it began; texts of prompt and prompt + output, how many tokens
    both have, and how much was cached."""

    after: int
    prompt: str
    whole: str
    prompt_tokens: int
    tokens: int
    cached: int


class Recorder(NodeClient):
    """Keeps every request with its answer, by program."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: object = None
    ) -> AsyncIterator[Chunk]:
        calls = self.calls[request.program.rpartition("-")[0]]
        after = len(calls)
        whole: Chunk | None = None
        async for chunk in super().generate(request, timeout=timeout, trace=trace):
            whole = chunk if whole is None else merge(whole, chunk)
            yield chunk
        assert whole is not None
        prompt = request.text
        if prompt is None:
            prompt = await self.detokenize(whole.prompt_ids)
        tokens = whole.prompt_tokens + whole.completion_tokens
        calls.append(
            Call(after, prompt, prompt + whole.text, whole.prompt_tokens, tokens, whole.cached_tokens)
        )

    def reuse(self, program: str) -> tuple[float, int]:
        """Share of the tokens with KV that a call's predecessor left (all of its prompt and output but the last one), and how many
        calls had a predecessor: an earlier call whose prompt and output the new prompt begins with."""
        used = held = count = 0
        for call in self.calls[program]:
            ended = self.calls[program][: call.after]
            before = [one for one in ended if call.prompt.startswith(one.whole)]
            if before:
                last = max(before, key=lambda one: (len(one.whole), one.tokens))
                left = min(last.tokens - 1, call.prompt_tokens - 1)
                used, held, count = used + min(call.cached, left), held + left, count + 1
        return used / held, count


@sgl.function
async def chat(s: sgl.ProgramState) -> None:
    for question in (
        "Name 3 things that bees make.",
        "Which one is the most useful?",
        "Why? Be brief.",
        "Thanks!",
    ):
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer", max_tokens=24))


@sgl.function
async def react(s: sgl.ProgramState) -> None:
    s += SHOTS + "Question: In which year was Warsaw first named?\n"
    for step in range(3):
        s += "Thought: I need to find" + sgl.gen("thought", stop="\n", max_tokens=20)
        s += "\nSearch:" + sgl.gen("query", stop="\n", max_tokens=12)
        s += f"\nObservation: Document {step}: it's 13{step}7, they say; isn't it?\n"
    s += "Answer:" + sgl.gen("answer", stop="\n", max_tokens=8)


@sgl.function
async def judge(s: sgl.ProgramState) -> None:
    s += sgl.system("You are a careful judge.") + sgl.user("Essay: Bees dance. Judge it, in a few words.")
    forks = s.fork(3)
    for f, aspect in zip(forks, ("clarity", "depth", "style"), strict=True):
        f += sgl.assistant_begin() + f"About its {aspect}: " + sgl.gen("note", max_tokens=20, stop="\n")
        f += (
            "\nIn one word:"
            + sgl.gen("word", max_tokens=4)
            + "\nScore: "
            + sgl.select("score", ["1", "2", "3"])
        )
        f += sgl.assistant_end()
    notes = await forks.join("note")
    s += (
        sgl.assistant_begin()
        + "\n".join(notes)
        + "\nGrade:"
        + sgl.select("grade", [" good", " fair", " poor"])
    )
    s += ". That is because" + sgl.gen("why", max_tokens=16) + sgl.assistant_end()


@sgl.function
async def numbers(s: sgl.ProgramState) -> None:
    s += 'A person as JSON, all on one line:\n{"name": "' + sgl.gen("name", stop='"', max_tokens=8)
    for key in ("age", "height in cm", "income", "phone"):
        s += f'", "{key}": "' + sgl.gen(key, stop=['"', "\n"], max_tokens=12)
    s += (
        '"}\n17 + 25 ='
        + sgl.gen("sum", stop="\n", max_tokens=8)
        + "\n3.14 * 2 ="
        + sgl.gen("product", stop="\n", max_tokens=8)
    )


@sgl.function
async def code(s: sgl.ProgramState) -> None:
    s += "A Python module.\n```\ndef fibonacci(n):"
    for name in ("factorial", "is_prime", "main"):
        s += sgl.gen("body", stop="\n\n", max_tokens=32) + f"\n\ndef {name}():"
    s += sgl.gen("body", stop="\n\n", max_tokens=8)


@sgl.function
async def languages(s: sgl.ProgramState) -> None:
    for start in (
        "Les abeilles dansent à Genève :",
        "Größe und Maß:",
        "🐝 means bee, 🍯 means",
        "東京の天気は",
        "Привет,",
    ):
        s += start + sgl.gen("more", max_tokens=16) + " — “so”…\n"


PROGRAMS = (chat, react, judge, numbers, code, languages)


async def test_programs_reuse_what_they_have_computed(node: NodeRecord) -> None:
    """Chat, search loop, forks with select, numbers, code and scripts: on average 99 % of the tokens with KV are taken from the cache."""
    clients: list[Recorder] = []

    async def opens() -> Any:
        def client(context: Context) -> Recorder:
            clients.append(Recorder(context))
            return clients[0]

        return await join(node.endpoint), client, False

    async with Backend(opens, "recorded") as backend:
        await asyncio.gather(*(program.bind().run(backend=backend, temperature=0.0) for program in PROGRAMS))
    found = {program.name: clients[0].reuse(program.name) for program in PROGRAMS}
    assert {name: count for name, (_, count) in found.items()} == {
        "chat": 3, "react": 6, "judge": 19, "numbers": 6, "code": 3, "languages": 4,
    }, found  # fmt: skip
    assert sum(share for share, _ in found.values()) / len(found) >= 0.99, found
    assert min(found.values())[0] >= 0.95, found


@sgl.function
async def branches(s: sgl.ProgramState, name: str) -> str:
    s += f"The bees of {name} know many flowers, and tell each other in which direction and how far away they are."
    pinned = await s.pin(ttl=30, name=name)
    group = s.fork(2)
    group += lambda i: f" Number {i} of the flowers is" + sgl.gen("x", max_tokens=4)
    await group.join("x")
    return pinned


@pytest.mark.parametrize("way", ["endpoint", "url"])
async def test_salt_hint_and_pin(node: NodeRecord, way: str) -> None:
    """A program with another salt finds nothing; without the fork hint the text is the same; a pinned state is held under its name."""
    async with sgl.connect(getattr(node, way)) as backend:
        program = branches.bind(name=f"{way}-hill")
        first = await program.run(backend=backend, temperature=0)
        again = await program.run(backend=backend, temperature=0, fork_hint=False)
        other = await program.run(backend=backend, temperature=0, cache_salt=f"of {way}", priority=1)
        client = (await backend.open()).client
        if isinstance(client, NodeClient):
            held = {(pin.name, pin.namespace): pin.held for pin in await client.pins()}
            assert held[first.value, "default"] == held[first.value, f"default\x1fof {way}"] > 0
    assert first["x"] == again["x"] == other["x"]
    assert (first.usage.calls, again.usage.calls) == (3, 2)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 2
    assert other.usage.cached_tokens < other.usage.prompt_tokens - 2
