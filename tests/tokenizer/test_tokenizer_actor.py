"""The tokenizer actor in a real kernel, with a scheduler that does what the test says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLTokenizer

from sgl_actors.actors.grammar.messages import Compiled
from sgl_actors.actors.microkernel import Address, Message
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.scheduler.messages import (
    Abort,
    Finish,
    Stop,
    Update,
)
from sgl_actors.actors.tokenizer import constraints, prompts, served
from sgl_actors.actors.tokenizer.actor import INLINE, TokenizerActor
from sgl_actors.actors.tokenizer.messages import (
    Cancel,
    ChatMessage,
    Chunk,
    DescribeVocabulary,
    Detokenize,
    Generate,
    Text,
    Texts,
    TokenIds,
    Tokenize,
    TokenizerInfo,
    VocabularyInfo,
)
from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.errors import (
    ActorDown,
    Cancelled,
    ContextLengthExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    ProtocolError,
    SglActorsError,
)
from sgl_actors.lang import stop_patterns
from sgl_actors.lang.constraints.constraint import Constraint
from tests.tokenizer.house import END, A, B, House, ScriptedGrammar, ScriptedScheduler


async def test_a_request_goes_round(house: House) -> None:
    """The prompt reaches the scheduler in ids, tokens come back as text, the last chunk has the finish and the usage."""
    asker = house.ask(temperature=0.0, max_tokens=5, tenant="acme", seed=3)
    (sequence,) = await house.scheduler.submitted()
    assert (sequence.id, sequence.prompt, sequence.max_tokens, sequence.tenant) == ("r", [256], 5, "acme")
    assert sequence.sampling == Sampling(3, temperature=0.0, end_ids=(END,))
    assert 0 < sequence.timeout <= 20
    house.scheduler.progress(Update("r", 0, [A], cached=1))
    first = await asker.next()
    assert first == Chunk(
        0, [A], "a", prompt_tokens=1, cached_tokens=1, completion_tokens=1, prompt_ids=[256]
    )
    house.scheduler.progress(Update("r", 1, [B, END], finish=Finish("stop", END)))
    last = await asker.end()
    assert (last.first_index, last.text, last.finish, last.completion_tokens) == (
        1,
        "b",
        Finish("stop", END),
        3,
    )
    assert (last.prompt_ids, last.cached_tokens) == ([], 1)
    assert house.tokenizer.statistics()["generation_tokens_total"] == 3


async def test_requests_of_one_turn_are_one_message(house: House) -> None:
    """What is asked at once is submitted at once."""
    askers = [house.ask(f"r{n}") for n in range(8)]
    assert [sequence.id for sequence in await house.scheduler.submitted()] == [f"r{n}" for n in range(8)]
    for asker in askers:
        await asker.close()


async def test_a_stop_string_ends_a_request_at_both_ends(house: House) -> None:
    """The asker gets the trimmed text at once, the scheduler is told, and what it sends until it knows is dropped."""
    asker = house.ask(stop=("ba",))
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A, B]))
    assert (await asker.next()).text == "a"
    house.scheduler.progress(Update("r", 2, [A, A]))
    last = await asker.end()
    assert (last.text, last.token_ids, last.completion_tokens, last.finish) == (
        "",
        [A],
        3,
        Finish("stop", "ba"),
    )
    assert await house.scheduler.next() == Stop("r", 3, "ba")
    again = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 4, [A]), Update("r", 5, [], finish=Finish("stop", "ba")))
    house.scheduler.progress(Update("r", 0, [B], finish=Finish("length")))
    assert (await again.end()).text == "b"
    assert house.scheduler.told.empty()


async def test_an_id_can_be_used_again_after_a_cancel(house: House) -> None:
    """The end of the request that was cancelled does not end the next one of the same id."""
    asker = house.ask()
    await house.scheduler.submitted()
    await asker.close()
    assert await house.scheduler.next() == Abort(["r"])
    again = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [], finish=Finish("abort", code="cancelled")))
    house.scheduler.progress(Update("r", 0, [B], finish=Finish("length")))
    assert (await again.end()).text == "b"


async def test_a_stop_string_in_the_last_update_needs_no_order(house: House) -> None:
    """When the scheduler has ended the request by itself, it is not told to."""
    asker = house.ask(stop=("a",))
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A], finish=Finish("length")))
    assert (await asker.end()).finish == Finish("stop", "a")
    await house.settle()
    assert house.scheduler.told.empty()
    assert not house.tokenizer._submissions.ending


async def test_a_slow_asker_gets_merged_chunks(house: House) -> None:
    """Without credit nothing is sent; with the next credit all of it is one chunk; the end needs no credit."""
    asker = house.ask(credit=1)
    await house.scheduler.submitted()
    for n in range(5):
        house.scheduler.progress(Update("r", n, [A]))
    await house.settle()
    assert (await asker.next()).text == "a"
    assert (await asker.next()).text == "aaaa"
    house.scheduler.progress(Update("r", 5, [B], finish=Finish("length")))
    assert (await asker.end()).text == "b"


async def test_an_asker_that_goes_is_an_abort(house: House) -> None:
    """Closing a stream ends the request at the scheduler; later progress of it goes nowhere."""
    asker = house.ask()
    await house.scheduler.submitted()
    await asker.close()
    assert await house.scheduler.next() == Abort(["r"])
    house.scheduler.progress(
        Update("r", 0, [A]), Update("r", 1, [], finish=Finish("abort", code="cancelled"))
    )
    await house.settle()
    assert house.tokenizer.statistics()["num_live_requests"] == 0
    assert not house.tokenizer._submissions.ending


async def test_cancel_by_id_comes_back_as_an_abort(house: House) -> None:
    """An operator's cancel is the scheduler's to carry out; its error finishes are passed on as they are."""
    asker = house.ask()
    await house.scheduler.submitted()
    house.ctx.cast("tokenizer", Cancel(["r"]))
    assert await house.scheduler.next() == Abort(["r"])
    house.scheduler.progress(
        Update("r", 0, [], finish=Finish("abort", code="cancelled", message="by operator"))
    )
    last = await asker.end()
    assert (last.finish, last.prompt_ids) == (Finish("abort", code="cancelled", message="by operator"), [256])


async def test_cancel_of_unknown_ids_stays_here(house: House) -> None:
    """The scheduler hears only of ids that were submitted, so that nothing waits there for a later request of that id."""
    house.ctx.cast("tokenizer", Cancel(["never seen"]))
    await house.settle()
    assert house.scheduler.told.empty()
    asker = house.ask()
    await house.scheduler.submitted()
    house.ctx.cast("tokenizer", Cancel(["never seen", "r"]))
    assert await house.scheduler.next() == Abort(["r"])
    house.ctx.cast("tokenizer", Cancel([], all=True))
    assert await house.scheduler.next() == Abort([], all=True)
    await asker.close()


async def test_a_scheduler_that_takes_no_mail(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that cannot be handed over is refused as overloaded; an order that cannot be given is given later."""
    cast_, full = house.tokenizer.ctx.cast, True

    def refuse(to: str | Address, message: Message, **how: Any) -> None:
        assert how["control"]
        if full:
            raise Overloaded("full")
        cast_(to, message, **how)

    live = house.ask("live")
    await house.scheduler.submitted()
    monkeypatch.setattr(house.tokenizer.ctx, "cast", refuse)
    assert isinstance(await house.ask("new").error(), Overloaded)
    await live.close()
    await house.settle()
    assert house.scheduler.told.empty()
    full = False
    assert await house.scheduler.next() == Abort(["live"])


