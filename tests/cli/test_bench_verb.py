"""`sgl-actors bench` against a stub server."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from sgl_actors.bench.client import LoadError
from sgl_actors.cli.bench import Settings, measure, parse, show
from sgl_actors.errors import ConfigError
from tests.bench.stub import Stub, serving


async def rows_of(stub: Stub, settings: Settings) -> list[dict[str, float | str]]:
    async with serving(stub) as url:
        return await asyncio.to_thread(measure, url, settings, node=None, config=None, model=None)


async def test_a_row_per_case() -> None:
    """Each workload at each concurrency, with as many requests as asked for; no prompt comes twice, but its shared beginning."""
    stub = Stub()
    rows = await rows_of(stub, Settings(["random", "shared"], [1, 3], 5, 8, 4))
    assert [(row["workload"], row["concurrency"], row["requests"]) for row in rows] == [
        ("random", 1, 5), ("random", 3, 5), ("shared", 1, 5), ("shared", 3, 5),
    ]  # fmt: skip
    prompts = [tuple(body["prompt"]) for body in stub.bodies]
    assert len(set(prompts)) == len(prompts) == 2 + 20
    assert sorted(map(len, prompts[2:])) == [8] * 10 + [520] * 10
    assert stub.most == 3


async def test_the_table_is_for_people() -> None:
    """A line per case with rates, times and the cached share; JSON has everything."""
    rows = await rows_of(Stub(), Settings(["random"], [2], 0, 8, 4))
    text, data = io.StringIO(), io.StringIO()
    show(rows, as_json=False, stream=text)
    show(rows, as_json=True, stream=data)
    *header, line = text.getvalue().splitlines()
    assert len(header) == 2
    assert " ".join(header).split()[0] == "AT"
    assert line.split()[:2] == ["random", "2"]
    assert line.split()[-1] == "40%"
    assert json.loads(data.getvalue()) == rows


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    """With the numbers of a busy server, and every heading whole."""
    times = dict.fromkeys(("ttft_ms_p50", "ttft_ms_p99"), 9_234.5) | dict.fromkeys(
        ("itl_ms_p50", "itl_ms_p99", "tpot_ms_p50"), 151.9
    )
    rates = {"req_per_s": 102.55, "output_tok_per_s": 11_163.4, "prompt_tokens": 4, "cached_tokens": 4}
    text = io.StringIO()
    row: dict[str, float | str] = {"workload": "random", "concurrency": 64, **rates, **times}
    show([row], as_json=False, stream=text)
    assert max(map(len, text.getvalue().splitlines())) <= 80


def test_a_server_that_is_not_there() -> None:
    """It is named, on one line."""
    settings = Settings(["random"], [1])
    for url in ("http://127.0.0.1:9", "nowhere"):
        with pytest.raises(LoadError, match=url):
            measure(url, settings, node=None, config=None, model=None)


@pytest.mark.parametrize(
    ("workload", "concurrency"), [("fast", "1"), ("random", "0"), ("random", "x"), ("", "1")]
)
def test_what_cannot_be_measured(workload: str, concurrency: str) -> None:
    """A workload or a number that does not exist is a wrong flag."""
    with pytest.raises(ConfigError, match=r"--workload|--concurrency"):
        parse(workload, concurrency)
