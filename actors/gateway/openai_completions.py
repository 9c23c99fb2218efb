"""POST /v1/completions: plain completions, with `echo` and prompt log probabilities as evaluation tools need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.completion_writer import CompletionWriter
from sgl_actors.actors.gateway.constraints import openai_constraint
from sgl_actors.actors.gateway.generation import Ask, Prompt
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.limits import MAX_TOP_LOGPROBS, check_choices, check_ids, one_salt
from sgl_actors.actors.gateway.openai_types import CompletionRequest
from sgl_actors.actors.gateway.retry import COMPLETION, Retry
from sgl_actors.actors.gateway.sampling import (
    COMPLETION_UNSUPPORTED,
    check_stream_options,
    openai_sampling,
)
from sgl_actors.actors.gateway.service import exchange_of, reply, service_of
from sgl_actors.actors.gateway.view import check_model
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
"""As the OpenAI API has it."""

P = TypeVar("P", bound=Sequence[object])


async def completions(request: Request) -> Response:
    """Answer as JSON or as a stream."""
    service = service_of(request)
    body = await service.read(
        request, CompletionRequest, COMPLETION_UNSUPPORTED, {"tool_choice": ("none", "auto")}
    )
    service = await service.serving(body.model)
    info = await service.view.admit()
    check_model(body.model, info)
    options = check_stream_options(body)
    asks = completion_asks(body, info, service.options.max_choices)
    exchange = exchange_of(request)
    retry = Retry.of(request.headers, exchange.tenant.name, stream=bool(body.stream))
    job = Job(service, exchange, asks, prefix=COMPLETION, model=info.served_name, retry=retry)
    writer = CompletionWriter(
        service, job, echo=bool(body.echo), logprobs=body.logprobs is not None, options=options
    )
    if body.stream:
        return service.stream(request, writer.stream)
    await job.collect(request)
    return reply(await writer.whole())


def completion_asks(body: CompletionRequest, info: ModelInfo, max_choices: int) -> list[Ask]:
    """What to ask the node for.

    Raises:
        InvalidRequest: empty prompts, too many of them, mixed forms, or values that contradict each other.
    """
    prompts = parse_prompts(body.prompt, info.vocabulary)
    n = body.n or 1
    check_choices(n, len(prompts), max_choices)
    if body.best_of is not None and body.best_of != n:
        raise InvalidRequest(
            "best_of: choosing the best of more answers than n is not supported", param="best_of"
        )
    if body.logprobs is not None and body.logprobs > MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"logprobs: {body.logprobs} is over {MAX_TOP_LOGPROBS}", param="logprobs")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    asked = openai_constraint(body)
    sampling = openai_sampling(body, max_tokens, info.vocabulary, asked)
    wanted = body.logprobs is not None
    start = 0 if body.echo and wanted else -1
    salt, priority = one_salt(body.cache_salt, body.extra_key), body.priority or 0
    return [
        Ask(prompt, sampling, n, wanted, body.logprobs or 0, start, salt, priority, asked)
        for prompt in prompts
    ]


def parse_prompts(prompt: str | list[str | int | list[int]], vocabulary: int) -> list[Prompt]:
    """The prompts of a request in their order."""
    if isinstance(prompt, str):
        return [Prompt(text=_not_empty(prompt))]
    if prompt and all(isinstance(entry, int) for entry in prompt):
        ids = [entry for entry in prompt if isinstance(entry, int)]
        check_ids(ids, vocabulary, "prompt")
        return [Prompt(input_ids=ids)]
    prompts: list[Prompt] = []
    for entry in _not_empty(prompt):
        if isinstance(entry, int):
            raise InvalidRequest(
                "prompt: a list holds texts, token ids, or lists of token ids, not both", param="prompt"
            )
        if isinstance(entry, str):
            prompts.append(Prompt(text=_not_empty(entry)))
        else:
            check_ids(_not_empty(entry), vocabulary, "prompt")
            prompts.append(Prompt(input_ids=entry))
    return prompts


def _not_empty(prompt: P) -> P:
    if not prompt:
        raise InvalidRequest("prompt: it is empty; a prompt has at least one token", param="prompt")
    return prompt
