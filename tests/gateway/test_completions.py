"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.gateway.pieces import Offsets
from tests.gateway.events import events
from tests.gateway.fake_node import EOS, FakeNode, encode


async def post(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post("/v1/completions", json={"model": "fake", "max_tokens": 4, **fields})


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("one", [encode("one")]),
        (["one", "two"], [encode("one"), encode("two")]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
async def test_prompt_forms(
    client: httpx2.AsyncClient, node: FakeNode, prompt: Any, expected: list[list[int]]
) -> None:
    """A prompt is a text, texts, token ids or lists of token ids; choices come in the prompts' order."""
    answer = (await post(client, prompt=prompt)).json()
    assert answer["object"] == "text_completion"
    assert [node.prompt_ids(request) for request in node.asked] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert answer["usage"]["completion_tokens"] == 4 * len(expected)


async def test_default_is_sixteen_tokens(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """max_tokens is 16 when absent, as in the OpenAI API."""
    await client.post("/v1/completions", json={"prompt": "x"})
    assert node.asked[0].sampling.max_tokens == 16


async def test_evaluation_tools_read_prompt_logprobs(client: httpx2.AsyncClient) -> None:
    """echo with logprobs gives one entry per prompt token and one for the generated one; best alternatives compare exactly."""
    ids = encode("The quick")
    answer = (
        await post(client, prompt=[ids, ids[:4]], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1)
    ).json()
    for choice, prompt in zip(answer["choices"], (ids, ids[:4]), strict=True):
        logprobs = choice["logprobs"]
        assert {len(values) for values in logprobs.values()} == {len(prompt) + 1}
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["tokens"][: len(prompt)] == list("The quick")[: len(prompt)]
        assert logprobs["text_offset"] == list(range(len(prompt) + 1))
        assert choice["text"].startswith("The quick"[: len(prompt)])
        for token, value, top in zip(
            logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        ):
            assert top[token] == value
        assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())


async def test_end_token_keeps_its_entry(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A generated end token has an entry though it adds no text, so that slicing off the last entry stays right."""
    node.forced = ""
    answer = (await post(client, prompt=[1, 2, 3], max_tokens=1, logprobs=1, echo=True)).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["token_logprobs"]) == 4
    assert choice["logprobs"]["tokens"][-1] == "<eos>"
    assert EOS not in encode(choice["text"])


async def test_scoring_without_generating(client: httpx2.AsyncClient) -> None:
    """max_tokens 0 with echo scores the prompt alone."""
    answer = (await post(client, prompt="abc", max_tokens=0, logprobs=0, echo=True)).json()
    choice = answer["choices"][0]
    assert choice["text"] == "abc"
    assert len(choice["logprobs"]["tokens"]) == 3
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_offsets_count_characters(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Offsets are characters of the answer's text; the parts of one character share its offset."""
    node.forced = "é!"
    choice = (await post(client, prompt="ü€", max_tokens=8, logprobs=0, echo=True)).json()["choices"][0]
    assert choice["text"] == "ü€é!"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 1, 2, 2, 3, 4]


@settings(max_examples=100)
@given(st.text(max_size=12), st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_slices_add_up(text: str, cuts: list[int], spaced: bool) -> None:
    """Whatever a prompt is cut into, what stands between the offsets is the prompt, each token's own text in its place."""
    whole = text.encode()
    ends = sorted({min(cut, len(whole)) for cut in cuts} | {len(whole)})
    tokens = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if spaced and tokens:
        tokens[0] = b" " + tokens[0]
    offsets = Offsets()
    starts = offsets.prompt(text, tokens)
    slices = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert "".join(slices) == text
    assert offsets.next(b"!") == len(text)
    if not spaced:
        assert starts == [len(whole[:end].decode(errors="ignore")) for end in [0, *ends[:-1]]]


def test_a_tokenizer_that_changes_the_text() -> None:
    """A space put before the text, composed characters and a byte without a token do not move the tokens behind them."""
    text = "Un cafe\u0301 au\x04 lait, s'il vous"
    tokens = [" Un", " caf\u00e9", " au", " lait", ",", " s'", "il", " vous"]
    starts = Offsets().prompt(text, [token.encode() for token in tokens])
    slices = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert slices == ["Un", " cafe\u0301", " au\x04", " lait", ",", " s'", "il", " vous"]


async def test_prompt_ids_are_echoed_as_text(client: httpx2.AsyncClient) -> None:
    """echo shows the text of a prompt that came as ids."""
    choice = (await post(client, prompt=encode("héllo"), echo=True)).json()["choices"][0]
    assert choice["text"].startswith("héllo")
    assert choice["logprobs"] is None


async def test_stream_equals_whole(client: httpx2.AsyncClient) -> None:
    """Per choice, streamed texts and log probabilities put together are those of the whole answer."""
    fields: dict[str, Any] = {"prompt": ["one", "two"], "n": 2, "logprobs": 2, "echo": True, "seed": 3}
    whole = (await post(client, **fields)).json()
    *chunks, usage, done = events(
        (await post(client, stream=True, stream_options={"include_usage": True}, **fields)).text
    )
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 16
    assert usage["usage"]["prompt_tokens"] == 6
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for piece in pieces for value in piece["logprobs"][name]] == values
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


@pytest.mark.parametrize("include", [True, False])
async def test_a_stream_may_tell_its_usage_as_it_goes(client: httpx2.AsyncClient, include: bool) -> None:
    """With continuous_usage_stats every chunk says what was used so far, so that who leaves early knows it."""
    options = {"continuous_usage_stats": True, "include_usage": include}
    response = await post(client, prompt="abc", stream=True, stream_options=options)
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4] + [4] * include
    assert all(chunk["usage"]["prompt_tokens"] == 3 for chunk in chunks)
    assert all("cached_tokens" in chunk["usage"]["prompt_tokens_details"] for chunk in chunks)
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * 4 + [False] * include


async def test_prompt_logprobs_are_computed_once(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """With n > 1 only the prompt-only request reports the prompt's log probabilities, and every choice shows them."""
    answer = (await post(client, prompt="abc", n=2, logprobs=1, echo=True)).json()
    assert [request.prompt_logprobs_start for request in node.asked] == [0, -1, -1]
    one, two = (choice["logprobs"]["token_logprobs"][:3] for choice in answer["choices"])
    assert one == two
    assert one[1] is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [[-1]]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 101}, "logprobs"),
        ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
        ({}, "prompt"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx2.AsyncClient, node: FakeNode, fields: Any, param: str | None
) -> None:
    """A wrong prompt or field is answered 400 with its name, and nothing reaches the node."""
    response = await post(client, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert node.asked == []
