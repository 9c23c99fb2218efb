"""Bodies of the native endpoints, with SGLang's names. null means absent, except for max_new_tokens."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sgl_actors.actors.gateway.openai_types import (
    MAX_COUNT,
    Bias,
    Count,
    Penalty,
    Positive,
    Priority,
    Probability,
    Repetition,
    Seed,
    StructuralTag,
    Temperature,
    TopK,
    TopP,
)

Start = Annotated[int, Meta(ge=-1, le=MAX_COUNT)]
Rid = Annotated[str, Meta(min_length=1, max_length=128)]


class NativeSampling(msgspec.Struct, frozen=True):
    """`sampling_params` of /generate.

    `max_new_tokens` is 128 when absent, null for as many as the context leaves; 0 computes the prompt only.
    `regex`, `json_schema` (an object or its JSON text), `choice`, `lark`, `ebnf` (GBNF with ``root ::= …``, or Lark) or `structural_tag` says what the
    output has to be as a whole; at most one. `jump_forward`: false computes text that it forces token by token; the answer is the same.
    `stop_regex`: regular expressions that end the output as stop strings do.
    `custom_params` and what follows it are refused: a constraint under the name that another endpoint has for it must not be free text.
    """

    max_new_tokens: Count | UnsetType | None = UNSET
    min_new_tokens: Count | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Count] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    n: Positive | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    logit_bias: dict[int, Bias] | None = None
    sampling_seed: Seed | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    lark: str | None = None
    choice: list[str] | None = None
    structural_tag: str | StructuralTag | None = None
    jump_forward: bool | None = None
    stop_regex: str | list[str] | None = None
    custom_params: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None


class GenerateBody(msgspec.Struct, frozen=True):
    """POST /generate: exactly one of `text` and `input_ids`, single or a list.

    `sampling_params`, `cache_salt` (SGLang calls it `extra_key`) and the fields about log probabilities are one for all or a list with one per prompt.
    `logprob_start_len`: report the prompt's log probabilities from that index on; -1 for the output's only. Absent it
    means -1, but 0 when nothing is generated: then the prompt's are the only ones that can be meant.
    """

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: NativeSampling | list[NativeSampling | None] | None = None
    rid: Rid | list[Rid] | None = None
    return_logprob: bool | list[bool | None] | None = None
    logprob_start_len: Start | list[Start | None] | None = None
    top_logprobs_num: Count | list[Count | None] | None = None
    return_text_in_logprobs: bool | list[bool | None] | None = None
    stream: bool | None = None
    cache_salt: str | list[str | None] | None = None
    extra_key: str | list[str | None] | None = None
    priority: Priority | None = None
    model: str | None = None


NativeLogprob = tuple[float | None, int, str | None]
"""(log probability, token id, text if asked for)."""


class FinishReason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why it ended: stop with what `matched`, length, or abort."""

    type: str
    matched: int | str | UnsetType | None = UNSET
    length: int | UnsetType = UNSET
    message: str | UnsetType = UNSET
    status_code: int | UnsetType = UNSET
    err_type: str | UnsetType = UNSET


class MetaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What happened; the four lists are there if `return_logprob` is.

    `input_token_logprobs` begins at `logprob_start_len`, entry 0 with its real log probability unless it is the first
    token of all: prompt_tokens == start + len(list). `decode_steps` and the next five tell how the output was made, as `CompletionDetails` does.
    """

    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float
    decode_steps: int
    sampled_tokens: int
    forced_tokens: int
    held_back_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    input_token_logprobs: list[NativeLogprob] | UnsetType = UNSET
    output_token_logprobs: list[NativeLogprob] | UnsetType = UNSET
    input_top_logprobs: list[list[NativeLogprob] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[NativeLogprob] | None] | UnsetType = UNSET


class Generated(msgspec.Struct, frozen=True):
    """One answer of /generate; in a stream everything so far. `index` tells answers of a batch's stream apart."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | UnsetType = UNSET


class AbortBody(msgspec.Struct, frozen=True):
    """POST /abort_request."""

    rid: str | None = None
    abort_all: bool | None = None
