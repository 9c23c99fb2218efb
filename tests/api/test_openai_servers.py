"""The OpenAI backend and the servers of others that speak the protocol: how they are told apart, and what each is sent."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.errors import (
    ConfigError,
    NotReady,
    Unauthorized,
)
from sgl_actors.lang.backends.vendor import Ask, Tokens
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint
from tests.api.openai_calls import CHAT, PLAIN, Open, end, events, failing, sampled
from tests.api.stub import Reply, Stub


async def test_our_own_node_is_told_everything(stub: Stub, connect: Open) -> None:
    """It takes all sampling arguments by their names there, every kind of constraint, and a stop that stays."""
    vendor = await connect("m", api="completions", dialect="sgl-actors")
    options = {
        "top_k": 5,
        "stop": ("a", "b", "c", "d", "e"),
        "stop_token_ids": (2,),
        "no_stop_trim": True,
        "stop_regex": ("x+",),
    }
    await end(vendor, sampled(PLAIN, temperature=0.0, min_tokens=1, skip_special_tokens=False, **options))
    sent = {
        "top_k": 5,
        "stop": ["a", "b", "c", "d", "e"],
        "stop_token_ids": [2],
        "include_stop_str_in_output": True,
        "stop_regex": ["x+"],
    }
    more = {
        "temperature": 0.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 1,
        "skip_special_tokens": False,
    }
    assert stub.body == {"model": "m", "prompt": PLAIN.text, "max_tokens": 128} | sent | more
    schema = '{"type":"object"}'
    kinds = {REGEX: "a+", JSON_SCHEMA: schema, LARK: 'start: "a"', CHOICE: '["a","b"]'}
    for kind, source in kinds.items():
        assert kind in vendor.capabilities.constraints
        await end(vendor, sampled(PLAIN, constraint=Constraint(kind, source)))
        assert stub.body[kind] == (["a", "b"] if kind == CHOICE else source)


async def test_vllm_is_told_in_its_own_words(stub: Stub, connect: Open) -> None:
    """Constraints stand in `structured_outputs`, a schema in the format; a rendered prompt gets no special tokens once more."""
    vendor = await connect("m", api="completions", dialect="vllm")
    await end(vendor, sampled(PLAIN, constraint=Constraint(CHOICE, '["a"]')))
    assert (stub.body["structured_outputs"], stub.body["add_special_tokens"]) == ({"choice": ["a"]}, False)
    await end(vendor, sampled(PLAIN, constraint=Constraint(JSON_SCHEMA, '{"type":"integer"}')))
    assert stub.body["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    assert LARK not in vendor.capabilities.constraints


async def test_llama_cpp_is_told_in_its_own_words(stub: Stub, connect: Open) -> None:
    """Its prompts are cached if asked for, its repetition penalty has another name, and its defaults are overruled."""
    vendor = await connect("m", api="completions", dialect="llama.cpp")
    await end(
        vendor,
        sampled(PLAIN, repetition_penalty=1.5, constraint=Constraint(JSON_SCHEMA, '{"type":"integer"}')),
    )
    sent = {
        "cache_prompt": True,
        "repeat_penalty": 1.5,
        "top_k": -1,
        "min_p": 0.0,
        "json_schema": {"type": "integer"},
    }
    assert stub.body.items() >= sent.items()


async def test_a_begun_turn_is_gone_on_with(stub: Stub, connect: Open) -> None:
    """Servers of open models are told not to begin a turn of their own."""
    vendor = await connect("m", dialect="sgl-actors")
    messages = (*(CHAT.messages or ()), ChatMessage("assistant", "It is"))
    await end(vendor, Ask(messages=messages, continue_final=True))
    assert (stub.body["continue_final_message"], stub.body["add_generation_prompt"]) == (True, False)
    assert stub.body["messages"][-1] == {"role": "assistant", "content": "It is"}


async def test_no_limit_is_what_the_context_leaves(stub: Stub, connect: Open) -> None:
    """A server whose completions are short by default is asked for all that has room, if it tells its context."""
    stub.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]
    vendor = await connect("m", api="completions", dialect="")
    await end(vendor, sampled(PLAIN, max_tokens=None))
    assert stub.body["max_tokens"] == 100 - len(stub.words.ids(PLAIN.text or ""))
    await end(await connect("m", dialect=""), sampled(CHAT, max_tokens=None))
    assert "max_tokens" not in stub.body


async def test_scores_of_given_text(stub: Stub, connect: Open) -> None:
    """A completion of no tokens that echoes its prompt tells the log probabilities of it; the first token has none."""
    stub.script = Reply(logprobs={" of": -2.0})
    vendor = await connect(api="completions", dialect="vllm")
    ask = Ask(text="capital of France", score=True, sampling=SamplingOptions(max_tokens=0))
    found = await end(vendor, ask)
    assert stub.body.items() >= {"prompt": ask.text, "echo": True, "logprobs": 0, "max_tokens": 0}.items()
    assert found.scored == ("capital", " of", " France")
    assert [one.logprob for one in found.scores] == [None, -2.0, -0.5]
    assert found.completions[0].text == ""


async def test_a_stream_says_what_it_has_used(stub: Stub, connect: Open) -> None:
    """Where the server counts as it goes, every piece tells the tokens so far; the end has the whole."""
    stub.script = Reply(("a b c",), prompt=5)
    vendor = await connect(api="completions", dialect="sgl-actors")
    pieces, found = await events(vendor, Ask(text="x", stream=True))
    assert stub.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert [(one.text, one.used) for one in pieces[:3]] == [
        ("a", Tokens(5, 0, 1)),
        (" b", Tokens(5, 0, 2)),
        (" c", Tokens(5, 0, 3)),
    ]
    assert (found.completions[0].text, found.used) == ("a b c", Tokens(5, 0, 3))


@pytest.mark.parametrize(
    ("owner", "dialect"),
    [
        ("sgl-actors", "sgl-actors"),
        ("vllm", "vllm"),
        ("sglang", "sglang"),
        ("llamacpp", "llama.cpp"),
        ("acme", "other"),
    ],
)
async def test_whose_server_it_is(stub: Stub, connect: Open, owner: str, dialect: str) -> None:
    """`/v1/models` says it."""
    stub.models = [{"id": "another", "owned_by": "x"}, {"id": "m", "owned_by": owner}]
    vendor = await connect("m", dialect="")
    assert vendor.dialect == dialect
    assert (vendor.capabilities.continuation == "prefill") == (dialect != "other")


async def test_a_server_without_a_list_of_models(stub: Stub, connect: Open) -> None:
    """It is opened all the same, and nothing is taken for granted."""
    vendor = await connect("m", dialect="", key="")
    assert stub.visited == ["/v1/models"]
    assert (vendor.dialect, vendor.capabilities.schema, vendor.capabilities.sampling) == (
        "other",
        False,
        ("temperature", "top_p"),
    )


async def test_a_dialect_that_was_said_is_not_looked_up(stub: Stub, connect: Open) -> None:
    """Nothing is asked for what is known."""
    await connect("m", dialect="other")
    await connect("m", dialect="vllm")
    assert stub.visited == []


async def test_capabilities_that_were_said_win(stub: Stub, connect: Open) -> None:
    """And what has no meaning is refused by name."""
    vendor = await connect("m", dialect="other", capabilities={"schema": True, "stops": 1})
    await end(vendor, sampled(CHAT, stop=("a", "b")))
    assert (vendor.capabilities.schema, stub.body["stop"]) == (True, ["a"])
    with pytest.raises(ConfigError, match="'colour' is unknown"):
        await connect("m", capabilities={"colour": True})
    with pytest.raises(ConfigError, match="called colour"):
        await connect("m", capabilities={"sampling": ["top_k", "colour"]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "", "key": ""}, "there is no key: set OPENAI_API_KEY"),
        ({"base_url": "", "azure_endpoint": "https://x.example"}, "api_version"),
        ({"dialect": "cobol"}, "dialect 'cobol' is none of openai"),
        ({"api": "responses"}, "api is one of chat, completions"),
        ({"base_url": "localhost:1"}, "no http:// or https:// address"),
        ({"base_url": "http://host:port/v1"}, "is no address"),
        ({"key": "sk-1\n"}, "the key has characters"),
    ],
)
async def test_settings_without_meaning(
    stub: Stub, connect: Open, settings: dict[str, Any], words: str
) -> None:
    """They are refused before anything is sent."""
    with pytest.raises(ConfigError, match=words):
        await connect(**settings)
    assert stub.visited == []


async def test_nothing_answers(connect: Open) -> None:
    """An address where nothing listens is not ready, at the opening if something has to be found out there, else at the request."""
    with pytest.raises(NotReady, match=r"nothing answers at http://127\.0\.0\.1:9/v1"):
        await connect("m", base_url="http://127.0.0.1:9/v1", dialect="")
    vendor = await connect("m", base_url="http://127.0.0.1:9/v1", dialect="other")
    assert isinstance(await failing(vendor, CHAT), NotReady)


async def test_chat_templates(stub: Stub, connect: Open) -> None:
    """A server that knows it tells its template and its special tokens; one that does not leaves it open."""
    vendor = await connect("m", api="completions", dialect="vllm")
    assert await vendor.template() == ("", {})
    stub.template = {
        "chat_template": "{{ x }}",
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "pad_token": None,
    }
    assert await vendor.template() == ("{{ x }}", {"bos_token": "<s>", "eos_token": "</s>"})
    llama = await connect("m", api="completions", dialect="llama.cpp")
    assert (await llama.template())[0] == "{{ x }}"
    assert [path for path in stub.visited if path != "/v1/models"] == [
        "/tokenizer_info",
        "/tokenizer_info",
        "/props",
    ]


async def test_a_refused_key_is_no_missing_template(stub: Stub, connect: Open) -> None:
    """Who may not ask for the models is told of the key, not of a template; a chat model, which needs none, is opened."""
    stub.locked = True
    vendor = await connect("m", api="completions", dialect="")
    with pytest.raises(Unauthorized, match="the key is wrong"):
        await vendor.template()
    chat = await connect("m", dialect="")
    assert (chat.dialect, await chat.template()) == ("other", ("", {}))


async def test_an_address_without_its_path(stub: Stub, connect: Open) -> None:
    """Where only `/v1` is missing the error says so; where nothing is found there either the server is opened as one that nobody knows."""
    stub.models = [{"id": "m", "owned_by": "vllm"}]
    with pytest.raises(ConfigError, match=f'the API is .* at {stub.url}/v1; say base_url="{stub.url}/v1"'):
        await connect("m", base_url=stub.url, dialect="")
    stub.models = None
    assert (await connect("m", base_url=f"{stub.url}/", dialect="")).dialect == "other"


async def test_token_ids(stub: Stub, connect: Open) -> None:
    """The server's tokenizer counts."""
    vendor = await connect("m", api="completions", dialect="sgl-actors")
    assert await vendor.token_ids("a b a") == stub.words.ids("a b a")
