"""What is written depends on the ids before alone: with jumps, without them, and after a return with any beginning of the output."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from sgl_actors.actors.worker.batch import HeldSequence, Written
from sgl_actors.actors.worker.grammars import Grammars, Next
from sgl_actors.actors.worker.messages import JUMP, Logprobs, Sampling
from sgl_actors.lang.constraints.constraint import REGEX, Constraint
from sgl_actors.lang.constraints.engines import Engines
from tests.lang.constraints.vocabularies import byte_fallback, byte_level, id_of

PROMPT = [7]
LONGEST = 40
CONSTRAINTS = [
    Constraint(REGEX, r'\{"name": "[\w ]{1,6}", "age": (0|[1-9][0-9]?)\}'),
    Constraint(REGEX, r'(a|b|ab|\.|"|,| |n|e|\{){1,6}(a|ab|bc|\."|, "|": ")(a|b|c|x|")* "name": "[a-z."]{1,4}", "age"'),
    Constraint(REGEX, r'[a-z.", ]{1,8}"\]\}'),
    Constraint(REGEX, r"[a-dné日本 ]{1,4}(ab|né|nè|日本) matters[. ,!]{0,3} nothing[ ]{0,3}else"),
]  # fmt: skip


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback"])
def engines(request: pytest.FixtureRequest) -> Engines:
    tokenizer = byte_level() if request.param == "byte-level" else byte_fallback()
    end = id_of(tokenizer, "<end>" if request.param == "byte-level" else "</s>")
    return Engines(tokenizer.to_str(), [end], tokenizer.get_vocab_size(), "fsm")


def write(grammars: Grammars, held: HeldSequence, seed: int) -> None:
    """One step, with a model that draws from the ids before."""
    found = grammars.fill([held]).result()[1]
    assert isinstance(found, Next)
    written, tries = found.written, 0
    while written is None:
        assert found.forbidden is not None
        draw = Random(hash((tuple(held.token_ids), seed)))
        token = int(draw.choice(np.flatnonzero(~found.forbidden)))
        settled = grammars.settle(held, token, found, tries)
        tries += 1
        if isinstance(settled, Written):
            written = settled
        else:
            found = settled
    held.write(written, JUMP if held.sampling.jump_forward else 0)


def output(
    grammars: Grammars, constraint: Constraint, begun: list[int], seed: int, *, jump: bool
) -> list[int]:
    """The output that begins with `begun`."""
    ends = grammars._engines.tokens.eos_ids if grammars._engines else ()
    sampling = Sampling(0, constraint=constraint, jump_forward=jump, end_ids=ends)
    held = HeldSequence(1, PROMPT + begun, len(PROMPT), 0, sampling, Logprobs())
    while len(held.token_ids) <= LONGEST and held.token_ids[-1] not in ends:
        write(grammars, held, seed)
    return held.token_ids[len(PROMPT) :][:LONGEST]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: one.source[:12])
def test_ids_follow_from_the_ids_before(constraint: Constraint, engines: Engines) -> None:
    """Where a sampled token is replaced by a shorter one, too: what it said beyond that is in no id."""
    grammars = Grammars(engines.size)
    grammars.set_up(engines)
    grammars.prepare(constraint, engines.compile(constraint).automaton)
    for seed in range(12):
        whole = output(grammars, constraint, [], seed, jump=True)
        assert output(grammars, constraint, [], seed, jump=False) == whole
        for count in range(1, len(whole)):
            assert output(grammars, constraint, whole[:count], seed, jump=True) == whole


def next_of(
    constraint: Constraint, begun: bytes, *, ends: tuple[str, ...] = ("<end>",), **options: Any
) -> tuple[Grammars, HeldSequence, Next]:
    """What may come behind `begun` over a vocabulary with these end tokens."""
    tokenizer = byte_level()
    engines = Engines(
        tokenizer.to_str(), [id_of(tokenizer, end) for end in ends], tokenizer.get_vocab_size(), "fsm"
    )
    grammars = Grammars(engines.size)
    grammars.set_up(engines)
    grammars.prepare(constraint, engines.compile(constraint).automaton)
    fields: dict[str, Any] = {"end_ids": engines.tokens.eos_ids, **options}
    held = HeldSequence(
        1,
        PROMPT + engines.tokens.encode(begun),
        1,
        0,
        Sampling(0, constraint=constraint, **fields),
        Logprobs(),
    )
    found = grammars.fill([held]).result()[1]
    assert isinstance(found, Next)
    return grammars, held, found


def test_a_sampled_stop_token_is_not_joined() -> None:
    """What it would force is of no interest: the output ends with it."""
    quote, joint = (id_of(byte_level(), token) for token in ('"', '":'))
    for ends, written in (((), joint), ((quote,), quote)):
        grammars, held, found = next_of(Constraint(REGEX, r'[a-z]{1,9}": [0-9]'), b"age", end_ids=ends)
        settled = grammars.settle(held, quote, found, 0)
        assert isinstance(settled, Written)
        assert settled.tokens[0] == written


def test_beside_forced_text_another_token_is_chosen() -> None:
    """One that the tokenizer would not write there is forbidden in the next try, and taken when the tries are over."""
    grammars, held, found = next_of(Constraint(REGEX, r"na([a-z]{1,5}|[0-9])"), b"na")
    assert found.beside
    assert found.forbidden is not None
    token = id_of(byte_level(), "m")
    again = grammars.settle(held, token, found, 0)
    assert isinstance(again, Next)
    assert again.forbidden is not None
    assert again.forbidden[token]
    assert not again.forbidden.all()
    settled = grammars.settle(held, token, found, 16)
    assert settled == Written((token,))


def test_of_several_end_tokens_the_model_chooses() -> None:
    """None is appended; min_tokens leaves them where there is nothing else."""
    ends = ("<end>", "<turn>")
    allowed = {id_of(byte_level(), end) for end in ends}
    for least in (0, 9):
        _, _, found = next_of(Constraint(REGEX, "(ab|b)c"), b"abc", ends=ends, min_tokens=least)
        assert found.written is None
        assert found.forbidden is not None
        assert set(np.flatnonzero(~found.forbidden).tolist()) == allowed
