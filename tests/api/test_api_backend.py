"""API models as backends: programs on them, their settings, prices and keys, in this process, over the stub, and hosted in a node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors import compat
from sgl_actors.actors.api.messages import AskModel
from sgl_actors.actors.microkernel.messages import Done, RestartActor
from sgl_actors.actors.microkernel.wire import Kind
from sgl_actors.actors.node.bridge import Rules
from sgl_actors.actors.programs.price_table import price_file, prices_of
from sgl_actors.actors.programs.resumption import backend_of
from sgl_actors.errors import ConfigError, Unauthorized
from sgl_actors.lang.backends.capabilities import NONE
from sgl_actors.lang.backends.vendor import Ask, Text
from tests.api.fake_vendor import Fake, FakeVendor, end
from tests.api.stub import Fault, Reply, Stub
from tests.node.test_processes import running, write_config

KEY = "sk-not-to-be-seen"
HOSTED = 'class = "tests.api.hosted:Counting"'


@sgl.function
async def capital(s: sgl.ProgramState) -> None:
    s += "The capital of France is" + sgl.gen("city", max_tokens=8, stop=".")


@sgl.function
async def chat(s: sgl.ProgramState) -> None:
    s += sgl.user("The capital of France?") + sgl.assistant(sgl.gen("city", max_tokens=8))


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no price table of whoever runs the tests."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


# -- in this process ----------------------------------------------------------------------------------------


async def test_a_program_runs_on_an_api_model() -> None:
    """It is a backend like any other: given to a run, entered, or the default."""
    vendor = FakeVendor(lambda ask: end(" Paris. And", output=3))
    backend = Fake(vendor, prices=sgl.Prices(input=1e6, output=1e6))
    state = await capital.run(backend=backend)
    assert state["city"] == " Paris"
    assert (state.usage.calls, state.usage.prompt_tokens, state.usage.cost) == (1, 10, 13.0)
    async with Fake(FakeVendor([end(" Rome.")])):
        assert (await capital.run())["city"] == " Rome"
    sgl.set_default_backend(backend)
    try:
        assert (await capital.run())["city"] == " Paris"
    finally:
        sgl.set_default_backend(None)
    await backend.close()
    assert vendor.closed == 1


def test_an_address_that_is_none_is_named() -> None:
    """At once, as whatever else is wrong with a backend's arguments."""
    with pytest.raises(ConfigError, match="base_url is no address"):
        sgl.OpenAI("m", base_url="http://[")


@pytest.mark.parametrize("speculation", [True, False])
async def test_what_the_body_reads_next_is_streamed(speculation: bool) -> None:
    """It begins to read when its turn is complete, and before the model is asked."""

    @sgl.function
    async def reads(s: sgl.ProgramState) -> list[str]:
        s += sgl.user("The capital of France?") + sgl.assistant(sgl.gen("city", max_tokens=8))
        return [piece async for piece in s.text_iter("city")]

    vendor = FakeVendor([[Text("Pa"), end("Paris")]], continuation=NONE)
    backend = Fake(vendor)
    state = await reads.run(backend=backend, speculation=speculation)
    assert vendor.asked[0].stream
    assert "".join(state.value) == "Paris"
    await backend.close()


async def test_all_programs_share_one_budget() -> None:
    """What one has used the other cannot use; the message says that it is the model's."""
    backend = Fake(FakeVendor(lambda ask: end(" Paris.")), budget=sgl.Budget(calls=1))
    await capital.run(backend=backend)
    with pytest.raises(sgl.BudgetExceeded, match="budget of fake model of 1 calls"):
        await capital.run(backend=backend)
    await backend.close()


async def test_a_budget_of_cost_needs_prices() -> None:
    """Without any it would never be used up, so nothing is asked."""
    vendor = FakeVendor(lambda ask: end(" Paris.", output=3))
    backend = Fake(vendor)
    with pytest.raises(ConfigError, match=r"cost=0\.5 needs prices"):
        await capital.run(backend=backend, budget=sgl.Budget(cost=0.5))
    assert vendor.asked == []
    await backend.close()


async def test_several_completions_and_their_usage() -> None:
    """`n` is one request where the model takes that, and its prompt counts once."""

    @sgl.function
    async def names(s: sgl.ProgramState) -> None:
        s += "A name:" + sgl.gen("name", n=3, max_tokens=4)

    vendor = FakeVendor([end(" Ann", " Bob", " Cid", output=6)], count=8)
    backend = Fake(vendor)
    state = await names.run(backend=backend)
    assert state["name"] == [" Ann", " Bob", " Cid"]
    assert (len(vendor.asked), state.usage.prompt_tokens, state.usage.completion_tokens) == (1, 10, 6)
    await backend.close()


