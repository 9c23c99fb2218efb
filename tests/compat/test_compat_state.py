"""States, groups and runs of the sync flavour, beyond what the example programs do."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from typing import Any

import pytest

import sgl_actors.compat as sgl
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.threaded.loop import background
from tests.programs.fakes import FakeClient

pytestmark = pytest.mark.usefixtures("backend")


@sgl.function
def ask(s, question, end="."):
    """Asks."""
    s += question + sgl.gen("answer", stop=end)
    return s["answer"].upper()


def test_what_run_passes_on(client: FakeClient) -> None:
    """Sampling arguments are defaults for gens that do not state them, under SGLang's names; bound arguments go first."""
    options: dict[str, Any] = {
        "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "frequency_penalty": 0.2, "presence_penalty": 0.3,
        "stop": "never", "stop_token_ids": [5], "stop_regex": "a+", "ignore_eos": True, "seed": 3,
    }  # fmt: skip
    state = ask.bind(end="!").run("Why?", end="?", **options)
    sampling = client.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 3)
    assert (sampling.min_p, sampling.frequency_penalty, sampling.presence_penalty) == (0.1, 0.2, 0.3)
    assert ([*sampling.stop], [*sampling.stop_token_ids], [*sampling.stop_regex]) == (["!"], [5], ["a+"])
    assert sampling.ignore_eos
    assert state.ret_value == " ECHO4"
    assert (ask.func.__doc__, ask.__doc__, ask.arg_names) == ("Asks.", "Asks.", ["question", "end"])
    ask("Why?")
    assert client.requests[1].sampling.seed != client.requests[0].sampling.seed


def test_several_completions_and_log_probabilities(client: FakeClient) -> None:
    """`n` and the log probability arguments of `run` are for every gen; entries of logprobs are triples, as SGLang's are."""
    state = ask.bind(question="Why?").run(n=1, return_logprob=True, top_logprobs_num=2, logprob_start_len=0)
    request = client.requests[0]
    assert (request.logprobs, request.top_logprobs, request.prompt_logprobs_start) == (True, 2, 0)
    meta = state.get_meta_info("answer")
    assert meta is not None
    assert all(len(entry) == 3 for entry in meta["input_token_logprobs"])

    @sgl.function
    def several(s):
        s += "Why?" + sgl.gen("answer") + sgl.gen("one", n=1)

    state = several.run(n=2)
    assert isinstance(state["answer"], list)
    assert state.text().startswith("Why?" + state["answer"][0])


def test_variables_go_to_branches(client: FakeClient) -> None:
    """A branch has what its parent had at the fork, and what it sets itself is its own."""

    @sgl.function
    def body(s):
        s += "a" + sgl.gen("x")
        s["y"] = ["kept"]
        s.set_var("z", 1)
        f = s.fork(1)[0]
        s["z"] = 2
        f["y"].append("by both")
        assert (f["x"], f["z"], f.get_var("z"), "x" in f) == (s["x"], 1, 1, True)
        f["x"] = "mine"
        f += "b" + sgl.gen("x")
        return f["x"]

    state = body.run()
    assert (state["x"], state["y"], state["z"], state.ret_value) == (
        " echo1",
        ["kept", "by both"],
        2,
        " echo8",
    )


def test_branches_of_branches_are_gathered_in_lists(client: FakeClient) -> None:
    """Each join makes a list of what its branches have, be it generated, set or gathered."""

    @sgl.function
    def body(s):
        forks = s.fork(2)
        for i, f in enumerate(forks):
            inner = f.fork(2)
            inner += lambda j, i=i: f"{i}{j}" + sgl.gen("leaf")
            inner.join()
            f["sum"] = i
        forks.join()

    state = body.run()
    assert (state["leaf"], state["sum"]) == ([[" echo2"] * 2] * 2, [0, 1])


def test_many_threads_write(client: FakeClient) -> None:
    """Threads that write to branches of their own, all at once, get each its own text in order."""

    @sgl.function
    def body(s):
        forks = s.fork(16)

        def write(i: int) -> None:
            for n in range(50):
                forks[i] += f"{i}:{n} "
            forks[i] += sgl.gen("x")
            texts[i] = forks[i].text()

        threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        forks.join()

    texts: dict[int, str] = {}
    state = body.run()
    assert len(state["x"]) == 16
    for i, text in texts.items():
        assert text.startswith("".join(f"{i}:{n} " for n in range(50)))


def test_run_goes_on_while_nobody_reads(client: FakeClient) -> None:
    """`run` of a body that reads nothing returns while its gen is held, so several programs run at once."""
    client.hold("go")

    @sgl.function
    def body(s, word):
        s += "go " + word + sgl.gen("x")

    states = [body.run(word) for word in ("one", "two", "three")]
    background.wait(lambda: client.asked(3))
    background.post(client.release, "go")
    assert [state["x"] for state in states] == [" echo6", " echo6", " echo8"]


def test_programs_call_programs(client: FakeClient) -> None:
    """A body may run another program, and recursion is Python's."""

    @sgl.function
    def count(s, n):
        s += str(n) + sgl.gen("x")
        return s["x"] + (count.run(n - 1).ret_value if n else "")

    assert count.run(2).ret_value == " echo1" * 3


def test_inside_a_running_event_loop(client: FakeClient) -> None:
    """Blocking where an event loop runs delays that loop, and nothing else; text can be awaited there."""

    async def main() -> list[Any]:
        state = ask.run(question="Why?")
        streamed = ask.run(question="Why?", stream=True)
        pieces = [piece async for piece in streamed.text_async_iter("answer", return_meta_data=True)]
        whole = [piece async for piece in state.text_async_iter()]
        return [
            state["answer"],
            "".join(text for text, _ in pieces),
            pieces[-1][1]["completion_tokens"],
            whole,
        ]

    assert asyncio.run(main()) == [" echo4", " echo4", 1, ["Why? echo4"]]


