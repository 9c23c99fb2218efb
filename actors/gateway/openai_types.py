"""Bodies of the OpenAI-compatible endpoints. Unknown fields are accepted; see `body` for what is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sgl_actors.actors.gateway.limits import MAX_PRIORITY

MAX_COUNT = (1 << 31) - 1
"""Greatest count; what is larger can only be a mistake, and does not travel."""

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
TopP = Annotated[float, Meta(gt=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
TopK = Annotated[int, Meta(ge=-1, le=MAX_COUNT)]
Repetition = Annotated[float, Meta(ge=0.01, le=100)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Priority = Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`. `include_usage`: a last chunk without choices carries the usage."""

    include_usage: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True):
    """`json_schema` of a `response_format`. `strict` makes no difference: the output always follows the schema."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer has to be: `text`, `json_object` or `json_schema`."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and plain completions have in common; null means absent.

    The second half (from `top_k` on) is no part of the OpenAI API; names are those that SGLang and vLLM use.
    `cache_salt`, also called `extra_key`: requests share cached prefixes only with those of the same tenant and salt.
    `priority`: higher ones are admitted first.
    `response_format`, `regex`, `json_schema`, `ebnf` (a Lark grammar), `guided_regex`, `guided_json`: what the output has to be as a whole; at most one.
    `stop_regex`: regular expressions that end the output as stop strings do.
    """

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Positive | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[int, Bias] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: Repetition | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Count] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    priority: Priority | None = None
    response_format: ResponseFormat | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    ebnf: str | None = None
    guided_regex: str | None = None
    guided_json: str | dict[str, Any] | None = None
    stop_regex: str | list[str] | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt`: a text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: Count | None = None
    best_of: Positive | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message; only `text` parts can be answered so far."""

    type: str
    text: str | None = None


class ChatTurn(msgspec.Struct, frozen=True):
    """A message of a chat. Text parts are joined with a newline."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions. `max_completion_tokens` goes before `max_tokens`."""

    messages: list[ChatTurn]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose KV came from the cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request; each prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists, one entry per token; the first prompt token has null. Offsets are into the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or in a stream its next piece."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /v1/completions, also for each chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative to a token."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token and its alternatives."""

    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """One entry per output token."""

    content: list[ChatLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct, frozen=True):
    """The model's turn."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage


class Delta(msgspec.Struct, frozen=True):
    """What is new in a message; empty in the chunk that says why it ended."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice's share of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a chat stream. With include_usage `usage` is null in all chunks but the last, which has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sgl-actors"
    root: str
    max_model_len: int


class ModelList(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
