"""Programs over HTTP: the client against the gateway's native wire format."""

from __future__ import annotations

import json
from typing import Any, cast

import httpx2
import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs import runtime
from sgl_actors.actors.programs.http_client import HttpClient
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.runtime import KEY_VARIABLE, Backend, connect
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions, Tokenize
from sgl_actors.errors import (
    ConfigError,
    ContextLengthExceeded,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    ProtocolError,
    RemoteError,
)
from sgl_actors.lang.backends.native import Events, failure, generate_body, tokenize_body
from sgl_actors.lang.constraints.constraint import Constraint
from tests.programs.fakes import FakeClient, chatml


def event(text: str, ids: list[int], reason: object = None, **meta: object) -> str:
    info = {
        "id": "r",
        "prompt_tokens": 4,
        "completion_tokens": len(ids),
        "cached_tokens": 3,
        "finish_reason": reason,
    }
    return "data: " + json.dumps({"text": text, "output_ids": ids, "meta_info": {**info, **meta}})


def test_cumulative_events_become_chunks_of_what_is_new() -> None:
    """Text, ids and log probabilities are cut at what was known; the finish keeps reason and match."""
    events = Events()
    lines = [
        ": ping", event("He", [1], output_token_logprobs=[[-1.0, 1, None]], input_token_logprobs=[[None, 7, None], [-0.5, 8, None]]), "",
        event("Hello", [1, 2, 3], {"type": "stop", "matched": "!"}, input_token_logprobs=[[None, 7, None], [-0.5, 8, None]],
              output_token_logprobs=[[-1.0, 1, None], [-2.0, 2, None], [-3.0, 3, None]]),
        "data: [DONE]",
    ]  # fmt: skip
    chunks = [chunk for line in lines for chunk in events.line(line)]
    assert [(c.first_index, c.token_ids, c.text) for c in chunks] == [(0, [1], "He"), (1, [2, 3], "llo")]
    assert [[e.logprob for e in c.logprobs] for c in chunks] == [[-1.0], [-2.0, -3.0]]
    assert [[e.token_id for e in c.prompt_logprobs] for c in chunks] == [[7, 8], []]
    assert chunks[0].finish is None
    assert chunks[1].finish is not None
    assert (chunks[1].finish.reason, chunks[1].finish.matched, chunks[1].cached_tokens) == ("stop", "!", 3)
    assert events.done


def test_bodies_say_only_what_differs_from_the_defaults() -> None:
    """Names are SGLang's; stops are a list, a bias is keyed by text."""
    sampling = SamplingOptions(max_tokens=0, temperature=0.0, stop=("a",), seed=5, logit_bias=((3, -1.0),))
    body = generate_body(Generate("r", text="x", sampling=sampling, prompt_logprobs_start=2))
    params = {
        "max_new_tokens": 0,
        "temperature": 0.0,
        "stop": ["a"],
        "sampling_seed": 5,
        "logit_bias": {"3": -1.0},
    }
    assert body["sampling_params"] == params
    assert (body["text"], body["rid"], body["return_logprob"], body["logprob_start_len"]) == (
        "x",
        "r",
        True,
        2,
    )
    assert generate_body(Generate("r", input_ids=[1]))["input_ids"] == [1]
    assert not {"cache_salt", "priority"} & body.keys()
    urgent = generate_body(Generate("r", input_ids=[1], salt="s", priority=-3))
    assert (urgent["cache_salt"], urgent["priority"]) == ("s", -3)
    assert tokenize_body(Tokenize("x")) == {"prompt": "x", "add_special_tokens": False}


@pytest.mark.parametrize(
    ("kind", "field"), [("regex", "regex"), ("json_schema", "json_schema"), ("lark", "lark")]
)
def test_constraints_and_stop_patterns_are_sent(kind: str, field: str) -> None:
    """A constraint goes under the name that /generate has for its kind."""
    sampling = SamplingOptions(max_tokens=128, stop_regex=("a+", "b"), constraint=Constraint(kind, "x"))
    body = generate_body(Generate("r", text="x", sampling=sampling))
    assert body["sampling_params"] == {field: "x", "stop_regex": ["a+", "b"]}


