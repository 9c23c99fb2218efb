"""The prompt's text against the template itself, for templates of several kinds."""

from __future__ import annotations

import itertools

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.prompt import Prompt, Shape, mark, split

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set head = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% else %}{% set loop_messages = messages %}{% set head = '' %}{% endif %}{% for message in loop_messages %}"
    "{% if message['role'] == 'user' %}[INST] {% if loop.first %}{{ head }}{% endif %}{{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }} </s>{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": jinja2.Template(CHATML, keep_trailing_newline=True), "llama2": jinja2.Template(LLAMA2)}
content = st.text("ab<|>\n {}[]", max_size=8)
chats = st.lists(st.tuples(content, content), max_size=3)


def render(name: str, turns: list[tuple[str, str]], *, generation: bool = False) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    return str(TEMPLATES[name].render(messages=messages, add_generation_prompt=generation))


class Frames(dict[Shape, tuple[str, ...]]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __missing__(self, shape: Shape) -> tuple[str, ...]:
        turns = [(role, mark(index)) for index, role in enumerate(shape[0])]
        self[shape] = split(render(self.name, turns, generation=shape[1]), shape)
        return self[shape]


def build(turns: list[tuple[str, str]]) -> Prompt:
    prompt = Prompt()
    for role, text in turns:
        prompt.begin(role)
        prompt.append(text)
        prompt.end(role)
    return prompt


def alternate(system: str | None, chat: list[tuple[str, str]]) -> list[tuple[str, str]]:
    turns = [] if system is None else [("system", system)]
    for question, answer in chat:
        turns += [("user", question), ("assistant", answer)]
    return turns


@pytest.mark.parametrize("name", TEMPLATES)
@given(system=st.one_of(st.none(), content), chat=chats.filter(bool))
def test_finished_turns_are_what_the_template_makes_of_them(
    name: str, system: str | None, chat: list[tuple[str, str]]
) -> None:
    """Whatever the contents (template syntax and special tokens included), the text equals the template's."""
    turns = alternate(system, chat)
    assert build(turns).text(Frames(name)) == render(name, turns)


@pytest.mark.parametrize("name", TEMPLATES)
@given(system=st.one_of(st.none(), content), chat=chats, question=content, begun=content)
def test_an_assistant_turn_begins_with_the_generation_prompt(
    name: str, system: str | None, chat: list[tuple[str, str]], question: str, begun: str
) -> None:
    """An open assistant turn is the rendered history, the generation prompt, and the text as written, spaces and all."""
    turns = [*alternate(system, chat), ("user", question)]
    prompt = build(turns)
    prompt.begin("assistant")
    prompt.append(begun)
    assert prompt.text(Frames(name)) == render(name, turns, generation=True) + begun


@given(system=content, chat=chats, question=content, answer=content)
def test_a_prompt_only_grows(system: str, chat: list[tuple[str, str]], question: str, answer: str) -> None:
    """What was the text before is a prefix of the text after, so that the cache hits."""
    frames, prompt = Frames("chatml"), build([*alternate(system, chat), ("user", question)])
    texts = [prompt.text(frames)]
    prompt.begin("assistant")
    texts.append(prompt.text(frames))
    for part in (answer, "x"):
        prompt.append(part)
        texts.append(prompt.text(frames))
    prompt.end("assistant")
    texts.append(prompt.text(frames))
    prompt.append("outside")
    texts.append(prompt.text(frames))
    prompt.begin("user")
    texts.append(prompt.text(frames))
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_text_outside_of_turns_stands_between_them() -> None:
    """Plain text before, between and after turns stays at its place."""
    prompt = Prompt()
    prompt.append("A")
    prompt.begin("system")
    prompt.append("s")
    prompt.end("system")
    prompt.append("B")
    prompt.begin("user")
    prompt.append("u")
    prompt.end("user")
    prompt.append("C")
    expected = "A<|im_start|>system\ns<|im_end|>\nB<|im_start|>user\nu<|im_end|>\nC"
    assert prompt.text(Frames("chatml")) == expected


def test_wrong_nesting_is_refused() -> None:
    """A turn in a turn, an end without a begin, an end of another role."""
    prompt = Prompt()
    with pytest.raises(InvalidPrimitive, match="no turn is open"):
        prompt.end("user")
    prompt.begin("user")
    with pytest.raises(InvalidPrimitive, match="inside the user turn"):
        prompt.begin("assistant")
    with pytest.raises(InvalidPrimitive, match="user is open"):
        prompt.end("assistant")


def test_a_template_that_drops_a_turn_is_an_error() -> None:
    """A role that the template leaves out is named; nothing is sent without it."""
    with pytest.raises(InvalidPrimitive, match="no place for the tool turn in user tool"):
        split(f"x{mark(0)}y", (("user", "tool"), False))


def test_a_copy_is_independent() -> None:
    """Branches do not write into each other's prompt."""
    prompt = Prompt()
    prompt.begin("user")
    copy = prompt.copy()
    copy.append("x")
    assert prompt.turns[0].content == ""
