"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.chat_writer import ChatWriter
from sgl_actors.actors.gateway.constraints import openai_constraint
from sgl_actors.actors.gateway.generation import Ask, Prompt
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.limits import MAX_CHAT_TOP_LOGPROBS, check_choices, one_salt
from sgl_actors.actors.gateway.openai_types import ChatRequest
from sgl_actors.actors.gateway.retry import CHAT, Retry
from sgl_actors.actors.gateway.sampling import OPENAI_UNSUPPORTED, check_stream_options, openai_sampling
from sgl_actors.actors.gateway.service import Service, exchange_of, reply, service_of
from sgl_actors.actors.gateway.tools import Tools, tools_of
from sgl_actors.actors.gateway.turns import parse_messages
from sgl_actors.actors.gateway.view import check_model
from sgl_actors.actors.tokenizer.messages import ChatMessage, Tokenize
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import InvalidRequest


async def chat_completions(request: Request) -> Response:
    """Answer as JSON or as a stream."""
    service = service_of(request)
    body = await service.read(request, ChatRequest, OPENAI_UNSUPPORTED)
    service = await service.serving(body.model)
    info = await service.view.admit()
    check_model(body.model, info)
    options = check_stream_options(body)
    tools = tools_of(body, openai_constraint(body))
    ask = await chat_ask(service, body, tools, info)
    exchange = exchange_of(request)
    retry = Retry.of(request.headers, exchange.tenant.name, stream=bool(body.stream))
    job = Job(service, exchange, [ask], prefix=CHAT, model=info.served_name, retry=retry)
    writer = ChatWriter(service, job, logprobs=bool(body.logprobs), options=options, calls=tools.active)
    if body.stream:
        return service.stream(request, writer.stream)
    await job.collect(request)
    return reply(await writer.whole())


async def chat_ask(service: Service, body: ChatRequest, tools: Tools, info: ModelInfo) -> Ask:
    """What to ask the node for.

    Raises:
        InvalidRequest: messages that this model cannot take, or values that contradict each other.
    """
    messages = parse_messages(body.messages)
    n = body.n or 1
    check_choices(n, 1, service.options.max_choices)
    top = body.top_logprobs or 0
    if top and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    if top > MAX_CHAT_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs: {top} is over {MAX_CHAT_TOP_LOGPROBS}", param="top_logprobs")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    sampling = openai_sampling(body, max_tokens, info.vocabulary, tools.asked)
    prompt = await _prompt(service, body, messages, tools.told)
    return Ask(
        prompt,
        sampling,
        n,
        bool(body.logprobs),
        top,
        salt=one_salt(body.cache_salt, body.extra_key),
        priority=body.priority or 0,
        asked=tools.asked,
    )


async def _prompt(service: Service, body: ChatRequest, messages: list[ChatMessage], tools: str) -> Prompt:
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message: excludes add_generation_prompt", param="continue_final_message"
            )
        if messages[-1].role != "assistant":
            raise InvalidRequest(
                "continue_final_message: the last message must be the assistant's",
                param="continue_final_message",
            )
        return Prompt(messages=messages, continue_final=True, tools=tools)
    if body.add_generation_prompt is False:
        rendered = await service.node.tokenize(
            Tokenize(messages=messages, add_generation_prompt=False, tools=tools)
        )
        return Prompt(input_ids=rendered.token_ids)
    return Prompt(messages=messages, tools=tools)
