"""Tool calls are read alike, however the text is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.gateway.call_reader import Arguments, Call, CallReader, Event, Said

ONE = '<tool_call>\n{"name": "f", "arguments": {"a": "\\"}</tool_call>", "b": [{}]}}\n</tool_call>'
LOOSE = '<tool_call>{ "name":"g.h-i","arguments" : [1, 2] } </tool_call>'
PIECES = st.sampled_from(["text", "\n", "<tool_call>", "<tool", "</tool_call>", "}", '"', ONE, LOOSE, " "])


def folded(events: list[Event]) -> list[Event]:
    """The events, with neighbours of a kind as one."""
    whole: list[Event] = []
    for event in events:
        last = whole[-1] if whole else None
        match last, event:
            case Said(before), Said(text):
                whole[-1] = Said(before + text)
            case Arguments(index, before), Arguments(same, text) if index == same:
                whole[-1] = Arguments(index, before + text)
            case _:
                whole.append(event)
    return whole


def read(*pieces: str) -> list[Event]:
    reader = CallReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return folded(events + reader.feed("", last=True))


def test_calls_among_text() -> None:
    """Text, two calls of different form, and no white space between them."""
    assert read(f"Well:\n{ONE}\n {LOOSE}\n") == [
        Said("Well:\n"),
        Call(0, "f"),
        Arguments(0, '{"a": "\\"}</tool_call>", "b": [{}]}'),
        Call(1, "g.h-i"),
        Arguments(1, "[1, 2] "),
    ]


def test_arguments_come_as_they_are_written() -> None:
    """A piece of the arguments is there at once; only what may be the beginning of a tag is kept back in text."""
    reader = CallReader()
    assert reader.feed("Hm <tool") == [Said("Hm ")]
    assert reader.feed('_call>\n{"name": "f", "arguments": ') == []
    assert reader.feed('{"a"') == [Call(0, "f"), Arguments(0, '{"a"')]
    assert reader.feed(": 1") == [Arguments(0, ": 1")]
    assert not reader.is_complete
    assert reader.feed("}}\n</tool_call>") == [Arguments(0, "}")]
    assert reader.is_complete


@given(st.lists(PIECES, max_size=6).map("".join), st.data())
def test_pieces_make_no_difference(text: str, data: st.DataObject) -> None:
    """However a text is cut, the same is read; and what is neither call nor white space behind one is said."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read(text)
    assert read(*pieces) == whole
    if not any(isinstance(event, Call) for event in whole):
        assert "".join(event.text for event in whole if isinstance(event, Said)) == text


def test_a_head_that_never_ends_is_text() -> None:
    """Behind a tag, white space is waited for only so long; all of it is said then."""
    text = "<tool_call>" + " " * 1000 + "{"
    assert read(*text) == [Said(text)]
