"""What goes wrong in programs that block: it is heard where the value is read, and nothing waits for ever."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

import sgl_actors.compat as sgl
from sgl_actors.actors.tokenizer.messages import Generate
from sgl_actors.errors import Overloaded, UnknownVariable
from sgl_actors.lang.errors import InvalidPrimitive, PrimitiveFailed, StreamEnded
from tests.compat.conftest import until
from tests.programs.fakes import Answer, FakeClient

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A run that fails unheard warns; here that is no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def fails_at(word: str) -> Callable[[str, Generate], Answer]:
    """An answer that is an error where the prompt ends with `word`."""

    def answer(prompt: str, request: Generate) -> Answer:
        return Overloaded("full") if prompt.endswith(word) else " fine"

    return answer


@sgl.function
def two(s, first="good", second="bad"):
    s += first + sgl.gen("one")
    s += second + sgl.gen("two")


def test_a_failure_is_in_the_state(client: FakeClient) -> None:
    """`run` returns, as SGLang's does; `error()` tells, what was done before can be read, what failed raises with its cause."""
    client.answer = fails_at("bad")
    state = two.run()
    error = state.error()
    assert isinstance(error, PrimitiveFailed)
    assert isinstance(error.__cause__, Overloaded)
    assert state["one"] == " fine"
    with pytest.raises(sgl.NoValue, match=r"program 'two', variable 'two'.*good fine.*bad") as caught:
        state["two"]
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value.__cause__, Overloaded)
    with pytest.raises(PrimitiveFailed):
        state.text()
    with pytest.raises(PrimitiveFailed):
        state.messages()
    state.sync()


def test_a_run_that_fails_unheard_warns(client: FakeClient) -> None:
    """A failure that nobody reads is not silent."""
    client.answer = fails_at("bad")
    with pytest.warns(RuntimeWarning, match="two: PrimitiveFailed: .*full"):
        two.run().running.wait()


def test_a_failure_that_the_body_reads_ends_the_body(client: FakeClient) -> None:
    """Reading it in the body raises there, and so at `run`; a body that catches it goes on elsewhere."""
    client.answer = fails_at("bad")

    @sgl.function
    def reads(s):
        s += "bad" + sgl.gen("x")
        return s["x"]

    with pytest.raises(sgl.NoValue, match="full"):
        reads.run()

    @sgl.function
    def catches(s):
        bad, good = s.fork(2)
        bad += "bad" + sgl.gen("x")
        good += "good" + sgl.gen("x")
        try:
            s["x"] = bad["x"]
        except KeyError:
            s["x"] = good["x"]

    state = catches.run()
    assert (state["x"], state.error()) == (" fine", None)


def test_joining_a_failed_branch_raises(client: FakeClient) -> None:
    """The list would be short without a word; here the join raises and names the branch."""
    client.answer = fails_at("bad")

    @sgl.function
    def joins(s):
        forks = s.fork(2)
        forks += ["bad" + sgl.gen("x"), "good" + sgl.gen("x")]
        forks.join()

    with pytest.raises(PrimitiveFailed, match=r"branch 0\.0 failed at variable 'x'.*full"):
        joins.run()


def test_a_body_that_raises(client: FakeClient) -> None:
    """What the body raises comes out of `run` as it is, with a note of where the prompt was; what it had asked for is cancelled."""
    client.hold("Once")

    @sgl.function
    def broken(s):
        s += "Once" + sgl.gen("x")
        raise ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError) as caught:
        broken.run()
    assert "raised in program 'broken'; its prompt ends: 'Once{gen x}'" in caught.value.__notes__


def test_a_variable_that_nothing_defines() -> None:
    """It raises at once, as an error of ours and as a KeyError, and names those there are; `in` does not wait."""
    state = two.run()
    with pytest.raises(sgl.NoVariable, match="'three'; it has: one, two") as caught:
        state["three"]
    assert isinstance(caught.value, UnknownVariable)
    assert isinstance(caught.value, KeyError)
    assert ("one" in state, "three" in state) == (True, False)
    assert state.get_meta_info("three") is None


def test_what_a_state_does_not_take() -> None:
    """Each is refused in the line that says it, as SGLang's exceptions and as ours."""

    @sgl.function
    def body(s, add):
        add(s)

    def nothing(s: sgl.ProgramState) -> None:
        s += None

    def nested(s: sgl.ProgramState) -> None:
        s += sgl.user_begin() + sgl.assistant("x")

    def number(s: sgl.ProgramState) -> None:
        s += 5

    def mode(s: sgl.ProgramState) -> None:
        s.fork(2).join("merge")

    def joined(s: sgl.ProgramState) -> None:
        forks = s.fork(1)
        forks.join()
        forks += "more"

    def replaced(s: sgl.ProgramState) -> None:
        forks = s.fork(1)
        forks[0] = s

    for add, error, words in [
        (nothing, ValueError, "None"), (nested, InvalidPrimitive, "inside the user turn"), (number, InvalidPrimitive, "int 5"),
        (mode, ValueError, "concate_and_append, not 'merge'"), (joined, StreamEnded, "branch 0.0 has been joined"),
        (replaced, ValueError, "cannot be replaced"),
    ]:  # fmt: skip
        with pytest.raises(error, match=words):
            body.run(add=add)