async def test_wrong_settings_reach_the_first_program() -> None:
    """What cannot be is a `ConfigError` when the backend is opened, and again the next time."""
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"\$OPENAI_API_KEY"):
            await capital.run(backend=sgl.OpenAI("gpt-4o-mini"))
    with pytest.raises(ConfigError, match="concurrency"):
        await capital.run(backend=sgl.OpenAI("m", key="none", concurrency=0))
    with pytest.raises(ConfigError, match="visible ASCII") as raised:
        await capital.run(backend=sgl.OpenAI("m", api_key=f"{KEY} {KEY}"))
    assert KEY not in str(raised.value)


async def test_an_actor_that_has_ended_is_opened_anew() -> None:
    """The next program gets a new one."""
    vendor = FakeVendor(lambda ask: end(" Paris."))
    backend = Fake(vendor)
    opened: Any = await backend.open()
    cell = opened.handle._system.cells["api/model"]
    cell.stop("killed")
    await cell.ended.wait()
    assert (await capital.run(backend=backend))["city"] == " Paris"
    assert vendor.opened == 2
    await backend.close()


def test_a_backend_shows_its_address_and_no_key() -> None:
    """Neither its own key nor one in an address is in its representation."""
    shown = repr(sgl.OpenAI("m", base_url=f"http://me:{KEY}@127.0.0.1:1/v1?key={KEY}", api_key=KEY))
    assert shown == "<OpenAI m at http://127.0.0.1:1/v1 not open>"
    assert repr(sgl.Anthropic("claude", api_key=KEY)) == "<Anthropic claude not open>"
    assert repr(sgl.Gemini("gemini", key="env:MINE")) == "<Gemini gemini not open>"
    assert "azure.example" in repr(sgl.OpenAI("m", azure_endpoint="https://azure.example"))


# -- prices -------------------------------------------------------------------------------------------------


async def test_prices_are_the_user_s(tmp_path: Path) -> None:
    """A model's own entry in the table counts where the program says none; a model without one costs nothing."""
    file = tmp_path / "config" / "sgl-actors" / "prices.toml"
    file.parent.mkdir(parents=True)
    file.write_text('["fake"]\ninput = 1e6\noutput = 2e6\n["gpt-4o"]\ninput = 1\ncached = 0.5\noutput = 4\n')
    assert price_file() == file
    assert prices_of("gpt-4o") == sgl.Prices(input=1, cached=0.5, output=4)
    assert prices_of("other") is None
    backend = Fake(FakeVendor([end(" Paris.", prompt=3, output=2)]))
    assert (await capital.run(backend=backend)).usage.cost == 7
    await backend.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["m"]\ninput = 1\n', r'\["m"\].*output'),
        ('["m"]\ninput = 1\noutput = 1\nprompt = 2\n', r'\["m"\] prompt: unknown'),
        ('["m"]\ninput = -1\noutput = 1\n', r'\["m"\] input: expected'),
        ("m = 3\n", r'\["m"\]'),
        ("[m\n", "line 1"),
    ],
)
def test_a_wrong_table_of_prices_is_named(tmp_path: Path, text: str, words: str) -> None:
    """The message has the file and the entry, whichever model is asked for."""
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        prices_of("other", file)
    assert str(file) in str(raised.value)


# -- the vendor's own SDK -----------------------------------------------------------------------------------


async def test_a_program_over_the_real_sdk(stub: Stub) -> None:
    """Chat and completions of a compatible server: a fault is asked again, tokens and retries are counted, and the key goes out."""
    stub.script = [Fault(500), Reply(("Paris",), prompt=11, output=2)]
    backend = sgl.OpenAI("gpt-4o", base_url=f"{stub.url}/v1", api_key=KEY, dialect="openai")
    state = await chat.run(backend=backend)
    assert state["city"] == "Paris"
    usage = state.usage
    assert (usage.calls, usage.retries, usage.prompt_tokens, usage.completion_tokens) == (1, 1, 11, 2)
    assert stub.asked[-1].headers["authorization"] == f"Bearer {KEY}"
    await backend.close()
    stub.script = Reply((" Paris. And more",))
    text = sgl.OpenAI("m", base_url=f"{stub.url}/v1", api="completions", dialect="other")
    assert (await capital.run(backend=text))["city"] == " Paris"
    assert stub.asked[-1].path.endswith("/completions")
    await text.close()


async def test_a_refused_key_fails_the_gen(stub: Stub) -> None:
    """It is asked once, and the error is that of the primitive, with the vendor's as its cause."""
    stub.script = Fault(401, "bad key")
    backend = sgl.OpenAI("gpt-4o", base_url=f"{stub.url}/v1", api_key=KEY, dialect="openai")
    with pytest.raises(sgl.PrimitiveFailed) as raised:
        await chat.run(backend=backend)
    assert isinstance(raised.value.__cause__, Unauthorized)
    assert KEY not in str(raised.value)
    assert len(stub.asked) == 1
    await backend.close()