def test_choices_are_sent_as_a_list() -> None:
    """They travel as JSON inside a node."""
    sampling = SamplingOptions(max_tokens=128, constraint=Constraint("choice", '["a", "b"]'))
    body = generate_body(Generate("r", text="x", sampling=sampling))
    assert body["sampling_params"] == {"choice": ["a", "b"]}


def test_error_answers_become_the_classes_they_were() -> None:
    """By their code; what is no error object keeps its status and text."""
    body = json.dumps(
        {"error": {"message": "too long", "type": "t", "param": "text", "code": "context_length_exceeded"}}
    )
    error = failure(400, body.encode())
    assert isinstance(error, ContextLengthExceeded)
    assert (error.message, error.param) == ("too long", "text")
    assert isinstance(failure(502, b"<html>"), RemoteError)
    assert "502" in str(failure(502, b"<html>"))
    with pytest.raises(Overloaded):
        list(Events().line('data: {"error": {"message": "m", "code": "overloaded"}}'))
    with pytest.raises(ProtocolError):
        list(Events().line("data: {"))


class Server:
    """A gateway in as few lines as possible, over a fake node."""

    def __init__(self) -> None:
        self.node = FakeClient()
        self.transport = httpx2.MockTransport(self.handle)
        self.aborted: list[str] = []

    async def handle(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        if request.url.path == "/abort_request":
            self.aborted.append(body["rid"])
            return httpx2.Response(200, json={"success": True})
        if request.url.path == "/tokenize":
            text = body.get("prompt")
            if text is None:
                messages = [type("M", (), turn) for turn in body["messages"]]
                text = chatml(messages, generation=body["add_generation_prompt"])
            return httpx2.Response(200, json={"tokens": self.node._ids(text), "count": 0, "max_model_len": 0})
        if request.url.path == "/detokenize":
            return httpx2.Response(200, json={"prompt": self.node._text(body["tokens"])})
        params = body["sampling_params"]
        ask = Generate(
            body["rid"], text=body.get("text"), input_ids=body.get("input_ids"),
            sampling=SamplingOptions(max_tokens=params.get("max_new_tokens", 128)), prompt_logprobs_start=body.get("logprob_start_len", -1),
        )  # fmt: skip
        lines: list[str] = []
        text, ids = "", list[int]()
        async for chunk in self.node.generate(ask):
            text, ids = text + chunk.text, ids + chunk.token_ids
            reason = None if chunk.finish is None else {"type": chunk.finish.reason}
            scores = [[e.logprob, e.token_id, None] for e in chunk.prompt_logprobs]
            lines.append(event(text, ids, reason, input_token_logprobs=scores))
        return httpx2.Response(200, text="\n\n".join([*lines, "data: [DONE]", ""]))


async def test_a_program_runs_over_http_unchanged() -> None:
    """The same program gives the same state through HTTP as through actors."""
    server = Server()
    server.node.answer = lambda prompt, request: [" it", " is"]

    async def opens() -> Any:
        return (
            await open_kernel(force_codec=True),
            lambda context: HttpClient("http://node", server.transport),
            False,
        )

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.user("How?")
        group = s.fork(2)
        group += sgl.assistant(sgl.gen("x"))
        await group.join("x")
        s += sgl.assistant("So " + sgl.select("y", ["good", "bad"]))

    async with Backend(opens, "http"):
        state = await program.run()
        pieces = [piece async for piece in program.stream("y")]
    assert state["x"] == [" it is", " it is"]
    assert state.text().endswith(
        "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nSo good<|im_end|>\n"
    )
    assert pieces == ["good"]
    assert server.aborted == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx2.Response(503, json={"error": {"message": "loading", "code": "not_ready"}}), NotReady),
        (httpx2.Response(200, text="data: [DONE]\n\n"), ProtocolError),
        (httpx2.ConnectError("refused"), NotReady),
        (httpx2.ReadError("gone"), NotReady),
    ],
)
async def test_what_goes_wrong_on_the_way_is_of_our_family(answer: Any, error: Any) -> None:
    """Refusals, broken connections and streams without an end are typed errors."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        if isinstance(answer, Exception):
            raise answer
        return cast("httpx2.Response", answer)

    client = HttpClient("http://node/", httpx2.MockTransport(handle), patience=0)
    with pytest.raises(error):
        await client.complete(Generate("r", text="x"))
    with pytest.raises((error, ProtocolError)):
        await client.tokenize(Tokenize("x"))
    await client.close()


async def test_a_pin_over_http() -> None:
    """Ids, seconds, and the name and salt that were given go to `/cache/pin`; its answer is a node's."""
    bodies: list[Any] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/cache/pin"
        bodies.append(json.loads(request.content))
        answer = {"name": "n", "tenant": "t", "cache_salt": "", "tokens": 2, "held": 1, "expires_in": 4.5}
        return httpx2.Response(200, json=answer)

    client = HttpClient("http://node", httpx2.MockTransport(handle))
    pinned = await client.pin([5, 6], ttl=5)
    await client.pin([5], ttl=1.5, name="mine", salt="s")
    await client.close()
    assert (pinned.name, pinned.tokens, pinned.held, pinned.expires_in) == ("n", 2, 1, 4.5)
    assert bodies == [
        {"input_ids": [5, 6], "ttl": 5},
        {"input_ids": [5], "ttl": 1.5, "name": "mine", "cache_salt": "s"},
    ]


