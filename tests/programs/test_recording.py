"""`record` and `replay`: what a model answered is answered again, without the model."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs.recording import Recorder, record, replay
from sgl_actors.actors.programs.recording_client import RecordClient, ReplayClient
from sgl_actors.actors.programs.tape import Tape, read
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import ConfigError, NoContinuation, Overloaded, RemoteError, SglActorsError
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, Capabilities
from sgl_actors.lang.backends.mock import MockCall
from sgl_actors.lang.backends.recording import VERSION, Header, NotRecorded, joined
from sgl_actors.lang.backends.replaying import Answers
from sgl_actors.lang.backends.vendor import Text
from sgl_actors.lang.errors import BudgetExceeded, PrimitiveFailed
from sgl_actors.lang.protocols import Call
from tests.api.fake_vendor import Fake, FakeVendor, end
from tests.programs.api_mock import ApiMockClient
from tests.programs.fakes import FakeClient, backend_of


@sgl.function
async def capital(s: sgl.ProgramState, country: str) -> None:
    """One gen."""
    s += f"The capital of {country} is" + sgl.gen("answer", max_tokens=8, stop=".")


@sgl.function
async def report(s: sgl.ProgramState, country: str) -> list[str]:
    """A chat with a select, a fork whose branches ask the same, and several completions."""
    s += sgl.user(f"Capital of {country}?") + sgl.assistant(sgl.gen("answer", max_tokens=8, stop="."))
    s += sgl.user("Sure?") + sgl.assistant(sgl.select("sure", ["yes", "no"]))
    group = s.fork(3)
    group += "One tip:" + sgl.gen("tip", n=2)
    found: list[str] = await group.join("tip")
    return found


def numbered() -> sgl.Mock:
    """Answers no two calls alike."""
    calls: list[MockCall] = []

    def answer(call: MockCall) -> Any:
        calls.append(call)
        return call.choices[len(calls) % 2] if call.choices else f"answer {len(calls)}"

    return sgl.Mock(answer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where to record."""
    return tmp_path / "answers.jsonl"


