"""Durable programs: what was answered is not asked again, whatever moment they were ended at, and the result is the same."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs import journal_client, journal_entry
from sgl_actors.actors.programs.journal import Journal
from sgl_actors.actors.programs.journal_writer import writer_of
from sgl_actors.actors.scheduler.messages import Decoding
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.errors import (
    InvalidRequest,
    JournalUnavailable,
    NodeGone,
    NotReady,
    Overloaded,
    ProgramRunning,
    RemoteError,
    SglActorsError,
)
from sgl_actors.lang import typed as lang_typed
from sgl_actors.lang.backends.mock import MockCall
from sgl_actors.lang.errors import InvalidPrimitive, PrimitiveFailed, ProgramChanged
from tests.programs.fakes import Answer, FakeClient, backend_of


def written(prompt: str, request: Generate) -> list[str]:
    """Some words that depend on the prompt and the seed alone, as a model's do."""
    digest = blake2b(f"{prompt}{request.sampling.seed}".encode(), digest_size=5).digest()
    return [f" w{byte}" for byte in digest[: 2 + digest[0] % 3]]


class Model(FakeClient):
    """Counts what it writes."""

    def __init__(self, answer: Callable[[str, Generate], Answer] = written) -> None:
        super().__init__(answer)
        self.logprob = lambda word: -1.0 - len(word)

    @property
    def gens(self) -> list[Generate]:
        return [request for request in self.requests if request.sampling.max_tokens != 0]

    @property
    def tokens(self) -> int:
        """Written so far."""
        return sum(
            len(cast("list[str]", self.answer(prompt, request))) - len(request.output)
            for prompt, request in zip(self.prompts, self.requests, strict=True)
            if request.sampling.max_tokens != 0
        )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state" / "journal.db"
    writer_of(tmp_path / "state" / "journal.db").close()


@sgl.function
async def everything(s: sgl.ProgramState, topic: str, clock: Callable[[], int] | None = None) -> object:
    """Every primitive; what it returns is no plain data, so that its records stay."""
    s += sgl.user(f"Write about {topic}, as long as it takes and with all that belongs to it.")
    group = s.fork(3)
    for index, branch in enumerate(group):
        branch += sgl.assistant(f"{index}:" + sgl.gen("note", max_tokens=8))
    inner = group[1].fork(2)
    inner += sgl.user("And?") + sgl.assistant(sgl.gen("more", max_tokens=8, temperature=0.5))
    group[1] += sgl.assistant("; ".join(await inner.join("more")))
    notes = await group.join("note")
    hour = await s.once("hour", lambda: 12)
    s += sgl.assistant(f"At {hour}: " + ", ".join(notes) + sgl.gen("two", n=2, max_tokens=8))
    s += sgl.user("Good?") + sgl.assistant(sgl.select("grade", ["good", "bad"]))
    pieces = [piece async for piece in s.text_iter("grade")]
    found = await sgl.best_of(s, 2, sgl.gen("motto", max_tokens=8), score=len)
    s += sgl.user("Motto:" + found.value) + sgl.assistant(sgl.gen("end", max_tokens=8))
    return {await s["end"], "".join(pieces)}


def left(state: sgl.FinishedState) -> Any:
    """All that can be seen of a run, but times and what the cache had."""
    usage = msgspec.structs.replace(state.usage, cached_tokens=0)
    return state.value, state.text(), state.variables, state.seed, usage, state.meta("end"), state.meta("two")


async def run(model: Model, file: Path, **options: Any) -> sgl.FinishedState:
    async with backend_of(model, force_codec=False) as backend:
        return await everything.run(
            topic="bees", backend=backend, durable=file, **{"id": "e", "seed": 5, **options}
        )


