"""Anthropic's API, as the stub server speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sgl_actors.lang.backends.words import TOKEN
from tests.api.replies import Asked, Fault, Protocol, Written, text_of, usage_of


class AnthropicProtocol(Protocol):
    """`/v1/messages`."""

    def read(self, asked: Asked) -> Asked:
        body = asked.body
        system = body.get("system") or ""
        turns = [{"content": system}, *body["messages"]] if system else body["messages"]
        return Asked(
            asked.path,
            asked.query,
            asked.headers,
            body,
            prompt="\n".join(map(text_of, turns)),
            stops=tuple(body.get("stop_sequences") or ()),
            max_tokens=body["max_tokens"],
            stream=bool(body.get("stream")),
        )

    def whole(self, asked: Asked, written: list[Written]) -> dict[str, Any]:
        one = written[0]
        content: list[dict[str, Any]] = [
            {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": arguments}
            for index, (name, arguments) in enumerate(one.tools)
        ] or [{"type": "text", "text": one.reply.refusal or one.text}]
        return self._message(asked, one, content) | {"usage": self._usage(asked, written)} | self._stop(one)

    def events(self, asked: Asked, written: list[Written]) -> Iterator[bytes]:
        one = written[0]
        usage = self._usage(asked, written)
        start = self._message(asked, one, []) | {"stop_reason": None, "stop_sequence": None}
        yield self.event(
            {"type": "message_start", "message": start | {"usage": usage | {"output_tokens": 1}}}
        )
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
            (
                {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}},
                [
                    {"type": "input_json_delta", "partial_json": part}
                    for part in _halves(json.dumps(arguments))
                ],
            )
            for index, (name, arguments) in enumerate(one.tools)
        ]
        texts = [
            {"type": "text_delta", "text": token} for token in TOKEN.findall(one.reply.refusal or one.text)
        ]
        for index, (block, deltas) in enumerate(blocks or [({"type": "text", "text": ""}, texts)]):
            yield self.event({"type": "content_block_start", "index": index, "content_block": block})
            for delta in deltas:
                yield self.event({"type": "content_block_delta", "index": index, "delta": delta})
            yield self.event({"type": "content_block_stop", "index": index})
        yield self.event(
            {
                "type": "message_delta",
                "delta": self._stop(one),
                "usage": {"output_tokens": usage["output_tokens"]},
            }
        )
        yield self.event({"type": "message_stop"})

    def error(self, fault: Fault) -> dict[str, Any]:
        return {"type": "error", "error": {"type": fault.code or "error", "message": fault.message}}

    def event(self, data: dict[str, Any]) -> bytes:
        return f"event: {data['type']}\n".encode() + super().event(data)

    def _message(self, asked: Asked, one: Written, content: list[dict[str, Any]]) -> dict[str, Any]:
        model = asked.body.get("model", "")
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content}

    def _stop(self, one: Written) -> dict[str, Any]:
        reason = {"stop": "stop_sequence" if one.matched else "end_turn", "length": "max_tokens"}.get(
            one.finish, one.finish
        )
        if not one.reply.finish and one.reply.refusal:
            reason = "refusal"
        elif not one.reply.finish and one.tools:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": one.matched or None}

    def _usage(self, asked: Asked, written: list[Written]) -> dict[str, Any]:
        prompt, cached, output = usage_of(asked, written)
        return {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "output_tokens": output}


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]