async def test_the_scheduler_restarts(house: House) -> None:
    """A live request is submitted again with its output so far, and what the new scheduler repeats is dropped."""
    asker = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A, A]))
    assert (await asker.next()).text == "aa"
    await house.stop("scheduler")
    late = house.ask("late")
    await house.settle()
    house.scheduler = await house.start(ScriptedScheduler, "scheduler")
    again = {sequence.id: sequence.output for sequence in await house.scheduler.submitted()}
    assert again == {"r": [A, A], "late": []}
    house.scheduler.progress(
        Update("r", 1, [A, B], finish=Finish("length")), Update("late", 0, [B], finish=Finish("length"))
    )
    last = await asker.end()
    assert (last.first_index, last.token_ids, last.text) == (2, [B], "b")
    assert (await late.end()).text == "b"


async def test_cancel_while_the_scheduler_is_down(house: House) -> None:
    """With nobody else to end it, the request is ended here."""
    asker = house.ask()
    await house.scheduler.submitted()
    await house.stop("scheduler")
    house.ctx.cast("tokenizer", Cancel([], all=True))
    assert (await asker.end()).finish.code == "cancelled"  # type: ignore[union-attr]


async def test_the_tokenizer_restarts(house: House) -> None:
    """A client goes on with the tokens it has: half a character that it has not seen yet is rebuilt from their ids."""
    chunks: list[Chunk] = []

    async def ask() -> None:
        async for chunk in NodeClient(house.ctx).generate(Generate("r", text="ab"), timeout=10):
            chunks.append(chunk)
            got.set()

    got = asyncio.Event()
    lead, trail = (house.tokenizer._vocabulary.raw.index(bytes([byte])) for byte in "é".encode())
    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        await house.scheduler.submitted()
        house.scheduler.progress(Update("r", 0, [A, lead]))
        await got.wait()
        await house.stop("tokenizer")
        house.tokenizer = await house.start(TokenizerActor, "tokenizer")
        (again,) = await house.scheduler.submitted()
        assert again.output == [A, lead]
        house.scheduler.progress(Update("r", 2, [trail, B], finish=Finish("length")))
    assert [chunk.text for chunk in chunks] == ["a", "éb"]
    assert [chunk.token_ids for chunk in chunks] == [[A, lead], [trail, B]]