async def test_a_silent_node_ends_at_the_deadline() -> None:
    """generate gives up after its timeout."""
    server = Server()
    server.node.hold("x")
    client = HttpClient("http://node", server.transport)
    with pytest.raises(DeadlineExceeded):
        await client.complete(Generate("r", text="x"), timeout=0.05)
    assert server.aborted == ["r"]
    await client.close()


def test_chunks_need_no_prompt_ids() -> None:
    """The native endpoint reports none, and nothing here relies on them."""
    assert Chunk(0, [], "").prompt_ids == []


@pytest.mark.parametrize(
    ("given", "variable", "sent"),
    [
        (None, None, None),
        (None, "from-env", "Bearer from-env"),
        ("mine", "from-env", "Bearer mine"),
        ("", "x", None),
    ],
)
async def test_the_key_comes_from_connect_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, sent: str | None
) -> None:
    """`connect(api_key=…)` goes before $SGL_ACTORS_API_KEY; without either no header is sent."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(KEY_VARIABLE, variable)
    monkeypatch.setattr(runtime, "_stack", [])
    seen: list[str | None] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("authorization"))
        return httpx2.Response(200, json={"tokens": [1]})

    connection = connect("http://node", api_key=given)
    handle_, make, _ = await runtime._open_endpoint(connection.endpoint, connection.key, connection.curve)
    await handle_.close()
    client = make(cast("Any", None))
    assert isinstance(client, HttpClient)
    made = HttpClient("http://node", httpx2.MockTransport(handle), key=connection.key)
    await made.tokenize(Tokenize("x"))
    assert seen == [sent]
    assert client._http.headers.get("authorization") == sent
    await made.close()
    await client.close()


@pytest.mark.parametrize(
    "key", ["secret-key\n\n", " secret-key", "secret\x00key", "sécret-key", 5, b"secret-key"]
)
def test_a_key_that_no_request_can_carry_is_refused_at_connect(
    monkeypatch: pytest.MonkeyPatch, key: Any
) -> None:
    """The message says what a key is and does not show it; nothing is connected."""
    monkeypatch.setattr(runtime, "_stack", [])
    with pytest.raises(ConfigError, match="visible ASCII without spaces") as caught:
        connect("http://node", api_key=key)
    assert "cret" not in caught.value.message
    assert runtime._stack == []


def test_a_key_may_end_with_a_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file that it was read from does."""
    monkeypatch.setattr(runtime, "_stack", [])
    monkeypatch.setenv(KEY_VARIABLE, "secret-key\n")
    assert connect("http://node").key == "secret-key"


async def test_an_error_does_not_show_the_request() -> None:
    """What cannot be written may be the header with the key: the library's words about it are not repeated."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.LocalProtocolError("Illegal header value b'Bearer secret-key'")

    client = HttpClient("http://node", httpx2.MockTransport(handle), key="secret-key", patience=0)
    for asking in (client.complete(Generate("r", text="x")), client.tokenize(Tokenize("x"))):
        with pytest.raises(NotReady) as caught:
            await asking
        assert "secret-key" not in caught.value.message
        assert caught.value.__cause__ is None
    await client.close()
