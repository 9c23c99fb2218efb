"""The language as its users see it, on real stream actors and a node that is faked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.errors import ContextLengthExceeded, DeadlineExceeded, Overloaded, UnknownVariable
from tests.programs.fakes import FakeClient, backend_of


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
async def backend(client: FakeClient) -> AsyncIterator[Backend]:
    async with backend_of(client) as backend:
        yield backend


@sgl.function
async def judge(s, essay):  # type: ignore[no-untyped-def] # as the README writes it
    s += sgl.system("You are a careful judge.") + sgl.user(f"Essay: {essay}\nJudge it.")
    forks = s.fork(3)
    for f, aspect in zip(forks, ["clarity", "depth", "style"]):  # noqa: B905 - as the README writes it
        f += sgl.assistant(f"About its {aspect}: " + sgl.gen("note", max_tokens=48, stop="\n"))
    notes = await forks.join("note")
    s += sgl.assistant("\n".join(notes) + "\nGrade: " + sgl.select("grade", choices=["good", "fair", "poor"]))


async def test_the_readme_program_runs_as_written(client: FakeClient, backend: Backend) -> None:
    """Forks see the shared prefix, join returns their notes in order, and select ends the assistant turn."""
    client.answer = lambda prompt, request: prompt.rpartition("its ")[2].strip(": ") + " is fine."
    client.logprob = lambda word: {" fair": -0.1, " good": -2.0, " poor": -3.0}.get(word, -1.0)
    state = await judge.bind(essay="On bees.").run()
    assert state["note"] == ["clarity is fine.", "depth is fine.", "style is fine."]
    assert state["grade"] == "fair"  # its token holds the space that the prompt ends with
    head = "<|im_start|>system\nYou are a careful judge.<|im_end|>\n<|im_start|>user\nEssay: On bees.\nJudge it.<|im_end|>\n"
    notes = "clarity is fine.\ndepth is fine.\nstyle is fine.\nGrade: fair"
    assert state.text() == f"{head}<|im_start|>assistant\n{notes}<|im_end|>\n"
    assert state.messages() == [
        {"role": "system", "content": "You are a careful judge."},
        {"role": "user", "content": "Essay: On bees.\nJudge it."},
        {"role": "assistant", "content": notes},
    ]
    assert set(state.meta("grade")["scores"]) == {"good", "fair", "poor"}
    assert state.usage.calls == 1 + 3 + 3
    assert [b["note"] for b in state.branches[0]] == state["note"]


async def test_children_start_after_the_shared_prefix(client: FakeClient, backend: Backend) -> None:
    """A fork of several sends its common prefix with max_tokens 0, and no branch asks before that has ended."""
    await judge.run(essay="x")
    first = client.requests[0]
    assert first.sampling.max_tokens == 0
    ended = client.events.index(("end", client.prompts[0]))
    assert client.events[: ended + 1] == [("begin", client.prompts[0]), ("end", client.prompts[0])]
    assert all(prompt.startswith(client.prompts[0]) for prompt in client.prompts[1:4])


async def test_a_single_branch_sends_no_hint(client: FakeClient, backend: Backend) -> None:
    """fork(1) shares with nobody, so it costs no extra call."""

    @sgl.function
    async def copy(s: sgl.ProgramState) -> None:
        s += "prefix"
        group = s.fork()
        group += sgl.gen("x")
        await group.join("x")

    await copy.run()
    assert len(client.requests) == 1


async def test_appending_never_waits(client: FakeClient, backend: Backend) -> None:
    """The body runs on while a gen is held; awaiting another stream's variable does not wait for it."""
    client.hold("slow")
    order = []

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        slow, quick = s.fork(2)
        slow += "slow" + sgl.gen("x")
        quick += "quick" + sgl.gen("x")
        order.append("appended")
        order.append(await quick["x"])
        client.release("slow")
        order.append(await slow["x"])

    await program.run()
    assert order == ["appended", " echo5", " echo4"]


