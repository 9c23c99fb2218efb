"""Tools in chats, for templates that know them and for those that do not."""

from __future__ import annotations

import json

import pytest

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.chat_template import ChatTemplate

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
KNOWING = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</tool_call>{% endfor %}{% if m.role == 'tool' %}({{ m.name }}){% endif %}{% endfor %}"
)
TOOLS = '[{"type":"function","function":{"name":"now","parameters":{"type":"object"}}}]'
CALLS = json.dumps(
    [
        {"id": f"call_{n}", "type": "function", "function": {"name": "now", "arguments": text}}
        for n, text in enumerate(['{ "zone":1}', "{}"])
    ]
)
CHAT = [
    ChatMessage("user", "When?"),
    ChatMessage("assistant", "", CALLS),
    ChatMessage("tool", "noon", "", "call_0", "now"),
    ChatMessage("tool", "one", "", "call_1", "now"),
    ChatMessage("user", "Thanks."),
]


def test_a_template_that_knows_tools_writes_them() -> None:
    """It gets tools, calls with their arguments as objects, and answers with their names; its system turn is left alone."""
    text = ChatTemplate(KNOWING, {}).render(CHAT, tools=TOOLS)
    assert text == (
        '<tools>{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}</tools>'
        '[user]When?[assistant]<tool_call>now {"zone": 1}</tool_call><tool_call>now {}</tool_call>'
        "[tool]noon(now)[tool]one(now)[user]Thanks."
    )


def test_any_other_template_gets_plain_turns() -> None:
    """Tools come into a system turn, calls keep the very text of their arguments, and answers in a row are one turn of the user."""
    text = ChatTemplate(PLAIN, {}).render(CHAT, tools=TOOLS)
    system, _, rest = text.partition("[user]")
    assert system.startswith("[system]")
    assert '<tools>\n{"type": "function", "function": {"name": "now"' in system
    assert rest == (
        'When?[assistant]<tool_call>\n{"name": "now", "arguments": { "zone":1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        "[user]<tool_response>\nnoon\n</tool_response>\n<tool_response>\none\n</tool_response>[user]Thanks."
    )


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        "{{ tools }}" + PLAIN,
        "{# <tool_call>\n<function=now> #}{{ tools }}" + PLAIN,
    ],
)
def test_a_template_of_another_form_is_told_in_ours(template: str) -> None:
    """A template that writes no calls, or calls that could not be read in the output, gets them in plain turns."""
    text = ChatTemplate(template, {}).render([ChatMessage("system", "Be kind."), *CHAT[:1]], tools=TOOLS)
    assert "[system]Be kind.\n\nYou can call functions." in text
    assert text.endswith("[user]When?")


def test_without_tools_nothing_changes() -> None:
    """A chat that has nothing to do with tools is rendered as ever."""
    chat = [ChatMessage("user", "Hi"), ChatMessage("assistant", "")]
    assert ChatTemplate(PLAIN, {}).render(chat) == "[user]Hi[assistant]"
    assert ChatTemplate(KNOWING, {}).render(chat) == "[user]Hi[assistant]"


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([ChatMessage("assistant", "", "{")], ""),
        ([ChatMessage("assistant", "", "[1]")], ""),
        ([ChatMessage("assistant", "", '[{"function": {"name": "x"}}]')], ""),
        (CHAT[:1], "{"),
        (CHAT[:1], "7"),
    ],
)
def test_what_is_no_json_is_refused(messages: list[ChatMessage], tools: str) -> None:
    """Tools and calls that programs send in another form are refused, not an error of the tokenizer."""
    for template in (PLAIN, KNOWING):
        with pytest.raises(InvalidRequest, match=r"tools|template") as caught:
            ChatTemplate(template, {}).render(messages, tools=tools)
        assert caught.value.param == "messages"
