"""Chat templates: what they write, and what a hostile one cannot do."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.chat_template import ChatTemplate

CHAT = [ChatMessage("user", "Hi"), ChatMessage("assistant", "The answer is: ")]
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def render(source: str, messages: list[ChatMessage] | None = None, **tokens: str) -> str:
    return ChatTemplate(source, tokens, max_seconds=0.2, max_output=10_000).render(messages or CHAT)


def test_continuing_an_assistants_message() -> None:
    """The text ends where the last message's content ends, its trailing space included, even if the template trims contents."""
    assert (
        ChatTemplate(CHATML, {}).render(CHAT, continue_final=True)
        == "<user>Hi</s>\n<assistant>The answer is: "
    )


@pytest.mark.parametrize(
    ("source", "messages", "says"),
    [
        (CHATML, [], "must not be empty"),
        (CHATML, [ChatMessage("user", "x")], "only an assistant's last message"),
        ("{{ messages[0].content }}", CHAT, "leaves out the message"),
    ],
)
def test_what_cannot_be_continued(source: str, messages: list[ChatMessage], says: str) -> None:
    """Nothing to continue, someone else's words, or a template that does not write them: the asker's error, on `messages`."""
    with pytest.raises(InvalidRequest, match=says) as caught:
        ChatTemplate(source, {}).render(messages, continue_final=True)
    assert caught.value.param == "messages"


def test_what_templates_may_use() -> None:
    """Special tokens by name, tojson without HTML escapes, loop controls, the clock, generation marks, trimmed blocks."""
    assert render("{{ bos_token }}{{ missing }}x", bos_token="<s>") == "<s>x"
    assert render('{{ {"a<": "é"} | tojson }}') == '{"a<": "é"}'
    assert (
        render(
            "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
        )
        == "user"
    )
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "Hi"
    assert render("  {% if true %}\nx\n{% endif %}\n") == "x\n"
    assert render("{{ 'a' ~ (1 + 1) ~ 'b' }} {{ '%s-%d' % ('x', 2) }} {{ 'ab' * 2 }}") == "a2b x-2 abab"
    clock = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    assert clock.render(CHAT) == "2026-01-02"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% set x = namespace(s='') %}{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "too long"),
        ("{% for a in range(9999) %}{{ messages }}{% endfor %}", "10000 characters"),
        ("{{ 'x' * 1000000000 }}", "makes too much"),
        ("{{ 9 ** 9 ** 9 }}", "makes too much"),
        ("{{ '%099999999d' % 1 }}", "makes too much"),
        (
            "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "10000 characters",
        ),
        (
            "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "makes too much",
        ),
    ],
)
def test_a_failing_or_hostile_template_is_an_invalid_request(source: str, says: str) -> None:
    """Whatever a template does, it ends within its bounds and as an error of the request."""
    with pytest.raises(InvalidRequest, match=says) as caught:
        render(source)
    assert caught.value.param == "messages"


def test_the_time_limit_holds_in_a_thread() -> None:
    """Rendering in a thread is bounded too, and leaves no trace function behind."""
    failed = []

    def run() -> None:
        try:
            render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
        except InvalidRequest as error:
            failed.append(error.message)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert failed == ["the model's chat template: it takes too long"]


def test_a_broken_template_is_named() -> None:
    """Source that is no template fails when it is compiled."""
    with pytest.raises(InvalidRequest, match="template is broken"):
        ChatTemplate("{% for %}", {})
