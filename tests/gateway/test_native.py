"""POST /generate and the other native endpoints."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx2
import pytest

from sgl_actors.lang.constraints.constraint import Constraint
from tests.gateway.events import events
from tests.gateway.fake_node import INFO, FakeNode, encode, logits


async def post(client: httpx2.AsyncClient, **fields: Any) -> Any:
    response = await client.post("/generate", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_one_text(client: httpx2.AsyncClient) -> None:
    """One prompt gives one object with text, ids and meta_info, without log probabilities unless asked for."""
    answer = await post(client, text="Hello", sampling_params={"max_new_tokens": 5, "temperature": 0})
    assert encode(answer["text"]) == answer["output_ids"]
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 5}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (5, 5, 0)
    assert meta["e2e_latency"] >= 0
    assert isinstance(meta["id"], str)
    assert "input_token_logprobs" not in meta


async def test_default_length_is_128(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """max_new_tokens is 128 when absent, and what the context leaves when null."""
    assert (await post(client, text="x"))["meta_info"]["completion_tokens"] == 128
    assert (await post(client, text="x", sampling_params={}))["meta_info"]["completion_tokens"] == 128
    await post(client, text="x", sampling_params={"max_new_tokens": None, "stop": " "})
    assert node.asked[-1].sampling.max_tokens is None


async def test_stop_reasons(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A stop string or end token is named; the string is trimmed unless no_stop_trim."""
    node.forced = "one;two"
    answer = await post(client, text="x", sampling_params={"stop": ";"})
    assert (answer["text"], answer["meta_info"]["finish_reason"]) == ("one", {"type": "stop", "matched": ";"})
    answer = await post(client, text="x", sampling_params={"stop": [";"], "no_stop_trim": True})
    assert answer["text"] == "one;"
    answer = await post(client, text="x", sampling_params={"stop": []})
    assert (answer["text"], answer["meta_info"]["finish_reason"]["matched"]) == ("one;two", 256)


