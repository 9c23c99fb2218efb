"""docs/api-models.md: its examples run as they stand, against the stub server or a mock, and its settings are settings."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.api.settings import read_options
from sgl_actors.actors.programs import price_table, runtime
from sgl_actors.lang.backends import openai
from tests.api.stub import Reply, Stub

PAGE = (Path(__file__).parents[2] / "docs" / "api-models.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLES = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture(autouse=True)
def beside_the_world(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """OpenAI's address is the stub's, and nothing of the user's is read or changed."""
    monkeypatch.setattr(openai, "BASE_URL", f"{stub.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("bee.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = list(runtime._stack)
    yield
    runtime._stack[:] = before


@pytest.mark.parametrize("source", BLOCKS, ids=range(len(BLOCKS)))
async def test_an_example_of_the_page_runs(
    source: str, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a program of its own, the body of one, or stands beside one."""
    stub.script = Reply(("Paris",))
    stub.models = [{"id": "gpt-4o-mini", "object": "model", "owned_by": "somebody"}]
    source = source.replace("asyncio.run(main())", "await main()")
    known: dict[str, Any] = {"sgl": sgl}
    exec(compile(f"async def page(s):\n{textwrap.indent(source, '    ')}", "<api-models.md>", "exec"), known)
    await sgl.function(known["page"]).run(backend=sgl.Mock(lambda _: "a bee"))
    if "print(" in source:
        assert capsys.readouterr().out.startswith(("Paris 1 ", "a bee"))


async def test_the_template_of_the_page_is_one_call(stub: Stub) -> None:
    """Three gens are read from one answer of a model that goes on with text."""
    (source,) = (block for block in BLOCKS if "async def extract" in block)
    known: dict[str, Any] = {"sgl": sgl}
    exec(compile(source, "<api-models.md>", "exec"), known)
    stub.script = Reply((" Ada\nJob: poet\nCity: London\n\nText: another",))
    backend = sgl.OpenAI("m", base_url=f"{stub.url}/v1", api="completions", dialect="other")
    async with backend:
        state = await known["extract"].run(text="Ada, a poet of London.", backend=backend)
    assert [state[name] for name in ("name", "job", "city")] == [" Ada", " poet", " London"]
    assert state.usage.calls == len(stub.asked) == 1
    assert state.meta("city")["speculated"] is True


async def test_what_the_page_says_of_errors_is_what_they_say(stub: Stub) -> None:
    """The `Unsupported` of the page, from a model that knows no top_k."""

    @sgl.function
    async def capital(s: sgl.ProgramState) -> None:
        s += sgl.user("?") + sgl.assistant(sgl.gen("answer", top_k=3))

    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    words = [re.escape(part) for part in shown.split(": ", 1)[1].strip().split("…")]
    backend = sgl.OpenAI("gpt-4o-mini", base_url=f"{stub.url}/v1", dialect="openai")
    async with backend:
        with pytest.raises(sgl.Unsupported, match=".*".join(words).replace(r"do", "(do)?")):
            await capital.run(backend=backend)
    assert stub.asked == []


def test_the_settings_of_the_page_are_settings(tmp_path: Path) -> None:
    """The price table is read as one, and the options of the hosted model are options."""
    prices, node = TABLES
    path = tmp_path / "prices.toml"
    path.write_text(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
    (model,) = prices
    assert price_table.prices_of(model, path) == sgl.Prices(input=0.15, cached=0.075, output=0.6)
    assert read_options(node["actors"]["api/gpt"]["options"]).requests_per_minute == 500
    assert read_options({"provider": "openai", "model": "m", "prices": {"input": 0.15, "output": 0.6}}).prices