def records(file: Path) -> int:
    with sqlite3.connect(file) as connection:
        (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
    connection.close()
    return int(count)


def cut(file: Path, keep: int, state: str = "running") -> None:
    """As if the process had been killed when that many records were there."""
    with sqlite3.connect(file) as connection:
        connection.execute(
            "DELETE FROM records WHERE number NOT IN (SELECT number FROM records ORDER BY number LIMIT ?)",
            (keep,),
        )
        connection.execute("UPDATE programs SET state = ?, owner = '', result = NULL", (state,))
    connection.close()


def change(file: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(statement, values)
    connection.close()


@pytest.fixture
def by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of an answer has a record of its own, so that a journal can be cut between any two tokens."""
    join = journal_entry.joined
    monkeypatch.setattr(journal_entry, "joined", lambda rows: [one for row in rows for one in join([row])])


async def close(file: Path) -> None:
    """Have the journal closed, as a process does at its end."""
    await asyncio.to_thread(writer_of(file).close)


@pytest.mark.usefixtures("by_token")
async def test_a_program_ended_after_any_token_goes_on_and_ends_the_same(file: Path, tmp_path: Path) -> None:
    """No token is written twice: those of the journal and those written after it are those of an undisturbed run."""
    undisturbed = Model()
    expected = left(await run(undisturbed, file))
    await close(file)
    count = records(file)
    assert count > 40
    for keep in [*range(0, count, 3), count]:
        copy = tmp_path / f"{keep}.db"
        shutil.copy(file, copy)
        cut(copy, keep)
        with Journal(copy) as journal:
            kept = [record for record in journal._records(1) if record.kind == 1]
        known = sum(len(chunk[1]) for record in kept for chunk in msgspec.msgpack.decode(record.data))
        model = Model()
        assert left(await run(model, copy)) == expected, keep
        assert model.tokens == undisturbed.tokens - known, keep
        await close(copy)


async def test_a_run_that_is_not_durable_gives_the_same(file: Path) -> None:
    """The journal changes nothing."""
    durable = left(await run(Model(), file))
    async with backend_of(Model(), force_codec=False) as backend:
        plain = await everything.run(topic="bees", backend=backend, seed=5)
    own = left(plain)
    assert own[:5] == durable[:5]
    assert {**own[5], "id": ""} == {**durable[5], "id": ""}


async def test_requests_have_the_same_ids_in_each_try(file: Path) -> None:
    """A live one is joined again by them; another program of the same id has others."""
    first, second = Model(), Model()
    await run(first, file)
    await close(file)
    cut(file, 0)
    await run(second, file)
    ids = [{request.id for request in model.requests} for model in (first, second)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == len(first.requests)
    other = Model()
    await run(other, file, id="e-2")
    assert not ids[0] & {request.id for request in other.requests}


@sgl.function
async def plain(s: sgl.ProgramState, words: Annotated[int, msgspec.Meta(ge=0)] = 2) -> dict[str, Any]:
    """Its value is plain data."""
    s += f"Say {words} words:" + sgl.gen("words", max_tokens=words)
    return {"words": await s["words"], "scores": [1, 2.5, None]}


async def test_a_finished_program_gives_its_result_without_a_node(file: Path) -> None:
    """At once, whole, as often as it is asked, and also as a stream; its records are gone."""
    async with backend_of(Model()) as backend:
        done = await plain.run(3, backend=backend, durable=file, id="p")
    nowhere = sgl.connect("http://127.0.0.1:9")
    try:
        for _ in range(2):
            again = await plain.run(3, backend=nowhere, durable=file, id="p")
            assert (again.value, again.text(), again.variables) == (done.value, done.text(), done.variables)
            assert (again.usage, again.seed, again.meta("words")) == (
                done.usage,
                done.seed,
                done.meta("words"),
            )
            assert str(again.trace()) == str(done.trace())
        pieces = plain.stream("words", 3, backend=nowhere, durable=file, id="p")
        assert [piece async for piece in pieces] == [done["words"]]
    finally:
        sgl.set_default_backend(None)
    assert records(file) == 0


class City(msgspec.Struct):
    name: str
    people: int


@sgl.function
async def typed(s: sgl.ProgramState, city: City) -> City:
    s += city.name + sgl.gen("x")
    return City(await s["x"], city.people + 1)


async def test_values_and_arguments_keep_the_types_that_the_body_states(file: Path) -> None:
    """A Struct comes back as one."""
    async with backend_of(Model()) as backend:
        first = await typed.run(City("Lima", 1), backend=backend, durable=file, id="t")
        again = await typed.run(City("Lima", 1), backend=backend, durable=file, id="t")
    assert again.value == first.value == City(first["x"], 2)


async def test_variables_keep_their_types_in_another_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which knows a type only when the body has named it: the body runs again, and nothing is asked."""

    @sgl.function
    async def city(s: sgl.ProgramState) -> int:
        group = s.fork(2)
        group += "A city: " + sgl.gen("city", type=City)
        await group.join("city")
        return 1

    model = Model(lambda prompt, request: ['{"name":"Lima","people":1}'])
    async with backend_of(model) as backend:
        for known in (True, True, False, True):
            if not known:
                monkeypatch.setattr(lang_typed, "_adapters", OrderedDict())
                monkeypatch.setattr(lang_typed, "_keys", {})
            state = await city.run(backend=backend, durable=file, id="c")
            assert state["city"] == [City("Lima", 1)] * 2
            assert len(model.gens) == 2


async def test_a_failed_program_tries_again_from_where_it_failed(file: Path) -> None:
    """What had been answered before is not asked again; the error of a node that may pass is not recorded as an answer."""
    model = Model(
        lambda prompt, request: RemoteError("broken") if "Motto" in prompt else written(prompt, request)
    )
    with pytest.raises(PrimitiveFailed, match="broken"):
        await run(model, file)
    asked = len(model.gens)
    model.answer = written
    await run(model, file)
    assert len(model.gens) == asked + 1


async def test_an_error_that_may_pass_is_forgotten_with_the_next_try(file: Path) -> None:
    """Also if that try is killed before it asks for anything else."""
    model = Model(lambda prompt, request: RemoteError("broken"))
    async with backend_of(model) as backend:
        with pytest.raises(PrimitiveFailed):
            await plain.run(backend=backend, durable=file, id="p")
        with pytest.raises(PrimitiveFailed):
            await plain.run(backend=backend, durable=file, id="p")
        await close(file)
        cut(file, records(file) - 1)  # the second try's own error is not there
        model.answer = written
        assert (await plain.run(backend=backend, durable=file, id="p"))["words"]


async def test_a_program_that_is_cancelled_at_its_very_end_has_finished_or_not(file: Path) -> None:
    """What is recorded is whole in any case."""
    for turns in range(0, 60, 3):
        async with backend_of(Model(), force_codec=False) as backend:
            first = asyncio.ensure_future(plain.run(backend=backend, durable=file, id=f"p{turns}", seed=1))
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            model = Model()
        async with backend_of(model, force_codec=False) as backend:
            assert (await plain.run(backend=backend, durable=file, id=f"p{turns}", seed=1))["words"]


async def test_an_error_that_the_body_went_on_after_is_given_again(file: Path) -> None:
    """So that it goes the same way, also if the node would answer now."""

    @sgl.function
    async def careful(s: sgl.ProgramState) -> object:
        group = s.fork(2)
        group += ["first" + sgl.gen("x"), "second" + sgl.gen("x")]
        found = await group.join("x", return_exceptions=True)
        s += "".join(one if isinstance(one, str) else "?" for one in found) + sgl.gen("end")
        return {await s["end"]}

    def moody(prompt: str, request: Generate) -> Answer:
        return InvalidRequest("no") if prompt.startswith("second") else written(prompt, request)

    async with backend_of(Model(moody)) as backend:
        first = await careful.run(backend=backend, durable=file, id="c", seed=1)
    await close(file)
    cut(file, records(file))
    model = Model()
    async with backend_of(model) as backend:
        again = await careful.run(backend=backend, durable=file, id="c", seed=1)
    assert again.text() == first.text()
    assert model.requests == []


async def test_of_answers_that_are_there_the_first_comes_first_again(file: Path) -> None:
    """A race has the same winner, although all of its answers are in the journal now."""

    @sgl.function
    async def fastest(s: sgl.ProgramState, slow: int) -> object:
        group = s.fork(4)
        for index, branch in enumerate(group):
            branch += f"branch {index}:" + sgl.gen("x")
        order: list[int] = []

        async def follow(index: int) -> None:
            await group[index]["x"]
            order.append(index)

        await asyncio.gather(*(follow(index) for index in range(4)))
        s += str(order) + sgl.gen("end")
        return {str(order)}

    model = Model(
        lambda prompt, request: ["x"] * (1 + 10 * (3 - int(prompt[7]))) if "branch" in prompt else ["."]
    )
    async with backend_of(model) as backend:
        first = await fastest.run(3, backend=backend, durable=file, id="f")
    assert first.value == {"[3, 2, 1, 0]"}
    await close(file)
    cut(file, records(file))
    model = Model()
    async with backend_of(model) as backend:
        assert (await fastest.run(3, backend=backend, durable=file, id="f")).value == first.value
    assert model.requests == []


async def test_an_answer_that_nobody_asks_for_any_more_is_not_waited_for(file: Path) -> None:
    """Branches that a decision has cancelled ask for nothing when it is made earlier."""

    @sgl.function
    async def decided(s: sgl.ProgramState, cancels: list[bool]) -> object:
        slow, fast = s.fork(2)
        fast += "fast" + sgl.gen("x")
        slow += "slow" + sgl.gen("x")
        if cancels:
            slow.cancel()
        s += await fast["x"] + sgl.gen("end")
        return {await s["end"]}

    given: list[bool] = []
    async with backend_of(Model(lambda p, r: [p[:4]] if p.startswith("slow") else written(p, r))) as backend:
        first = await decided.run(given, backend=backend, durable=file, id="d")
    await close(file)
    cut(file, records(file))
    change(file, "UPDATE programs SET arguments = ?", b'{"cancels":[true]}')
    model = Model()
    async with backend_of(model) as backend:
        again = await decided.run([True], backend=backend, durable=file, id="d")
    assert again.value == first.value
    assert model.requests == []


async def test_a_node_that_is_away_for_a_while_is_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be answered now is asked again with what has come so far; the program does not hear of it."""
    monkeypatch.setattr(journal_client, "FIRST_PAUSE", 0.0)
    trouble: list[SglActorsError] = [NotReady("loading"), Overloaded("full")]
    model = Model(lambda prompt, request: trouble.pop() if trouble else written(prompt, request))
    async with backend_of(model) as backend:
        await plain.run(backend=backend, durable=file, id="p")
    assert len(model.gens) == 3
    assert len({request.id for request in model.gens}) == 1


async def test_a_node_that_is_away_from_the_beginning_is_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the node is known then, not even the chat template of the program's first turn."""
    monkeypatch.setattr(journal_client, "FIRST_PAUSE", 0.001)
    trouble: list[SglActorsError] = [NotReady("loading"), NotReady("loading")]

    class Late(Model):
        async def tokenize(self, request: Tokenize) -> TokenIds:
            if trouble:
                raise trouble.pop()
            return await super().tokenize(request)

    expected = left(await run(Model(), file, id="never"))
    assert left(await run(Late(), file))[0] == expected[0]
    assert not trouble


async def test_a_node_that_is_gone_is_no_answer(file: Path) -> None:
    """The program fails, and goes on with another node."""
    model = Model(lambda prompt, request: NodeGone("the node has ended"))
    async with backend_of(model) as backend:
        with pytest.raises(PrimitiveFailed, match="the node has ended"):
            await plain.run(backend=backend, durable=file, id="p")
        model.answer = written
        assert (await plain.run(backend=backend, durable=file, id="p"))["words"]


@pytest.mark.usefixtures("by_token")
async def test_a_node_that_tells_an_answer_from_its_beginning_is_understood(file: Path) -> None:
    """Tokens and text that were recorded are dropped from what comes."""

    class Forgetful(Model):
        """Does not look at `output`."""

        async def generate(self, request: Generate, **more: Any) -> Any:
            bare = msgspec.structs.replace(request, output=[])
            async for chunk in super().generate(bare, **more):
                yield chunk

    async with backend_of(Model()) as backend:
        first = await everything.run("bees", backend=backend, durable=file, id="e", seed=5)
    await close(file)
    count = records(file)
    for keep in range(20, count, 11):
        cut(file, keep)
        async with backend_of(Forgetful()) as backend:
            again = await everything.run("bees", backend=backend, durable=file, id="e", seed=5)
        assert (again.text(), again.value) == (first.text(), first.value)
        await close(file)


async def test_a_pin_has_the_same_name_in_each_try(file: Path) -> None:
    """So a resume replaces it instead of making a second one."""

    @sgl.function
    async def pinned(s: sgl.ProgramState) -> object:
        s += "Long text."
        return {await s.pin(ttl=60)}

    names = []
    for _ in range(2):
        async with backend_of(Model()) as backend:
            names.append((await pinned.run(backend=backend, durable=file, id="p")).value)
    assert names[0] == names[1] != {"drawn"}


def test_how_an_answer_was_made_is_counted_over_its_tries() -> None:
    """A request that is made anew counts from 0; one that had gone on meanwhile, from its beginning."""
    before = Decoding(steps=4, sampled=5, forced=1)
    anew = Chunk(9, [1], "", completion_tokens=10, decoding=Decoding(steps=3, sampled=4))
    joined = Chunk(9, [1], "", completion_tokens=10, decoding=Decoding(steps=7, sampled=9, forced=1))
    assert journal_client.add(before, anew, 6) == Decoding(steps=7, sampled=9, forced=1)
    assert journal_client.add(before, joined, 6) == joined.decoding


# -- what is not the same program -----------------------------------------------------------------------------


def ask(*steps: Any) -> sgl.Function[...]:
    """A program of these steps, which is called `body` whatever it does."""

    async def body(s: sgl.ProgramState) -> object:
        for step in steps:
            s += step
        return {1}

    body.__qualname__ = "body"
    return sgl.function(body)


FIRST = ("One:", sgl.gen("a"), " Two:", sgl.gen("b"))
CHANGES = {
    "another prompt": (("One!", sgl.gen("a"), " Two:", sgl.gen("b")), "'a'.*had another prompt"),
    "another prompt later": (("One:", sgl.gen("a"), " Tow:", sgl.gen("b")), "'b'.*had another prompt"),
    "other sampling": (
        ("One:", sgl.gen("a"), " Two:", sgl.gen("b", temperature=0)),
        "'b'.*other sampling arguments",
    ),
    "a primitive more": (("Zero:", *FIRST), "'a'.*primitives were others"),
    "a primitive less": ((FIRST[0], " Two:", sgl.gen("b")), "'b'.*primitives were others"),
    "another kind": (("One:", sgl.select("a", ["x", "y"]), *FIRST[2:]), "'a'.*primitives were others|'b'"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_program_is_found_out(file: Path, change: str) -> None:
    """It fails alone, and the error names the primitive and its line; a program of another id goes on."""
    steps, message = CHANGES[change]
    async with backend_of(Model()) as backend:
        await ask(*FIRST).run(backend=backend, durable=file, id="c")
        cut_and_keep = records
        await close(file)
        cut(file, cut_and_keep(file))
        with pytest.raises(ProgramChanged, match=message) as caught:
            await ask(*steps).run(backend=backend, durable=file, id="c")
        assert "test_durable_programs.py:" in str(caught.value)
        await ask(*steps).run(backend=backend, durable=file, id="c-2")
        await ask(*FIRST).run(backend=backend, durable=file, id="c")


async def test_a_body_cannot_hide_that_it_has_changed(file: Path) -> None:
    """Patterns take errors of branches for failed tries; the program fails all the same."""

    def program(text: str) -> sgl.Function[...]:
        async def body(s: sgl.ProgramState) -> object:
            group = s.fork(2)
            group += [text + sgl.gen("x"), "other" + sgl.gen("x")]
            await group.join("x", return_exceptions=True)
            return {1}

        return sgl.function(body)

    async with backend_of(Model()) as backend:
        await program("some").run(backend=backend, durable=file, id="h")
        await close(file)
        cut(file, records(file))
        with pytest.raises(ProgramChanged, match=r"branch 0\.0, variable 'x'"):
            await program("any").run(backend=backend, durable=file, id="h")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"words": 4}, "other arguments"),
        ({"seed": 8}, "another seed"),
        ({"temperature": 0.5}, "other sampling"),
        ({"cache_salt": "x"}, "salt"),
    ],
)
async def test_another_program_under_the_same_id_is_refused(
    file: Path, options: dict[str, Any], what: str
) -> None:
    """Before anything is asked, also when it has finished; what decides nothing may differ."""
    async with backend_of(Model()) as backend:
        await plain.run(backend=backend, durable=file, id="p", seed=7)
        with pytest.raises(ProgramChanged, match=what):
            await plain.run(backend=backend, durable=file, id="p", **options)
        with pytest.raises(ProgramChanged, match="as a run of 'plain'"):
            await typed.run(City("a", 1), backend=backend, durable=file, id="p")
        await plain.run(backend=backend, durable=file, id="p", priority=3, timeout=9.0)


