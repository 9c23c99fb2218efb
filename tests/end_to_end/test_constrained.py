"""Constrained outputs of the default model on the real node."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.microkernel.messages import Done, RestartActor
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.lang.constraints.constraint import Constraint

pytestmark = pytest.mark.model

DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])"
CHOICE = "(Paris|London|Buenos Aires|I do not know)"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tall": {"type": "boolean"},
        "house": {"enum": ["Gryffindor", "Hufflepuff", "Ravenclaw", "Slytherin"]},
    },
    "required": ["name", "age", "tall", "house"],
    "additionalProperties": False,
}
QUESTION = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
JSON = Constraint("json_schema", json.dumps(SCHEMA))
PERSON = QUESTION.format("Describe a pupil of Hogwarts as JSON with name, age, tall and house.")


@pytest.fixture
async def http(node: NodeRecord) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=node.url, timeout=60) as client:
        yield client


@pytest.fixture
async def client(node: NodeRecord) -> AsyncIterator[NodeClient]:
    handle = await join(node.endpoint)
    yield NodeClient(handle.context("test"))
    await handle.close()


async def generate(http: httpx2.AsyncClient, text: str, **params: Any) -> dict[str, Any]:
    response = await http.post("/generate", json={"text": text, "sampling_params": params})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check_person(text: str) -> None:
    value = json.loads(text)
    assert list(value) == list(SCHEMA["properties"])
    assert (type(value["name"]), type(value["age"]), type(value["tall"])) == (str, int, bool)
    assert len(value["name"]) <= 12
    assert 0 <= value["age"] <= 130
    assert value["house"] in SCHEMA["properties"]["house"]["enum"]
    assert text == json.dumps(value, ensure_ascii=False) or "\\" in text


async def test_outputs_are_valid_at_every_temperature(http: httpx2.AsyncClient) -> None:
    """A date, a choice and an object of four fields come out whole and valid, greedy and drawn, all in one batch."""
    asks: list[tuple[str, str, Any]] = [
        (QUESTION.format("When did the war end? Answer with a date."), "regex", DATE),
        (QUESTION.format("What is the capital of France?"), "regex", CHOICE),
        (PERSON, "json_schema", SCHEMA),
    ]
    wanted = [(*ask, 0, 0) for ask in asks] + [(*ask, 1, seed) for ask in asks for seed in (1, 2, 3)]
    answers = await asyncio.gather(
        *(
            generate(http, text, temperature=heat, sampling_seed=seed, max_new_tokens=96, **{field: source})
            for text, field, source, heat, seed in wanted
        )
    )
    for (_, field, source, _, _), answer in zip(wanted, answers, strict=True):
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"
        if field == "regex":
            assert re.fullmatch(source, answer["text"])
        else:
            check_person(answer["text"])
    assert len({answer["text"] for answer in answers}) > len(asks)


async def test_a_free_request_beside_it_is_as_alone(http: httpx2.AsyncClient) -> None:
    """A request without a constraint gets the text that it gets by itself while others are constrained."""
    free: dict[str, Any] = {"text": "Once upon a time there was", "temperature": 0, "max_new_tokens": 16}
    alone = await generate(http, **free)
    mixed, *others = await asyncio.gather(
        generate(http, **free),
        *(generate(http, PERSON, json_schema=SCHEMA, temperature=1, sampling_seed=seed) for seed in (7, 8)),
    )
    assert mixed["text"] == alone["text"]
    for other in others:
        check_person(other["text"])


async def test_an_output_handed_back_in_the_middle_goes_on(client: NodeClient) -> None:
    """A request with part of its object as output ends with the very object that it would have had."""
    sampling = SamplingOptions(max_tokens=96, seed=3, temperature=1.0, constraint=JSON)
    first = await client.complete(Generate("first", text=PERSON, sampling=sampling), timeout=90)
    check_person(first.text)
    kept = len(first.token_ids) // 2
    again = Generate("again", text=PERSON, sampling=sampling, output=first.token_ids[:kept])
    rest = await client.complete(again, timeout=90)
    assert first.token_ids[:kept] + rest.token_ids == first.token_ids
    assert first.text.endswith(rest.text)


@pytest.mark.slow
async def test_a_worker_that_restarts_goes_on_in_the_object(client: NodeClient, node: NodeRecord) -> None:
    """The new worker has neither vocabulary nor grammars: requests go on in the middle of their objects, and end as undisturbed."""

    async def run(name: str, seed: int, started: asyncio.Event) -> list[int]:
        sampling = SamplingOptions(max_tokens=96, seed=seed, temperature=1.0, constraint=JSON)
        ids: list[int] = []
        async for chunk in client.generate(
            Generate(f"{name}-{seed}", text=PERSON, sampling=sampling), timeout=90
        ):
            ids += chunk.token_ids
            if len(ids) > 6:
                started.set()
        return ids

    started = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run("disturbed", seed, started)) for seed in (1, 2)]
        await started.wait()
        await client.ctx.call("root", RestartActor("worker/0"), Done, timeout=60)
    calm = [await run("calm", seed, started) for seed in (1, 2)]
    assert [task.result() for task in tasks] == calm


async def test_stop_patterns(http: httpx2.AsyncClient) -> None:
    """The first match ends the output over borders of tokens and chunks, is trimmed, and the pattern is reported."""
    text = "Count: one, two, three,"
    free = await generate(http, text, temperature=0, max_new_tokens=24)
    word = re.search(r"\w+, \w", free["text"])
    assert word, free["text"]
    params = {"temperature": 0, "max_new_tokens": 24, "stop_regex": [r"\w+, \w"]}
    stopped = await generate(http, text, **params)
    assert stopped["text"] == free["text"][: word.start()]
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": r"\w+, \w"}
    assert stopped["meta_info"]["completion_tokens"] < 24
    kept = await generate(http, text, **params, no_stop_trim=True)
    assert kept["text"] == free["text"][: word.end()]
    events = []
    body = {"text": text, "stream": True, "sampling_params": params}
    async with http.stream("POST", "/generate", json=body) as response:
        events = [json.loads(line[5:]) async for line in response.aiter_lines() if line.startswith("data: {")]
    assert events[-1]["text"] == stopped["text"]
    assert all(stopped["text"].startswith(event["text"]) for event in events)


async def test_chat_answers_in_json(http: httpx2.AsyncClient) -> None:
    """A response_format with a schema gives an object of it."""
    model = (await http.get("/v1/models")).json()["data"][0]["id"]
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    messages = [{"role": "user", "content": "Describe Harry Potter."}]
    body = {"model": model, "messages": messages, "response_format": form, "max_tokens": 96, "temperature": 0}
    choice = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    check_person(choice["message"]["content"])


async def test_bad_sources_are_the_askers_error(http: httpx2.AsyncClient) -> None:
    """A pattern, schema or grammar that cannot be is a 400 with its name and the problem, and the node goes on."""
    for params, param, problem in (
        ({"regex": "a(b"}, "regex", "a group is not closed at character 2 of 3"),
        ({"json_schema": {"type": "thing"}}, "json_schema", "type at #: 'thing' is none of null"),
        ({"ebnf": "start: nothing"}, "ebnf", "unknown name"),
        ({"regex": "(.{0,200}){0,200}"}, "regex", "too many expressions"),
        ({"stop_regex": "a("}, "stop_regex", "does not compile"),
    ):
        response = await http.post("/generate", json={"text": "x", "sampling_params": params})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert problem in error["message"]
    assert (await generate(http, "x", max_new_tokens=1))["meta_info"]["completion_tokens"] == 1