def lines(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """Of a recording, but for the first; of some kinds only, if they are given."""
    rows = [json.loads(row) for row in path.read_text().splitlines()[1:]]
    return [row for row in rows if not kinds or row["kind"] in kinds]


# -- replays equal what was recorded ----------------------------------------------------------------------


async def test_a_replay_gives_the_same_results(path: Path) -> None:
    """Text, variables, scores and usage; and the recorder changed none of them."""
    plain = await report.run("France", backend=numbered())
    first = await report.run("France", backend=record(path, numbered()))
    again = await report.run("France", backend=replay(path))
    assert first.text() == again.text() == plain.text()
    assert first.value == again.value == plain.value
    assert first.usage == again.usage == plain.usage
    assert first.meta("sure")["scores"] == again.meta("sure")["scores"]
    assert len({tip for tips in again.value for tip in tips}) == 6  # branches and completions have their own


async def test_a_batch_replays_in_order(path: Path) -> None:
    """Also where all its items ask the same."""
    items = [{"country": name} for name in ("France", "Italy", "France", "France")]
    first = await report.run_batch(items, backend=record(path, numbered()))
    again = await report.run_batch(items, backend=replay(path))
    assert [state.text() for state in first] == [state.text() for state in again]
    assert [state.value for state in first] == [state.value for state in again]


async def test_a_list_of_a_mock_is_dealt_as_without_a_recorder(path: Path) -> None:
    """The mock hears of runs that begin."""
    mock = sgl.Mock(["Paris", "Rome", "Bern"])
    recorder = record(path, mock)
    items = [{"country": name} for name in ("France", "Italy")]
    states = await capital.run_batch(items, backend=recorder)
    assert [state["answer"] for state in states] == ["Paris", "Rome"]
    assert (await capital.run("Switzerland", backend=recorder))["answer"] == "Bern"
    mock.assert_done()


async def test_equal_requests_are_answered_in_the_order_in_which_they_were_made(path: Path) -> None:
    """Not in that in which their answers came."""
    client = FakeClient(lambda prompt, request: f" {len(client.requests)}.")
    client.hold("is")
    backend = record(path, backend_of(client))
    one, two = (asyncio.ensure_future(capital.run("France", backend=backend)) for _ in range(2))
    await client.asked(2)
    client.answer = lambda prompt, request: " second" if request is client.requests[1] else " first"
    client.release("is")
    await asyncio.gather(one, two)
    path.write_text(
        "\n".join([path.read_text().splitlines()[0], *reversed(path.read_text().splitlines()[1:])])
    )
    again = replay(path)
    assert [(await capital.run("France", backend=again))["answer"] for _ in range(2)] == [" first", " second"]


async def test_a_branch_gets_its_own_answer_whichever_is_first(path: Path) -> None:
    """Of equal requests, that of the same place is preferred."""

    @sgl.function
    async def program(s: sgl.ProgramState, order: list[int]) -> list[Any]:
        group = s.fork(2)
        for index in order:
            group[index] += "Tip:" + sgl.gen("tip")
            await group[index]["tip"]
        return [await branch["tip"] for branch in group]

    recorder = record(path, numbered())
    assert (await program.run([0, 1], backend=recorder)).value == ["answer 1", "answer 2"]
    assert (await program.run([1, 0], backend=replay(path))).value == ["answer 1", "answer 2"]


async def test_errors_are_recorded_and_raised_again(path: Path) -> None:
    """In their order: a program that tries again gets what it got then."""

    @sgl.function
    async def stubborn(s: sgl.ProgramState) -> list[str]:
        found = []
        for _ in range(2):
            branch = s.fork()[0]
            branch += "x" + sgl.gen("x")
            error = await branch.error()
            found.append(repr(error.__cause__) if error else await branch["x"])
        return found

    mock = sgl.Mock([Overloaded("come back later", param="model"), "fine"])
    first = await stubborn.run(backend=record(path, mock))
    assert first.value == ["Overloaded('come back later')", "fine"]
    assert (await stubborn.run(backend=replay(path))).value == first.value
    assert lines(path, "gen")[0]["error"] == {
        "code": "overloaded",
        "message": "come back later",
        "param": "model",
    }


async def test_streams_stream_and_are_replayed_in_their_pieces_if_these_were_kept(path: Path) -> None:
    """Otherwise the text comes at once."""

    async def heard(backend: Any) -> list[str]:
        return [piece async for piece in capital.stream("answer", country="France", backend=backend)]

    mock = sgl.Mock([[" It", " is", " Paris"]] * 2)
    whole = path.with_name("whole.jsonl")
    assert await heard(record(path, mock, pieces=True)) == [" It", " is", " Paris"]
    assert await heard(record(whole, mock)) == [" It", " is", " Paris"]
    assert await heard(replay(path)) == [" It", " is", " Paris"]
    assert await heard(replay(whole)) == [" It is Paris"]
    assert lines(path)[0]["text"] == [" It", " is", " Paris"]


async def test_what_is_cancelled_is_not_recorded(path: Path) -> None:
    """Neither its text so far nor an error."""
    begun = asyncio.Event()

    class Slow(FakeClient):
        async def generate(self, request: Generate, **_: Any) -> AsyncIterator[Chunk]:
            try:
                yield Chunk(0, [5], "half", prompt_tokens=3, completion_tokens=1)
                begun.set()
                await asyncio.Event().wait()
            finally:
                begun.clear()

    task = asyncio.ensure_future(capital.run("France", backend=record(path, backend_of(Slow()))))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        while begun.is_set():
            await asyncio.sleep(0)
    assert lines(path) == []


async def test_budgets_hold_in_a_replay_as_they_did(path: Path) -> None:
    """It reports the usage that was recorded."""

    @sgl.function
    async def twice(s: sgl.ProgramState) -> None:
        s += "a" + sgl.gen("x") + "b" + sgl.gen("y")

    script = ["one two three", "four five six"]
    for make in (lambda: record(path, sgl.Mock(script)), lambda: replay(path)):
        backend = make()
        with pytest.raises(BudgetExceeded, match="5 generated tokens ended this text after 2"):
            await twice.run(backend=backend, budget=sgl.Budget(tokens=5))


async def test_durable_programs_are_recorded_and_replayed(path: Path) -> None:
    """The journal asks the recorder; what it answers by itself is not recorded again."""
    folder = path.parent
    recorder = record(path, numbered())
    first = await report.run("France", backend=recorder, durable=folder / "one.db", id="a")
    size = path.stat().st_size
    assert (
        await report.run("France", backend=recorder, durable=folder / "one.db", id="a")
    ).text() == first.text()
    assert path.stat().st_size == size
    again = await report.run("France", backend=replay(path), durable=folder / "two.db", id="a")
    assert again.text() == first.text()


async def test_pins_are_replayed(path: Path) -> None:
    """`function.cache` says the same."""

    @sgl.function
    async def warmed(s: sgl.ProgramState) -> None:
        s += "A prompt to keep. " + sgl.gen("x")

    counts = [
        await warmed.cache(backend=one()) for one in (lambda: record(path, numbered()), lambda: replay(path))
    ]
    assert counts[0] == counts[1] > 0


# -- what was not recorded --------------------------------------------------------------------------------


async def test_a_changed_prompt_is_told_with_the_nearest_one(path: Path) -> None:
    """The variable, how often it was recorded, where the prompt begins to differ, and what to do."""
    recorder = record(path, sgl.Mock({"answer": "?"}))
    for country in ("Italy", "France"):
        await capital.run(country, backend=recorder)
    with pytest.raises(NotRecorded) as caught:
        await capital.run("Francia", backend=replay(path))
    assert (caught.value.code, caught.value.param) == ("not_recorded", "answer")
    assert (
        "gen 'answer' of stream 0: recorded twice, but not with this prompt; the nearest one differs from character 20 on:"
        " recorded 'The capital of France is', asked 'The capital of Francia is'; record anew"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.25}, "asked with temperature 0.25 (recorded: 'as by default'); record anew"),
        (
            {"top_k": 3, "top_p": 0.5},
            "top_p 0.5 (recorded: 'as by default'), top_k 3 (recorded: 'as by default')",
        ),
    ],
)
async def test_changed_arguments_are_told(path: Path, options: dict[str, Any], said: str) -> None:
    """By their names; a seed is none of them."""
    await capital.run("France", backend=record(path, sgl.Mock(["Paris"])), seed=1)
    again = replay(path)
    with pytest.raises(NotRecorded, match=re.escape(said)):
        await capital.run("France", backend=again, **options)
    assert (await capital.run("France", backend=again, seed=2))["answer"] == "Paris"


