"""What a primitive asks of an API model, compared with what the model can do, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.backends.capabilities import TEXT, Capabilities
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, Constraint
from sgl_actors.lang.errors import Unsupported, UnsupportedMedia
from sgl_actors.lang.ir import IMAGE, VIDEO, Gen, Media, Select
from sgl_actors.lang.stop_patterns import compile_pattern

LOGPROBS: Final = "logprobs"
"""A select by the log probabilities of its choices."""
LOGIT_BIAS: Final = "logit_bias"
"""A select token by token, each time with only the tokens allowed that a choice goes on with."""
SCHEMA: Final = "schema"
"""A select by what the model writes under a schema of its choices."""
WAYS: Final = {
    "token_length_normalized": (LOGPROBS, LOGIT_BIAS, SCHEMA),
    "greedy_token_selection": (LOGPROBS, LOGIT_BIAS, SCHEMA),
    "unconditional_likelihood_normalized": (LOGPROBS,),
}
"""Ways in which a method of `choices.METHODS` can be had, the best first."""

OURS: Final = frozenset(
    {"max_tokens", "stop", "stop_regex", "no_stop_trim", "seed", "constraint", "jump_forward"}
)
"""Sampling arguments that every model has: it takes them, we do it for it, or (`seed`, `jump_forward`) its answer is right without, too."""
DEFAULTS: Final = SamplingOptions()

_SERVERS: Final = "vllm, sglang, sgl-actors"
_ALL_SERVERS: Final = f"{_SERVERS}, llama.cpp"
CAN: Final = {
    "top_k": f"anthropic, gemini, {_ALL_SERVERS}",
    "min_p": _ALL_SERVERS,
    "frequency_penalty": f"openai, gemini, {_ALL_SERVERS}",
    "presence_penalty": f"openai, gemini, {_ALL_SERVERS}",
    "repetition_penalty": _ALL_SERVERS,
    "ignore_eos": _ALL_SERVERS,
    "min_tokens": _SERVERS,
    "stop_token_ids": _SERVERS,
    "skip_special_tokens": _SERVERS,
    "logit_bias": f"openai, {_ALL_SERVERS}",
    "json_schema": f"openai, anthropic, gemini, {_ALL_SERVERS}",
    "regex": f"openai, anthropic, {_SERVERS}",
    "choice": "openai, anthropic, gemini, vllm, sgl-actors",
    "lark": "sgl-actors",
    "tools": f"openai, anthropic, gemini, {_ALL_SERVERS}",
    "logprobs": f"openai, gemini, {_ALL_SERVERS}",
    "scoring": _SERVERS,
    "image": "openai, anthropic, gemini, vllm, sglang, llama.cpp",
    "video": "gemini, vllm, sglang",
    "select": f"openai, anthropic, gemini, {_ALL_SERVERS}",
}
"""Who can do what, for messages: not each of their models can."""


def check_asked(
    what: str, node: Gen, sampling: SamplingOptions, capabilities: Capabilities, title: str
) -> None:
    """Raise for what a gen asks for that the model cannot do, and we cannot do for it.

    Args:
        what: the primitive, for the message: ``gen('name')``.
        node: it.
        sampling: its arguments, with all defaults filled in.
        capabilities: of the model.
        title: of the model.

    Raises:
        Unsupported: so it is; the message says who can, `param` which argument.
        InvalidRequest: an expression of `stop_regex` that no model takes.
    """
    where = f"{what}: {title}"
    taken = OURS | {*capabilities.sampling} | ({"logit_bias"} if capabilities.logit_bias else set())
    for name, default in zip(
        SamplingOptions.__struct_fields__, SamplingOptions.__struct_defaults__, strict=True
    ):
        if name not in taken and getattr(sampling, name) != default:
            raise Unsupported(f"{where} takes no {name}; {_who(name)}", param=name)
    if node.tools:
        if not (capabilities.tools or _follows(sampling.constraint, capabilities)):
            raise Unsupported(
                f"{where} calls no tools, and follows no JSON schema; {_who('tools')}", param="tools"
            )
    elif sampling.constraint is not None and not _follows(sampling.constraint, capabilities):
        kind = sampling.constraint.kind
        raise Unsupported(f"{where} follows no constraint of kind {kind}; {_who(kind)}", param=kind)
    for pattern in sampling.stop_regex:
        compile_pattern(pattern)
    _check_logprobs(where, node, capabilities)


def check_media(what: str, media: Iterable[Media], capabilities: Capabilities, title: str) -> None:
    """Raise `UnsupportedMedia` for what the model does not look at."""
    seen = {IMAGE: capabilities.images, VIDEO: capabilities.videos}
    for one in media:
        if not seen[one.kind]:
            raise UnsupportedMedia(f"{what}: {title} takes no {one.kind}s; {_who(one.kind)}", param=one.kind)


def check_select(what: str, node: Select, capabilities: Capabilities, title: str) -> str:
    """In which way a select can be had from the model: `LOGPROBS`, `LOGIT_BIAS` or `SCHEMA`.

    Raises:
        Unsupported: in none, or in none of those that its method has.
    """
    there = {
        LOGPROBS: capabilities.scoring,
        LOGIT_BIAS: capabilities.logit_bias and capabilities.tokenizer and capabilities.continuation == TEXT,
        SCHEMA: capabilities.schema or CHOICE in capabilities.constraints,
    }
    for way in WAYS[node.method]:
        if there[way]:
            return way
    if any(there.values()):
        raise Unsupported(
            f"{what}: {title} reports no log probabilities of given text, which choices_method={node.method!r} needs; the completions of {_who('scoring')}",
            param="choices_method",
        )
    raise Unsupported(
        f"{what}: {title} can choose in no way: it reports no log probabilities of given text, and takes neither a logit_bias nor a schema; {_who('select')}",
        param="choices",
    )


def _follows(constraint: Constraint | None, capabilities: Capabilities) -> bool:
    if constraint is None:
        return True
    return constraint.kind in capabilities.constraints or (
        constraint.kind == JSON_SCHEMA and capabilities.schema
    )


def _check_logprobs(where: str, node: Gen, capabilities: Capabilities) -> None:
    if (node.logprobs or node.top_logprobs) and capabilities.logprobs < 0:
        raise Unsupported(f"{where} reports no log probabilities; {_who('logprobs')}", param="logprobs")
    if node.top_logprobs > max(capabilities.logprobs, 0):
        raise Unsupported(
            f"{where} reports at most {capabilities.logprobs} top_logprobs, not {node.top_logprobs}",
            param="top_logprobs",
        )
    if node.prompt_logprobs_start >= 0 and not capabilities.scoring:
        raise Unsupported(
            f"{where} reports no log probabilities of the prompt; the completions of {_who('scoring')}",
            param="logprob_start_len",
        )


def _who(name: str) -> str:
    """Who can; of arguments that only some of each vendor's models refuse, what to do."""
    if name not in CAN:
        return "leave it out, or use a model that does"
    *several, last = CAN[name].split(", ")
    return f"{', '.join(several)} and {last} do" if several else f"{last} does"
