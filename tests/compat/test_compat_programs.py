"""Programs of SGLang's documentation and paper, written anew, run with nothing changed but their import line."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

import sgl_actors.compat as sgl
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.tokenizer.messages import Generate
from sgl_actors.lang.threaded.loop import background
from tests.compat.conftest import PROGRAMS, load
from tests.programs.fakes import FakeClient

QUICK = ["branches", "chat", "choices"]
OTHERS = sorted({path.stem for path in PROGRAMS.glob("*.py")} - set(QUICK))
RUNNER = Path(__file__).with_name("stock_runner.py")


def answer(prompt: str, request: Generate) -> str:
    """Something that depends on the prompt, and on nothing else."""
    return f" w{len(prompt)}"


@pytest.mark.usefixtures("backend")
def test_the_judge(client: FakeClient, tmp_path: Path) -> None:
    """Three branches see the same prefix, their remarks come as a list, and select ends the turn."""
    client.answer = lambda prompt, request: prompt.rpartition("its ")[2].strip(": ") + " is fine"
    client.logprob = lambda word: {" fair": -0.1}.get(word, -2.0)
    found = load("essay_judge", tmp_path)["main"]()
    assert found["remarks"] == ["clarity is fine", "originality is fine", "evidence is fine"]
    assert found["grade"] == "fair"
    assert found["text"].endswith("evidence: evidence is fine.\nGrade: fair<|im_end|>\n")
    assert [turn["role"] for turn in found["messages"]] == ["system", "user", "assistant"]


@pytest.mark.usefixtures("backend")
def test_branches_quoted_by_their_parent(client: FakeClient, tmp_path: Path) -> None:
    """The values of branches that nobody joins are put into the parent's prompt."""
    client.answer = lambda prompt, request: (
        f" {prompt.rpartition('Tip: ')[2][:8]}!" if "Tip:" in prompt else " rest"
    )
    found = load("tip_suggestion", tmp_path)["main"]()
    assert (
        found["text"].endswith("Tip 1: Balanced!\nTip 2: Regular !\nIn summary Regular !") or found["summary"]
    )
    assert "Tip 1: Balanced!\nTip 2: Regular !\n" in found["text"]


@pytest.mark.usefixtures("backend")
def test_an_agent_decides_by_what_it_reads(client: FakeClient, tmp_path: Path) -> None:
    """The loop goes on while the chosen tool says so; what the body returns is kept."""
    client.answer = answer
    chosen = iter([" atlas", " answer"])
    client.logprob = lambda word: -0.1 if word == best[0] else -3.0
    best = [next(chosen)]

    def think(prompt: str, request: Generate) -> str:
        if "Observation" in prompt:
            best[0] = " answer"
        return " hm" if prompt.endswith(":") and "Answer:" not in prompt else " Lima "

    client.answer = think
    found = load("react", tmp_path)["main"]()
    assert found["answer"] == "Lima"
    assert found["tool"] == "answer"
    assert found["text"].count("Observation: the capital of Peru is Lima\n") == 1
    assert found["text"].count("Thought") == 2


@pytest.mark.usefixtures("backend")
def test_roles_in_every_form(client: FakeClient, tmp_path: Path) -> None:
    """Functions, marks, `with` blocks and methods make the same turns; a variable that is none has no meta information."""
    client.answer = lambda prompt, request: f"a{len(client.requests)}"
    found = load("chat", tmp_path)["main"]()
    assert found["answers"] == ["a1", "a2", "a3", "a4"]
    assert found["messages"] == [
        {"role": role, "content": content}
        for role, content in [
            ("system", "You answer in one short sentence."), ("user", "Hello!"), ("assistant", "a1"), ("user", "What is the sea?"),
            ("assistant", "a2"), ("user", "And now: Who are you?"), ("assistant", "Well, a3"), ("user", "Thanks."), ("assistant", "a4"),
        ]
    ]  # fmt: skip
    assert (found["finish"], found["nothing"]) == ("stop", None)


@pytest.mark.usefixtures("backend")
def test_batches(client: FakeClient, tmp_path: Path) -> None:
    """Dictionaries, tuples, bound arguments and one by one give the same answers in order; no items give none."""
    client.answer = lambda prompt, request: f" {prompt[-12:-3]}"
    found = load("few_shot", tmp_path)["main"]()
    first = found["answers"][0]
    assert [one.split()[0] for one in first] == ["1", "2", "3", "4"]
    assert found["answers"] == [first] * 4
    assert found["empty"] == []


