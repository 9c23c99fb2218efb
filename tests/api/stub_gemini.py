"""Gemini's API, as the stub server speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.api.replies import Asked, Fault, Protocol, Written, usage_of


class GeminiProtocol(Protocol):
    """`/v1/models/M:generateContent` and `:streamGenerateContent?alt=sse`; a reply's `refusal` is why the prompt is blocked."""

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
        return self._body(
            asked, [self._candidate(asked, index, one) for index, one in enumerate(written)], written
        )

    def events(self, asked: Asked, written: list[Written]) -> Iterator[bytes]:
        for index, one in enumerate(written):
            for token in [] if one.tools else one.tokens:
                piece = {"index": index, "content": {"role": "model", "parts": [{"text": token}]}}
                yield self.event(self._body(asked, [piece], written))
            last = self._candidate(asked, index, one)
            if not one.tools:
                last["content"] = {"role": "model", "parts": [{"text": ""}]}
            yield self.event(self._body(asked, [last], written))

    def error(self, fault: Fault) -> dict[str, Any]:
        """A header `retry-delay` of the fault is told in its details, as this API does."""
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}
        delay = fault.headers.get("retry-delay")
        details = [retry | {"retryDelay": f"{delay}s"}] if delay else []
        told = {"code": fault.status or 503, "message": fault.message, "status": fault.code or "ERROR"}
        return {"error": told | {"details": details}}

    def _candidate(self, asked: Asked, index: int, one: Written) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"functionCall": {"name": name, "args": arguments}} for name, arguments in one.tools
        ]
        reason = one.reply.finish or {"stop": "STOP", "length": "MAX_TOKENS"}[one.finish]
        candidate: dict[str, Any] = {
            "index": index,
            "content": {"role": "model", "parts": parts or [{"text": one.text}]},
        }
        if asked.body.get("generationConfig", {}).get("responseLogprobs"):
            candidate["logprobsResult"] = self._logprobs(one)
        return candidate | {"finishReason": reason}

    def _logprobs(self, one: Written) -> dict[str, Any]:
        known = one.reply.logprobs
        chosen = [
            {"token": token, "tokenId": 7, "logProbability": known.get(token, -0.5)} for token in one.tokens
        ]
        other = {"token": "?", "tokenId": 8, "logProbability": -3.0}
        return {"chosenCandidates": chosen, "topCandidates": [{"candidates": [one, other]} for one in chosen]}

    def _body(self, asked: Asked, candidates: list[dict[str, Any]], written: list[Written]) -> dict[str, Any]:
        prompt, cached, output = usage_of(asked, written)
        usage = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": output,
            "cachedContentTokenCount": cached,
        }
        refusal = written[0].reply.refusal
        if refusal:
            return {"promptFeedback": {"blockReason": refusal}, "usageMetadata": usage}
        return {
            "candidates": candidates,
            "usageMetadata": usage,
            "modelVersion": asked.path.split("/")[-1].split(":")[0],
        }
