"""The turns of a chat as the model's template takes them."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl_actors.actors.gateway.limits import MAX_MESSAGES, check_length
from sgl_actors.actors.gateway.openai_types import ChatTurn, ToolCall
from sgl_actors.actors.gateway.tools import NAME
from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import InvalidRequest

MEDIA = "only text can be given to this model"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles of the API and what the model's template calls them."""


def parse_messages(turns: list[ChatTurn]) -> list[ChatMessage]:
    """The messages; what they hold besides text and calls is refused by name.

    Raises:
        InvalidRequest: there are none, a part that is no text, or a tool's answer to a call that was not made before it.
    """
    if not turns:
        raise InvalidRequest("messages: there is none", param="messages")
    check_length(len(turns), MAX_MESSAGES, "messages")
    called: dict[str, str] = {}
    messages = []
    for index, turn in enumerate(turns):
        messages.append(_message(turn, f"messages[{index}]", called))
        called |= {call.id: call.function.name for call in turn.tool_calls or ()}
    return messages


def _message(turn: ChatTurn, where: str, called: dict[str, str]) -> ChatMessage:
    role = ROLES.get(turn.role)
    if role is None:
        raise InvalidRequest(
            f"{where}.role: {turn.role[:32]!r} is none of {', '.join(ROLES)}", param=f"{where}.role"
        )
    if turn.tool_calls and role != "assistant":
        raise InvalidRequest(
            f"{where}.tool_calls: only the assistant calls tools", param=f"{where}.tool_calls"
        )
    if role != "tool":
        return ChatMessage(role, _text(turn, where), _calls(turn.tool_calls or [], f"{where}.tool_calls"))
    place = f"{where}.tool_call_id"
    if turn.tool_call_id is None:
        raise InvalidRequest(f"{place}: it is missing", param=place)
    if turn.tool_call_id not in called:
        raise InvalidRequest(
            f"{place}: no assistant's turn before it has a call {turn.tool_call_id[:80]!r} in tool_calls",
            param=place,
        )
    return ChatMessage(role, _text(turn, where), "", turn.tool_call_id, called[turn.tool_call_id])


def _text(turn: ChatTurn, where: str) -> str:
    if turn.content is None:
        if turn.role != "assistant":
            raise InvalidRequest(f"{where}.content: it is missing", param=f"{where}.content")
        return ""
    if isinstance(turn.content, str):
        return turn.content
    texts = []
    for number, part in enumerate(turn.content):
        place = f"{where}.content[{number}]"
        if part.type not in ("text", "input_text", "output_text"):
            raise InvalidRequest(f"{place}: {part.type[:32]!r} parts cannot be used, {MEDIA}", param=place)
        if part.text is None:
            raise InvalidRequest(f"{place}.text: it is missing", param=f"{place}.text")
        texts.append(part.text)
    return "\n".join(texts)


def _calls(calls: list[ToolCall], where: str) -> str:
    """Calls as JSON text, "" for none. Arguments keep their text, so that the model finds what it wrote; what is no JSON becomes a JSON string."""
    found: list[dict[str, Any]] = []
    for number, call in enumerate(calls):
        place = f"{where}[{number}].function"
        if call.type != "function":
            raise InvalidRequest(
                f"{where}[{number}].type: only functions can be called", param=f"{where}[{number}].type"
            )
        if not NAME.fullmatch(call.function.name):
            raise InvalidRequest(
                f"{place}.name: {call.function.name[:80]!r} is no name of a tool", param=f"{place}.name"
            )
        given = call.function.arguments
        text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
        try:
            msgspec.json.decode(text or "{}")
        except (msgspec.DecodeError, RecursionError):
            text = msgspec.json.encode(text).decode()
        function = {"name": call.function.name, "arguments": text or "{}"}
        found.append({"id": call.id, "type": "function", "function": function})
    return msgspec.json.encode(found).decode() if found else ""
