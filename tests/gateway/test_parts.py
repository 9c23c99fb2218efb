"""The parts that are plain functions: offsets, labels, seeds, sums, metrics, the API's description."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sgl_actors.actors.gateway.answer import Answer
from sgl_actors.actors.gateway.app import ROUTES
from sgl_actors.actors.gateway.completion_writer import completion_logprobs
from sgl_actors.actors.gateway.errors import ClientGone, first_of
from sgl_actors.actors.gateway.generation import Ask, Generation, Prompt, choice_seed
from sgl_actors.actors.gateway.openapi import OPERATIONS, PARAMETERS, document
from sgl_actors.actors.gateway.pieces import LOWEST, Offsets, Pieces
from sgl_actors.actors.gateway.sse import until_gone
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, SamplingOptions
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import InvalidRequest, Overloaded
from tests.gateway.fake_node import FakeNode

SURROGATES = st.characters(exclude_categories=["Cs"])


@given(st.text(SURROGATES), st.data())
def test_offsets_are_where_characters_begin(text: str, data: st.DataObject) -> None:
    """However a text's bytes are cut into tokens, each token's offset is the number of characters complete before it."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))) | {0, len(raw)})
    offsets = Offsets()
    for begin, end in itertools.pairwise(cuts):
        complete = raw[:begin].decode(errors="ignore")
        assert offsets.next(raw[begin:end]) == len(complete)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 1000))
def test_choice_seeds(seed: int, choice: int) -> None:
    """Seeds are below 2**63, the same every time, and other choices have others; choice 0 keeps the request's."""
    derived = choice_seed(seed, choice)
    assert 0 <= derived < 2**63
    assert derived == choice_seed(seed, choice)
    assert derived != choice_seed(seed, choice + 1)
    assert choice_seed(seed, 0) == seed % 2**63


async def test_labels_tell_parts_of_characters_apart(node: FakeNode) -> None:
    """Two tokens that are no character by themselves have different labels, so alternatives do not overwrite each other."""
    pieces = Pieces(node)
    entry = TokenLogprob(0xE2, -1.0, ((0xE2, -1.0), (0x82, -2.0), (ord("a"), float("-inf"))))
    await pieces.load([entry])
    logprobs = completion_logprobs([entry], [0], pieces)
    assert logprobs.tokens == ["bytes:\\xe2"]
    assert logprobs.top_logprobs == [{"bytes:\\xe2": -1.0, "bytes:\\x82": -2.0, "a": LOWEST}]


async def test_sampled_token_is_among_its_alternatives(node: FakeNode) -> None:
    """A token that is none of the best is added to the alternatives with its own number."""
    pieces = Pieces(node)
    entry = TokenLogprob(ord("z"), -7.5, ((ord("a"), -0.1),))
    await pieces.load([entry])
    assert completion_logprobs([entry], [0], pieces).top_logprobs == [{"a": -0.1, "z": -7.5}]


def test_tokens_past_the_end_do_not_count() -> None:
    """An answer keeps tokens and log probabilities up to the one that completed the stop."""
    answer = Answer(0)
    answer.add(
        Chunk(
            0, [1, 2], "a", [TokenLogprob(1, -1.0), TokenLogprob(2, -1.0)], prompt_tokens=5, cached_tokens=3
        )
    )
    answer.add(Chunk(2, [3], "b", [TokenLogprob(3, -1.0)], finish=Finish("stop", "x"), completion_tokens=2))
    assert (answer.token_ids, len(answer.logprobs), answer.text) == ([1, 2], 2, "ab")
    assert (answer.prompt_tokens, answer.cached_tokens, answer.finish_reason) == (5, 3, "stop")


async def test_one_failure_cancels_the_rest(node: FakeNode) -> None:
    """When one generation of a request fails, the others are aborted and the failure itself is raised."""
    asks = [Ask(Prompt(text=text), SamplingOptions(max_tokens=9)) for text in ("<hold>", "<hold>", "<busy>")]

    async def ignore(index: int, chunk: Chunk) -> None:
        """Not of interest."""

    with pytest.raises(Overloaded):
        await Generation(node, asks, stem="g", timeout=5.0, trace="t").run(ignore)
    assert node.running == 0


