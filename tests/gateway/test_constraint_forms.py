"""Every form in which a request may say what its output has to be."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.bytewise import accepts
from sgl_actors.lang.constraints.constraint import Constraint
from tests.gateway.fake_node import FakeNode

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
TEXT: dict[str, Any] = {"prompt": "Hi", "max_tokens": 1}
NULL = Constraint("json_schema", '{"type":"null"}')
ANY_OBJECT = Constraint("json_schema", '{"type":"object"}')
WORD = Constraint("regex", "a+")
ONE_OF = Constraint("choice", '["a","b"]')
LARK = Constraint("lark", 'start: "a"')
GBNF = 'root ::= greeting " you"  # twice\ngreeting ::= "hi" | "yo"\n'
TAG = {
    "structures": [
        {"begin": "<f=add>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<f=sub>", "schema": {"type": "null"}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


async def post(client: httpx2.AsyncClient, route: str, fields: Any) -> httpx2.Response:
    if route == "/generate":
        return await client.post(
            route, json={"text": "Hi", "sampling_params": {"max_new_tokens": 1, **fields}}
        )
    return await client.post(route, json={**(CHAT if "chat" in route else TEXT), **fields})


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": {"type": "null"}},
                }
            },
            NULL,
        ),
        ({"json_schema": '{"type":"null"}'}, NULL),
        ({"json_schema": {"type": "null"}}, NULL),
        ({"guided_json": {"type": "null"}}, NULL),
        ({"structured_outputs": {"json": {"type": "null"}}}, NULL),
        ({"structured_outputs": {"json": '{"type":"null"}'}}, NULL),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"guided_json_object": True}, ANY_OBJECT),
        ({"regex": "a+"}, WORD),
        ({"guided_regex": "a+"}, WORD),
        ({"structured_outputs": {"regex": "a+", "json_object": False}}, WORD),
        ({"choice": ["a", "b"]}, ONE_OF),
        ({"guided_choice": ["a", "b"], "guided_decoding_backend": "xgrammar"}, ONE_OF),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ONE_OF),
        ({"ebnf": 'start: "a"'}, LARK),
        ({"lark": 'start: "a"'}, LARK),
        ({"guided_grammar": 'start: "a"'}, LARK),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, LARK),
        ({"structured_outputs": {}, "regex": None}, None),
    ],
)
async def test_forms_become_one_constraint(
    client: httpx2.AsyncClient, node: FakeNode, route: str, fields: Any, constraint: Constraint | None
) -> None:
    """The forms of OpenAI, vLLM and SGLang mean the same constraint, in chats and in plain completions."""
    response = await post(client, route, fields)
    assert response.status_code == 200, response.text
    assert node.asked[-1].sampling.constraint == constraint
    assert node.asked[-1].sampling.jump_forward


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/generate"])
@pytest.mark.parametrize("jump", [True, False, None])
async def test_jumps_can_be_turned_off(
    client: httpx2.AsyncClient, node: FakeNode, route: str, jump: bool | None
) -> None:
    """jump_forward reaches the node; absent and null mean true."""
    assert (await post(client, route, {"regex": "a+", "jump_forward": jump})).status_code == 200
    assert node.asked[-1].sampling.jump_forward is (jump is not False)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/generate"])
async def test_gbnf_is_converted(client: httpx2.AsyncClient, node: FakeNode, route: str) -> None:
    """A grammar with `root ::=` says the same in Lark."""
    assert (await post(client, route, {"ebnf": GBNF})).status_code == 200
    made = node.asked[-1].sampling.constraint
    assert made is not None
    assert made.kind == "lark"
    assert accepts(made, b"hi you")
    assert not accepts(made, b"hi")


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/generate", {"structural_tag": json.dumps({"type": "structural_tag", **TAG})}),
        ("/v1/completions", {"response_format": {"type": "structural_tag", **TAG}}),
        ("/v1/chat/completions", {"structured_outputs": {"structural_tag": TAG}}),
    ],
)
async def test_structural_tags(client: httpx2.AsyncClient, node: FakeNode, route: str, fields: Any) -> None:
    """Text is free until a trigger; then comes a structure that begins with it, and free text again."""
    response = await post(client, route, fields)
    assert response.status_code == 200, response.text
    made = node.asked[-1].sampling.constraint
    assert made is not None
    for text in ("nothing", "so <f=add>12</f>, and <f=sub>null</f> is\nit", "<f"):
        assert accepts(made, text.encode()), text
    for text in ("<f=mul>1</f>", "<f=add>null</f>", "<f=add>1"):
        assert not accepts(made, text.encode()), text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": ""}, "regex"),
        ({"ebnf": ""}, "ebnf"),
        ({"lark": ""}, "lark"),
        ({"json_schema": ""}, "json_schema"),
        ({"choice": []}, "choice"),
        ({"guided_choice": ["a"] * 4097}, "guided_choice"),
        ({"choice": [1]}, "choice[0]"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs"),
        ({"sampling_params": {"regex": "a"}}, "sampling_params"),
        ({"extra_body": {"regex": "a"}}, "extra_body"),
        ({"ebnf": "root ::= nowhere"}, "ebnf"),
        ({"ebnf": 'other ::= "a"'}, "ebnf"),
        ({"guided_grammar": 'root ::= "a" )'}, "guided_grammar"),
        ({"ebnf": 'root ::= "\\'}, "ebnf"),
        ({"ebnf": "root ::= " + "(" * 5000}, "ebnf"),
        ({"ebnf": 'root ::= "' + "a" * (1 << 16) + '"'}, "ebnf"),
        ({"ebnf": "\n".join(f'r{n} ::= "a"' for n in range(600))}, "ebnf"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}}, "response_format"),
        ({"structural_tag": "{"}, "structural_tag"),
        ({"structural_tag": {**TAG, "triggers": []}}, "structural_tag.triggers"),
        ({"structural_tag": {**TAG, "triggers": ["<g="]}}, "structural_tag.structures[0].begin"),
        ({"structural_tag": {**TAG, "triggers": ["<f=", "<g="]}}, "structural_tag.triggers"),
    ],
)  # fmt: skip
async def test_what_is_no_constraint_is_refused(
    client: httpx2.AsyncClient, node: FakeNode, fields: Any, param: str
) -> None:
    """An empty source is no free text by accident, and whatever is wrong is a 400 that names the field."""
    response = await post(client, "/v1/chat/completions", fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert error["message"].startswith(param)
    assert node.asked == []


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"regex": "a"}, "regex: it belongs into sampling_params"),
        ({"json_schema": {"type": "null"}}, "json_schema: it belongs into sampling_params"),
        ({"response_format": {"type": "json_object"}}, "response_format: it is for the OpenAI-compatible endpoints"),
        ({"sampling_params": {"guided_regex": "a"}}, "sampling_params.guided_regex: it is for the OpenAI-compatible endpoints"),
        ({"sampling_params": {"response_format": {"type": "json_object"}}}, "sampling_params.response_format: it is for"),
    ],
)  # fmt: skip
async def test_a_constraint_in_another_endpoint_s_place_is_no_free_text(
    client: httpx2.AsyncClient, node: FakeNode, fields: Any, where: str
) -> None:
    """What /generate has elsewhere or under another name is a 400 that says where, and no unconstrained answer."""
    response = await client.post("/generate", json={"text": "Hi", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(where)
    assert node.asked == []


@pytest.mark.parametrize(
    ("route", "fields", "both"),
    [
        ("/v1/completions", {"regex": "a", "ebnf": 'start: "a"'}, ("regex", "ebnf")),
        ("/v1/completions", {"guided_json": {}, "guided_regex": "a+"}, ("guided_json", "guided_regex")),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}, "choice": ["a"]}, ("response_format", "choice")),
        ("/v1/completions", {"structured_outputs": {"json": {}, "regex": "a"}}, ("structured_outputs.json", "structured_outputs.regex")),
        ("/generate", {"regex": "a", "choice": ["a"]}, ("regex", "choice")),
        ("/generate", {"json_schema": "{}", "structural_tag": TAG}, ("json_schema", "structural_tag")),
    ],
)  # fmt: skip
async def test_two_constraints_are_refused(
    client: httpx2.AsyncClient, node: FakeNode, route: str, fields: Any, both: tuple[str, str]
) -> None:
    """More than one constraint is a 400 that names both."""
    response = await post(client, route, fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == both[1]
    assert all(name in error["message"] for name in both)
    assert node.asked == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "fields", "kind", "field"),
    [
        ("/v1/completions", {"guided_regex": "(a"}, "regex", "guided_regex"),
        ("/v1/chat/completions", {"structured_outputs": {"json": {}}}, "json_schema", "structured_outputs.json"),
        ("/v1/completions", {"prompt": ["a", "b"], "ebnf": "start: b"}, "lark", "ebnf"),
        ("/v1/chat/completions", {"n": 2, "choice": ["a"]}, "choice", "choice"),
    ],
)  # fmt: skip
async def test_what_the_node_refuses_has_the_field_s_name(
    client: httpx2.AsyncClient, node: FakeNode, route: str, fields: Any, kind: str, field: str, stream: bool
) -> None:
    """An error about the constraint names the field that it came in, streamed or not."""
    node.refusal = InvalidRequest(f"{kind}: it is wrong at character 2 of 2", param=kind)
    response = await post(client, route, {**fields, "stream": stream})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["message"]) == (field, f"{field}: it is wrong at character 2 of 2")


async def test_a_structure_s_schema_is_named(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A schema of a structural tag that the node declines is named by its place."""
    asked = await post(client, "/generate", {"structural_tag": TAG})
    assert asked.status_code == 200
    made = node.asked[-1].sampling.constraint
    assert made is not None
    line = made.source.split("\n").index(next(one for one in made.source.split("\n") if '"null"' in one)) + 1
    node.refusal = InvalidRequest(f'lark: Unimplemented keys: ["not"] at line {line}, column 9', param="lark")
    error = (await post(client, "/generate", {"structural_tag": TAG, "n": 1})).json()
    assert "structures[1].schema: Unimplemented keys" in json.dumps(error)
    assert "line" not in json.dumps(error)


async def test_how_the_output_was_made_is_told(client: httpx2.AsyncClient) -> None:
    """Usage and meta_info tell steps, sampled, forced, held-back, drafted and accepted tokens; usage adds up over the choices."""
    many = (await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4, "n": 3})).json()
    assert many["usage"]["completion_tokens_details"] == {
        "steps": 12,
        "sampled_tokens": 9,
        "forced_tokens": 3,
        "held_back_tokens": 6,
        "drafted_tokens": 15,
        "accepted_tokens": 9,
    }
    native = await client.post("/generate", json={"text": "Hi", "sampling_params": {"max_new_tokens": 4}})
    meta = native.json()["meta_info"]
    assert [meta[f"{name}_tokens"] for name in ("sampled", "forced", "held_back", "drafted", "accepted")] == [
        3, 1, 2, 5, 3,
    ]  # fmt: skip
    assert meta["decode_steps"] == 4
