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
    """`stream_options`. `include_usage`: a last chunk without choices carries the usage. `continuous_usage_stats`: every chunk says what was used so far."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True):
    """`json_schema` of a `response_format`. `strict` makes no difference: the output always follows the schema."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class Structure(msgspec.Struct, frozen=True):
    """A part of the output between two texts, JSON by `schema` (any if absent)."""

    begin: str
    schema: dict[str, Any] = {}
    end: str = ""


class StructuralTag(msgspec.Struct, frozen=True):
    """Free text until one of `triggers` was written; then one of the `structures` that begin with it, and free text again."""

    structures: list[Structure]
    triggers: list[str]


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer has to be: `text`, `json_object`, `json_schema` or `structural_tag` (with `structures` and `triggers`)."""

    type: str
    json_schema: JsonSchemaFormat | None = None
    structures: list[Structure] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`structured_outputs` of vLLM: one of these. White space of JSON is always fixed: `disable_any_whitespace` changes nothing, as `disable_fallback` does."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | StructuralTag | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and plain completions have in common; null means absent.

    The second half (from `top_k` on) is no part of the OpenAI API; names are those that SGLang and vLLM use.
    `cache_salt`, also called `extra_key`: requests share cached prefixes only with those of the same tenant and salt.
    `priority`: higher ones are admitted first.
    `response_format`, `structured_outputs`, `regex`, `json_schema`, `choice`, `lark` (a grammar in llguidance's dialect of Lark), `ebnf` (GBNF with
    ``root ::= …``, or Lark), `structural_tag`, `guided_json`, `guided_json_object`, `guided_regex`, `guided_choice`, `guided_grammar`: what the output has
    to be as a whole; at most one.
    `jump_forward`: false computes text that the constraint forces token by token; the answer is the same.
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
    lark: str | None = None
    choice: list[str] | None = None
    structural_tag: str | StructuralTag | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    jump_forward: bool | None = None
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


class Called(msgspec.Struct, frozen=True):
    """The function that is called. `arguments`: JSON text; in an assistant's turn also an object."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a function by the model; an answer has its id."""

    id: str
    function: Called
    type: str = "function"


class FunctionSpec(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters`: JSON schema of its arguments, an object. `strict` makes no difference: they always follow it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    """An entry of `tools`; only functions can be called."""

    function: FunctionSpec | None = None
    type: str = "function"


class FunctionName(msgspec.Struct, frozen=True):
    """Which function."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """A `tool_choice` that leaves none."""

    function: FunctionName | None = None
    type: str = "function"


class ChatTurn(msgspec.Struct, frozen=True):
    """A message of a chat. Text parts are joined with a newline. A turn of the role `tool` answers the call `tool_call_id`."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions. `max_completion_tokens` goes before `max_tokens`.

    `tool_choice`: `auto` (text or calls, the default), `required`, `none`, or the one function to call.
    """

    messages: list[ChatTurn]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose KV came from the cache."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """How the output was made: in how many forward passes, of tokens that the model chose and tokens that a constraint left no choice about.

    `held_back_tokens`: tokens of forced text that were left to the model, as they might have been joined with what followed.
    `drafted_tokens` were guessed and checked; `accepted_tokens` of them were right, and are among the sampled ones.
    """

    steps: int
    sampled_tokens: int
    forced_tokens: int
    held_back_tokens: int
    drafted_tokens: int
    accepted_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request; each prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class CompletionLogprobs(msgspec.Struct, frozen=True):
    r"""Parallel lists, one entry per token; the first prompt token has null.

    Offsets are into the choice's text, so that a token's text is what stands there up to the next token's. Of a character that is several tokens
    the last one has it; in `tokens`, which tell all tokens apart, they are written as ``bytes:\xe2\x82``.
    """

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
    """The model's turn; `content` is null where it has only calls."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


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


class CalledDelta(msgspec.Struct, frozen=True):
    """What is new of a called function."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCallDelta(msgspec.Struct, frozen=True):
    """What is new of call number `index`: first its id and name, then its arguments in pieces."""

    index: int
    function: CalledDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True):
    """What is new in a message; empty in the chunk that says why it ended."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice's share of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a chat stream. With include_usage `usage` is null in all chunks but the last, which has no choices, unless all of them tell it."""

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