def test_streams_of_branches_and_late_readers(client: FakeClient) -> None:
    """A branch can be streamed, and what is over is given at once."""
    client.answer = lambda prompt, request: [" a", " b"]

    @sgl.function
    def body(s):
        f = s.fork(1)[0]
        f += "x" + sgl.gen("v")
        s["pieces"] = "".join(f.text_iter("v"))
        s += "y" + sgl.gen("w")

    state = body.run(stream=True)
    assert "".join(state.text_iter("w")) == " a b"
    state.running.wait()
    assert (state["pieces"], list(state.text_iter("w")), list(state.text_iter())) == (
        " a b",
        [" a b"],
        ["y a b"],
    )


def test_context_variables_reach_a_streamed_body(client: FakeClient) -> None:
    """The body of a streamed run sees the context of its caller."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    who.set("me")

    @sgl.function
    def body(s):
        s += who.get() + sgl.gen("x")

    assert "".join(body.run(stream=True).text_iter()) == "me echo2"


def test_a_budget_and_a_salt(client: FakeClient) -> None:
    """The run's own options are taken where the body has no parameter of that name."""
    state = ask.bind(question="Why?").run(budget=Budget(calls=1), cache_salt="mine", priority=2)
    assert state.error() is None
    assert {(request.salt, request.priority) for request in client.requests} == {("mine", 2)}
    with pytest.raises(BudgetExceeded):
        ask.run("Why?", budget=Budget(calls=0))

    @sgl.function
    def named(s, seed):
        s += f"{seed}" + sgl.gen("x")

    assert named.run(seed="own").text() == "own echo3"


def test_a_trace_and_a_prefix(client: FakeClient) -> None:
    """A body is recorded up to where it would have to know something; what comes before the first argument is computed on request."""

    @sgl.function
    def body(s, question):
        s += "A long beginning. " + "Q: " + question + "\n"
        s += sgl.gen("a")
        if s["a"]:
            s += "never"

    recording = str(body.trace())
    assert "'A long beginning. '" in recording.replace("A long beginning. Q: '", "A long beginning. '")
    assert "question" in recording
    assert "never" not in recording
    body.cache()
    assert client.prompts == ["A long beginning. Q: "]
    assert client.requests[0].sampling.max_tokens == 0


def test_the_cache_and_the_server(client: FakeClient) -> None:
    """`flush_cache` empties the default backend's cache; what is known of a backend without a node is our version."""
    assert sgl.flush_cache() is True
    assert client.flushed == 1
    assert sgl.get_server_info() == {"version": sgl.__version__}


def test_the_final_text_is_printed_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """`global_config.verbosity` 2 prints the text of every run."""
    sgl.global_config.verbosity = 2
    try:
        ask.run("Why?")
    finally:
        sgl.global_config.verbosity = 0
    assert capsys.readouterr().out == "Why? echo4\n"


def test_special_tokens_can_be_kept(client: FakeClient) -> None:
    """`global_config.skip_special_tokens_in_output` is for all gens."""
    sgl.global_config.skip_special_tokens_in_output = False
    try:
        ask.run("Why?")
    finally:
        sgl.global_config.skip_special_tokens_in_output = True
    assert client.requests[0].sampling.skip_special_tokens is False


def test_primitives_take_what_sglang_takes(client: FakeClient) -> None:
    """Empty choices are none, choices go before everything else, a dtype goes before a pattern, positions are SGLang's."""
    client.answer = lambda prompt, request: "4.5"

    @sgl.function
    def body(s):
        s += "a" + sgl.gen("x", 3, 1, None, "stop", choices=[])
        s += sgl.gen("y", 5, choices=[" b", " c"], dtype=int, regex="x") + sgl.user()
        with pytest.warns(UserWarning, match="dtype goes before regex"):
            s += sgl.gen("z", dtype="float", regex="x", stop=";")
        s += sgl.gen_string("t") + sgl.gen_int("i")

    state = body.run()
    state.sync()
    first, z, t, i = [request for request in client.requests if request.sampling.max_tokens]
    assert (first.sampling.max_tokens, first.sampling.min_tokens, [*first.sampling.stop]) == (3, 1, ["stop"])
    assert state["y"] in (" b", " c")
    assert [*z.sampling.stop] == [";", " ", "\n"]
    sources = [one.sampling.constraint.source for one in (z, t, i) if one.sampling.constraint]
    assert [("[0-9]" in source, '"' in source) for source in sources] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert [type(state[name]) for name in "xyzti"] == [str] * 5


def test_appending_is_cheap(client: FakeClient) -> None:
    """`+=` hands over and returns: far below a tenth of a millisecond, whatever else the machine does."""

    @sgl.function
    def body(s):
        best = 1.0
        for _ in range(20):
            begin = time.thread_time()
            for _ in range(100):
                s += "word "
            best = min(best, (time.thread_time() - begin) / 100)
        return best

    assert body.run().ret_value < 100e-6


def test_json_can_be_made_of_what_is_read(client: FakeClient) -> None:
    """Values are plain: strings, lists and dictionaries."""
    state = ask.run("Why?")
    assert (
        json.loads(json.dumps([state["answer"], state.messages(), state.get_meta_info("answer")]))[0]
        == " echo4"
    )