@pytest.mark.usefixtures("backend")
def test_forms(client: FakeClient, tmp_path: Path) -> None:
    """Patterns, schemas and types reach the node as constraints, and the variables are the text."""
    answers = ['{"name": "Ada", "house": "North", "age": 17}', '{"city":"Rome","large":true}', "4", "True"]
    client.answer = lambda prompt, request: answers[len(client.requests) - 1]
    found = load("character", tmp_path)["main"]()
    assert found == {
        "wizard": ["age", "house", "name"],
        "house": True,
        "city": ["city", "large"],
        "sum": True,
        "truth": True,
    }
    kinds = [request.sampling.constraint and request.sampling.constraint.kind for request in client.requests]
    assert kinds == ["regex", "json_schema", "regex", "regex"]
    assert tuple(client.requests[2].sampling.stop) == (" ", "\n")


@pytest.mark.usefixtures("backend")
def test_a_tree_of_thoughts(client: FakeClient, tmp_path: Path) -> None:
    """A recursion over forks of forks visits every leaf, and the best one's variable is read from the top."""
    client.answer = answer
    client.logprob = lambda word: -0.1 if word == " yes" else -1.0
    found = load("tree_of_thought", tmp_path)["main"]()
    assert found["paths"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found["answer"].startswith(" w")
    assert "Best plan: w" in found["text"]


@pytest.mark.usefixtures("backend")
def test_streams(client: FakeClient, tmp_path: Path) -> None:
    """What is read while it is written is in the end what is there."""
    client.answer = lambda prompt, request: [" once", " upon", f" {len(prompt)}"]
    found = load("streaming", tmp_path)["main"]()
    assert (found["tale"], found["prompt"], found["moral"], found["missing"]) == (True, True, True, [""])


@pytest.mark.usefixtures("backend")
def test_choices(client: FakeClient, tmp_path: Path) -> None:
    """All three methods are known by SGLang's names, and report what SGLang reports."""
    client.logprob = lambda word: -0.1 if word == " Rome" else -1.0
    found = load("choices", tmp_path)["main"]()
    assert {tuple(value) for key, value in found.items() if key < 2} == {(" Rome", " Rome", 3)}


@pytest.mark.usefixtures("backend")
def test_copies_scopes_and_joins(client: FakeClient, tmp_path: Path) -> None:
    """A join gathers what is new, in order and shortened by what is missing; the other one appends; any object can be a variable."""
    client.answer = lambda prompt, request: " " + prompt.rpartition("(")[2][:1] if "(" in prompt else " blue"
    found = load("branches", tmp_path)["main"]()
    assert found["opening"] == "The sea is blue"
    assert (found["sea"], found["tried"]) == (" blue", [" blue"])
    assert (found["word"], found["mark"]) == ([" o", " t", " t"], [" O", " T", " T"])
    assert (found["only"], found["list"]) == (["second"], [1, 2])
    assert found["text"] == "The sea is blue [0] blue [1] blue End blue"
    assert (found["part"], found["error"]) == (False, None)


@pytest.mark.model
@pytest.mark.parametrize(
    "names", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["quick", "others"]
)
async def test_the_same_as_sglang(node: NodeRecord, tmp_path: Path, names: list[str]) -> None:
    """The stock sglang over HTTP and this package over ZMQ give the same for each program, on the same node."""
    python = os.environ.get("SGLANG_PYTHON")
    if not python:
        pytest.skip("SGLANG_PYTHON names no interpreter with sglang==0.5.3.post3")
    files = [str(PROGRAMS / f"{name}.py") for name in names]
    process = await asyncio.create_subprocess_exec(
        python, str(RUNNER), node.url, *files, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    stock = dict(zip(names, json.loads(out.splitlines()[-1]).values(), strict=True))
    ours = await asyncio.to_thread(run_all, node, tmp_path, names)
    for name in names:
        assert ours[name] == stock[name], name


def run_all(node: NodeRecord, folder: Path, names: list[str]) -> dict[str, object]:
    """What the programs return here, as JSON gives it back."""
    endpoint = sgl.RuntimeEndpoint(node.url, programs=node.endpoint)
    sgl.set_default_backend(endpoint)
    try:
        found = {name: load(name, folder)["main"]() for name in names}
    finally:
        sgl.set_default_backend(None)
        background.wait(endpoint.close)
    decoded: dict[str, object] = json.loads(json.dumps(found))
    return decoded