async def test_null_fields_and_prefill_only(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """null means absent; max_new_tokens 0 computes the prompt only and gives empty lists."""
    params: dict[str, Any] = {
        "max_new_tokens": 0, "min_new_tokens": None, "n": None, "stop": [], "stop_token_ids": None, "stop_regex": None,
        "temperature": None, "top_p": None, "top_k": -1, "min_p": None, "regex": None, "json_schema": None,
        "ignore_eos": None, "spaces_between_special_tokens": True, "skip_special_tokens": True,
    }  # fmt: skip
    answer = await post(
        client,
        text="abc",
        sampling_params=params,
        return_logprob=True,
        logprob_start_len=1,
        image_data=None,
        rid=None,
    )
    assert (answer["text"], answer["output_ids"]) == ("", [])
    assert answer["meta_info"]["output_token_logprobs"] == []
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    assert node.asked[0].sampling.top_k == -1


@pytest.mark.parametrize(
    ("params", "constraint"),
    [
        ({"regex": "a+"}, Constraint("regex", "a+")),
        ({"json_schema": '{"type": "null"}'}, Constraint("json_schema", '{"type": "null"}')),
        ({"json_schema": {"type": "null"}}, Constraint("json_schema", '{"type":"null"}')),
        ({"ebnf": 'start: "a"'}, Constraint("lark", 'start: "a"')),
        ({"lark": 'start: "a"'}, Constraint("lark", 'start: "a"')),
        ({"choice": ["a", "b"]}, Constraint("choice", '["a","b"]')),
        ({"regex": None, "json_schema": None, "ebnf": None}, None),
    ],
)
async def test_constraints_reach_the_node(
    client: httpx2.AsyncClient, node: FakeNode, params: dict[str, Any], constraint: Constraint | None
) -> None:
    """SGLang's names for constraints and stop patterns are taken; null asks for nothing."""
    await post(client, text="x", sampling_params=params | {"stop_regex": r"\n+"})
    assert node.asked[-1].sampling.constraint == constraint
    assert node.asked[-1].sampling.stop_regex == (r"\n+",)


async def test_prompt_logprobs_begin_with_a_real_value(client: httpx2.AsyncClient) -> None:
    """input_token_logprobs begins at logprob_start_len with the real number there: prompt_tokens == start + len(list)."""
    ids = encode("Hello world")
    answer = await post(
        client, text="Hello world", sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=4,
        return_text_in_logprobs=True, top_logprobs_num=2,
    )  # fmt: skip
    meta = answer["meta_info"]
    entries = meta["input_token_logprobs"]
    assert meta["prompt_tokens"] == 4 + len(entries) == 11
    assert [entry[1] for entry in entries] == ids[4:]
    assert [entry[2] for entry in entries] == list("o world")
    assert entries[0][0] == pytest.approx(logits(ids[:4])[ids[4]])
    assert [len(top) for top in meta["input_top_logprobs"]] == [2] * 7


async def test_start_of_prompt_has_no_value(client: httpx2.AsyncClient) -> None:
    """The first token of all has null; absent logprob_start_len means the whole prompt when nothing is generated, else none."""
    scored = (
        await post(client, input_ids=[1, 2, 3], sampling_params={"max_new_tokens": 0}, return_logprob=True)
    )["meta_info"]
    assert [entry[0] is None for entry in scored["input_token_logprobs"]] == [True, False, False]
    assert [entry[2] for entry in scored["input_token_logprobs"]] == [None] * 3
    assert "input_top_logprobs" not in scored
    generated = (
        await post(client, input_ids=[1, 2, 3], sampling_params={"max_new_tokens": 2}, return_logprob=True)
    )["meta_info"]
    assert generated["input_token_logprobs"] == []
    assert len(generated["output_token_logprobs"]) == 2


async def test_batch_with_fields_per_prompt(client: httpx2.AsyncClient) -> None:
    """Lists give each prompt its own parameters; answers come as a list in order, ids numbered from one rid."""
    answers = await post(
        client, text=["a", "bb"], sampling_params=[{"max_new_tokens": 1}, {"max_new_tokens": 2}], rid="job",
        return_logprob=[True, False], logprob_start_len=[0, None], top_logprobs_num=[1, 0],
    )  # fmt: skip
    assert [answer["meta_info"]["completion_tokens"] for answer in answers] == [1, 2]
    assert [answer["meta_info"]["id"] for answer in answers] == ["job_0", "job_1"]
    assert len(answers[0]["meta_info"]["output_top_logprobs"]) == 1
    assert "output_token_logprobs" not in answers[1]["meta_info"]
    assert [answer["index"] for answer in answers] == [0, 1]


async def test_list_of_one_stays_a_list(client: httpx2.AsyncClient) -> None:
    """A list of one prompt is answered with a list; ids and lists of ids are told apart."""
    params = {"max_new_tokens": 1}
    assert len(await post(client, text=["a"], sampling_params=params)) == 1
    assert len(await post(client, input_ids=[[1, 2]], sampling_params=params)) == 1
    assert (await post(client, input_ids=[1, 2], sampling_params=params))["meta_info"]["prompt_tokens"] == 2


async def test_n_gives_a_list(client: httpx2.AsyncClient) -> None:
    """n > 1 gives that many answers with different seeds."""
    answers = await post(
        client, text="a", rid="r", sampling_params={"max_new_tokens": 6, "n": 2, "sampling_seed": 1}
    )
    assert [answer["meta_info"]["id"] for answer in answers] == ["r_0", "r_1"]
    assert answers[0]["text"] != answers[1]["text"]


async def test_stream_is_cumulative(client: httpx2.AsyncClient) -> None:
    """Each event repeats all text so far and its meta_info; the last has the reason; then DONE."""
    fields: dict[str, Any] = {
        "text": "abc",
        "sampling_params": {"max_new_tokens": 4, "temperature": 0},
        "return_logprob": True,
    }
    whole = await post(client, **fields)
    body = (await client.post("/generate", json={**fields, "stream": True})).text
    *answers, done = events(body)
    assert done == "[DONE]"
    texts = [answer["text"] for answer in answers]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1] == whole["text"]
    assert all(answer["meta_info"]["finish_reason"] is None for answer in answers[:-1])
    assert answers[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    assert answers[-1]["meta_info"]["output_token_logprobs"] == whole["meta_info"]["output_token_logprobs"]
    assert "index" not in answers[0]


async def test_stream_of_a_batch_carries_the_index(client: httpx2.AsyncClient) -> None:
    """Events of a batch say which prompt they belong to."""
    fields: dict[str, Any] = {"text": ["a", "b"], "sampling_params": {"max_new_tokens": 3}, "stream": True}
    *answers, _ = events((await client.post("/generate", json=fields)).text)
    assert {answer["index"] for answer in answers} == {0, 1}


async def test_abort_by_rid(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """/abort_request ends the generation of that rid, which is answered with what it has and the reason."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(post(client, text="<hold>", rid="mine"))
        await node.holding.wait()
        second = await client.post("/generate", json={"text": "x", "rid": "mine"})
        assert (await client.post("/abort_request", json={"rid": "mine"})).status_code == 200
    assert second.status_code == 400
    assert second.json()["error"]["param"] == "rid"
    answer = running.result()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert answer["meta_info"]["finish_reason"]["err_type"] == "cancelled"
    assert node.running == 0


async def test_abort_of_everything_and_of_unknown_ids(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """abort_all and unknown ids reach the node; neither is a 400."""
    assert (await client.post("/abort_request", json={"abort_all": True})).status_code == 200
    assert (await client.post("/abort_request", json={"rid": "nobody"})).status_code == 200
    assert node.cancelled == [([], True), (["nobody"], False)]
    assert (await client.post("/abort_request", json={})).status_code == 400


async def test_flush_cache(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """GET and POST empty the cache; 400 while a request runs."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(post(client, text="<hold>", sampling_params={"max_new_tokens": 3}))
        await node.holding.wait()
        refused = await client.get("/flush_cache")
        node.release.set()
    assert refused.status_code == 400
    assert "1 requests" in refused.json()["error"]["message"]
    assert (await client.post("/flush_cache")).status_code == 200
    assert (await client.get("/flush_cache")).status_code == 200
    assert (await post(client, text="<hold>", sampling_params={"max_new_tokens": 0}))["meta_info"][
        "cached_tokens"
    ] == 0


async def test_model_and_server_info(client: httpx2.AsyncClient) -> None:
    """Both spellings answer; model_path and is_generation are there for SGLang's client."""
    for path in ("/get_model_info", "/model_info"):
        info = (await client.get(path)).json()
        assert (info["model_path"], info["is_generation"]) == (INFO.path, True)
    for path in ("/get_server_info", "/server_info"):
        info = (await client.get(path)).json()
        assert info["max_total_num_tokens"] == 4096
        assert [row["address"] for row in info["actors"]] == ["scheduler#1", "worker/0#2"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": ""}, "text"),
        ({"text": []}, "text"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[1], 2]}, "input_ids"),
        ({"input_ids": [999]}, "input_ids"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"regex": "a+", "json_schema": "{}"}}, "regex"),
        ({"text": "a", "sampling_params": {"regex": "a+", "ebnf": "start: a"}}, "ebnf"),
        ({"text": "a", "sampling_params": {"regex": ["a"]}}, "sampling_params.regex"),
        ({"text": "a", "sampling_params": {"structural_tag": "{}"}}, "structural_tag"),
        ({"text": "a", "sampling_params": {"stop_regex": ["a"] * 65}}, "stop_regex"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": "a", "top_logprobs_num": 101}, "top_logprobs_num"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": "a", "rid": ""}, "rid"),
        ({"text": "a", "image_data": "aGk="}, "image_data"),
        ({"text": "a", "sampling_params": {"n": 129}}, "n"),
        ({"text": "ab", "return_logprob": True, "logprob_start_len": 2, "sampling_params": {"max_new_tokens": 0}},
         "logprob_start_len"),
    ],
)  # fmt: skip
async def test_bad_fields_are_named(client: httpx2.AsyncClient, fields: Any, param: str) -> None:
    """A wrong or unsupported field is answered 400 with its name."""
    response = await client.post("/generate", json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_tokenize_and_back(client: httpx2.AsyncClient) -> None:
    """/tokenize takes a text, texts or messages; /detokenize gives the text back; /tokenizer_info the special tokens."""
    one = (await client.post("/tokenize", json={"prompt": "héllo", "add_special_tokens": False})).json()
    assert one == {"tokens": encode("héllo"), "count": 6, "max_model_len": INFO.context}
    many = (await client.post("/tokenize", json={"prompt": ["a", "bc"]})).json()
    assert (many["tokens"], many["count"]) == ([[97], [98, 99]], [1, 2])
    chat = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})).json()
    assert chat["tokens"] == encode("[user]Hi[assistant]")
    back = (await client.post("/detokenize", json={"tokens": one["tokens"]})).json()
    assert back["prompt"] == back["text"] == "héllo"
    info = (await client.get("/tokenizer_info")).json()
    assert info["eos_token"] == "<eos>"
    assert set(info) == {"bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "vocab_size"}
    assert (await client.get("/tokenizer_info?model=fake")).json() == info
    assert (await client.get("/tokenizer_info?model=other")).status_code == 404
    assert (await client.post("/tokenize", json={})).status_code == 400
    assert (await client.post("/detokenize", json={"tokens": [9999]})).status_code == 400
