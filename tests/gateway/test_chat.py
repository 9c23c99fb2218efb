"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.gateway.events import events
from tests.gateway.fake_node import FakeNode, encode

HELLO: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


async def post(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post("/v1/chat/completions", json={**HELLO, **fields})


async def test_answer_has_the_shape_clients_read(client: httpx2.AsyncClient) -> None:
    """An answer carries id, object, model, one choice with its message and reason, and usage with cached tokens."""
    answer = (await post(client)).json()
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"], answer["created"]) == (
        "chat.completion",
        "fake",
        1_700_000_000,
    )
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["refusal"] is None
    assert len(choice["message"]["content"]) == 8
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    prompt = len(encode("[user]Hello[assistant]"))
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 8,
        "total_tokens": prompt + 8,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {
            "steps": 8,
            "sampled_tokens": 7,
            "forced_tokens": 1,
            "held_back_tokens": 2,
            "drafted_tokens": 5,
            "accepted_tokens": 3,
        },
    }
    again = (await post(client)).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == prompt - 1


async def test_stream_has_role_then_text_then_finish_then_usage(client: httpx2.AsyncClient) -> None:
    """A stream begins with the role, ends with an empty delta and its reason, then usage without choices, then DONE."""
    response = await post(client, stream=True, stream_options={"include_usage": True}, temperature=0)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    whole = (await post(client, temperature=0)).json()
    assert text == whole["choices"][0]["message"]["content"]


async def test_stream_without_usage_never_names_it(client: httpx2.AsyncClient) -> None:
    """Without include_usage no chunk has a usage field."""
    *chunks, done = events((await post(client, stream=True)).text)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


async def test_stop_string_is_trimmed_and_counted(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Text ends before the stop string, whole or streamed; usage counts to the token that completed it."""
    node.forced = "abc STOP def"
    answer = (await post(client, stop="STOP", max_tokens=20)).json()
    assert answer["choices"][0]["message"]["content"] == "abc "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("abc STOP")
    streamed = events((await post(client, stop=["no", "STOP"], max_tokens=20, stream=True)).text)[:-1]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == "abc "


async def test_characters_are_never_split(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A character of several tokens arrives whole, with log probabilities in the chunk that completes it or before."""
    node.forced = "a€b"
    body = (await post(client, stream=True, logprobs=True, top_logprobs=1)).text
    chunks = events(body)[:-1]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == "a€b"
    assert "\ufffd" not in body
    entries = [
        entry
        for chunk in chunks
        for entry in (chunk["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).startswith("a€b".encode())
    assert entries[1]["token"] == "bytes:\\xe2"


async def test_logprobs_and_alternatives(client: httpx2.AsyncClient) -> None:
    """Greedy tokens are their own best alternative, with bytes; one entry per output token."""
    answer = (await post(client, logprobs=True, top_logprobs=3, temperature=0)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert "".join(entry["token"] for entry in content) == answer["choices"][0]["message"]["content"]
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
        assert bytes(entry["bytes"]).decode() == entry["token"]


async def test_n_choices_share_the_prompt_and_differ(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A long prompt is computed once before its n choices; they have different seeds, and usage counts it once."""
    content = "x" * 600
    answer = (await post(client, n=3, seed=5, messages=[{"role": "user", "content": content}])).json()
    head, *siblings = node.asked
    assert head.sampling.max_tokens == 0
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({request.sampling.seed for request in siblings}) == 3
    assert siblings[0].sampling.seed == 5
    assert len({request.id for request in node.asked}) == 4
    assert answer["usage"]["prompt_tokens"] == len(encode(f"[user]{content}[assistant]"))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert answer["usage"]["completion_tokens"] == 24
    single = (await post(client, seed=5, messages=[{"role": "user", "content": content}])).json()
    assert single["choices"][0]["message"] == answer["choices"][0]["message"]


async def test_extra_fields_reach_the_node(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """max_completion_tokens goes before max_tokens; all sampling fields are passed on."""
    response = await post(
        client, max_completion_tokens=3, top_k=5, min_p=0.1, repetition_penalty=1.2, min_tokens=2, ignore_eos=True,
        stop_token_ids=[9], logit_bias={"7": -3.5}, presence_penalty=0.5, frequency_penalty=-0.5, top_p=0.9, seed=-1,
        temperature=0.3, stop=["a", ""],
    )  # fmt: skip
    assert response.status_code == 200
    sampling = node.asked[0].sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.top_k, sampling.min_p) == (3, 2, 5, 0.1)
    assert (sampling.repetition_penalty, sampling.ignore_eos, sampling.stop_token_ids) == (1.2, True, (9,))
    assert (sampling.logit_bias, sampling.presence_penalty, sampling.frequency_penalty) == (
        ((7, -3.5),),
        0.5,
        -0.5,
    )
    assert (sampling.top_p, sampling.temperature, sampling.stop, sampling.seed) == (
        0.9,
        0.3,
        ("a",),
        2**63 - 1,
    )


async def test_messages_are_translated(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """developer becomes system, text parts are joined, an assistant's null content is empty."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    assert (await post(client, messages=messages)).status_code == 200
    sent = node.asked[0].messages or []
    assert [(m.role, m.content) for m in sent] == [
        ("system", "be brief"),
        ("assistant", ""),
        ("user", "one\ntwo"),
    ]


async def test_last_message_can_be_continued(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """continue_final_message passes the assistant's last turn on as unfinished; add_generation_prompt false renders without one."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    await post(client, messages=turns, continue_final_message=True)
    assert node.asked[-1].continue_final
    await post(client, messages=turns, add_generation_prompt=False)
    assert node.asked[-1].input_ids == encode("[user]Hi[assistant]Well")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "poem"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "regex": "a+"}, "regex"),
        ({"guided_json": {}, "guided_regex": "a+"}, "guided_regex"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": "Hi"}, "messages"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop_token_ids": [257]}, "stop_token_ids"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx2.AsyncClient, node: FakeNode, fields: Any, param: str
) -> None:
    """A field that is wrong or cannot be honoured is answered 400 with its name, and nothing reaches the node."""
    response = await post(client, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"] == "invalid_request"
    assert node.asked == []


async def test_neutral_values_ask_for_nothing(client: httpx2.AsyncClient) -> None:
    """Values of unsupported fields that change nothing are accepted, as are nulls and unknown fields."""
    response = await post(
        client, tools=[], tool_choice="auto", response_format={"type": "text"}, regex=None, user="ann", store=False,
        metadata={"a": "b"}, parallel_tool_calls=True, logprobs=None, stream_options=None, colour="red",
    )  # fmt: skip
    assert response.status_code == 200