async def test_a_new_asker_takes_a_live_request_over(house: House) -> None:
    """It gets what it does not have yet; the old one is told; a request of the same id with another prompt is refused."""
    old = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A, A, B]))
    assert (await old.next()).text == "aab"
    new = house.ask(output=[A])
    assert isinstance(await old.error(), Cancelled)
    assert ((await new.next()).text, house.scheduler.told.empty()) == ("ab", True)
    strangers: list[dict[str, Any]] = [{"text": "other"}, {"tenant": "other"}, {"output": [B]}]
    strangers += [{"temperature": 0.5}, {"seed": 1}, {"stop": ("x",)}, {"logprobs": True}]
    for fields in strangers:
        assert isinstance(error := await house.ask(**fields).error(), InvalidRequest), fields
        assert error.param == "id"
        assert "id r" in error.message
    house.scheduler.progress(Update("r", 3, [], finish=Finish("length")))
    assert (await new.end()).completion_tokens == 3


async def test_output_that_is_whole_already(house: House) -> None:
    """Nothing is submitted for an asker who only lacks the end."""
    last = await house.ask(output=[A, END]).end()
    assert (last.first_index, last.finish, last.completion_tokens) == (2, Finish("stop", END), 2)
    assert house.scheduler.told.empty()


async def test_a_lost_update_is_asked_for_again(house: House) -> None:
    """After a gap the request is submitted again, once, from where it stands; updates behind the gap wait for that."""
    asker = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A]))
    house.scheduler.progress(Update("r", 2, [B]), Update("r", 3, [B]))
    assert [sequence.output for sequence in await house.scheduler.submitted()] == [[A]]
    house.scheduler.progress(Update("r", 1, [A, B, B], finish=Finish("length")))
    assert (await asker.next()).text == "a"
    assert (await asker.end()).text == "abb"
    assert house.scheduler.told.empty()


