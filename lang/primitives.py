"""What programs are written with: `gen`, `select` and the roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sgl_actors.lang.arguments import (
    MAX_TOP_LOGPROBS,
    check_choices,
    check_name,
    sampling_args,
    whole,
)
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Expression, Gen, RoleBegin, RoleEnd, Select, as_nodes, check_text


def gen(
    name: str | None = None,
    *,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    repetition_penalty: float | None = None,
    ignore_eos: bool | None = None,
    no_stop_trim: bool | None = None,
    skip_special_tokens: bool | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
    choices: Sequence[str] | None = None,
) -> Expression:
    """Have the model write here, and keep what it wrote as variable `name`.

    Arguments that are not given come from `run(...)`, then from the defaults (128 tokens, temperature 1).

    Args:
        name: variable; without one the text only goes into the prompt.
        max_tokens: tokens at most.
        min_tokens: tokens at least, before the model's end token counts.
        stop: string or strings that end the text; they are not part of it.
        stop_token_ids: ids that end it.
        temperature: 0 to 100; 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: candidates kept, -1 for all.
        min_p: least probability relative to the most likely token.
        frequency_penalty: -2 to 2, subtracted per occurrence in the output.
        presence_penalty: -2 to 2, subtracted once for each token in the output.
        repetition_penalty: 0.01 to 100, divides the logits of tokens seen; 1 is off.
        ignore_eos: go on after the model's end token.
        no_stop_trim: keep the stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        logit_bias: token id -> value added to its logit.
        seed: 64 bits; fixes the random draw of this gen alone; by default it follows from the program's seed, the stream's path and
            the number of this gen in its stream.
        logprobs: report each token's log probability in `state.meta(name)["output_token_logprobs"]`.
        top_logprobs: and that many (100 at most) alternatives, in "output_top_logprobs".
        choices: makes it a `select`.

    Raises:
        InvalidPrimitive: an argument of a wrong type or out of its range (NaN always is); `param` names it.

    Example:
        ``"The capital of France is" + gen("capital", max_tokens=4, stop=".")``
    """
    if name is not None:
        check_name("gen", name)
    if choices is not None:
        return select(name, choices)
    where = "gen" if name is None else f"gen({name!r})"
    top = whole(where, "top_logprobs", top_logprobs, 0, MAX_TOP_LOGPROBS)
    sampling = sampling_args(
        where,
        {
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "repetition_penalty": repetition_penalty,
            "stop": stop,
            "stop_token_ids": stop_token_ids,
            "ignore_eos": ignore_eos,
            "no_stop_trim": no_stop_trim,
            "skip_special_tokens": skip_special_tokens,
            "logit_bias": logit_bias,
            "seed": seed,
        },
    )
    return Expression((Gen(name, sampling, bool(logprobs) or top > 0, top),))


def select(name: str | None, choices: Sequence[str]) -> Expression:
    """Append the most likely of `choices` and keep it as variable `name`.

    A choice's score is the mean log probability of its tokens after the prompt, so that long choices are at no
    disadvantage; of equal scores the first wins. Scores are in `state.meta(name)["scores"]`.

    Raises:
        InvalidPrimitive: no choices, an empty one, or two equal ones.

    Example:
        ``"Is the sky blue? " + select("answer", choices=["yes", "no"])``
    """
    if name is not None:
        check_name("select", name)
    return Expression((Select(name, check_choices(name, choices)),))


def system(expression: object) -> Expression:
    """A system turn, as the model's chat template writes it."""
    return role("system", expression)


def user(expression: object) -> Expression:
    """A user turn."""
    return role("user", expression)


def assistant(expression: object) -> Expression:
    """An assistant turn; what is generated inside continues it."""
    return role("assistant", expression)


def role(name: str, expression: object) -> Expression:
    """A turn of any role that the model's template knows; `InvalidPrimitive` if `expression` holds a turn itself."""
    check_text("role", name, "name")
    nodes = as_nodes(expression)
    if any(isinstance(node, RoleBegin | RoleEnd) for node in nodes):
        raise InvalidPrimitive(f"{name}(…): a turn cannot stand inside another turn")
    return Expression((RoleBegin(name), *nodes, RoleEnd(name)))


def system_begin() -> Expression:
    """Open a system turn."""
    return Expression((RoleBegin("system"),))


def system_end() -> Expression:
    """Close it."""
    return Expression((RoleEnd("system"),))


def user_begin() -> Expression:
    """Open a user turn."""
    return Expression((RoleBegin("user"),))


def user_end() -> Expression:
    """Close it."""
    return Expression((RoleEnd("user"),))


def assistant_begin() -> Expression:
    """Open an assistant turn."""
    return Expression((RoleBegin("assistant"),))


def assistant_end() -> Expression:
    """Close it."""
    return Expression((RoleEnd("assistant"),))
