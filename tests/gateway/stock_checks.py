"""What must hold for the stock `openai` client against any node's gateway; used with the fake node and with a real one.

Each check takes a client and the served model's name and asserts; prompts are short, outputs greedy.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]


async def check_models(client: openai.AsyncOpenAI, model: str) -> None:
    """The model is listed and can be retrieved by its name."""
    listed = await client.models.list()
    assert [card.id for card in listed.data] == [model]
    assert (await client.models.retrieve(model)).id == model


async def check_chat(client: openai.AsyncOpenAI, model: str) -> None:
    """A chat is answered, and answered again from the cache; the request id comes back."""
    first = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=6, temperature=0)
    assert first.choices[0].message.role == "assistant"
    assert first.choices[0].finish_reason in ("stop", "length")
    assert first._request_id
    usage = first.usage
    assert usage is not None
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    again = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=6, temperature=0)
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0


async def check_chat_stream(client: openai.AsyncOpenAI, model: str) -> None:
    """A streamed chat has the same text as the whole answer, and its usage in the last chunk."""
    whole = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=6, temperature=0)
    stream = await client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usages, reasons = "", [], []
    async for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    assert text == whole.choices[0].message.content
    assert reasons[-1] == whole.choices[0].finish_reason
    assert usages[-1] is not None
    assert whole.usage is not None
    assert usages[-1].completion_tokens == whole.usage.completion_tokens
    assert usages[:-1] == [None] * (len(usages) - 1)


async def check_chat_logprobs(client: openai.AsyncOpenAI, model: str) -> None:
    """Log probabilities come for each token, the best alternative first; n gives that many choices."""
    answer = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2, n=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    entries = [choice.logprobs.content or [] for choice in answer.choices if choice.logprobs is not None]
    assert sum(map(len, entries)) == answer.usage.completion_tokens
    for entry in entries[0]:
        assert entry.top_logprobs[0].logprob >= entry.logprob - 1e-4
        assert len(entry.top_logprobs) == 2


async def check_completions(client: openai.AsyncOpenAI, model: str) -> None:
    """Plain completions take a text, several texts and ids; a stream has the same text."""
    answer = await client.completions.create(model=model, prompt=["One", "Two"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    stream = await client.completions.create(
        model=model, prompt="One", max_tokens=4, temperature=0, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == answer.choices[0].text
    ids = await client.completions.create(model=model, prompt=[[70, 71], [72]], max_tokens=1)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3


async def check_prompt_logprobs(client: openai.AsyncOpenAI, model: str) -> None:
    """echo with logprobs scores the prompt as evaluation tools expect it: one entry more than prompt tokens."""
    ids = [70, 71, 72, 73]
    answer = await client.completions.create(
        model=model, prompt=[ids], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    values, tops, tokens = logprobs.token_logprobs or [], logprobs.top_logprobs or [], logprobs.tokens or []
    assert len(values) == len(tops) == len(tokens) == len(ids) + 1
    assert values[0] is None
    assert all(value <= 0 for value in values[1:])
    assert all(top[token] <= max(top.values()) for top, token in zip(tops[1:], tokens[1:], strict=True))
    assert values[-1] == max(tops[-1].values())
    assert "".join(tokens) == answer.choices[0].text or not tokens[-1]


async def check_errors(client: openai.AsyncOpenAI, model: str) -> None:
    """The client raises its own error classes, with our code and field."""
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model=model, prompt="x " * 100_000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as empty:
        await client.chat.completions.create(model=model, messages=[], max_tokens=1)
    assert empty.value.param == "messages"


CHECKS = [
    check_models, check_chat, check_chat_stream, check_chat_logprobs, check_completions, check_prompt_logprobs,
    check_errors,
]  # fmt: skip