async def test_a_long_prompt_does_not_hold_up_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long text is tokenised in a thread, a short request passes; a cancel in the meantime is heeded."""
    loop, begun, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    ids = prompts.Prompts.ids

    def slow(self: prompts.Prompts, request: Generate) -> list[int]:
        if prompts.size(request) > INLINE:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        return ids(self, request)

    monkeypatch.setattr(prompts.Prompts, "ids", slow)
    long, gone = house.ask("long", text="a" * 20_000), house.ask("gone", text="b" * 20_000)
    await begun.wait()
    short = house.ask("short")
    assert [sequence.id for sequence in await house.scheduler.submitted()] == ["short"]
    house.ctx.cast("tokenizer", Cancel(["gone"]))
    await house.settle()
    assert house.scheduler.told.empty()
    go.set()
    assert isinstance(await gone.error(), Cancelled)
    assert [(s.id, len(s.prompt)) for s in await house.scheduler.submitted()] == [("long", 20_000)]
    for asker in (long, short):
        await asker.close()


async def test_bad_requests_are_their_askers_error(house: House) -> None:
    """A refusal names the field, nothing is submitted, and the actor lives on."""
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"temperature": -1.0}, InvalidRequest, "temperature"),
        ({"text": ""}, InvalidRequest, "prompt"),
        ({"messages": [ChatMessage("user", "x")]}, InvalidRequest, "messages"),
        ({"input_ids": [1, 300]}, InvalidRequest, "prompt"),
        ({"text": "x", "max_tokens": 40_000}, ContextLengthExceeded, "prompt"),
        ({"text": "x" * 40_001}, ContextLengthExceeded, "prompt"),
    ]
    for fields, kind, param in cases:
        error = await house.ask(**fields).error()
        assert (type(error), getattr(error, "param", None)) == (kind, param)
    with pytest.raises(ProtocolError):
        await house.ctx.call("tokenizer", Generate("r", text="x"), Chunk)
    await house.settle()
    assert house.scheduler.told.empty()


async def test_a_constraint_reaches_the_scheduler(house: House) -> None:
    """It travels with the sampling; the end token ends the output whatever ignore_eos and min_tokens say."""
    constraint = Constraint("regex", "(ab)+")
    asker = house.ask(constraint=constraint, ignore_eos=True, min_tokens=3, stop_token_ids=(A,), seed=1)
    (sequence,) = await house.scheduler.submitted()
    assert sequence.sampling == Sampling(1, min_tokens=3, end_ids=(A, END), constraint=constraint)
    house.scheduler.progress(Update("r", 0, [256, END], finish=Finish("stop", END)))
    assert (await asker.end()).text == "ab"
    whole = house.ask(constraint=constraint, min_tokens=3, output=[256, END])
    assert (await whole.end()).finish == Finish("stop", END)
    assert house.scheduler.told.empty()


@pytest.mark.parametrize(
    ("options", "param", "problem"),
    [
        ({"constraint": Constraint("poem", "")}, "constraint", "'poem' is none of regex"),
        ({"constraint": Constraint("regex", "a" * 65_537)}, "regex", "at most 65536 are taken"),
        ({"stop_regex": ("a(",)}, "stop_regex", r"'a\(' does not compile"),
        ({"stop_regex": ("a?",)}, "stop_regex", "matches the empty string"),
        ({"stop_regex": ("",)}, "stop_regex", "must have 1 to 1024 characters"),
        ({"stop_regex": ("a",) * 17}, "stop_regex", "17 stop patterns; at most 16"),
    ],
)
async def test_what_is_asked_of_the_output_is_checked_first(
    house: House, options: dict[str, Any], param: str, problem: str
) -> None:
    """A stop pattern or a form of constraint that cannot be is its asker's error, by name; nobody else hears of it."""
    error = await house.ask(**options).error()
    assert isinstance(error, InvalidRequest)
    assert error.param == param
    assert re.search(problem, error.message)
    await house.settle()
    assert house.scheduler.told.empty()
    assert house.grammar.asked.empty()


async def test_a_constraint_is_compiled_before_the_request_is_submitted(house: House) -> None:
    """Until the grammar actor answers, the scheduler hears nothing, so that nothing is held meanwhile; other requests go on."""
    house.grammar.answer = None
    asker = house.ask("slow", constraint=Constraint("regex", "a+"))
    question = await house.grammar.next()
    free = house.ask("free")
    assert [sequence.id for sequence in await house.scheduler.submitted()] == ["free"]
    assert 0 < (question.remaining or 0) <= 20
    question.reply(Compiled("fsm"))
    assert [sequence.id for sequence in await house.scheduler.submitted()] == ["slow"]
    for one in (asker, free):
        await one.close()


@pytest.mark.parametrize(
    "refusal",
    [InvalidRequest("regex: unclosed group", param="regex"), Overloaded("256 wait"), NotReady("no compiler")],
)
async def test_what_the_grammar_actor_refuses_is_the_askers_error(
    house: House, refusal: SglActorsError
) -> None:
    """With its class, message and field; nothing is submitted."""
    house.grammar.answer = refusal
    error = await house.ask(constraint=Constraint("regex", "a(b")).error()
    assert isinstance(error, type(refusal))
    assert (error.message, error.param) == (refusal.message, refusal.param)
    await house.settle()
    assert house.scheduler.told.empty()