async def test_a_slow_reader_holds_its_generation_back(node: FakeNode) -> None:
    """While a chunk waits to be taken, the next is not asked for."""
    taken: list[int] = []
    gate = asyncio.Semaphore(2)

    async def take(index: int, chunk: Chunk) -> None:
        await gate.acquire()
        taken.append(len(chunk.token_ids))

    asks = [Ask(Prompt(text="x"), SamplingOptions(max_tokens=50))]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Generation(node, asks, stem="g", timeout=5.0, trace="t").run(take))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(taken) == 2
        task.cancel()


def test_first_of_prefers_our_errors() -> None:
    """Of several failures the client hears of ours, wherever it is nested."""
    ours = InvalidRequest("mine")
    group = ExceptionGroup("", [ValueError("x"), ExceptionGroup("", [KeyError("y"), ours])])
    assert first_of(group) is ours
    assert isinstance(first_of(ExceptionGroup("", [ValueError("x")])), ValueError)


async def test_until_gone_returns_raises_and_cancels() -> None:
    """Work's value and error come through; leaving cancels it and is told apart from both."""
    forever, gone = asyncio.Event(), asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def value() -> int:
        return 5

    async def fail() -> int:
        raise InvalidRequest("no")

    async def wait() -> None:
        await forever.wait()

    assert await until_gone(receive, value()) == 5
    with pytest.raises(InvalidRequest):
        await until_gone(receive, fail())
    gone.set()
    with pytest.raises(ClientGone):
        await until_gone(receive, wait())


async def test_metrics_can_be_parsed_and_count(client: httpx2.AsyncClient) -> None:
    """/metrics parses, has each family once, counts tokens and responses, and shows what the actors count."""
    await client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4})
    await client.post("/v1/completions", json={"prompt": "<busy>"})
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in families}) == len(families)
    samples = {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}
    assert samples["sgl_actors_gateway_generation_tokens_total", "fake"] == 4
    assert samples["sgl_actors_gateway_prompt_tokens_total", "fake"] == 3
    assert samples["sgl_actors_gateway_requests_total", "fake"] == 2
    assert samples["sgl_actors_gateway_aborted_requests_total", "fake"] == 1
    assert samples["sgl_actors_time_to_first_token_seconds_count", "fake"] == 1
    assert samples["sgl_actors_inter_token_latency_seconds_count", "fake"] == 3
    assert samples["sgl_actors_e2e_request_latency_seconds_count", "fake"] == 1
    assert samples["sgl_actors_http_responses_total", "/v1/completions", "200"] == 1
    assert samples["sgl_actors_http_responses_total", "/v1/completions", "429"] == 1
    assert samples["sgl_actors_num_requests_total", "node", "scheduler"] == 3
    assert samples["sgl_actors_num_queue_reqs", "node", "worker/0"] == 1
    assert samples["sgl_actors_actor_restarts_total", "node", "worker/0"] == 1
    assert samples["sgl_actors_node_ready", "node"] == 1
    assert samples["sgl_actors_cache_hit_rate", "node"] == 0.75
    assert samples["sgl_actors_actor_node_ready", "node", "scheduler"] == 1


async def test_openapi_describes_the_routes(client: httpx2.AsyncClient) -> None:
    """Every described path is routed with that method, and every reference in the document resolves."""
    described = (await client.get("/openapi.json")).json()
    assert described == document()
    routed = {(route.path.replace(":path", ""), method) for route in ROUTES for method in route.methods or ()}
    operations = [(path, method.upper()) for path, method, *_ in OPERATIONS]
    assert len(set(operations)) == len(operations)
    assert set(operations) <= routed
    assert set(PARAMETERS) <= {(path, method.lower()) for path, method in operations}
    schemas = described["components"]["schemas"]
    assert {"ChatRequest", "CompletionRequest", "GenerateBody", "ErrorBody"} <= set(schemas)
    for reference in _references(described):
        assert reference.removeprefix("#/components/schemas/") in schemas


async def test_index_and_version_and_models(client: httpx2.AsyncClient) -> None:
    """/ points to the rest, /version names the release, /v1/models lists the one model with its context."""
    index = (await client.get("/")).json()
    assert "/v1/chat/completions" in index["endpoints"]
    assert (await client.get("/version")).json() == {"version": index["version"]}
    (card,) = (await client.get("/v1/models")).json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("fake", "model", 2048)
    assert (await client.get("/v1/models/fake")).json() == card


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        found = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return found + [reference for child in value.values() for reference in _references(child)]
    if isinstance(value, list):
        return [reference for child in value for reference in _references(child)]
    return []