async def test_text_arrives_while_it_is_written(stub: Stub) -> None:
    """Who listens to a variable gets it in pieces from the API's stream."""
    stub.script = Reply(("one two three four",))
    backend = sgl.OpenAI("gpt-4o", base_url=f"{stub.url}/v1", api_key=KEY, dialect="openai")
    pieces = [piece async for piece in chat.stream("city", backend=backend)]
    assert "".join(pieces) == "one two three four"
    assert len(pieces) > 1
    assert stub.body["stream"] is True
    await backend.close()


# -- SGLang's names -----------------------------------------------------------------------------------------


def test_sglang_s_backends(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of SGLang's frontend runs on them; `num_api_spec_tokens` says how much is asked for at once."""

    @compat.function(num_api_spec_tokens=40)
    def card(s: Any) -> None:
        s += "Name:" + compat.gen("name", stop="\n", max_tokens=4)
        s += "\nJob:" + compat.gen("job", stop="\n", max_tokens=4)

    stub.script = Reply((" Ann\nJob: cook\nAge: 3",))
    backend = compat.OpenAI("m", is_chat_model=False, base_url=f"{stub.url}/v1", max_retries=1)
    state = card.run(backend=backend)
    assert (state["name"], state["job"]) == (" Ann", " cook")
    assert [asked.body["max_tokens"] for asked in stub.asked] == [40]
    assert repr(compat.Anthropic("claude", api_key=KEY)) == "<Anthropic claude not open>"
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://azure.example")
    assert "azure.example" in repr(compat.OpenAI("m", is_azure=True))
    with pytest.raises(ConfigError, match="no argument 'organisation'"):
        compat.OpenAI("m", organisation="x")


# -- in a node ----------------------------------------------------------------------------------------------


def test_a_node_s_http_has_no_api_models() -> None:
    """The way out is the node's own address, or to ask the API from here."""
    with pytest.raises(ConfigError, match=r"ipc:// or tcp:// .*sgl\.OpenAI"):
        sgl.connect("http://127.0.0.1:1", api="cheap")


async def test_clients_share_a_model_that_a_node_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limits and budget hold for all; it survives being restarted; a name that is not there is an error that says so."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    options = 'options = {provider = "openai", model = "cheap", key = "none", budget = {calls = 3}}'
    file = write_config(tmp_path, {"api/cheap": f"{HOSTED}\n{options}"})
    async with running(file) as (node, _, context):
        one, two = (sgl.connect(node.endpoint, api="cheap") for _ in range(2))
        try:
            states = [await capital.run(backend=backend) for backend in (one, two, one)]
            assert [state["city"] for state in states] == [f" {n} of cheap" for n in (1, 2, 3)]
            with pytest.raises(sgl.BudgetExceeded, match="3 calls"):
                await capital.run(backend=two)
            await context.call("root", RestartActor("api/cheap"), Done, timeout=20)
            assert (await capital.run(backend=one))["city"] == " 1 of cheap"
            assert repr(one).startswith("<Connection to api/cheap at ipc://")
            with pytest.raises(ConfigError, match="hosts no API model 'dear'; it has cheap"):
                await capital.run(backend=sgl.connect(node.endpoint, api="dear"))
        finally:
            await asyncio.gather(one.close(), two.close())
            sgl.set_default_backend(None)


def test_a_durable_program_finds_the_model_again() -> None:
    """What is recorded of its backend names node and model."""
    backend = sgl.connect("ipc:///run/root.ipc", api="cheap")
    sgl.set_default_backend(None)
    row: Any = SimpleNamespace(id="p1", backend=backend.address)
    assert (
        repr(backend_of(row)) == repr(backend) == "<Connection to api/cheap at ipc:///run/root.ipc not open>"
    )


def test_a_peer_asks_in_its_own_name() -> None:
    """Over tcp its requests and programs are its own, so that it takes no other peer's turn."""
    ask = AskModel("r1", Ask(text="x"), program="p1")
    sent: Any = Rules(frozenset())("laptop", "ipc:///x|laptop/1", "api/cheap", Kind.STREAM, ask)
    assert (sent.id, sent.program) == ("laptop:r1", "laptop:p1")


async def test_a_chat_model_is_asked_for_whole_turns() -> None:
    """A model that only begins turns gets the chat as messages."""
    vendor = FakeVendor([end("Paris")], continuation=NONE)
    backend = Fake(vendor)
    assert (await chat.run(backend=backend))["city"] == "Paris"
    (ask,) = vendor.asked
    assert ask.messages is not None
    assert [message.role for message in ask.messages] == ["user"]
    await backend.close()
