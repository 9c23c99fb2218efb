"""Grammars over automata, against brute force and against llguidance."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.automaton import DEAD, Automaton
from sgl_actors.lang.constraints.constraint import REGEX, Constraint
from sgl_actors.lang.constraints.fsm_grammar import FsmGrammar, Masks
from sgl_actors.lang.constraints.grammar import Forced, Grammar, mask_words
from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceCompiler
from sgl_actors.lang.constraints.regex_automaton import compile_regex
from sgl_actors.lang.constraints.tokens import Tokens
from tests.lang.constraints.vocabularies import byte_fallback, byte_level, default, default_tokens, id_of

LEVEL = byte_level()
END = id_of(LEVEL, "<end>")
TOKENS = Tokens(LEVEL.to_str(), [END], 640)
FALLBACK = Tokens(byte_fallback().to_str(), [2], 300)
COMPILERS = {
    TOKENS: LlguidanceCompiler(LEVEL.to_str(), [END], 640, TOKENS),
    FALLBACK: LlguidanceCompiler(byte_fallback().to_str(), [2], 300, FALLBACK),
}
WORDS = r"\w{1,12}"
"""What a letter is depends on the version of Unicode: the FSM takes the older one."""
REGEXES = (
    "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}[0-9]{1,3}",
    "yes|no|not sure|maybe|nothing else   matters",
    "né|nè|nèx|日本|日本語|日中",
    WORDS,
    "[😀-😎]{1,3}!?",
    r'\{"name": "[^"\\\x00-\x1f]{0,8}", "age": (?:0|[1-9][0-9]{0,2})\}',
    r'\{"tags": \[(?:"[a-zé]+"(?:, "[a-zé]+")*)?\]\}',
    "(?:ab)*c?",
    ".*",
    "[^a]{2,5}",
    "a|ab|abc|abcd   ",
    r"\s+[0-9]+",
    "<end>|<turn>|<think>x",
    "",
)
AUTOMATA = {source: compile_regex(source) for source in REGEXES}
SEEDS = st.integers(0, 2**32)


def fsm(source: str, tokens: Tokens = TOKENS) -> FsmGrammar:
    return FsmGrammar(tokens, AUTOMATA[source])


def allowed(grammar: Grammar, tokens: Tokens = TOKENS) -> set[int]:
    """Tokens that may come next."""
    row = np.full(mask_words(tokens.size), -1, dtype=np.int32)
    grammar.mask_into(row)
    return set(np.unpackbits(row.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def brute_force(automaton: Automaton, tokens: Tokens, output: bytes) -> set[int]:
    """The same, by trying every token."""
    state = automaton.step(0, output)
    found = {token for token, raw in enumerate(tokens.raw) if raw and automaton.step(state, raw) != DEAD}
    return found | set(tokens.eos_ids) if automaton.accepting[state] else found


def crossings(automaton: Automaton, tokens: Tokens, output: bytes, head: bytes, forced: bytes) -> list[int]:
    """`Grammar.crossings`, by trying every token at every position."""
    state, data = automaton.step(0, output + forced), head + forced
    return [
        place
        for place in range(len(data))
        if any(
            raw.startswith(data[place:])
            and raw != data[place:]
            and automaton.step(state, raw[len(data) - place :]) != DEAD
            for raw in tokens.raw
        )
    ]


def agree(one: FsmGrammar, other: Grammar, mask: set[int], theirs: set[int], source: str) -> None:
    """llguidance's mask is the same, but that it allows the canonical token alone where text is forced, and knows more letters.

    It does not see that an output that is empty is over.
    """
    forced, known = one.forced(), other.forced()
    if source == WORDS:
        assert mask <= theirs or known.data
        return
    assert forced.data == known.data
    assert forced.over == known.over or not source
    assert theirs <= mask if forced.data else theirs == mask


def walk(grammar: Grammar, random: Random, tokens: Tokens, steps: int) -> list[int]:
    """Advance by random allowed tokens, up to the end; ASCII is preferred, so that walks come to an end."""
    ids = list[int]()
    while len(ids) < steps and not grammar.is_over:
        choices = sorted(allowed(grammar, tokens) - set(tokens.eos_ids))
        plain = [token for token in choices if tokens.raw[token].isascii()]
        ids.append(random.choice(plain if plain and random.random() < 0.7 else choices))
        grammar.advance(ids[-1])
    return ids


def text_of(ids: Sequence[int], tokens: Tokens = TOKENS) -> bytes:
    return b"".join(tokens.raw[token] for token in ids)


@pytest.mark.parametrize("source", REGEXES)
@settings(deadline=None, max_examples=6)
@given(SEEDS, st.sampled_from([TOKENS, FALLBACK]))
def test_masks_are_right(source: str, seed: int, tokens: Tokens) -> None:
    """Along random walks a mask is what brute force finds, and what llguidance finds; where text is forced, it allows but the canonical token."""
    random, one = Random(seed), fsm(source, tokens)
    other = COMPILERS[tokens].compile(Constraint(REGEX, source))
    ids = list[int]()
    while True:
        mask, theirs = allowed(one, tokens), allowed(other, tokens)
        assert mask == brute_force(AUTOMATA[source], tokens, text_of(ids, tokens))
        agree(one, other, mask, theirs, source)
        assert one.is_accepting == other.is_accepting
        going_on = sorted((mask & theirs) - set(tokens.eos_ids))
        if not going_on or len(ids) == 12:
            break
        plain = [token for token in going_on if tokens.raw[token].isascii()]
        ids.append(random.choice(plain if plain and random.random() < 0.7 else going_on))
        one.advance(ids[-1])
        other.advance(ids[-1])


@pytest.mark.parametrize("source", REGEXES)
@settings(deadline=None, max_examples=6)
@given(SEEDS, st.sampled_from([TOKENS, FALLBACK]))
def test_crossings_are_right(source: str, seed: int, tokens: Tokens) -> None:
    """Both engines find the very positions that brute force finds, whatever the head; a head of other text too."""
    random, automaton, one = Random(seed), AUTOMATA[source], fsm(source, tokens)
    ids = walk(one, random, tokens, random.randrange(6))
    other = COMPILERS[tokens].compile(Constraint(REGEX, source))
    for token in ids:
        other.advance(token)
    output, forced = text_of(ids, tokens), one.forced().data
    for head in (b"", output, output[-random.randrange(1, 5) :], b'x "', random.choice(tokens.raw)):
        expected = crossings(automaton, tokens, output, head, forced)
        assert one.crossings(head, forced) == expected
        assert other.crossings(head, forced) == expected or source == WORDS


@pytest.mark.parametrize("source", REGEXES)
@settings(deadline=None, max_examples=5)
@given(SEEDS)
def test_forced_text_is_what_all_ways_begin_with(source: str, seed: int) -> None:
    """Byte by byte there is one way on and no end, and behind it there are several or an end."""
    automaton, one = AUTOMATA[source], fsm(source)
    state = automaton.step(0, text_of(walk(one, Random(seed), TOKENS, Random(seed).randrange(9))))

    def ways(state: int) -> list[int]:
        return [byte for byte in range(256) if automaton.step(state, bytes([byte])) != DEAD]

    forced = one.forced()
    for byte in forced.data:
        assert (ways(state), automaton.accepting[state]) == ([byte], False)
        state = automaton.step(state, bytes([byte]))
    assert automaton.accepting[state] or len(ways(state)) > 1
    assert forced.over == (not ways(state))
    assert one.forced() == forced
    assert one.forced_text() == forced.data.decode("utf-8", "ignore")


@pytest.mark.parametrize("source", REGEXES)
@settings(deadline=None, max_examples=5)
@given(SEEDS, st.integers(0, 3), st.integers(0, 12))
def test_rollback_and_copies(source: str, seed: int, ends: int, back: int) -> None:
    """Taking tokens back is as if they had never come, end tokens too; a copy moves by itself."""
    one = fsm(source)
    ids = walk(one, Random(seed), TOKENS, 8)
    whole = one.copy()
    for _ in range(ends if one.is_accepting else 0):
        one.advance(END)
        ids.append(END)
    back = min(back, len(ids))
    one.rollback(back)
    left = ids[: len(ids) - back]
    if END in left:
        assert (allowed(one), one.is_over, one.forced()) == ({END}, True, Forced(b"", over=True))
        assert one.crossings(b"a", b"") == []
    else:
        assert allowed(one) == brute_force(AUTOMATA[source], TOKENS, text_of(left))
    for token in ids[len(left) :]:
        one.advance(token)
    assert allowed(whole) == brute_force(AUTOMATA[source], TOKENS, text_of(ids))


@pytest.mark.parametrize("source", REGEXES)
@settings(deadline=None, max_examples=5)
@given(SEEDS)
def test_what_was_written_matches(source: str, seed: int) -> None:
    """An output matches where the grammar accepts, as llguidance says too, wherever the one that is asked stands."""
    one = fsm(source)
    text = text_of(walk(one, Random(seed), TOKENS, 10)).decode("utf-8", "replace")
    assert one.matches(text) == (one.is_accepting and "�" not in text) or source == ".*"
    other = COMPILERS[TOKENS].compile(Constraint(REGEX, source))
    for wrong in (text, f"{text}a", text[1:], "\ud800"):
        assert one.matches(wrong) == other.matches(wrong)


def test_what_is_not_allowed_is_refused() -> None:
    """A token of other text, one too early or after the end, one without bytes or out of range, and too long a way back; by number, not by text."""
    date, over = fsm(REGEXES[0]), fsm("")
    over.advance(END)
    number = TOKENS.single[ord("7")]
    for grammar, token in (
        (date, TOKENS.single[ord("x")]),
        (date, END),
        (date, id_of(LEVEL, "<turn>")),
        (date, 639),
        (date, 640),
        (date, -1),
        (over, number),
    ):
        with pytest.raises(InvalidRequest, match=f"regex: token {token} is not allowed here") as caught:
            grammar.advance(token)
        assert caught.value.param == "regex"
    date.advance(number)
    with pytest.raises(InvalidRequest, match="regex: 2 tokens cannot be taken back"):
        date.rollback(2)
    assert allowed(date) == brute_force(AUTOMATA[REGEXES[0]], TOKENS, b"7")


def test_text_that_no_token_can_write_is_no_way_on() -> None:
    """Where a byte has no token, the ways over it are left out up to where there is a choice; without any left nothing can begin."""
    level = byte_level(whole=False)
    tokens = Tokens(level.to_str(), [id_of(level, "<end>")], 640)
    one = FsmGrammar(tokens, compile_regex("a(?:é\U00050000|\x00)|ab+c|(?:é|\U00050000|y)*"))
    assert one.forced().data == b""
    one.advance(tokens.single[ord("a")])
    assert one.forced() == Forced(b"b", over=False)
    assert one.matches("éy")
    assert not one.matches("a\x00")
    assert not one.matches("\U00050000")
    with pytest.raises(InvalidRequest, match="regex: no token can come next"):
        allowed(FsmGrammar(tokens, compile_regex("y*\x00")), tokens)


def test_masks_are_kept_within_a_budget() -> None:
    """A state's mask is made once as long as it is kept, for all grammars of the automaton; the oldest make room for new ones."""
    row = 4 * mask_words(TOKENS.size)
    masks = Masks(2 * row)
    one = FsmGrammar(TOKENS, AUTOMATA["(?:ab)*c?"], masks=masks)
    made = list[int]()
    make = one._fsm._mask
    one._fsm._mask = lambda state: made.append(state) or make(state)  # type: ignore[func-returns-value,method-assign]
    a, b, c = (TOKENS.single[byte] for byte in b"abc")
    start, other = allowed(one), one.copy()
    assert allowed(other) == start
    other.advance(a)
    allowed(other)
    allowed(one)
    assert len(made) == 2
    other.advance(b)
    other.advance(c)
    allowed(other)
    allowed(one)
    assert len(made) == 3
    one.advance(a)
    allowed(one)
    assert len(made) == 4
    assert repr(masks) == f"<Masks 2, {2 * row} of {2 * row} bytes>"
    twin = FsmGrammar(TOKENS, AUTOMATA["[^a]{2,5}"], masks=masks)
    assert allowed(twin) != start


