"""POST /tokenize, POST /detokenize, GET /tokenizer_info: what evaluation tools without a tokenizer of their own need."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.limits import check_choices, check_ids
from sgl_actors.actors.gateway.openai_types import ChatTurn, ToolSpec
from sgl_actors.actors.gateway.service import reply, service_of
from sgl_actors.actors.gateway.tools import told
from sgl_actors.actors.gateway.turns import parse_messages
from sgl_actors.actors.gateway.view import check_model
from sgl_actors.actors.tokenizer.messages import Tokenize
from sgl_actors.errors import InvalidRequest

MAX_TEXTS = 1024


class TokenizeBody(msgspec.Struct, frozen=True):
    """POST /tokenize: one of `prompt` (a text or texts) and `messages`, which may be told of `tools`."""

    model: str | None = None
    prompt: str | Annotated[list[str], Meta(max_length=MAX_TEXTS)] | None = None
    messages: list[ChatTurn] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[ToolSpec] | None = None


class TokenizeAnswer(msgspec.Struct, frozen=True):
    """Token ids and their number; lists of them for a list of texts."""

    tokens: list[int | list[int]]
    count: int | list[int]
    max_model_len: int


class DetokenizeBody(msgspec.Struct, frozen=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None
    skip_special_tokens: bool | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """The text, under the names that vLLM (`prompt`) and SGLang (`text`) give it."""

    prompt: str
    text: str


class TokenizerAnswer(msgspec.Struct, frozen=True):
    """GET /tokenizer_info: the chat template, and all special tokens that it may name; null for those that the model does not have."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    vocab_size: int


async def tokenize(request: Request) -> Response:
    """Ids of a text, of texts, or of a chat rendered with the model's template."""
    service = service_of(request)
    body = await service.read(request, TokenizeBody)
    service = await service.serving(body.model)
    info = await service.view.admit()
    check_model(body.model, info)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("prompt: give exactly one of prompt and messages", param="prompt")
    special = body.add_special_tokens is not False
    if body.messages is not None:
        ids = await service.node.tokenize(
            Tokenize(
                messages=parse_messages(body.messages),
                add_generation_prompt=body.add_generation_prompt is not False
                and not body.continue_final_message,
                continue_final=bool(body.continue_final_message),
                tools=told(body.tools),
            )
        )
        return reply(TokenizeAnswer([*ids.token_ids], len(ids.token_ids), info.context))
    if isinstance(body.prompt, list):
        check_choices(1, len(body.prompt), MAX_TEXTS)
        many = [
            (await service.node.tokenize(Tokenize(text=text, add_special_tokens=special))).token_ids
            for text in body.prompt
        ]
        return reply(TokenizeAnswer([*many], [len(one) for one in many], info.context))
    ids = await service.node.tokenize(Tokenize(text=body.prompt, add_special_tokens=special))
    return reply(TokenizeAnswer([*ids.token_ids], len(ids.token_ids), info.context))


async def detokenize(request: Request) -> Response:
    """Text of ids; special tokens are shown unless the request says otherwise."""
    service = service_of(request)
    body = await service.read(request, DetokenizeBody)
    service = await service.serving(body.model)
    info = await service.view.admit()
    check_model(body.model, info)
    check_ids(body.tokens, info.vocabulary, "tokens")
    text = await service.node.detokenize(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    return reply(DetokenizeAnswer(text, text))


async def tokenizer_info(request: Request) -> Response:
    """Special tokens and the chat template, of the default model or the `model` of the query."""
    model = request.query_params.get("model")
    service = await service_of(request).serving(model)
    check_model(model, await service.view.admit())
    info = await service.node.tokenizer()
    return reply(
        TokenizerAnswer(
            bos_token=info.bos_token,
            eos_token=info.eos_token,
            pad_token=info.pad_token,
            unk_token=info.unk_token,
            chat_template=info.chat_template,
            vocab_size=info.vocabulary,
        )
    )
