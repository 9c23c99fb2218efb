"""`gen(tools=…)` on a node: natively, and as an API model by completions (under the same constraint) and by chat (the node's own tool calls)."""

from __future__ import annotations

import pytest

import sgl_actors as sgl
from sgl_actors.actors.node.record import NodeRecord

pytestmark = pytest.mark.model


@sgl.tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"{city}: rain"


@sgl.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@sgl.function
async def ask(s: sgl.ProgramState) -> list[str]:
    """A turn of calls, and one that reads what came of them."""
    calls = sgl.gen("calls", tools=[weather, add], max_tokens=120)
    s += sgl.user(f"What is the weather in Lisbon? {weather.signature} tells.") + sgl.assistant(calls)
    found = await sgl.call_all([weather, add], await s[calls])
    s += sgl.user("\n".join(one.text for one in found)) + sgl.assistant(sgl.gen("answer", max_tokens=8))
    return [one.text for one in found]


async def test_the_same_calls_on_a_node_and_through_its_completions(node: NodeRecord) -> None:
    """A small model calls what there is, with arguments of the right types, and the whole prompt is the same either way."""
    async with sgl.connect(node.url) as native:
        state = await ask.run(backend=native, temperature=0)
    assert state.value
    assert all("rain" in text or text.lstrip("-").isdigit() for text in state.value)
    async with sgl.OpenAI("default", base_url=f"{node.url}/v1", api="completions", key="none") as remote:
        again = await ask.run(backend=remote, temperature=0)
    assert (again.value, again.text()) == (state.value, state.text())


async def test_calls_through_the_chat_protocol(node: NodeRecord) -> None:
    """There the node is told of the tools, and its own tool calls come back in the same form."""
    async with sgl.OpenAI("default", base_url=f"{node.url}/v1", key="none") as remote:
        state = await ask.run(backend=remote, temperature=0)
    assert state.value
    assert state.messages()[1]["content"].startswith('[{"tool": "')
