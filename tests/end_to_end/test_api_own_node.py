"""Our own node as an API model, through the openai package and the node's gateway: the same texts as natively."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest

import sgl_actors as sgl
from benchmarks.api_speculation import equal_fields, measure, texts_of
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.lang.chat_template import ChatTemplate

pytestmark = pytest.mark.model

CITIES = [" Paris", " London", " a very large cheese"]


def model(node: NodeRecord, api: str = "completions", **options: object) -> sgl.OpenAI:
    """The node behind its gateway."""
    return sgl.OpenAI("default", base_url=f"{node.url}/v1", api=api, key="none", **options)  # type: ignore[arg-type]


def roles(s: sgl.ProgramState) -> None:
    """Turns of a chat, several gens in one of them."""
    s += sgl.system("You answer in one line.") + sgl.user("Which animals make honey? Where do they live?")
    s += sgl.assistant(
        "Honey is made by" + sgl.gen("who", max_tokens=12, stop=["\n", "."]) + ". They live in"
    )
    s += sgl.user("And what do they eat?")
    s += sgl.assistant(sgl.gen("food", max_tokens=12))


def plain(s: sgl.ProgramState) -> None:
    """Text without turns; template text between gens, which mostly are written at once."""
    s += "Text: Lyon is in France.\nCity: Lyon\nCountry: France\n\nText: Porto is in Portugal.\n"
    s += "City:" + sgl.gen("city", max_tokens=8, stop="\n")
    s += "\nCountry:" + sgl.gen("country", max_tokens=8, stop="\n") + "\n\nText:"
    s += sgl.gen("rest", max_tokens=12, stop_regex=r"[.!]\s")


def selects(s: sgl.ProgramState) -> None:
    """All three methods, one of them where the prompt ends inside a word."""
    s += "The capital of France is"
    s += sgl.select("mean", CITIES, choices_method="token_length_normalized")
    s += ". The capital of England is"
    s += sgl.select("greedy", CITIES, choices_method="greedy_token_selection")
    s += ", not the town Par"
    s += sgl.select("added", ["is", "ma", "é €"], choices_method="unconditional_likelihood_normalized")


def constrained(s: sgl.ProgramState) -> None:
    """A regular expression, a number, one of an enumeration, and a JSON schema."""
    s += sgl.user(
        "Porto has 231,800 inhabitants. Tell me its name, its size, and how many people live there."
    )
    s += sgl.assistant("It is " + sgl.gen("name", max_tokens=12, regex="[A-Z][a-z]{2,8}"))
    s += sgl.user("How many?") + sgl.assistant(sgl.gen_int("people", max_tokens=8))
    s += sgl.user("As JSON.")
    schema = '{"type":"object","properties":{"city":{"type":"string","maxLength":12}},"required":["city"]}'
    s += sgl.assistant(sgl.gen("json", max_tokens=32, json_schema=schema))


async def branches(s: sgl.ProgramState) -> None:
    """A fork, a join, and a gen that has read both."""
    s += sgl.user("Bees dance. Name one thing about it.")
    forks = s.fork(2)
    for f, what in zip(forks, ("direction", "distance"), strict=True):
        f += sgl.assistant(f"Its {what}" + sgl.gen("note", max_tokens=8, stop="\n"))
    s += sgl.assistant("; ".join(await forks.join("note")) + ". In short:" + sgl.gen("end", max_tokens=6))


def several(s: sgl.ProgramState) -> None:
    """Several completions of one prompt, each with a seed of its own."""
    s += "One, two," + sgl.gen("next", max_tokens=4, n=3, temperature=0.8) + " and"
    s += sgl.gen("last", max_tokens=3, temperature=0.8)


@pytest.mark.parametrize(
    ("body", "api"),
    [
        *((body, "completions") for body in (roles, plain, selects, constrained, branches, several)),
        *((body, "chat") for body in (roles, constrained, branches)),
    ],
)
async def test_a_program_writes_what_it_writes_natively(
    node: NodeRecord, body: Callable[[sgl.ProgramState], None], api: str
) -> None:
    """Text, variables and turns are the same, with the template on our side or on the server's; log probabilities of the choices agree."""
    program = sgl.function(body)
    async with sgl.connect(node.endpoint) as native, model(node, api) as behind:
        one = await program.run(backend=native, temperature=0, seed=1)
        other = await program.run(backend=behind, temperature=0, seed=1)
    assert other.messages() == one.messages()
    assert other.variables == one.variables
    if api == "completions":
        assert other.text() == one.text()
    if body is selects:
        for name in ("mean", "greedy", "added"):
            assert other.meta(name)["scores"] == pytest.approx(one.meta(name)["scores"], abs=1e-3)


async def test_what_a_client_needs_to_do_it_itself(node: NodeRecord) -> None:
    """The template of /tokenizer_info writes what the node would; slices at `text_offset` are the tokens' texts, also of characters in several tokens."""
    chat = [ChatMessage("user", "Zażółć 🐝?"), ChatMessage("assistant", "你好")]
    async with httpx2.AsyncClient(base_url=node.url, timeout=60) as http:
        info = (await http.get("/tokenizer_info")).json()
        tokens = {name: text for name, text in info.items() if name.endswith("_token") and text}
        text = ChatTemplate(info["chat_template"], tokens).render(chat, continue_final=True)
        turns = [{"role": one.role, "content": one.content} for one in chat]
        body = {"messages": turns, "continue_final_message": True}
        rendered = (await http.post("/tokenize", json=body)).json()["tokens"]
        assert (await http.post("/tokenize", json={"prompt": text})).json()["tokens"] == rendered
        body = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0}
        choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["text"] == text
    starts = choice["logprobs"]["text_offset"]
    assert len(starts) == len(rendered)
    assert len(set(starts)) < len(starts), "no character is in several tokens"
    slices = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert "".join(slices) == text
    shown = [label for label in choice["logprobs"]["tokens"] if not label.startswith("bytes:")]
    assert set(shown) <= set(slices)


async def test_three_fields_cost_one_call(node: NodeRecord) -> None:
    """The small form of `benchmarks.api_speculation`: with speculation a third of the calls and input tokens, and the same fields; one call for a chat's turn."""
    modes = await measure(node.url, texts_of(None, 5))
    off, on, chat = modes["off"], modes["on"], modes["chat"]
    assert equal_fields(off, on) == 15
    assert (off.usage.calls, on.usage.calls, chat.usage.calls) == (15, 5, 5)
    assert off.usage.prompt_tokens >= 2.5 * on.usage.prompt_tokens
    assert on.usage.wasted_tokens < on.usage.completion_tokens
    assert all(all(fields) for fields in chat.found)