async def test_a_variable_may_be_used_before_it_exists(client: FakeClient, backend: Backend) -> None:
    """`s += "…" + s["v"]` waits in the stream, and one stream may quote another's variable."""
    client.answer = lambda prompt, request: " bees"

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        a, b = s.fork(2)
        a += "Topic:" + sgl.gen("topic")
        a += " Expand:" + a["topic"]
        b += "Other:" + a["topic"] + "."
        s["texts"] = [await a.text(), await b.text()]

    state = await program.run()
    assert state["texts"] == ["Topic: bees Expand: bees", "Other: bees."]


async def test_streams_may_quote_each_other_crosswise(client: FakeClient, backend: Backend) -> None:
    """Two streams that each wait for the other's earlier variable do not block."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        a, b = s.fork(2)
        a += "a" + sgl.gen("x")
        b += "b" + sgl.gen("y")
        a += b["y"]
        b += a["x"]
        s["both"] = [await a.text(), await b.text()]

    state = await program.bind().run(timeout=5)
    assert state["both"] == ["a echo1 echo1", "b echo1 echo1"]


async def test_a_variable_written_again_is_read_as_of_its_place(client: FakeClient, backend: Backend) -> None:
    """In a loop that reuses a name, each await gives the value of the gen just added."""
    client.answer = lambda prompt, request: str(prompt.count("?"))

    @sgl.function
    async def program(s: sgl.ProgramState) -> Any:
        seen = []
        for _ in range(3):
            s += "?" + sgl.gen("x")
            seen.append(await s["x"])
        return seen

    assert (await program.run()).value == ["1", "2", "3"]


async def test_setting_a_variable(client: FakeClient, backend: Backend) -> None:
    """`s["v"] = value` keeps plain data in order with the gens; other data is refused at once."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s["n"] = 3
        s += "n=" + s["n"]
        assert await s["n"] == 3
        assert "n" in s
        assert "m" not in s
        s["bad"] = object()

    with pytest.raises(sgl.InvalidPrimitive, match=r"plain data"):
        await program.run()


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (bool, "truth"), (lambda r: r == "x", "=="), (lambda r: r != "x", "!="), (str, "str"), (lambda r: f"{r}", "formatting"),
        (list, "iteration"), (len, "len"), (lambda r: "x" in r, "in"), (lambda r: r < 1, "<"), (lambda r: r[0], "indexing"),
    ],
)  # fmt: skip
async def test_an_unresolved_variable_refuses_to_be_a_value(
    client: FakeClient, backend: Backend, use: Any, name: str
) -> None:
    """bool, ==, str, format, iteration … of a Ref raise with the line, instead of being silently false."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.gen("x")
        use(s["x"])

    with pytest.raises(sgl.UnresolvedVariable, match=r"test_program_language\.py:\d+") as caught:
        await program.run()
    assert name in str(caught.value)


async def test_an_unknown_variable_raises_at_once(client: FakeClient, backend: Backend) -> None:
    """Awaiting what nothing defines does not wait, not even for a gen that is held."""
    client.hold("wait")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s["known"] = 1
        s += "wait" + sgl.gen("x")
        await s["typo"]

    with pytest.raises(UnknownVariable, match=r"program 'program'.*'typo'.*known"):
        await program.run()


async def test_an_error_of_the_node_surfaces_with_its_place(client: FakeClient, backend: Backend) -> None:
    """A failing gen raises where its variable is awaited and at run(): program, variable, cause, tail of the prompt."""
    client.answer = lambda prompt, request: ContextLengthExceeded("9000 tokens, the context is 8192")
    seen = []

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Long ago" + sgl.gen("story")
        s += " later" + sgl.gen("more")
        for _ in range(2):
            try:
                await s["story"]
            except sgl.ProgramError as error:
                seen.append(error)
        s += " and on" + sgl.gen("never")

    with pytest.raises(sgl.PrimitiveFailed) as caught:
        await asyncio.wait_for(program.run(), 5)
    assert len(seen) == 2
    text = str(caught.value)
    assert text.startswith("program 'program', variable 'story', ")
    assert "test_program_language.py:" in text
    assert ": ContextLengthExceeded: 9000 tokens" in text
    assert "the prompt ends: 'Long ago'" in text
    assert isinstance(caught.value.__cause__, ContextLengthExceeded)
    assert len(client.requests) == 1


async def test_an_error_in_the_body_surfaces_with_the_prompt(client: FakeClient, backend: Backend) -> None:
    """run() raises BodyFailed from what the body raised, with the tail of the prompt."""
    client.answer = lambda prompt, request: " bees"

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Once upon a time" + sgl.gen("x")
        await s["x"]
        raise KeyError("chapter")

    with pytest.raises(sgl.BodyFailed, match=r"Once upon a time bees") as caught:
        await program.run()
    assert isinstance(caught.value.__cause__, KeyError)


async def test_join_of_a_failed_branch_raises(client: FakeClient, backend: Backend) -> None:
    """The failure names the branch and its variable, and is raised from what the node said."""
    client.answer = lambda prompt, request: Overloaded("full") if "two" in prompt else " ok"

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        forks = s.fork(2)
        forks += ["one" + sgl.gen("x"), "two" + sgl.gen("x")]
        await forks.join("x")

    with pytest.raises(
        sgl.PrimitiveFailed, match=r"branch 0\.1 failed at variable 'x': Overloaded: full.*two"
    ) as caught:
        await program.run()
    assert isinstance(caught.value.__cause__, Overloaded)
    assert caught.value.__cause__.retryable


async def test_a_branch_failure_nobody_looked_at_is_raised_by_run(
    client: FakeClient, backend: Backend
) -> None:
    """A branch that is neither joined nor awaited cannot fail in silence; one whose error the body has caught can."""
    client.answer = lambda prompt, request: Overloaded("full")

    @sgl.function
    async def program(s: sgl.ProgramState, look: bool) -> None:
        (branch,) = s.fork()
        branch += "x" + sgl.gen("x")
        if look:
            with pytest.raises(sgl.PrimitiveFailed):
                await branch["x"]

    with pytest.raises(sgl.PrimitiveFailed, match=r"branch 0.0"):
        await program.run(look=False)
    await program.run(look=True)


async def test_joins(client: FakeClient, backend: Backend) -> None:
    """gather_variable lists values by branch; concate_and_append writes what branches added; modes may stand first."""
    client.answer = lambda prompt, request: prompt[-1] + "!"

    @sgl.function
    async def program(s: sgl.ProgramState) -> Any:
        s += "p"
        first = s.fork(2)
        first += lambda i: str(i) + sgl.gen("x") + sgl.gen("y")
        both = await first.join()
        second = s.fork(2)
        second += ["a" + sgl.gen("z"), "b" + sgl.gen("z")]
        texts = await second.join("concate_and_append")
        third = s.fork(1)
        third[0] += sgl.gen("w")
        with pytest.raises(sgl.InvalidPrimitive):
            third.join("x", mode="nonsense")
        assert await third.join("gather_variable") == {"w": ["!!"]}
        return both, texts, await s["y"], await second[1]["z"], await second[0].text()

    state = await program.run()
    assert state.value == ({"x": ["0!", "1!"], "y": ["!!", "!!"]}, ["aa!", "bb!"], ["!!", "!!"], "b!", "paa!")
    assert state.text() == "paa!bb!"
    assert state["w"] == ["!!"]


async def test_join_asks_for_a_variable_that_a_branch_lacks(client: FakeClient, backend: Backend) -> None:
    """The error names the branch."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        group = s.fork(2)
        group[0] += sgl.gen("x")
        await group.join("x")

    with pytest.raises(UnknownVariable, match=r"branch 0\.1 has no such variable"):
        await program.run()


