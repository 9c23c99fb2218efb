"""Reading streams, and finding out what a server understands, against a stub server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx2
import pytest

from sgl_actors.bench.client import DIALECTS, Dialect, LoadError, Request, complete, connect, events, words
from tests.bench.stub import Stub, serving


async def lines(text: str) -> AsyncIterator[str]:
    for line in text.split("\n"):
        yield line


async def test_events_of_a_stream() -> None:
    """Comments, other fields and what follows [DONE] are skipped; data over several lines is one object; spaces are optional."""
    text = ': ping\n\nid: 1\ndata: {"a": 1}\n\ndata:{"b":\ndata: 2}\n\n\ndata: [DONE]\n\ndata: {"c": 3}\n\n'
    assert [event async for event in events(lines(text))] == [{"a": 1}, {"b": 2}]


async def test_an_error_in_a_stream_ends_the_run() -> None:
    """A server that fails half-way is not measured."""
    with pytest.raises(LoadError, match="boom"):
        _ = [event async for event in events(lines('data: {"error": "boom"}\n\n'))]


async def test_chunks_with_output_are_arrivals() -> None:
    """A chunk whose text is still held back counts, the finishing and the usage chunk do not."""
    ticks = iter(range(100))
    async with serving(Stub()) as url, httpx2.AsyncClient(base_url=url) as client:
        sample = await complete(client, "stub", [1, 2], 4, clock=lambda: float(next(ticks)))
    assert (sample.started, sample.arrivals, sample.ended) == (0.0, [1.0, 2.0, 3.0, 4.0], 5.0)
    assert (sample.tokens, sample.prompt_tokens, sample.cached_tokens, sample.text) == (4, 10, 4, "xxx")


async def test_the_opening_of_a_chat_is_no_arrival() -> None:
    """It has a role and no text."""
    stub = Stub()
    async with serving(stub) as url, connect(url) as server:
        schema = {"type": "object"}
        sample = await server.ask(
            Request(messages=({"role": "user", "content": "a"},), tokens=3, schema=schema)
        )
    assert (len(sample.arrivals), sample.text) == (3, "xxx")
    assert stub.bodies[-1]["response_format"]["json_schema"]["schema"] == schema
    assert "ignore_eos" not in stub.bodies[-1]


@pytest.mark.parametrize(
    ("refuses", "dialect"),
    [
        ((), Dialect()),
        (("ignore_eos",), Dialect(ignore_eos=False)),
        (("ids",), Dialect(token_ids=False)),
        (("ignore_eos", "stream_options", "ids"), DIALECTS[-1]),
    ],
)
async def test_what_a_server_refuses_is_left_out(refuses: tuple[str, ...], dialect: Dialect) -> None:
    """Its dialect is found before anything is measured; tokens are then counted by chunks if it reports none."""
    async with serving(Stub(refuses=refuses)) as url, connect(url) as server:
        assert server.dialect == dialect
        assert (await server.ask(Request([7, 8], tokens=5))).tokens == 5


async def test_a_refused_request_ends_the_run() -> None:
    """An error is shown with what the server said, not measured."""
    async with serving(Stub()) as url, httpx2.AsyncClient(base_url=url) as client:
        with pytest.raises(LoadError, match="no such thing"):
            await complete(client, "stub", [0], 4)


async def test_a_server_that_refuses_everything() -> None:
    """The first refusal is what is said."""
    async with serving(Stub(refuses=("model",))) as url:
        with pytest.raises(LoadError, match=re.escape("400 from")):
            async with connect(url):
                pass


def test_words_stand_for_ids() -> None:
    """As many words as ids, the same for the same."""
    assert words([1000, 1001]) != words([1001, 1000])
    assert len(words([5, 6, 7]).split()) == 3
