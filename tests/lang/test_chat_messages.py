"""Prompts as chats: what is kept, what is left out, and what is refused with a way out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.lang.chat_messages import messages_of
from sgl_actors.lang.errors import Unsupported
from sgl_actors.lang.ir import IMAGE, VIDEO, Media
from sgl_actors.lang.prompt import Prompt

PICTURE = Media(IMAGE, b"\x89PNG", "image/png")
FILM = Media(VIDEO, b"ftyp", "video/mp4", 4)


def chat(*turns: tuple[str, str], open_: bool = False) -> Prompt:
    prompt = Prompt()
    for role, text in turns:
        prompt.begin(role)
        prompt.append(text)
        prompt.end(role)
    prompt.open = open_
    return prompt


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), min_size=1))
def test_finished_turns_are_messages(turns: list[tuple[str, str]]) -> None:
    """Every finished turn is a message with its role and its text as it is, an empty one too."""
    assert [(one.role, one.content) for one in messages_of(chat(*turns))] == turns


def test_media_stand_at_their_places() -> None:
    """Media are in the message of their turn, each with its offset in the text, in order."""
    prompt = chat(("system", "Look."))
    prompt.begin("user")
    prompt.append("A: ")
    prompt.attach(PICTURE)
    prompt.append(" B: ")
    prompt.attach(FILM)
    prompt.end("user")
    assert messages_of(prompt) == [
        ChatMessage("system", "Look."),
        ChatMessage("user", "A:  B: ", media=((3, PICTURE), (7, FILM))),
    ]


def test_an_open_assistant_turn_without_text_is_left_out() -> None:
    """The model begins its turn by itself, so an empty one is not sent."""
    prompt = chat(("user", "Hi"), ("assistant", ""), open_=True)
    assert messages_of(prompt) == [ChatMessage("user", "Hi")]


def test_an_open_assistant_turn_with_text_comes_last() -> None:
    """What the assistant has begun to say is the last message."""
    prompt = chat(("user", "Hi"), ("assistant", "Hel"), open_=True)
    assert messages_of(prompt)[-1] == ChatMessage("assistant", "Hel")


def test_white_space_between_turns_is_left_out() -> None:
    """White space before, between and after turns says nothing and is dropped."""
    prompt = chat(("user", "Hi"), ("assistant", "Hello"))
    prompt.turns[0].before, prompt.turns[1].before, prompt.after = "\n", " \n", "\t"
    assert messages_of(prompt) == [ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello")]


@pytest.mark.parametrize("where", ["before", "between", "after", "alone"])
def test_text_outside_of_turns_is_refused(where: str) -> None:
    """The error shows the text and says to write turns, or to take a completions model."""
    prompt = Prompt() if where == "alone" else chat(("user", "Hi"), ("assistant", "Hello"))
    if where in ("before", "between"):
        prompt.turns[where == "between"].before = "Question: x"
    else:
        prompt.append("Question: x")
    with pytest.raises(Unsupported, match=r"'Question: x' stands outside .*sgl\.user\(.*completions"):
        messages_of(prompt)


def test_a_long_text_is_not_shown_whole() -> None:
    """A text of pages does not fill the message."""
    prompt = Prompt(after="word " * 10_000)
    with pytest.raises(Unsupported) as raised:
        messages_of(prompt)
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(("media", "words"), [(PICTURE, "an image stands"), (FILM, "a video stands")])
def test_media_outside_of_turns_are_refused(media: Media, words: str) -> None:
    """The error says to put them into a user turn."""
    prompt = chat(("user", "Hi"))
    prompt.attach(media)
    with pytest.raises(Unsupported, match=rf"{words} outside of turns; write s \+= sgl\.user"):
        messages_of(prompt)


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_only_the_assistants_turn_can_be_open(role: str) -> None:
    """A model behind a chat API cannot write on in somebody else's turn."""
    prompt = chat(("user", "Hi"), (role, "My name is "), open_=True)
    with pytest.raises(Unsupported, match=rf"open {role} turn.*sgl\.assistant\("):
        messages_of(prompt)


@pytest.mark.parametrize("prompt", [Prompt(), chat(("assistant", ""), open_=True)], ids=["nothing", "opened"])
def test_a_chat_without_a_turn_is_refused(prompt: Prompt) -> None:
    """No API takes a chat of no messages."""
    with pytest.raises(Unsupported, match="the prompt is empty"):
        messages_of(prompt)


def test_the_prompt_is_left_as_it_is() -> None:
    """The messages are a view: the prompt can be gone on with."""
    prompt = chat(("user", "Hi"), ("assistant", ""), open_=True)
    messages_of(prompt)
    prompt.append("Hello")
    assert messages_of(prompt)[-1].content == "Hello"