def test_a_state_that_is_over_takes_nothing() -> None:
    """SGLang waits for ever here."""
    state = two.run()
    with pytest.raises(StreamEnded, match="program 'two' is over and takes nothing more"):
        state += "more"


def test_programs_that_are_none() -> None:
    """A body without `s`, an async one, arguments that do not fit, options that are none."""
    with pytest.raises(InvalidPrimitive, match="first parameter of a program is `s`"):
        sgl.function(lambda state: None)

    async def body(s: object) -> None: ...

    with pytest.raises(InvalidPrimitive, match="an async body is a program of `sgl_actors`"):
        sgl.function(body)
    with pytest.raises(InvalidPrimitive, match="no parameter 'third'"):
        two.bind(third="x")
    with pytest.raises(TypeError):
        two.run(third="x")
    with pytest.raises(InvalidPrimitive, match=r"run_batch: .*third"):
        two.run_batch([{"third": 1}])
    with pytest.raises(InvalidPrimitive, match="too many positional"):
        two.run_batch([("a", "b", "c")])
    with pytest.raises(InvalidPrimitive, match="temperature is a number from 0"):
        two.run(temperature=-1)
    with pytest.raises(InvalidPrimitive, match="num_threads"):
        two.run_batch([{}, {}], num_threads=0)


def test_the_deadline_ends_every_wait(client: FakeClient) -> None:
    """A model that never answers fails the program when its time is over."""
    client.hold("good")

    @sgl.function
    def waits(s):
        s += "good" + sgl.gen("x")
        s["x"]

    with pytest.raises(sgl.NoValue, match="time is over"):
        waits.run(timeout=0.05)


def test_the_first_error_ends_a_batch(client: FakeClient) -> None:
    """What a body raises is raised, and the other programs are cancelled: their held requests are, too."""
    client.hold("slow")

    @sgl.function
    def body(s, kind):
        if kind == "broken":
            begun.wait()
            raise ZeroDivisionError
        s += "slow" + sgl.gen("x")
        begun.set()
        s["x"]

    begun = threading.Event()
    with pytest.raises(ZeroDivisionError):
        body.run_batch([{"kind": "broken"}, {"kind": "slow"}])
    until(lambda: client.running == 0)
    assert client.cancelled == 1


def test_a_batch_keeps_what_fails_unread(client: FakeClient) -> None:
    """A gen that fails without being read fails its own state only."""
    client.answer = fails_at("bad")
    states = two.run_batch([{"second": "bad"}, {"second": "better"}])
    assert [state.error() is None for state in states] == [False, True]


def test_leaving_a_batch_early_ends_the_rest(client: FakeClient) -> None:
    """Results come one by one; leaving the iterator cancels what still runs."""
    client.hold("slow")

    @sgl.function
    def body(s, word):
        s += word + sgl.gen("x")

    states = body.run_batch([{"word": word} for word in ("quick", "slow")], generator_style=True)
    assert next(states)["x"] == " echo5"
    states.close()
    until(lambda: client.running == 0)
    assert next(iter(body.run_batch([("again",)], generator_style=True)))["x"] == " echo5"


def test_a_stream_that_fails(client: FakeClient) -> None:
    """The text so far is read, then the failure is raised; so is what the body raises."""
    client.answer = fails_at("bad")
    state = two.run(stream=True)
    pieces: list[str] = []
    with pytest.raises(PrimitiveFailed, match="full"):
        pieces.extend(state.text_iter())
    assert isinstance(state.error(), PrimitiveFailed)
    assert list(two.run(stream=True).text_iter("one")) == [" fine"]

    @sgl.function
    def broken(s):
        s += "good" + sgl.gen("x")
        s["x"]
        raise ZeroDivisionError

    state = broken.run(stream=True)
    with pytest.raises(ZeroDivisionError):
        list(state.text_iter())
    assert state["x"] == " fine"
    assert isinstance(state.error(), ZeroDivisionError)


def test_without_a_thread_each_line_waits(client: FakeClient) -> None:
    """`use_thread=False` raises in the line that fails."""
    client.answer = fails_at("bad")
    reached: list[int] = []

    @sgl.function
    def body(s):
        s += "good" + sgl.gen("x")
        reached.append(len(client.requests))
        s += "bad" + sgl.gen("y")
        reached.append(-1)

    with pytest.raises(PrimitiveFailed):
        body.run(use_thread=False)
    assert reached == [1]