async def test_answers_are_given_once_per_replay(path: Path) -> None:
    """Unless the last one is to be repeated; a new replay has them all again."""
    recorder = record(path, sgl.Mock(["one", "two"]))
    for _ in range(2):
        await capital.run("France", backend=recorder)
    for repeat in (False, True):
        again = replay(path, repeat=repeat)
        assert [(await capital.run("France", backend=again))["answer"] for _ in range(2)] == ["one", "two"]
        if repeat:
            assert (await capital.run("France", backend=again))["answer"] == "two"
        else:
            with pytest.raises(NotRecorded, match=r"asks 3 times for what was recorded twice.*repeat=True"):
                await capital.run("France", backend=again)


async def test_what_was_never_recorded_is_told(path: Path) -> None:
    """Also when nothing was."""

    @sgl.function
    async def other(s: sgl.ProgramState) -> None:
        s += "Name:" + sgl.gen("name")

    async with record(path, sgl.Mock([])):
        pass
    with pytest.raises(NotRecorded, match="gen 'name' of stream 0 was never recorded; record anew"):
        await other.run(backend=replay(path))


# -- the file ---------------------------------------------------------------------------------------------


async def test_the_file_is_readable_and_the_same_each_time(path: Path) -> None:
    """A header, then one line per answer; the same program gives the same file, whatever its seed."""
    await capital.run("Österreich", backend=record(path, sgl.Mock([" Wien. Und"])), temperature=0.5)
    other = path.with_name("other.jsonl")
    await capital.run("Österreich", backend=record(other, sgl.Mock([" Wien. Und"])), temperature=0.5)
    assert path.read_bytes() == other.read_bytes()
    header, line = (json.loads(row) for row in path.read_text().splitlines())
    assert header == {"recording": VERSION, "of": "Mock", "takes": ["image", "video"], "api": None}
    assert [*line][:6] == ["number", "kind", "variable", "stream", "node", "prompt"]
    assert "The capital of Österreich is" in path.read_text()
    assert line["options"] == {"max_tokens": 8, "temperature": 0.5, "stop": ["."]}
    assert (line["text"], line["finish"]) == (" Wien", {"reason": "stop", "matched": "."})
    assert line["usage"]["prompt_tokens"] == 5


async def test_a_file_that_is_there_is_not_overwritten_unasked(path: Path) -> None:
    """The error says how to ask; "append" adds, "replace" begins anew, once, and on first use."""
    await capital.run("France", backend=record(path, sgl.Mock(["Paris"])))
    with pytest.raises(ConfigError, match=r"is there already; give mode='append'.*mode='replace'"):
        record(path, sgl.Mock([]))
    await capital.run("Italy", backend=record(path, sgl.Mock(["Rome"]), mode="append"))
    assert [(line["number"], line["text"]) for line in lines(path)] == [(0, "Paris"), (1, "Rome")]
    anew = record(path, sgl.Mock({"answer": "Bern"}), mode="replace")
    assert len(lines(path)) == 2
    for _ in range(2):
        await capital.run("Switzerland", backend=anew)
        await anew.close()
    assert [line["text"] for line in lines(path)] == ["Bern", "Bern"]