async def test_a_grammar_actor_that_restarts_is_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request asks its successor; without one it is refused as retryable."""
    house.grammar.answer = None
    asker = house.ask(constraint=Constraint("regex", "a+"))
    await house.grammar.next()
    await house.stop("grammar")
    await house.start(ScriptedGrammar, "grammar")
    assert [sequence.id for sequence in await house.scheduler.submitted()] == ["r"]
    await house.stop("grammar")
    monkeypatch.setattr(constraints, "PATIENCE", 0.0)
    assert isinstance(await house.ask("late", constraint=Constraint("regex", "a+")).error(), NotReady)
    await asker.close()


async def test_a_request_cancelled_while_its_constraint_is_compiled(house: House) -> None:
    """Whether its asker goes or an operator cancels it, the grammar actor is told, and nothing of it is left."""
    house.grammar.answer = None
    gone, cancelled = (
        house.ask(name, constraint=Constraint("regex", "a+")) for name in ("gone", "cancelled")
    )
    questions = [await house.grammar.next() for _ in range(2)]
    await gone.close()
    house.ctx.cast("tokenizer", Cancel(["cancelled"]))
    assert isinstance(await cancelled.error(), Cancelled)
    await house.settle()
    assert [question.cancelled for question in questions] == [True, True]
    assert house.tokenizer.statistics()["num_preparing_requests"] == 0
    assert house.scheduler.told.empty()


async def test_an_id_asked_for_again_while_it_is_prepared(house: House) -> None:
    """The later asker gets the request, the earlier one hears that it was taken over."""
    house.grammar.answer = None
    first = house.ask("r", constraint=Constraint("regex", "a+"))
    await house.grammar.next()
    second = house.ask("r", constraint=Constraint("regex", "a+"))
    (await house.grammar.next()).reply(Compiled("fsm"))
    assert isinstance(await first.error(), Cancelled)
    assert [sequence.id for sequence in await house.scheduler.submitted()] == ["r"]
    await second.close()


async def test_a_stop_pattern_ends_a_request_at_both_ends(house: House) -> None:
    """The asker gets the trimmed text at once, and the scheduler is told how many tokens count, over borders of tokens and updates."""
    asker = house.ask(stop_regex=("a+b",))
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [B, A]))
    assert (await asker.next()).text == "b"
    house.scheduler.progress(Update("r", 2, [A, B, B]))
    last = await asker.end()
    assert (last.text, last.completion_tokens, last.finish) == ("", 4, Finish("stop", "a+b"))
    assert await house.scheduler.next() == Stop("r", 4, "a+b")


async def test_a_stop_pattern_that_takes_too_long_fails_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request ends with a typed error and is aborted; another one goes on."""
    monkeypatch.setattr(stop_patterns, "SECONDS", 0.01)
    bad, good = house.ask("bad", stop_regex=("(a|aa)+!",)), house.ask("good", stop_regex=("a+!",))
    await house.scheduler.submitted()
    while len(house.tokenizer._delivery.live) < 2:
        await house.settle()
    ids = [A] * 60
    house.scheduler.progress(Update("bad", 0, ids), Update("good", 0, ids, finish=Finish("length")))
    error = await bad.error()
    assert isinstance(error, InvalidRequest)
    assert error.param == "stop_regex"
    assert (await good.end()).text == "a" * 60
    while not isinstance(message := await house.scheduler.next(), Abort):
        pass
    assert message == Abort(["bad"])


async def test_the_vocabulary_can_be_asked_for(house: House) -> None:
    """Whoever makes masks of the answer gives every id the bytes that we give it."""
    info = await house.ctx.call("tokenizer", DescribeVocabulary(), VocabularyInfo)
    vocabulary = house.tokenizer._vocabulary
    assert (info.size, info.eos_ids) == (len(vocabulary), (END,))
    read = LLTokenizer(info.tokenizer, n_vocab=info.size, eos_token=list(info.eos_ids))
    pairs = [(read.decode_bytes([token]), raw) for token, raw in enumerate(vocabulary.raw)]
    assert all(one == two for one, two in pairs if two != b"\xff")  # which is in no text


