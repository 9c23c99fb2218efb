"""Tools in chats, in the form that Hermes brought up and Qwen, SmolLM and many others were trained with.

The system turn lists the functions in ``<tools>``, the assistant calls them in ``<tool_call>``, and what they answered comes back in
``<tool_response>`` in a user's turn. Templates that know tools write that themselves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sgl_actors.actors.tokenizer.messages import ChatMessage

INSTRUCTIONS = """\
You can call functions. Each line between the tags describes one of them in JSON:
<tools>
{}
</tools>
To call a function, write its name and its arguments as JSON between these tags, and nothing behind them:
<tool_call>
{{"name": <function name>, "arguments": <arguments>}}
</tool_call>
What the function answers comes back as <tool_response>. If no function helps, answer in plain words."""
"""What the system turn says of tools, for templates that do not know them."""


def are_known_to(template: str) -> bool:
    """Whether a template's source writes tools, and their calls in this form. Those of another form could not be read in the output."""
    return "tools" in template and "<tool_call>" in template and "<function=" not in template


def for_template(message: ChatMessage) -> dict[str, Any]:
    """A turn as templates read it: arguments of calls are objects there."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_opened(call) for call in json.loads(message.tool_calls)]
    if message.role == "tool":
        turn |= {"tool_call_id": message.tool_call_id, "name": message.name}
    return turn


def plain(messages: Sequence[ChatMessage], tools: list[Any] | None) -> list[ChatMessage]:
    """The same chat in turns of text alone, with `tools` in its system turn."""
    turns: list[ChatMessage] = []
    for message, before in zip(messages, [None, *messages], strict=False):
        if message.role != "tool":
            turns.append(ChatMessage(message.role, _with_calls(message)))
            continue
        answer = f"<tool_response>\n{message.content}\n</tool_response>"
        if before is not None and before.role == "tool":
            answer = f"{turns.pop().content}\n{answer}"
        turns.append(ChatMessage("user", answer))
    if not tools:
        return turns
    text = INSTRUCTIONS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns and turns[0].role == "system":
        text = f"{turns.pop(0).content}\n\n{text}"
    return [ChatMessage("system", text), *turns]


def _with_calls(message: ChatMessage) -> str:
    """The text of an assistant's turn, its calls as a model writes them: with arguments as they came, so that earlier prompts are found again."""
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call["name"])}, "arguments": {call["arguments"]}}}\n</tool_call>'
        for call in (call["function"] for call in json.loads(message.tool_calls or "[]"))
    ]
    return "\n".join(([message.content] if message.content or not calls else []) + calls)


def _opened(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