async def test_a_joined_branch_takes_nothing_more(client: FakeClient, backend: Backend) -> None:
    """`+=` after the join raises StreamEnded."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        (branch,) = group = s.fork()
        branch += sgl.gen("x")
        group.join("x")
        branch += "more"

    with pytest.raises(sgl.StreamEnded, match=r"branch 0.0"):
        await program.run()


async def test_a_plain_body_may_not_await_but_runs(client: FakeClient, backend: Backend) -> None:
    """A `def` body adds, forks and joins; run() waits for all of it."""

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        group = s.fork(2)
        group += sgl.gen("x")
        group.join("x")
        s += sgl.gen("y")

    state = await program.run()
    assert (state["x"], state["y"]) == ([" echo0", " echo0"], " echo0")


async def test_nested_forks_and_seeds(client: FakeClient, backend: Backend) -> None:
    """Seeds follow from program seed, path and number of the gen: replays repeat them, streams differ."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.gen("a") + sgl.gen("b")
        for branch in (outer := s.fork(2)):
            inner = branch.fork(2)
            inner += sgl.gen("x")
            await inner.join("x")
        await outer.join("x")

    one = await program.bind().run(seed=7)
    seeds = {r.sampling.seed for r in client.requests if r.sampling.max_tokens}
    assert len(seeds) == 6
    client.requests.clear()
    await program.bind().run(seed=one.seed)
    assert {r.sampling.seed for r in client.requests if r.sampling.max_tokens} == seeds
    client.requests.clear()
    await program.run()
    assert not seeds & {r.sampling.seed for r in client.requests if r.sampling.max_tokens}
    assert one["x"] == [[" echo12", " echo12"], [" echo12", " echo12"]]