async def test_answers_of_two_models_are_not_mixed(path: Path) -> None:
    """They would not be told apart."""
    await capital.run("France", backend=record(path, sgl.Mock(["Paris"])))
    client = FakeClient()
    with pytest.raises(ConfigError, match=r"has answers of Mock, not of Backend; name another file"):
        await record(path, backend_of(client), mode="append").open()


async def test_a_file_that_cannot_be_written_is_told(path: Path) -> None:
    """Whether it cannot be made, or has been taken away."""
    with pytest.raises(ConfigError, match="there is no such folder"):
        record(path.parent / "none" / "x.jsonl", sgl.Mock([]))
    recorder = record(path, sgl.Mock(["Paris"]))
    await recorder.open()
    path.unlink()
    with pytest.raises(SglActorsError, match="cannot be written: No such file"):
        await capital.run("France", backend=recorder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [], ": an empty file is no recording"),
        (lambda rows: rows[1:], ":1: no recording begins like this"),
        (lambda rows: ["\x00", *rows], ":1: no recording begins like this"),
        (lambda rows: [rows[0].replace('"recording": 1', '"recording": 2'), *rows[1:]], ":1: .*version 2"),
        (lambda rows: [*rows[:2], rows[2][:-5]], ":3: this is no recorded answer"),
        (lambda rows: [*rows[:2], "[" * 100_000], ":3: this is no recorded answer"),
        (lambda rows: [rows[0], "{}", *rows[1:]], ":2: this is no recorded answer.*number"),
        (lambda rows: [rows[0], rows[1].replace("France", "Spain")], ":2: its key is not that"),
        (lambda rows: [rows[0], re.sub(r'"finish": {.*?}, ', "", rows[1])], ":2: this gen has neither"),
        (lambda rows: [rows[0], rows[1].replace('"text"', '"test"')], ":2: .*unknown field `test`"),
    ],
)
async def test_damage_is_told_with_its_line(
    path: Path, change: Callable[[list[str]], list[str]], said: str
) -> None:
    """When the replay is made; and nothing is added to such a file."""
    recorder = record(path, sgl.Mock({"answer": "Paris"}))
    for _ in range(2):
        await capital.run("France", backend=recorder)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    for damaged in (lambda: replay(path), lambda: record(path, sgl.Mock([]), mode="append")):
        with pytest.raises(ConfigError, match=said):
            damaged()


async def test_a_prompt_may_be_changed_by_hand(path: Path) -> None:
    """A line without its key gets the key of what it says."""
    await capital.run("France", backend=record(path, sgl.Mock(["Paris"])))
    path.write_text(re.sub(r', "key": "\w+"', "", path.read_text()).replace("France", "Francia"))
    assert (await capital.run("Francia", backend=replay(path)))["answer"] == "Paris"


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    """When the backend is made."""
    with pytest.raises(ConfigError, match=r"'nothing.jsonl': No such file|nothing.jsonl: No such file"):
        replay(tmp_path / "nothing.jsonl")
    with pytest.raises(ConfigError, match="'gpt' is no backend"):
        record(tmp_path / "x.jsonl", "gpt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mode 'w' is none of"):
        record(tmp_path / "x.jsonl", sgl.Mock([]), mode="w")  # type: ignore[arg-type]


async def test_without_a_backend_it_is_the_default_one(path: Path) -> None:
    """The one that programs run on when the recorder is made; within its block, it is the default itself."""
    async with sgl.Mock(["Paris"]) as mock, record(path) as recorder:
        assert recorder.backend is mock
        assert (await capital.run("France"))["answer"] == "Paris"
        assert repr(recorder) == f"<Recording to {path} open>"
    async with replay(path):
        assert (await capital.run("France"))["answer"] == "Paris"