async def test_one_id_runs_once_at_a_time(file: Path) -> None:
    """The second is told which process runs it; when the first has ended it has its result."""
    model = Model()
    model.hold("Say")
    async with backend_of(model) as backend:
        first = asyncio.ensure_future(plain.run(backend=backend, durable=file, id="p"))
        await model.asked(1)
        with pytest.raises(ProgramRunning, match=r"runs already, in process \d+"):
            await plain.run(backend=backend, durable=file, id="p")
        model.release("Say")
        done = await first
        assert (await plain.run(backend=backend, durable=file, id="p")).value == done.value


async def test_a_cancelled_program_goes_on_by_the_next_call(file: Path) -> None:
    """Cancelling gives it back."""
    model = Model()
    model.hold("Say")
    async with backend_of(model) as backend:
        first = asyncio.ensure_future(plain.run(backend=backend, durable=file, id="p"))
        await model.asked(1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        model.release("Say")
        assert (await plain.run(backend=backend, durable=file, id="p"))["words"]


# -- values from outside --------------------------------------------------------------------------------------


async def test_a_value_from_outside_is_made_once(file: Path) -> None:
    """By name and order, on each branch by itself; a failed call is no value."""
    made: list[str] = []

    def make(name: str) -> list[Any]:
        made.append(name)
        if made == ["a"]:
            raise OSError("no network")
        return [name, len(made)]

    @sgl.function
    async def outside(s: sgl.ProgramState) -> object:
        values = [await s.once(name, make, name) for name in ("a", "a", "b")]
        values += [await branch.once("a", make, "in a branch") for branch in s.fork(2)]
        s += str(values) + sgl.gen("x")
        return {await s["x"], str(values)}

    async with backend_of(Model()) as backend:
        with pytest.raises(sgl.BodyFailed, match="no network"):
            await outside.run(backend=backend, durable=file, id="o")
        first = await outside.run(backend=backend, durable=file, id="o")
        assert len(made) == 6
        await close(file)
        cut(file, records(file))
        again = await outside.run(backend=backend, durable=file, id="o")
    assert again.value == first.value
    assert len(made) == 6


async def test_a_value_from_outside_is_plain_data() -> None:
    """In every program, so that it can be made durable."""

    @sgl.function
    async def outside(s: sgl.ProgramState, value: Any) -> Any:
        async def fetch() -> Any:
            return value

        return await s.once("v", fetch)

    mock = sgl.Mock([])
    assert (await outside.bind({"a": [1, b"x", None]}).run(backend=mock)).value == {"a": [1, b"x", None]}
    for value in (object(), (1, 2), City("a", 1)):
        with pytest.raises(InvalidPrimitive, match=r"once\('v'\)"):
            await outside.bind(value).run(backend=mock)


@sgl.tool
def lookup(word: str) -> int:
    """Look a word up."""
    looked_up.append(word)
    return len(word)


looked_up: list[str] = []


async def test_tools_of_react_are_not_called_again(file: Path) -> None:
    """What they returned is recorded with the round."""

    @sgl.function
    async def solve(s: sgl.ProgramState) -> object:
        found = await sgl.react(s, "How long is bee?", [lookup])
        return {
            found.value,
            str([(one.text, one.value) for step in found.steps for one in step.observations]),
        }

    def script(call: MockCall) -> Any:
        answers = {
            "thought_1": "I look.", "action_1": "lookup", "input_1": '{"word":"bee"}', "thought_2": "3.",
            "action_2": "finish", "answer": "3",
        }  # fmt: skip
        return answers[call.name]

    looked_up.clear()
    first = await solve.run(backend=sgl.Mock(script), durable=file, id="r")
    await close(file)
    cut(file, records(file))
    again = await solve.run(backend=sgl.Mock([]), durable=file, id="r")
    assert again.value == first.value == {"3", "[('3', 3)]"}
    assert looked_up == ["bee"]


# -- budgets, batches, options --------------------------------------------------------------------------------


async def test_what_was_used_before_counts_for_the_budget(file: Path) -> None:
    """A resume has no more tokens or calls than an undisturbed run."""

    @sgl.function
    async def four(s: sgl.ProgramState) -> object:
        for name in "abcd":
            s += sgl.gen(name, max_tokens=8)
        await s.sync()
        return {1}

    budget = sgl.Budget(calls=3)
    model = Model()
    async with backend_of(model) as backend:
        for _ in range(2):
            with pytest.raises(sgl.BudgetExceeded, match="budget of 3 calls"):
                await four.bind().run(backend=backend, durable=file, id="b", budget=budget)
        assert len(model.gens) == 3
        await four.bind().run(backend=backend, durable=file, id="b", budget=sgl.Budget(calls=4))
    assert len(model.gens) == 4


async def test_what_is_left_of_a_budget_is_no_part_of_the_program(file: Path) -> None:
    """A gen that was cut by it goes on with the room that it had."""

    @sgl.function
    async def two(s: sgl.ProgramState) -> object:
        s += "One:" + sgl.gen("a", max_tokens=8)
        s += "Two:" + sgl.gen("b", max_tokens=8)
        await s.sync()
        return object()

    model = Model()
    async with backend_of(model) as backend:
        for tokens in (9, 12):
            budget = sgl.Budget(tokens=tokens)
            await two.bind().run(backend=backend, durable=file, id="b", seed=1, budget=budget)
            await close(file)
            cut(file, records(file))
            change(file, "DELETE FROM records WHERE kind = 1 AND key LIKE '0/3/%'")
    room = [request.sampling.max_tokens for request in model.gens]
    assert room[:1] == [8]
    assert len(set(room[1:])) == 1 < len(room[1:])


async def test_a_stream_shows_what_was_written_before_too(file: Path) -> None:
    """From the variable's beginning, whatever was shown before the end of the process."""
    model = Model(lambda prompt, request: [" a", " b", " c", " d"])
    model.logprob = lambda word: -1.0

    @sgl.function
    async def shown(s: sgl.ProgramState) -> object:
        s += "Say:" + sgl.gen("words", max_tokens=8) + "And:" + sgl.gen("more", max_tokens=8)
        await s.sync()
        return object()

    async with backend_of(model) as backend:
        for keep in (0, 2, 3, 4):
            stream = shown.stream("words", backend=backend, durable=file, id="s", seed=1)
            assert "".join([piece async for piece in stream]) == " a b c d"
            await close(file)
            cut(file, keep)


async def test_a_batch_is_durable_by_item(file: Path) -> None:
    """Each has the batch's id and its number."""
    model = Model()
    async with backend_of(model) as backend:
        items = [{"words": count} for count in range(1, 5)]
        first = await plain.run_batch(items, backend=backend, durable=file, id="all", seed=1)
        asked = len(model.requests)
        again = await plain.run_batch(items, backend=backend, durable=file, id="all", seed=1)
    assert [one.value for one in again] == [one.value for one in first]
    assert len(model.requests) == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "x"}, "for durable=True"),
        ({"durable": True}, "has an id"),
        ({"durable": True, "id": "a/b"}, "has an id of 1 to 100"),
        ({"durable": 1, "id": "a"}, "durable is True, or the journal's file"),
        ({"durable": True, "id": "a", "clock": print}, "'clock' of a durable program cannot be recorded"),
        ({"durable": True, "id": "a", "topic": 7}, "'topic' of a durable program cannot be recorded"),
    ],
)
async def test_what_cannot_be_recorded_is_said_at_once(options: dict[str, Any], message: str) -> None:
    """Before a journal or a node is opened."""
    own = {"topic": "bees", **{k: v for k, v in options.items() if k in ("clock", "topic")}}
    rest = {k: v for k, v in options.items() if k not in own}
    with pytest.raises(InvalidPrimitive, match=message):
        await everything.bind(**own).run(backend=sgl.Mock([]), **rest)