async def test_cancelling_a_run_cancels_its_subtree(client: FakeClient, backend: Backend) -> None:
    """What branches had asked of the node is cancelled with the run."""
    client.hold("wait")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        group = s.fork(5)
        group += "wait" + sgl.gen("x")
        await group.join("x")

    task = asyncio.ensure_future(program.run())
    await client.asked(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while client.running:
        await asyncio.sleep(0)
    assert client.cancelled == 5


async def test_a_run_ends_at_its_deadline(client: FakeClient, backend: Backend) -> None:
    """A body that waits for ever for a gen fails where it waits; one that never ends is ended."""
    client.hold("wait")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "wait" + sgl.gen("x")
        await s["x"]

    with pytest.raises(sgl.PrimitiveFailed, match=r"variable 'x'.*time is over") as caught:
        await program.bind().run(timeout=0.05)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)

    @sgl.function
    async def endless(s: sgl.ProgramState) -> None:
        s += "I wait"
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded, match=r"I wait"):
        await endless.bind().run(timeout=0.05)


async def test_stream_yields_the_pieces_of_one_variable(client: FakeClient, backend: Backend) -> None:
    """Pieces come while the gen is running; the program runs to its end after them."""
    client.answer = lambda prompt, request: ["Once ", "upon ", "a time"]
    ended = []

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Tell" + sgl.gen("title") + sgl.gen("story")
        ended.append(await s["story"])

    assert [chunk async for chunk in program.bind().stream("title")] == ["Once ", "upon ", "a time"]
    assert ended == ["Once upon a time"]
    assert "".join([chunk async for chunk in program.stream("story")]) == "Once upon a time"


async def test_stream_of_what_never_comes_raises(client: FakeClient, backend: Backend) -> None:
    """An unknown variable, a failing gen and a failing body end the iterator with their error."""

    @sgl.function
    async def program(s: sgl.ProgramState, fault: str) -> None:
        if fault == "body":
            raise ValueError("no")
        s += sgl.gen("x")

    with pytest.raises(UnknownVariable, match=r"'story'"):
        _ = [c async for c in program.bind(fault="").stream("story")]
    with pytest.raises(sgl.BodyFailed, match=r"ValueError"):
        _ = [c async for c in program.bind(fault="body").stream("x")]
    client.answer = lambda prompt, request: Overloaded("full")
    with pytest.raises(sgl.PrimitiveFailed, match=r"full"):
        _ = [c async for c in program.bind(fault="").stream("x")]


async def test_closing_a_stream_early_cancels_the_program(client: FakeClient, backend: Backend) -> None:
    """Nothing runs on for a consumer that has gone."""
    client.answer = lambda prompt, request: ["a"] * 1000

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.gen("x")

    chunks = program.bind().stream("x")
    async for _ in chunks:
        break
    await chunks.aclose()
    while client.running:
        await asyncio.sleep(0)
    assert client.cancelled == 1