def test_threads_may_record_to_one_file_at_the_same_time(path: Path) -> None:
    """No line is lost or torn, and each has a number of its own."""
    recorder = record(path, sgl.Mock({"answer": "x" * 20_000}))

    def work() -> None:
        asyncio.run(runs(recorder))

    async def runs(backend: Recorder) -> None:
        await asyncio.gather(*(capital.run("France", backend=backend, max_tokens=8) for _ in range(10)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.number for line in read(str(path))[1]) == list(range(40))


async def test_a_backend_that_was_closed_is_opened_again(path: Path) -> None:
    """For the next program of its recorder."""
    mock = sgl.Mock({"answer": "Paris"})
    recorder = record(path, mock)
    await capital.run("France", backend=recorder)
    await mock.close()
    await capital.run("France", backend=recorder)
    assert repr(mock) == "<Mock open>"
    assert len(lines(path)) == 2


# -- API models -------------------------------------------------------------------------------------------


@sgl.function
async def card(s: sgl.ProgramState, name: str) -> None:
    """Slots that are asked for at once, and completions of one request."""
    s += (
        f"Of {name}.\nName:"
        + sgl.gen("name", stop="\n", max_tokens=8)
        + "\nAge:"
        + sgl.gen("age", stop="\n", max_tokens=8)
    )
    s += "\nJob:" + sgl.gen("job", n=2, temperature=0.5, max_tokens=8)


async def test_speculation_is_replayed(path: Path) -> None:
    """With its waste, its retries and what it cost."""
    answers = [
        Overloaded("busy"), [Text(" Ada\n"), end(" Ada\nAge: 36\nJob: poet", output=6)], end(" poet", " earl"),
    ]  # fmt: skip
    vendor = FakeVendor(answers, count=8)
    first = await card.run("Ada", backend=record(path, Fake(vendor, prices=sgl.Prices(1.0, 0.5, 2.0))))
    again = await card.run("Ada", backend=replay(path))
    assert len(vendor.asked) == 3
    assert first.text() == again.text()
    assert (again["age"], again["job"]) == (" 36", [" poet", " earl"])
    assert first.usage == again.usage
    assert again.usage.retries == 1
    assert again.usage.wasted_tokens > 0
    assert again.usage.cost > 0


class Api(ApiMockClient):
    """An API model that learns from its first refusal that it does not go on with an assistant's turn."""

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        """Fails once, then writes a word with its log probability, in two pieces."""
        assert self.api is not None
        if self.api.capabilities.continuation == PREFILL:
            self.api = msgspec.structs.replace(self.api, capabilities=Capabilities(tools=True))
            raise NoContinuation("begin a new turn")
        assert call is not None
        yield Chunk(
            0,
            [],
            "Pa",
            [TokenLogprob(-1, -0.5, ((-1, float("-inf")),))],
            7,
            tokens=["Pa"],
            completion_tokens=1,
        )
        yield Chunk(
            0, [], f"ris {call.part}", [TokenLogprob(-1, -0.25)], 7, 3, [], Finish("stop", "\n"), 2,
            tokens=["ris"], retries=1, cost=0.125,
        )  # fmt: skip


async def test_what_an_api_model_can_do_is_replayed(path: Path) -> None:
    """Its title and capabilities, also when they change on the way; tokens, retries and cost."""
    api = Api(lambda request, call: "", Capabilities(continuation=PREFILL, tools=True))
    tape = Tape(str(path), "new", pieces=False)
    tape.begin(Header(VERSION, "stub m (chat)", [], api.api))
    request = Generate("1", text="x", sampling=SamplingOptions(seed=1), logprobs=True)
    calls = [Call("gen", "x", completions=2, part=part, follow=("a", ("b",)), tools="[]") for part in (0, 1)]

    async def ask(client: Any) -> list[Any]:
        found: list[Any] = [client.api]
        for call in (calls[0], *calls):
            try:
                found.append(joined([chunk async for chunk in client.generate(request, call=call)]))
            except NoContinuation as error:
                found.append(error.message)
            found.append(client.api)
        return found

    first = await ask(RecordClient(api, tape))
    header, rows = read(str(path))
    request = msgspec.structs.replace(
        request, id="2", sampling=SamplingOptions(seed=2), tenant="b", program="c"
    )
    second = await ask(ReplayClient(header, Answers(rows), threading.Lock()))
    assert second == first
    assert [model.capabilities.continuation for model in second[::2]] == [PREFILL, NONE, NONE, NONE]
    assert [second[1], second[3].text, second[5].text] == ["begin a new turn", "Paris 0", "Paris 1"]
    assert (second[3].tokens, second[3].retries, second[3].cost) == (["Pa", "ris"], 1, 0.125)


async def test_the_error_of_a_stream_comes_behind_its_text(path: Path) -> None:
    """As it did."""

    class Breaking(FakeClient):
        async def generate(self, request: Generate, **_: Any) -> AsyncIterator[Chunk]:
            yield Chunk(0, [5], "half", prompt_tokens=3, completion_tokens=1)
            raise RemoteError("broke off")

    heard: list[str] = []

    async def listen(backend: Any) -> None:
        async for piece in capital.stream("answer", country="France", backend=backend):
            heard.append(piece)  # noqa: PERF401 - what comes before the error is kept

    for make in (lambda: record(path, backend_of(Breaking())), lambda: replay(path)):
        with pytest.raises(PrimitiveFailed, match="broke off"):
            await listen(make())
    assert heard == ["half", "half"]
