"""Prompts' ids with and without a memory of earlier ones, and what finding them costs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.messages import ChatMessage, Generate, Tokenize
from sgl_actors.actors.tokenizer.prompt_memory import Key, PromptMemory
from sgl_actors.actors.tokenizer.prompts import Prompts
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import InvalidRequest

TURN = (
    "<|im_start|>user\nTell me more about the 12 bees, please.<|im_end|>\n<|im_start|>assistant\nThey dance."
)
"""What one call adds to its stream's prompt, in bytes about a hundred."""

Costs = list[int]


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    """Bytes of every text that is encoded from here on."""
    found: Costs = []
    encode = Vocabulary.encode

    def record(self: Vocabulary, text: str, **more: bool) -> list[int]:
        found.append(len(text.encode()))
        return encode(self, text, **more)

    monkeypatch.setattr(Vocabulary, "encode", record)
    return found


def ask(text: str, program: str = "p", **more: str) -> Generate:
    return Generate("r", text=text, program=program, **more)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.text(max_size=8), st.integers(0, 30)), max_size=12))
def test_ids_are_those_of_the_whole_text(vocabulary: Vocabulary, asks: list[tuple[int, str, int]]) -> None:
    """Whatever was asked before, a prompt has the ids that it has by itself."""
    remembering, texts = Prompts(vocabulary), ["The 3 bees  dance.<|im_end|>\n It's"]
    for which, more, cut in asks:
        texts.append(texts[which % len(texts)][: cut or None] + more)
        assert remembering.ids(ask(texts[-1])) == vocabulary.encode(texts[-1])


def test_a_text_without_tokens_for_all_its_bytes(vocabulary: Vocabulary) -> None:
    """Ids that are not those of their text (a byte without a token is left out) are never gone on from."""
    prompts, text = Prompts(vocabulary), "a control \x04 character"
    assert vocabulary.decode(vocabulary.encode(text)) != text
    for more in ("", " and", " and on"):
        assert prompts.ids(ask(text + more)) == vocabulary.encode(text + more)


def test_the_cost_of_a_call_does_not_grow(vocabulary: Vocabulary, costs: Costs) -> None:
    """Eight streams of one program that take turns forty times: each call encodes what it adds, whatever stands before it."""
    prompts, start = Prompts(vocabulary), "<|im_start|>system\nYou know bees." + " Many, many bees." * 100
    texts = {stream: f"{start} Stream {stream}." for stream in range(8)}
    for turn in range(40):
        for stream, text in texts.items():
            texts[stream] = text + TURN
            costs.clear()
            prompts.ids(ask(texts[stream]))
            if turn or stream:
                assert sum(costs) <= len(TURN) + len(" Stream 0.")
    assert len(texts[0]) > 40 * len(TURN)


def test_branches_go_on_from_what_they_share(vocabulary: Vocabulary, costs: Costs) -> None:
    """Of a fork's branches each encodes only its own text, in whatever order they come, and so do the choices of a select."""
    prompts, prefix = Prompts(vocabulary), "A long story of many words, told" * 200
    prompts.ids(ask(prefix))
    costs.clear()
    branches = [f"{prefix} by number {number}" for number in range(16)]
    for text in [*branches, *(branch + " again" for branch in reversed(branches))]:
        prompts.ids(ask(text))
    for choice in (" good", " bad"):
        prompts.tokenise(Tokenize(text=branches[3] + choice, tenant="default"))
    assert max(costs) <= len(" by number 15 again good")


def test_other_programs_and_chats_share_it_too(vocabulary: Vocabulary, costs: Costs) -> None:
    """What counts is the text: a program without an id, or a chat's next turn over any connection, goes on from the last."""
    prompts = Prompts(vocabulary)
    messages = [ChatMessage("user", "Tell me all of it. " * 100)]
    prompts.ids(Generate("a", messages=messages))
    messages += [ChatMessage("assistant", "That is all."), ChatMessage("user", "Thank you.")]
    costs.clear()
    prompts.ids(Generate("b", messages=messages))
    assert sum(costs) < 120


@pytest.mark.parametrize("other", [{"tenant": "other"}, {"salt": "other"}, {"tenant": ""}])
def test_tenants_and_salts_are_apart(vocabulary: Vocabulary, costs: Costs, other: dict[str, str]) -> None:
    """A tenant's work depends on nobody else's prompts, nor on those with another salt; a question without tenant on none."""
    prompts, text = Prompts(vocabulary), "A secret that nobody else may guess." * 20
    prompts.ids(ask(text))
    costs.clear()
    question = Tokenize(text=text, **{"tenant": "default", **other})  # type: ignore[arg-type]
    prompts.tokenise(question)
    assert costs == [len(text)]


def test_texts_that_are_no_unicode_are_refused(vocabulary: Vocabulary, tiny: Vocabulary) -> None:
    """Surrogates are the asker's error, with and without seams."""
    for prompts in (Prompts(vocabulary), Prompts(tiny)):
        for question in (lambda: prompts.ids(ask("\ud800")), lambda: prompts.tokenise(Tokenize("\ud800"))):  # noqa: B023
            with pytest.raises(InvalidRequest, match="surrogates"):
                question()


def test_threads_do_not_disturb_each_other(vocabulary: Vocabulary) -> None:
    """Prompts encoded at the same time have the ids of their texts."""
    prompts = Prompts(vocabulary)
    texts = [f"{'Bees dance. ' * 50}{stream}{' again' * turn}" for turn in range(20) for stream in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: prompts.ids(ask(text)), texts))
    assert found == [vocabulary.encode(text) for text in texts]


def key(text: str, tenant: str = "t") -> Key:
    return Key(tenant, "", text.encode())


@given(st.lists(st.tuples(st.sampled_from("tu"), st.text("ab", max_size=6)), max_size=30), st.text("ab"))
def test_the_closest_text_is_found(kept: list[tuple[str, str]], text: str) -> None:
    """It shares as much with the new text as any that was kept in its namespace, and brings its own ids."""
    memory = PromptMemory()
    for tenant, one in kept:
        memory.keep(key(one, tenant), [*one.encode()])

    def common(other: str) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
            min(len(text), len(other)),
        )

    found, ids = memory.closest(key(text))
    assert common(found.decode()) == max((common(one) for tenant, one in kept if tenant == "t"), default=0)
    assert bytes(list(ids)) == found
    left = [other.text for other in memory._sorted if other.tenant == "t"]
    assert not any(a != b and b.startswith(a) for a in left for b in left)


def test_the_memory_is_bounded() -> None:
    """Beyond its number of texts or bytes the texts that were used longest ago go; one that is too long is not kept."""
    memory = PromptMemory(texts=3, size=20)
    for text in ("aaaa", "bbbb", "cccc"):
        memory.keep(key(text), [0])
    assert memory.closest(key("aa"))[0] == b"aaaa"
    memory.keep(key("dddd"), [0])
    assert [other.text for other in memory._sorted] == [b"aaaa", b"cccc", b"dddd"]
    memory.keep(key("e" * 13), [0])
    assert [other.text for other in memory._sorted] == [b"dddd", b"e" * 13]
    memory.keep(key("f" * 21), [0])
    assert (len(memory), memory._held) == (2, 17)
