"""Programs with forks and joins on the real node."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

import sgl_actors as sgl
from sgl_actors.actors.microkernel.messages import Done, RestartActor
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord

pytestmark = pytest.mark.model

ESSAY = "Bees dance to tell each other where the flowers are. The dance holds a direction and a distance."
ASPECTS = ["clarity", "depth", "style"]
GRADES = ["good", "fair", "poor"]


@sgl.function
async def judge(s: sgl.ProgramState, essay: str) -> None:
    s += sgl.system("You are a careful judge.") + sgl.user(f"Essay: {essay}\nJudge it.")
    forks = s.fork(3)
    for f, aspect in zip(forks, ASPECTS, strict=True):
        f += sgl.assistant(
            f"About its {aspect}: " + sgl.gen("note", max_tokens=24, stop="\n", temperature=0.0)
        )
    notes = await forks.join("note")
    s += sgl.assistant("\n".join(notes) + "\nGrade: " + sgl.select("grade", choices=GRADES))


async def test_the_judge(node: NodeRecord) -> None:
    """The program of the README: three notes from one prefix computed once, a grade that is one of the choices."""
    async with sgl.connect(node.endpoint) as backend:
        state = await judge.bind(essay=ESSAY).run(backend=backend)
    assert state["grade"] in ("good", "fair", "poor")
    assert len(state["note"]) == 3
    assert state.text().count("Grade: ") == 1
    assert [turn["role"] for turn in state.messages()] == ["system", "user", "assistant"]
    assert state.usage.cached_tokens > state.usage.prompt_tokens // 2
    assert state.meta("grade")["scores"].keys() == {"good", "fair", "poor"}


async def test_http_gives_the_same(node: NodeRecord) -> None:
    """A program gives the same text over ZMQ and over HTTP."""
    texts = []
    for address in (node.endpoint, node.url):
        async with sgl.connect(address) as backend:
            texts.append((await judge.bind(essay=ESSAY).run(backend=backend)).text())
    assert texts[0] == texts[1]


async def test_worker_restart_under_programs(node: NodeRecord) -> None:
    """`restart worker/0` while eight programs run: all finish, no error, the same text as undisturbed."""
    handle = await join(node.endpoint)
    operator = handle.context("operator")
    essays = [f"Essay number {number}. {ESSAY}" for number in range(8)]
    begun = asyncio.Event()

    @sgl.function
    async def judge(s: sgl.ProgramState, essay: str) -> None:
        s += sgl.system("You are a careful judge.") + sgl.user(f"Essay: {essay}\nJudge it.")
        forks = s.fork(3)
        for f, aspect in zip(forks, ASPECTS, strict=True):
            f += sgl.assistant(f"About its {aspect}: " + sgl.gen("note", max_tokens=24, temperature=0.0))
        await forks[0]["note"]
        begun.set()
        s += sgl.assistant(
            "\n".join(await forks.join("note")) + "\nGrade: " + sgl.select("grade", choices=GRADES)
        )

    async with sgl.connect(node.endpoint) as backend:
        running = [asyncio.create_task(judge.bind(essay=essay).run(backend=backend)) for essay in essays]
        await begun.wait()
        assert not any(task.done() for task in running)
        await operator.call("root", RestartActor("worker/0"), Done, timeout=60)
        disturbed = [state.text() for state in await asyncio.gather(*running)]
        calm = await asyncio.gather(*(judge.bind(essay=essay).run(backend=backend) for essay in essays))
    await handle.close()
    assert disturbed == [state.text() for state in calm]


async def test_error_names_the_place(node: NodeRecord) -> None:
    """An exception in a user's program surfaces at `run` with the tail of its prompt."""

    @sgl.function
    async def broken(s: sgl.ProgramState) -> None:
        s += "The last words before the fault."
        raise KeyError("gone")

    async with sgl.connect(node.endpoint) as backend:
        with pytest.raises(sgl.ProgramError, match="last words before the fault") as caught:
            await broken.bind().run(backend=backend)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_select_scores_are_the_models(node: NodeRecord) -> None:
    """A choice's score is the mean log probability of its tokens, as `/generate` reports them for the same text."""
    prompt, choices = "The capital of France is", [" Paris", " London", " a very large cheese"]

    @sgl.function
    async def capital(s: sgl.ProgramState) -> None:
        s += prompt + sgl.select("city", choices=choices)

    async with sgl.connect(node.endpoint) as backend:
        state = await capital.bind().run(backend=backend)
    expected = {}
    async with httpx2.AsyncClient(base_url=node.url, timeout=60) as http:
        length = len((await http.post("/tokenize", json={"prompt": prompt})).json()["tokens"])
        for choice in choices:
            body = {
                "text": prompt + choice,
                "sampling_params": {"max_new_tokens": 0},
                "return_logprob": True,
                "logprob_start_len": length,
            }
            meta = (await http.post("/generate", json=body)).json()["meta_info"]
            values = [entry[0] for entry in meta["input_token_logprobs"]]
            expected[choice] = sum(values) / len(values)
    assert state.meta("city")["scores"] == pytest.approx(expected, abs=1e-3)
    assert state["city"] == max(expected, key=lambda choice: expected[choice])
