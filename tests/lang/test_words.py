"""The mock's tokenizer, and what of a prompt it takes for cached."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.lang.backends.words import TOKEN, Prompts, Words

texts = st.text(alphabet="ab _<|>.\n", max_size=30)


def ends_of(text: str) -> list[int]:
    """The naive way."""
    return [match.end() for match in re.finditer(TOKEN, text)]


def test_a_token_is_a_word_or_a_mark_with_the_white_space_before_it() -> None:
    """Special tokens are one, and nothing of the text is lost."""
    found = TOKEN.findall("<|im_start|>user\nTwo  words, 3.5!<|im_end|>\n")
    assert found == ["<|im_start|>", "user", "\nTwo", "  words", ",", " 3", ".", "5", "!", "<|im_end|>", "\n"]


def test_ids_lead_back_to_the_text() -> None:
    """Equal tokens have equal ids; an id that was never given out is unknown."""
    words = Words()
    ids = words.ids("a b a b")
    assert ids[1] == ids[3] != ids[2]
    assert words.text(ids) == "a b a b"
    with pytest.raises(KeyError):
        words.text([-1])


def test_two_tokens_never_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where their checksums collide, the second one moves on."""
    monkeypatch.setattr("zlib.crc32", lambda data: 7)
    words = Words()
    assert words.text(words.ids("one two three one")) == "one two three one"


@given(st.lists(st.tuples(st.integers(0, 5), texts), max_size=8))
def test_what_grows_is_measured_as_if_it_were_new(steps: list[tuple[int, str]]) -> None:
    """Ends are those of the whole text, and shared tokens those that the best earlier text begins with."""
    prompts, earlier = Prompts(), [""]
    for base, more in steps:
        text = earlier[base % len(earlier)] + more
        ends, shared = prompts.measure(text)
        assert ends == ends_of(text)
        tokens = TOKEN.findall(text)
        best = max(common(tokens, TOKEN.findall(other)) for other in earlier)
        assert shared <= max(min(best, len(tokens) - 1), 0)
        if any(text.startswith(other) and len(other) > 10 for other in earlier if other != text):
            longest = max(len(other) for other in earlier if text.startswith(other))
            assert shared >= len([end for end in ends if end <= longest]) - 6
        prompts.add(text, ends)
        earlier.append(text)


def common(one: list[str], two: list[str]) -> int:
    """Tokens that both begin with."""
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count


def test_a_prompt_shares_the_tokens_that_an_earlier_one_begins_with() -> None:
    """The last token is computed in any case, and half a word is none."""
    prompts = Prompts()
    first = "one two three"
    prompts.add(first, prompts.measure(first)[0])
    assert prompts.measure("one two three")[1] == 2
    assert prompts.measure("one two threesome four")[1] == 2
    assert prompts.measure("one two three four")[1] == 3
    assert prompts.measure("one")[1] == 0
    assert prompts.measure("two")[1] == 0
