"""What clients ask of a simulated node, and what must come of it: raw requests and programs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import msgspec

import sgl_actors as sgl
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.programs import runtime
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.errors import SglActorsError
from tests.simulation.simulated_node import POISON, VOCABULARY, SimulatedClient, World, byte_vocabulary

STOPS = tuple("aeiot")


@dataclass
class Asked:
    """One raw request, who asks, and what has come so far.

    Attributes:
        cancel_after: the asker goes away after that many tokens; -1 for never.
        attempts: how often it was asked.
    """

    request: Generate
    expected: list[int]
    matched: int | str | None
    poisoned: bool = False
    cancel_after: int = -1
    output: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: SglActorsError | None = None
    cancelled: bool = False
    attempts: int = 0

    async def ask(self, client: SimulatedClient, timeout: float) -> None:
        """Ask until the end, or until the asker loses interest."""
        node, world = NodeClient(client.context("asker")), client.world
        await asyncio.sleep(0)
        self.attempts += 1
        request = msgspec.structs.replace(self.request, output=list(self.output))
        chunks = cast("Any", node.generate(request, timeout=timeout))
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if self.finish is not None:
                        world.violated(f"{request.id} goes on after its end")
                    if chunk.first_index != len(self.output):
                        world.violated(f"{request.id}: {chunk.first_index} follows {len(self.output)}")
                    self.output += chunk.token_ids
                    if request.logprobs and [e.token_id for e in chunk.logprobs] != chunk.token_ids:
                        world.violated(f"{request.id}: log probabilities of other tokens")
                    if self.output != self.expected[: len(self.output)]:
                        world.violated(
                            f"{request.id}: {self.output} is not what the model says: {self.expected}"
                        )
                    self.finish = chunk.finish
                    if 0 <= self.cancel_after <= len(self.output) and self.finish is None:
                        self.cancelled = True
                        break
        except SglActorsError as error:
            self.error = error
        world.note(f"{request.id} ended: {self.finish or self.error or 'cancelled'}")

    def check(self, world: World, permitted: set[str]) -> None:
        """See that it has ended as it had to."""
        name = self.request.id
        if self.finish is not None and self.finish.reason in ("stop", "length"):
            if self.output != self.expected:
                world.violated(f"{name}: {len(self.output)} tokens of {len(self.expected)}")
            if self.finish.matched != self.matched:
                world.violated(f"{name}: matched {self.finish.matched!r}, not {self.matched!r}")
            if self.poisoned:
                world.violated(f"{name} was poisoned and has succeeded")
        elif self.finish is not None or self.error is not None:
            code = self.finish.code if self.finish is not None else cast("SglActorsError", self.error).code
            world.counts[f"error: {code}"] += 1
            if not (self.poisoned and code == "quarantined") and code not in permitted:
                world.violated(f"{name} failed: {self.finish or repr(self.error)}")
        elif not self.cancelled:
            world.violated(f"{name} has no end")


def expected_output(prompt: list[int], sampling: SamplingOptions) -> tuple[list[int], int | str | None]:
    """Tokens that a request must get, and what must have ended it."""
    ends = (*sampling.stop_token_ids, *(() if sampling.ignore_eos else (2,)))
    asked = Sampling(seed=0, end_ids=ends, min_tokens=sampling.min_tokens)
    output = complete(prompt, asked, sampling.max_tokens or 0, VOCABULARY)
    raw = byte_vocabulary().raw
    for position, token in enumerate(output):
        stops = raw[token].decode("latin-1") in sampling.stop and token not in ends
        if stops and position >= sampling.min_tokens:
            return output[: position + 1], raw[token].decode()
    ended = bool(output) and output[-1] in ends and len(output) > sampling.min_tokens
    return output, output[-1] if ended else None


def draw_request(
    rng: Random, number: object, prefixes: list[list[int]], *, poisoned: bool, longest: int
) -> Asked:
    """A request with a prompt that mostly begins as others do."""
    prompt = rng.choice(prefixes)[: rng.randint(1, 40)] + [
        rng.randrange(POISON) for _ in range(rng.randint(1, 12))
    ]
    if poisoned:
        prompt[rng.randrange(len(prompt))] = POISON
    sampling = SamplingOptions(
        max_tokens=rng.choice([0, 1, 3, 8, 16, longest]),
        stop=rng.choice([(), (), STOPS]),
        stop_token_ids=tuple(rng.sample(range(3, 250), 3)) if rng.random() < 0.3 else (),
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.getrandbits(40),
    )
    output, matched = expected_output(prompt, sampling)
    request = Generate(
        f"request-{number}",
        input_ids=prompt,
        sampling=sampling,
        logprobs=rng.random() < 0.2,
        priority=rng.choice([0, 0, 1]),
        salt=rng.choice(["", "", "s"]),
    )
    cancel = rng.randint(0, 6) if rng.random() < 0.15 else -1
    return Asked(request, output, matched, poisoned, cancel)


@sgl.function
async def judge(s, topic):  # type: ignore[no-untyped-def]
    s += sgl.system("You judge.") + sgl.user(f"Essay: {topic}")
    forks = s.fork(3)
    for f, aspect in zip(forks, ["clarity", "depth", "style"], strict=True):
        f += sgl.assistant(f"Its {aspect}: " + sgl.gen("note", max_tokens=12, stop="a"))
    notes = await forks.join("note")
    s += sgl.assistant("\n".join(notes) + "\nGrade: " + sgl.select("grade", choices=["good", "fair", "poor"]))


@sgl.function
async def chain(s, topic):  # type: ignore[no-untyped-def]
    s += f"{topic}: "
    for number in range(3):
        s += sgl.gen(f"step{number}", max_tokens=10) + "\n"


@sgl.function
async def tree(s, topic):  # type: ignore[no-untyped-def]
    s += f"A tree of {topic} with a trunk that is long enough to be computed before its branches are.\n"
    boughs = s.fork(2)
    for index, bough in enumerate(boughs):
        bough += f"Bough {index}: " + sgl.gen("bough", max_tokens=6)
        twigs = bough.fork(2)
        for number, twig in enumerate(twigs):
            twig += f"Twig {number}: " + sgl.gen("twig", max_tokens=4)
        bough += " ".join(await twigs.join("twig"))
    s += " ".join(await boughs.join("bough")) + sgl.gen("end", max_tokens=5)


@sgl.function
async def several(s, topic):  # type: ignore[no-untyped-def]
    s += f"{topic}? " + sgl.gen("answers", max_tokens=9, n=3, stop=["e", "i"])
    s += sgl.select("sure", choices=["yes", "no"])


PROGRAMS: list[Any] = [judge, chain, tree, several]
TOPICS = ["bees", "rivers", "the law of large numbers"]


@dataclass
class Ran:
    """A program, what it leads to without faults, and how it ended."""

    program: Any
    topic: str
    expected: tuple[str, dict[str, Any]] | None = None
    result: tuple[str, dict[str, Any]] | None = None
    error: Exception | None = None
    cancelled: bool = False

    async def ask(self, client: SimulatedClient, timeout: float) -> None:
        backend = backend_of(client)
        with suppress(sgl.ProgramError, SglActorsError):
            try:
                state = await self.program.run(topic=self.topic, backend=backend, seed=5, timeout=timeout)
                self.result = (state.text(), state.variables)
            except (sgl.ProgramError, SglActorsError) as error:
                self.error = error
                raise
        client.world.note(f"program {PROGRAMS.index(self.program)} on {self.topic} ended: {self.error!r}")

    def check(self, world: World, permitted: set[str]) -> None:
        """Compare with the undisturbed run."""
        if self.result is not None:
            if self.result != self.expected:
                world.violated(f"a program's result differs: {self.result}")
        elif self.error is None:
            if not self.cancelled:
                world.violated("a program has no end")
        else:
            cause = self.error.__cause__
            code = cause.code if isinstance(cause, SglActorsError) else getattr(self.error, "code", "")
            world.counts[f"error: {code}"] += 1
            if code not in permitted:
                world.violated(f"a program failed: {self.error!r}")


_backends: dict[int, Backend] = {}


def backend_of(client: SimulatedClient) -> Backend:
    """Where programs of that client run."""
    found = _backends.get(id(client))
    if found is None:

        async def opens() -> Any:
            return client, NodeClient, True

        found = _backends[id(client)] = Backend(opens, client.name)
    return found


def forget_backends() -> None:
    """The simulation is over."""
    for backend in _backends.values():
        runtime._open.discard(backend)
    _backends.clear()