def test_edges_are_compressed() -> None:
    """Chains become edges, a chain that several lead to is one of its own, and forced text goes on over it."""
    one = fsm(REGEXES[1])
    assert repr(one._fsm) == "<Fsm 22 states, 3 edges of forced text over 3 of them>"
    joined = FsmGrammar(TOKENS, compile_regex("(?:abc|xyz) and so on"))
    assert repr(joined._fsm.edges) == "3 edges of forced text over 14 of them"
    joined.advance(TOKENS.single[ord("x")])
    assert joined.forced() == Forced(b"yz and so on", over=True)


def test_threads_share_an_automaton() -> None:
    """Several threads walk grammars of one automaton with room for few masks, and all find the right ones."""
    one = FsmGrammar(TOKENS, AUTOMATA[REGEXES[6]], masks=Masks(3 * 4 * mask_words(TOKENS.size)))
    wrong = list[bytes]()

    def run(seed: int) -> None:
        mine, random = one.copy(), Random(seed)
        for _ in range(3):
            text = text_of(walk(mine, random, TOKENS, 7))
            if allowed(mine) != brute_force(AUTOMATA[REGEXES[6]], TOKENS, text):
                wrong.append(text)
            mine = one.copy()

    threads = [Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_default_model() -> None:
    """Over its vocabulary, the masks of both engines are the same, but for canonical tokens of forced text."""
    tokens, vocabulary = default_tokens(), default()
    assert vocabulary is not None
    compiler = LlguidanceCompiler(vocabulary.tokenizer.to_str(), tokens.eos_ids, tokens.size, tokens)
    for regex in REGEXES:
        one, other = fsm(regex, tokens), compiler.compile(Constraint(REGEX, regex))
        random = Random(regex)
        for _ in range(8):
            mask, theirs, forced = allowed(one, tokens), allowed(other, tokens), one.forced()
            agree(one, other, mask, theirs, regex)
            assert set(one.crossings(b"", forced.data)) <= set(other.crossings(b"", forced.data))
            if one.is_over:
                break
            token = random.choice(sorted((mask & theirs) - set(tokens.eos_ids)))
            one.advance(token)
            other.advance(token)