async def test_run_batch(client: FakeClient, backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    """Results in the order of the items, no more at a time than asked for, dicts or tuples, errors kept if wanted."""
    client.answer = lambda prompt, request: Overloaded("full") if "3" in prompt else prompt + "!"

    @sgl.function
    async def program(s: sgl.ProgramState, n: int) -> None:
        s += str(n) + sgl.gen("x")

    states = await program.run_batch([{"n": 1}, (2,), {"n": 4}], max_concurrency=2, progress_bar=True)
    assert [state["x"] for state in states] == ["1!", "2!", "4!"]
    assert client.most <= 2
    assert capsys.readouterr().err == ""
    kept = await program.run_batch([(3,), (1,)], return_exceptions=True)
    assert isinstance(kept[0], sgl.PrimitiveFailed)
    assert kept[1]["x"] == "1!"
    with pytest.raises(sgl.PrimitiveFailed, match=r"full"):
        await program.run_batch([(1,), (3,), (5,)])
    assert await program.run_batch([]) == []


async def test_sampling_defaults_of_a_run(client: FakeClient, backend: Backend) -> None:
    """A gen's own arguments go before the run's, those before the library's."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.gen("x", temperature=0.5) + sgl.gen("y", stop=["a", "b"], seed=5)

    await program.run(temperature=0.0, max_new_tokens=7, stop="END")
    x, y = (r.sampling for r in client.requests)
    assert (x.temperature, x.max_tokens, x.stop, x.top_p) == (0.5, 7, ("END",), 1.0)
    assert (y.temperature, y.max_tokens, y.stop, y.seed) == (0.0, 7, ("a", "b"), 5)
    with pytest.raises(sgl.InvalidPrimitive, match=r"temperature"):
        await program.bind().run(temperature="hot")
    with pytest.raises(sgl.InvalidPrimitive, match=r"nonsense"):
        await program.bind().run(nonsense=1)


async def test_roles_in_pieces_and_frames_asked_once(client: FakeClient, backend: Backend) -> None:
    """user_begin … user_end is the same as user(…); programs of one shape ask for the template once."""
    client.answer = lambda prompt, request: "Hi"

    @sgl.function
    async def whole(s: sgl.ProgramState) -> None:
        s += sgl.user("Hello") + sgl.assistant(sgl.gen("x"))

    @sgl.function
    async def pieces(s: sgl.ProgramState) -> None:
        s += sgl.user_begin()
        s += "Hel"
        s += "lo" + sgl.user_end() + sgl.assistant_begin()
        s += sgl.gen("x")
        s += sgl.assistant_end()

    one, two = await whole.run(), await pieces.run()
    asked = client.renderings
    assert one.text() == two.text()
    assert client.prompts[0] == client.prompts[1]
    await whole.run_batch([{}] * 5)
    assert client.renderings == asked == 2


@pytest.mark.parametrize(
    "add",
    [
        lambda s: s.__iadd__(sgl.user_begin() + sgl.assistant_begin()), lambda s: s.__iadd__(sgl.user_end()),
        lambda s: s.__iadd__(None), lambda s: s.__iadd__("a" + sgl.gen("x") + 5), lambda s: s.fork(0),
        lambda s: s.__getitem__(3), lambda s: s.fork(2).__iadd__(["one"]), list,
    ],
)  # fmt: skip
async def test_wrong_primitives_are_refused_at_their_line(
    client: FakeClient, backend: Backend, add: Any
) -> None:
    """Wrong nesting, None, numbers and the like raise in the body, before anything is sent."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        add(s)

    with pytest.raises(sgl.ProgramError):
        await program.run()
    assert client.requests == []


async def test_a_hundred_programs_share_a_backend(client: FakeClient, backend: Backend) -> None:
    """Programs do not get into each other's way."""
    client.answer = lambda prompt, request: prompt[-2:]

    @sgl.function
    async def program(s: sgl.ProgramState, n: int) -> None:
        s += f"{n:02}" + sgl.gen("x")
        group = s.fork(2)
        group += sgl.gen("y")
        await group.join("y")

    states = await program.run_batch([{"n": n} for n in range(100)], max_concurrency=100)
    assert [state["x"] for state in states] == [f"{n:02}" for n in range(100)]
    assert all(len(set(state["y"])) == 1 for state in states)
