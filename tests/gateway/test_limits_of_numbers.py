"""Numbers that are far too large, and errors that name the field."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sgl_actors.actors.gateway.metrics import Metrics
from sgl_actors.actors.microkernel.messages import Actors
from tests.gateway.fake_node import FakeNode

HUGE = 10**30
MESSAGES = [{"role": "user", "content": "x"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "x"},
}
SHARED = ["max_tokens", "min_tokens", "n", "top_k", "seed"]
NATIVE = ["max_new_tokens", "min_new_tokens", "n", "top_k", "sampling_seed"]


async def refused(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The error object of a 400."""
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("value", [HUGE, -HUGE, 2**63])
async def test_integers_are_bounded(client: httpx2.AsyncClient, node: FakeNode, value: int) -> None:
    """An integer that no node can take is 400 with its field, on every route, and goes nowhere."""
    for path, body in PATHS.items():
        for name in [*SHARED, *(["max_completion_tokens", "top_logprobs"] if "chat" in path else ["logprobs", "best_of"])]:  # fmt: skip
            error = await refused(client, path, {**body, name: value})
            assert (error["param"], error["code"]) == (name, "invalid_request")
        assert "stop_token_ids" in (await refused(client, path, {**body, "stop_token_ids": [value]}))["param"]
    for name in NATIVE:
        error = await refused(client, "/generate", {"text": "x", "sampling_params": {name: value}})
        assert error["param"] == f"sampling_params.{name}"
    for name in ("logprob_start_len", "top_logprobs_num"):
        error = await refused(client, "/generate", {"text": "x", "return_logprob": True, name: value})
        assert error["param"] == name
    assert node.asked == []


@pytest.mark.parametrize("value", [1e-300, 1e-38, 0.0099, 0, -1, 100.5])
async def test_repetition_penalty_has_a_range(client: httpx2.AsyncClient, value: float) -> None:
    """[0.01, 100]: what is smaller makes logits overflow."""
    for path, body in PATHS.items():
        assert (await refused(client, path, {**body, "repetition_penalty": value}))["param"] == "repetition_penalty"  # fmt: skip
    error = await refused(client, "/generate", {"text": "x", "sampling_params": {"repetition_penalty": value}})  # fmt: skip
    assert error["param"] == "sampling_params.repetition_penalty"


async def test_the_ends_of_the_ranges_are_taken(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Bounds are inclusive."""
    for value in (0.01, 100):
        body = {
            "prompt": "x",
            "max_tokens": 1,
            "repetition_penalty": value,
            "top_k": 2**31 - 1,
            "seed": -(2**63),
        }
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert [ask.sampling.repetition_penalty for ask in node.asked] == [0.01, 100.0]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "messages", "missing field 'messages'"),
        ({"messages": [{}]}, "messages[0].role", "missing field 'messages[0].role'"),
        ({"messages": MESSAGES, "logit_bias": {"a": 1}}, "logit_bias", "logit_bias: a key: Expected `int`"),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature", "temperature: Expected"),
        ({"messages": 5}, "messages", "messages: Expected"),
    ],
)
async def test_errors_name_the_field(
    client: httpx2.AsyncClient, body: dict[str, Any], param: str, message: str
) -> None:
    """A well-formed body with a missing or wrong field is not called broken JSON."""
    error = await refused(client, "/v1/chat/completions", body)
    assert error["param"] == param
    assert error["message"].startswith(message)
    assert "JSON" not in error["message"]


def test_kernels_counters_are_exposed() -> None:
    """One family per counter with node and process; processes that do not count it are left out."""
    kernels = {"root": {"dead_letters": 2.0, "protocol_errors": 1.0}, "worker-0": {"dead_letters": 5.0}}
    text = Metrics("n").expose(Actors([], ready=True, kernels=kernels)).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    samples = {
        (s.name, s.labels["node"], s.labels["process"]): s.value
        for family in families if "kernel_" in family.name for s in family.samples
    }  # fmt: skip
    assert samples == {
        ("sgl_actors_kernel_dead_letters_total", "n", "root"): 2,
        ("sgl_actors_kernel_dead_letters_total", "n", "worker-0"): 5,
        ("sgl_actors_kernel_protocol_errors_total", "n", "root"): 1,
    }