# -- a journal that fails -------------------------------------------------------------------------------------


async def test_no_durable_program_begins_without_its_journal(tmp_path: Path) -> None:
    """It is refused before it asks for anything; others run."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "no.db").write_bytes(b"this is no database, but long enough to be taken for one" * 20)
    model = Model()
    async with backend_of(model) as backend:
        for bad in (tmp_path / "file" / "j.db", tmp_path / "no.db"):
            with pytest.raises(JournalUnavailable, match="journal /") as caught:
                await plain.run(backend=backend, durable=bad, id="p")
            assert caught.value.status == 503
        assert model.requests == []
        assert (await plain.run(backend=backend))["words"]


async def test_a_program_whose_journal_fails_runs_on_and_says_so(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is recorded stays a beginning of it, from which it goes on later."""
    expected = left(await run(Model(), file, id="whole"))[1:3]
    append, room = Journal.append, [12]

    def full(self: Journal, program: int, rows: list[Any]) -> None:
        if len(rows) > room[0]:
            raise sqlite3.OperationalError("database or disk is full")
        room[0] -= len(rows)
        append(self, program, rows)

    monkeypatch.setattr(Journal, "append", full)
    state = await run(Model(), file)
    assert left(state)[1:3] == expected
    assert state.warnings == [f"not all of it is recorded: journal {file}: database or disk is full"]
    assert "program e is not recorded any more" in caplog.text
    room[0] = 10_000
    model = Model()
    assert left(await run(model, file))[1:3] == expected
    assert 0 < len(model.gens) < 10


async def test_a_damaged_record_is_the_end_of_what_is_known(file: Path) -> None:
    """Of its program; another one does not notice."""
    expected = left(await run(Model(), file))
    await run(Model(), file, id="other")
    await close(file)
    change(file, "UPDATE records SET data = x'c1ff' WHERE program = 1 AND number = 20")
    model = Model()
    assert left(await run(model, file)) == expected
    assert model.gens
    untouched = Model()
    await run(untouched, file, id="other")
    assert untouched.gens == []


async def test_the_wall_clock_decides_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may jump back a day between two tries."""
    now = [2e9]
    monkeypatch.setattr(journal_entry, "wall_clock", lambda: now[0])
    expected = left(await run(Model(), file))
    await close(file)
    cut(file, 40)
    now[0] -= 86_400
    assert left(await run(Model(), file)) == expected
