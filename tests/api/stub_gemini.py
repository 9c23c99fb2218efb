"""Gemini's API, as the stub server speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.api.replies import Asked, Fault, Protocol, Written, usage_of


class GeminiProtocol(Protocol):
    """`/v1beta/models/M:generateContent` and `:streamGenerateContent?alt=sse`."""

    def read(self, asked: Asked) -> Asked:
        config = asked.body.get("generationConfig") or {}
        turns = [asked.body.get("systemInstruction") or {}, *asked.body["contents"]]
        return Asked(
            asked.path,
            asked.query,
            asked.headers,
            asked.body,
            prompt="\n".join(part.get("text", "") for turn in turns for part in turn.get("parts", ())),
            stops=tuple(config.get("stopSequences") or ()),
            max_tokens=config.get("maxOutputTokens"),
            count=config.get("candidateCount") or 1,
            stream=asked.path.endswith(":streamGenerateContent"),
        )

    def whole(self, asked: Asked, written: list[Written]) -> dict[str, Any]:
        return self._body(asked, [self._candidate(index, one) for index, one in enumerate(written)], written)

    def events(self, asked: Asked, written: list[Written]) -> Iterator[bytes]:
        for index, one in enumerate(written):
            for token in [] if one.tools else one.tokens:
                piece = {"index": index, "content": {"role": "model", "parts": [{"text": token}]}}
                yield self.event(self._body(asked, [piece], written))
            last = self._candidate(index, one)
            if not one.tools:
                last["content"] = {"role": "model", "parts": [{"text": ""}]}
            yield self.event(self._body(asked, [last], written))

    def error(self, fault: Fault) -> dict[str, Any]:
        return {
            "error": {"code": fault.status or 503, "message": fault.message, "status": fault.code or "ERROR"}
        }

    def _candidate(self, index: int, one: Written) -> dict[str, Any]:
        parts = [{"functionCall": {"name": name, "args": arguments}} for name, arguments in one.tools]
        reason = one.reply.finish or {"stop": "STOP", "length": "MAX_TOKENS"}[one.finish]
        candidate = {"index": index, "content": {"role": "model", "parts": parts or [{"text": one.text}]}}
        return candidate | {"finishReason": reason}

    def _body(self, asked: Asked, candidates: list[dict[str, Any]], written: list[Written]) -> dict[str, Any]:
        prompt, cached, output = usage_of(asked, written)
        usage = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": output,
            "cachedContentTokenCount": cached,
        }
        return {
            "candidates": candidates,
            "usageMetadata": usage,
            "modelVersion": asked.path.split("/")[-1].split(":")[0],
        }