async def test_not_ready_without_a_model(empty: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes before a scheduler has described a model waits for that, but not for ever: it is refused as retryable."""
    empty.tokenizer = await empty.start(TokenizerActor, "tokenizer")
    early = empty.ask("early")
    await asyncio.sleep(0)  # its message is sent
    await empty.settle()
    monkeypatch.setattr(served, "PATIENCE", 0.01)
    assert isinstance(await empty.ask().error(), NotReady)
    empty.scheduler = await empty.start(ScriptedScheduler, "scheduler")
    assert [sequence.id for sequence in await empty.scheduler.submitted()] == ["early"]
    await early.close()


async def test_end_ids_are_those_of_the_models_files(empty: House) -> None:
    """Where the vocabulary names end tokens, they count, and not those the worker has found."""
    empty.tokenizer = await empty.start(TokenizerActor, "tokenizer")
    empty.scheduler = await empty.start(ScriptedScheduler, "scheduler")
    await empty.model_known()
    asker = empty.ask()
    assert (await empty.scheduler.submitted())[0].sampling.end_ids == (END,)
    await asker.close()


async def test_one_request_that_fails_harms_no_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while one request's update is handled ends that request alone."""
    bad, good = house.ask("bad"), house.ask("good")
    await house.scheduler.submitted()

    def broken(_update: Update) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(house.tokenizer._delivery.live["bad"].generation, "update", broken)
    house.scheduler.progress(Update("bad", 0, [A]), Update("good", 0, [A], finish=Finish("length")))
    assert (await good.end()).text == "a"
    assert "RuntimeError" in str(await bad.error())
    assert await house.scheduler.next() == Abort(["bad"])


async def test_questions(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and ids convert both ways, per token too, short and long; the tokenizer describes itself."""
    client = NodeClient(house.ctx)
    assert await client.tokenize(Tokenize(text="ab<s>")) == TokenIds([256, 257], "ab<s>")
    assert (await client.tokenize(Tokenize(text="ab", add_special_tokens=True))).token_ids == [257, 256]
    assert len((await client.tokenize(Tokenize(text="ab" * INLINE))).token_ids) == INLINE
    assert await client.detokenize([256, 257]) == "ab<s>"
    assert await client.detokenize([256, 257], skip_special_tokens=True) == "ab"
    high = house.tokenizer._vocabulary.raw.index(b"\xff")
    assert await client.pieces([256, high]) == Texts(["ab", "\ufffd"], [b"ab", b"\xff"])
    assert await house.ctx.call("tokenizer", Detokenize([]), Text) == Text("")
    assert await client.tokenizer() == TokenizerInfo("<s>", "</s>", None, None, 260)
    for wrong in (
        Tokenize(),
        Tokenize(text="x", messages=[ChatMessage("user", "x")]),
        Tokenize(text="", messages=[]),
    ):
        with pytest.raises(InvalidRequest):
            await client.tokenize(wrong)
    with pytest.raises(InvalidRequest, match="300 is no token id"):
        await client.detokenize([300])


async def test_stopping_fails_live_streams(house: House) -> None:
    """An asker learns at once that the tokenizer has gone."""
    asker = house.ask()
    await house.scheduler.submitted()
    await house.stop("tokenizer")
    assert isinstance(await asker.error(), ActorDown)


async def test_a_broken_checkpoint_ends_the_start(tmp_path: Path) -> None:
    """Without a vocabulary there is no tokenizer; the reason names the file."""
    (tmp_path / "model.gguf").write_bytes(b"nonsense" * 10)
    config = {"model": {"path": str(tmp_path / "model.gguf")}}
    system = System("test", LocalTransport(LocalHub(), "local://t"), config=config)
    await system.open()
    reasons: list[str] = []

    def ended(_address: Address, exit_: Any) -> None:
        reasons.append(exit_.reason)

    cell = system.spawn(TokenizerActor, "tokenizer", on_exit=ended)
    await cell.ended.wait()
    await system.close()
    assert "model.gguf" in reasons[0]
