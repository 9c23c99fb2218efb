"""OpenAI's API, and Azure's, as the stub server speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from sgl_actors.lang.backends.words import TOKEN
from tests.api.replies import Asked, Fault, Protocol, Written, text_of, usage_of


class OpenAIProtocol(Protocol):
    """`/v1/chat/completions`, `/v1/completions`, and Azure's paths of them."""

    def read(self, asked: Asked) -> Asked:
        body = asked.body
        stops = body.get("stop") or ()
        return Asked(
            asked.path,
            asked.query,
            asked.headers,
            body,
            prompt=body["prompt"] if "prompt" in body else "\n".join(map(text_of, body["messages"])),
            stops=(stops,) if isinstance(stops, str) else tuple(stops),
            max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
            count=body.get("n") or 1,
            stream=bool(body.get("stream")),
        )

    def whole(self, asked: Asked, written: list[Written]) -> dict[str, Any]:
        make = self._text_choice if "prompt" in asked.body else self._chat_choice
        choices = [make(asked, index, one) for index, one in enumerate(written)]
        return self._shell(asked, choices) | {"usage": self._usage(asked, written)}

    def events(self, asked: Asked, written: list[Written]) -> Iterator[bytes]:
        options = asked.body.get("stream_options") or {}
        for index, one in enumerate(written):
            for count, delta in enumerate(self._deltas(asked, one), 1):
                choice: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
                chunk = self._shell(asked, [choice | delta])
                if options.get("continuous_usage_stats"):
                    chunk["usage"] = self._usage(asked, written) | {"completion_tokens": count}
                yield self.event(chunk)
            end: dict[str, Any] = {"index": index, "finish_reason": self._finish(one)}
            nothing: dict[str, Any] = {"text": ""} if "prompt" in asked.body else {"delta": {}}
            yield self.event(self._shell(asked, [end | nothing]))
        if options.get("include_usage"):
            yield self.event(self._shell(asked, []) | {"usage": self._usage(asked, written)})
        yield b"data: [DONE]\n\n"

    def error(self, fault: Fault) -> dict[str, Any]:
        return {
            "error": {"message": fault.message, "type": "error", "param": None, "code": fault.code or None}
        }

    def _shell(self, asked: Asked, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chat = "messages" in asked.body
        kind = "text_completion" if not chat else "chat.completion" + ".chunk" * asked.stream
        model = asked.body.get("model", "")
        return {"id": "one", "object": kind, "created": 1, "model": model, "choices": choices}

    def _chat_choice(self, asked: Asked, index: int, one: Written) -> dict[str, Any]:
        most = asked.body.get("top_logprobs", 0)
        content: list[dict[str, Any]] = [
            {
                "token": text,
                "logprob": value,
                "bytes": None,
                "top_logprobs": [{"token": t, "logprob": v, "bytes": None} for t, v in _tops(most)],
            }
            for text, value in _told(one)
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": one.text,
            "refusal": one.reply.refusal or None,
        }
        if one.tools or one.reply.refusal:
            message["content"] = None
        if one.tools:
            message["tool_calls"] = _calls(one)
        logprobs = {"content": content, "refusal": None} if asked.body.get("logprobs") else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._finish(one)}

    def _text_choice(self, asked: Asked, index: int, one: Written) -> dict[str, Any]:
        told, text, logprobs = _told(one), one.text, None
        if asked.body.get("echo"):
            prompt = [(token, one.reply.logprobs.get(token, -0.5)) for token in TOKEN.findall(asked.prompt)]
            told, text = [(prompt[0][0], None), *prompt[1:], *told], asked.prompt + text
        if asked.body.get("logprobs") is not None:
            tokens, values = [token for token, _ in told], [value for _, value in told]
            most = asked.body["logprobs"]
            tops = [None if value is None else dict(_tops(most)) for value in values] if most else None
            offsets = [*accumulate(map(len, tokens), initial=0)][:-1]
            logprobs = {
                "tokens": tokens,
                "token_logprobs": values,
                "top_logprobs": tops,
                "text_offset": offsets,
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": self._finish(one)}

    def _deltas(self, asked: Asked, one: Written) -> Iterator[dict[str, Any]]:
        if "prompt" in asked.body:
            yield from ({"text": token} for token in one.tokens)
            return
        yield {"delta": {"role": "assistant", "content": ""}}
        if one.reply.refusal:
            yield from ({"delta": {"refusal": token}} for token in TOKEN.findall(one.reply.refusal))
        elif one.tools:
            for index, call in enumerate(_calls(one)):
                text = call["function"]["arguments"]
                call["function"] |= {"arguments": text[:3]}
                yield {"delta": {"tool_calls": [{"index": index} | call]}}
                yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": text[3:]}}]}}
        else:
            yield from ({"delta": {"content": token}} for token in one.tokens)

    def _finish(self, one: Written) -> str:
        return one.reply.finish or ("tool_calls" if one.tools else one.finish)

    def _usage(self, asked: Asked, written: list[Written]) -> dict[str, Any]:
        prompt, cached, output = usage_of(asked, written)
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        return usage | {"prompt_tokens_details": {"cached_tokens": cached}}


def _tops(most: int) -> list[tuple[str, float]]:
    """The likeliest tokens, wherever."""
    return [(f"top {number}", -0.125 * number) for number in range(1, most + 1)]


def _told(one: Written) -> list[tuple[str, float | None]]:
    return [(token, one.reply.logprobs.get(token, -0.5)) for token in one.tokens]


def _calls(one: Written) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(one.tools)
    ]
