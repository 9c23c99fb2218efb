"""No body makes the gateway fail: everything is an answer or a 4xx."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.native_types import GenerateBody, NativeSampling
from sgl_actors.actors.gateway.openai_types import ChatRequest, CompletionRequest
from sgl_actors.actors.gateway.sampling import OPENAI_UNSUPPORTED
from sgl_actors.actors.gateway.service import Service
from tests.gateway.conftest import client_of
from tests.gateway.fake_node import FakeNode

SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "1"]), inner)
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=9)}
    ),
    max_size=3,
)


def names(*structs: type[msgspec.Struct]) -> list[str]:
    """Field names of the structs and of what is not supported."""
    return [
        *OPENAI_UNSUPPORTED,
        *(field.name for struct in structs for field in msgspec.structs.fields(struct)),
    ]


def bodies(
    *structs: type[msgspec.Struct], **usual: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies with usual fields and any value for any of the known names."""
    odd = st.dictionaries(st.sampled_from(names(*structs)), VALUES, max_size=3)
    return st.builds(lambda base, more: {**base, **more}, st.fixed_dictionaries(usual), odd)


REQUESTS = st.one_of(
    st.tuples(
        st.just("/v1/chat/completions"), bodies(ChatRequest, messages=MESSAGES, max_tokens=st.integers(0, 3))
    ),
    st.tuples(
        st.just("/v1/completions"),
        bodies(
            CompletionRequest,
            prompt=st.text(max_size=5) | st.lists(st.integers(0, 256)),
            max_tokens=st.just(2),
        ),
    ),
    st.tuples(
        st.just("/generate"),
        bodies(
            GenerateBody,
            text=st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=3),
            sampling_params=bodies(NativeSampling, max_new_tokens=st.just(2)),
        ),
    ),
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS)
def test_any_body_is_answered_or_refused(case: tuple[str, dict[str, Any]]) -> None:
    """Known fields with any values give 200 or a 4xx with a complete error object, and leave nothing running."""
    path, body = case
    node = FakeNode()
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(None, processors=[LogCapture()])
    service = Service(node, Options(port=0), log=log, now=time.monotonic, clock=time.time)

    async def ask() -> tuple[int, bytes]:
        async with asyncio.timeout(20), client_of(service) as client:
            response = await client.post(path, content=msgspec.json.encode(body))
            return response.status_code, response.content

    status, content = asyncio.run(ask())
    assert status == 200 or 400 <= status < 500, content
    if status != 200:
        assert set(msgspec.json.decode(content)["error"]) == {"message", "type", "param", "code"}
    assert node.running == 0
    assert service.running == {}
