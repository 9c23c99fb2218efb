"""From what the OpenAI-compatible endpoints take to the node's sampling options."""

from __future__ import annotations

from sgl_actors.actors.gateway.constraints import Asked
from sgl_actors.actors.gateway.limits import MAX_BIASES, MAX_STOP_IDS, check_ids, check_length, check_stops
from sgl_actors.actors.gateway.openai_types import SamplingFields, StreamOptions
from sgl_actors.actors.gateway.turns import MEDIA
from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.errors import InvalidRequest

OPENAI_UNSUPPORTED = {
    "extra_body": "its fields stand in the request itself; only the openai package puts them into extra_body",
    "sampling_params": "its fields stand in the request itself, sampling_params are for /generate",
    "functions": "it is the former name of tools",
    "guided_whitespace_pattern": "the white space of JSON is fixed; a schema may ask for another in its own x-guidance",
    "audio": MEDIA,
    "suffix": "text cannot be inserted before a suffix by this model",
    "chat_template": "templates come with the model, not with requests",
    "chat_template_kwargs": "the model's template takes no arguments from requests",
    "lora_path": "adapters are not supported by this node",
    "prompt_logprobs": "prompt log probabilities come with echo and logprobs of /v1/completions",
    "return_token_ids": "token ids are returned by /generate",
    "return_hidden_states": "hidden states are not returned by this node",
    "use_beam_search": "beam search is not supported by this node",
}
"""Fields of the OpenAI-compatible endpoints that this node cannot honour."""
TOOLS = "tools are for /v1/chat/completions"
COMPLETION_UNSUPPORTED = {**OPENAI_UNSUPPORTED, "tools": TOOLS, "tool_choice": TOOLS}
"""The same for plain completions."""


def openai_sampling(
    fields: SamplingFields, max_tokens: int | None, vocabulary: int, asked: Asked
) -> SamplingOptions:
    """The node's options for a request; what is absent has the OpenAI API's default.

    Args:
        fields: the request.
        max_tokens: output tokens at most; None for as many as the context leaves.
        vocabulary: number of token ids of the model.
        asked: what the output has to be.

    Raises:
        InvalidRequest: a value that contradicts another, or a token id that the model does not have.
    """
    min_tokens = fields.min_tokens or 0
    check_min_tokens(min_tokens, max_tokens, "min_tokens", "max_tokens")
    return SamplingOptions(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_or(fields.temperature, 1.0),
        top_p=_or(fields.top_p, 1.0),
        top_k=fields.top_k or -1,
        min_p=_or(fields.min_p, 0.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, 1.0),
        stop=check_stops(fields.stop),
        stop_token_ids=stop_ids(fields.stop_token_ids, vocabulary),
        ignore_eos=bool(fields.ignore_eos),
        no_stop_trim=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False,
        logit_bias=biases(fields.logit_bias, vocabulary),
        seed=fields.seed,
        stop_regex=check_stops(fields.stop_regex, "stop_regex"),
        constraint=asked.constraint,
        jump_forward=fields.jump_forward is not False,
    )


def check_stream_options(fields: SamplingFields) -> StreamOptions:
    """What a stream tells of its usage; options without a stream are refused, as the OpenAI API does."""
    if fields.stream_options is None:
        return StreamOptions()
    if not fields.stream:
        raise InvalidRequest("stream_options: only allowed together with stream", param="stream_options")
    return fields.stream_options


def check_min_tokens(least: int, most: int | None, least_name: str, most_name: str) -> None:
    """Refuse a minimum over the maximum."""
    if most is not None and least > most:
        raise InvalidRequest(f"{least_name}: {least} is over {most_name} ({most})", param=least_name)


def stop_ids(ids: list[int] | None, vocabulary: int) -> tuple[int, ...]:
    """Stop token ids, checked."""
    check_length(len(ids or ()), MAX_STOP_IDS, "stop_token_ids")
    check_ids(ids or (), vocabulary, "stop_token_ids")
    return tuple(ids or ())


def biases(bias: dict[int, float] | None, vocabulary: int) -> tuple[tuple[int, float], ...]:
    """Logit biases, checked, in a fixed order."""
    check_length(len(bias or ()), MAX_BIASES, "logit_bias")
    check_ids(bias or (), vocabulary, "logit_bias")
    return tuple(sorted((bias or {}).items()))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
