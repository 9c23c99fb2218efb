"""What programs are written with: `gen`, `select` and the roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Expression, Gen, RoleBegin, RoleEnd, SamplingArgs, Select, as_nodes


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
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: candidates kept, -1 for all.
        min_p: least probability relative to the most likely token.
        frequency_penalty: subtracted per occurrence in the output.
        presence_penalty: subtracted once for each token in the output.
        repetition_penalty: divides the logits of tokens seen; 1 is off.
        ignore_eos: go on after the model's end token.
        no_stop_trim: keep the stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        logit_bias: token id -> value added to its logit.
        seed: fixes the random draw of this gen alone; by default it follows from the program's seed, the stream's path and
            the number of this gen in its stream.
        logprobs: report each token's log probability in `state.meta(name)["output_token_logprobs"]`.
        top_logprobs: and that many alternatives, in "output_top_logprobs".
        choices: makes it a `select`.

    Raises:
        InvalidPrimitive: a name or stop that is no string.

    Example:
        ``"The capital of France is" + gen("capital", max_tokens=4, stop=".")``
    """
    _check_name("gen", name)
    if choices is not None:
        return select(name, choices)
    sampling = SamplingArgs(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        stop=as_stops(stop),
        stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
        ignore_eos=ignore_eos,
        no_stop_trim=no_stop_trim,
        skip_special_tokens=skip_special_tokens,
        logit_bias=None if logit_bias is None else tuple(sorted(logit_bias.items())),
        seed=seed,
    )
    return Expression((Gen(name, sampling, logprobs or top_logprobs > 0, top_logprobs),))


def select(name: str | None, choices: Sequence[str]) -> Expression:
    """Append the most likely of `choices` and keep it as variable `name`.

    A choice's score is the mean log probability of its tokens after the prompt, so that long choices are at no
    disadvantage; of equal scores the first wins. Scores are in `state.meta(name)["scores"]`.

    Raises:
        InvalidPrimitive: no choices, an empty one, or two equal ones.

    Example:
        ``"Is the sky blue? " + select("answer", choices=["yes", "no"])``
    """
    _check_name("select", name)
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise InvalidPrimitive(
            f"select({name!r}): choices is a list of strings, not {choices!r:.80}", param="choices"
        )
    if not choices or not all(choices):
        raise InvalidPrimitive(
            f"select({name!r}): choices is empty or holds an empty string", param="choices"
        )
    if len(set(choices)) != len(choices):
        raise InvalidPrimitive(f"select({name!r}): two of its choices are equal", param="choices")
    return Expression((Select(name, tuple(choices)),))


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


def as_stops(stop: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Stop strings as the nodes hold them."""
    if stop is None:
        return None
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(item, str) and item for item in stops):
        raise InvalidPrimitive(
            f"stop is a string or strings, none of them empty, not {stop!r:.80}", param="stop"
        )
    return stops


def _check_name(primitive: str, name: object) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidPrimitive(
            f"{primitive}: a variable's name is a non-empty string, not {name!r:.80}", param="name"
        )
