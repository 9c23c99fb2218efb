"""What programs are written with: `gen`, `select` and the roles."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack, cast, overload

import msgspec

from sgl_actors.lang.arguments import (
    MAX_COUNT,
    MAX_TOP_LOGPROBS,
    check_choices,
    check_method,
    check_name,
    number,
    sampling_args,
    whole,
)
from sgl_actors.lang.choices import METHODS
from sgl_actors.lang.constraints.values import Pattern
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import (
    IMAGE,
    VIDEO,
    Expression,
    Gen,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    Slot,
    as_nodes,
    check_text,
)
from sgl_actors.lang.media import load
from sgl_actors.lang.reasoning import check_model
from sgl_actors.lang.shape import quoted, shape_of
from sgl_actors.lang.tool_calls import calls_of
from sgl_actors.lang.tools import Call, Tool

if TYPE_CHECKING:
    from typing_extensions import TypeForm

MAX_COMPLETIONS: Final = 128
"""Most completions of one gen."""
MAX_FRAMES: Final = 1024
GREEDY: Final = 1e-5
"""A temperature up to here is none."""

T = TypeVar("T")


class GenArguments(TypedDict, total=False):
    """Arguments of `gen` that go with any type of value."""

    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    stop_regex: str | Sequence[str] | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    ignore_eos: bool | None
    return_logprob: bool | None
    logprob_start_len: int | None
    top_logprobs_num: int | None
    return_text_in_logprobs: bool | None
    repetition_penalty: float | None
    no_stop_trim: bool | None
    skip_special_tokens: bool | None
    jump_forward: bool | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    logprobs: bool
    top_logprobs: int


_DTYPES: Final = {"str": str, "int": int, "float": float, "bool": bool}


class TextArguments(GenArguments, total=False):
    """Further arguments of `gen` where the value is text."""

    regex: str | None
    json_schema: str | Mapping[str, Any] | None
    constraint: Pattern | None


@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    type: TypeForm[T],
    **arguments: Unpack[GenArguments],
) -> Slot[T]: ...
@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    type: TypeForm[T],
    n: int,
    **arguments: Unpack[GenArguments],
) -> Slot[list[T]]: ...
@overload
def gen(
    name: str | None = None, max_tokens: int | None = None, *, n: int, **arguments: Unpack[TextArguments]
) -> Slot[list[str]]: ...
@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    tools: Iterable[Tool[..., Any]],
    **arguments: Unpack[GenArguments],
) -> Slot[list[Call]]: ...
@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    tools: Iterable[Tool[..., Any]],
    n: int,
    **arguments: Unpack[GenArguments],
) -> Slot[list[list[Call]]]: ...
@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    dtype: builtins.type[T],
    **arguments: Unpack[GenArguments],
) -> Slot[T]: ...
@overload
def gen(
    name: str | None = None, max_tokens: int | None = None, *, dtype: str, **arguments: Unpack[GenArguments]
) -> Slot[Any]: ...
@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: None = None,
    choices: Sequence[str] | None = None,
    choices_method: str | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    *,
    constraint: Pattern | None = None,
    type: None = None,
    tools: None = None,
    repetition_penalty: float | None = None,
    no_stop_trim: bool | None = None,
    skip_special_tokens: bool | None = None,
    jump_forward: bool | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
) -> Slot[str]: ...
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,  # noqa: ARG001 - ids are what `meta` has
    dtype: Any = None,
    choices: Sequence[str] | None = None,
    choices_method: str | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    *,
    constraint: Pattern | None = None,
    type: Any = None,  # noqa: A002 - the word that users know from argparse and typer
    tools: Iterable[Tool[..., Any]] | None = None,
    repetition_penalty: float | None = None,
    no_stop_trim: bool | None = None,
    skip_special_tokens: bool | None = None,
    jump_forward: bool | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
) -> Slot[Any]:
    """Have the model write here, and keep what it wrote as variable `name`.

    Sampling arguments that are not given come from `run(...)`, then from the defaults (128 tokens, temperature 1).

    Args:
        name: variable; without one the text only goes into the prompt.
        max_tokens: tokens at most.
        min_tokens: tokens at least, before the model's end token counts.
        n: completions; with more than one the variable is a list of them, and the prompt goes on with the first.
        stop: string or strings that end the text; they are not part of it.
        stop_token_ids: ids that end it.
        stop_regex: regular expression or expressions whose first match ends it, and is not part of it.
        temperature: 0 to 100; 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: candidates kept, -1 for all.
        min_p: least probability relative to the most likely token.
        frequency_penalty: -2 to 2, subtracted per occurrence in the output.
        presence_penalty: -2 to 2, subtracted once for each token in the output.
        ignore_eos: go on after the model's end token.
        return_logprob: the same as `logprobs`.
        logprob_start_len: report the prompt's log probabilities, too, from this token on, as "input_token_logprobs"; -1 is none.
        top_logprobs_num: the same as `top_logprobs`.
        return_text_in_logprobs: taken and without effect: `meta` has token ids.
        dtype: `str`, `int`, `float` or `bool` (or its name): the same as `type`.
        choices: makes it a `select`, by `choices_method`.
        choices_method: see `select`.
        regex: the text matches this regular expression as a whole.
        json_schema: the text is a JSON value of this schema (a dictionary, or JSON).
        constraint: the text is what this value describes (`regex(…) + choice(…)`); its named parts become variables.
        type: the text is a value of this type, and the variable is that value: a msgspec Struct, dataclass, TypedDict, pydantic model,
            enum, Literal, number, list, dictionary or union.
        tools: the model calls one or more of these (see `tool`), and the variable is a list of `Call`s, for `call_all`. The prompt has to say what they
            are for.
        repetition_penalty: 0.01 to 100, divides the logits of tokens seen; 1 is off.
        no_stop_trim: keep the stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        jump_forward: append text that a constraint leaves no choice about in one go; without (False) the text is the same and takes longer.
        logit_bias: token id -> value added to its logit.
        seed: 64 bits; fixes the random draw of this gen alone; by default it follows from the program's seed, the stream's path and
            the number of this gen in its stream.
        logprobs: report each token's log probability in `state.meta(name)["output_token_logprobs"]`.
        top_logprobs: and that many (100 at most) alternatives, in "output_top_logprobs".

    Raises:
        InvalidPrimitive: an argument of a wrong type or out of its range (NaN always is), a pattern or schema that is none, or
            more than one of regex, json_schema, constraint, type, tools, dtype and choices; `param` names it.

    Example:
        >>> "The capital of France is" + gen("capital", max_tokens=4, stop=".")
        <ConstantText + Gen>
    """
    if name is not None:
        check_name("gen", name)
    where = "gen" if name is None else f"gen({name!r})"
    given = {
        "dtype": dtype, "choices": choices, "regex": regex, "json_schema": json_schema, "constraint": constraint, "type": type,
        "tools": tools,
    }  # fmt: skip
    several = [key for key, value in given.items() if value is not None]
    if len(several) > 1:
        raise InvalidPrimitive(f"{where}: only one of {' and '.join(several)} can be given", param=several[1])
    if choices is not None:
        idle = {
            "n": n, "stop": stop, "stop_token_ids": stop_token_ids, "stop_regex": stop_regex, "top_p": top_p, "top_k": top_k,
            "min_p": min_p, "min_tokens": min_tokens, "frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty,
            "repetition_penalty": repetition_penalty, "logit_bias": logit_bias, "seed": seed, "ignore_eos": ignore_eos,
        }  # fmt: skip
        for key, value in idle.items():
            if value is not None:
                raise InvalidPrimitive(f"{where}: {key} has no meaning with choices", param=key)
        return select(name, choices, temperature or 0.0, choices_method)
    if choices_method is not None:
        raise InvalidPrimitive(f"{where}: choices_method needs choices", param="choices_method")
    top = whole(where, "top_logprobs", top_logprobs or top_logprobs_num or 0, 0, MAX_TOP_LOGPROBS)
    start = whole(
        where, "logprob_start_len", -1 if logprob_start_len is None else logprob_start_len, -1, MAX_COUNT
    )
    count = whole(where, "n", 1 if n is None else n, 1, MAX_COMPLETIONS)
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
            "stop_regex": stop_regex,
            "ignore_eos": ignore_eos,
            "no_stop_trim": no_stop_trim,
            "skip_special_tokens": skip_special_tokens,
            "jump_forward": jump_forward,
            "logit_bias": logit_bias,
            "seed": seed,
        },
    )
    if tools is not None:
        shape = calls_of(where, tools)
    else:
        shape = shape_of(
            where, regex, json_schema, constraint, _DTYPES.get(dtype, dtype) if type is None else type
        )
    wanted = bool(logprobs or return_logprob) or top > 0 or start >= 0
    return Slot(Gen(name, sampling, wanted, top, start, count, *shape))


def gen_int(
    name: str | None = None, max_tokens: int | None = None, **arguments: Unpack[GenArguments]
) -> Slot[int]:
    """A whole number; the variable is an `int`. Arguments are those of `gen`.

    Example:
        >>> "2 + 2 = " + gen_int("sum")
        <ConstantText + Gen>
    """
    return gen(name, max_tokens, type=int, **arguments)


def gen_string(
    name: str | None = None, max_tokens: int | None = None, **arguments: Unpack[GenArguments]
) -> Slot[str]:
    """A string in double quotes; the variable is what is between them. Arguments are those of `gen`.

    Example:
        >>> "The title, in quotes: " + gen_string("title")
        <ConstantText + Gen>
    """
    (node,) = gen(name, max_tokens, **arguments).nodes
    shape = quoted()
    return Slot(
        msgspec.structs.replace(cast("Gen", node), constraint=shape.constraint, adapter=shape.adapter)
    )


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: str | None = None,
) -> Slot[str]:
    """Append the best of `choices` and keep it as variable `name`.

    Args:
        name: variable; without one the choice only goes into the prompt.
        choices: strings, no two equal.
        temperature: 0; choosing is not random.
        choices_method: how a choice is judged by the log probabilities of its tokens after the prompt: "token_length_normalized" (their
            mean; the default), "greedy_token_selection" (token by token, as the model would go on) or
            "unconditional_likelihood_normalized" (the mean of what the prompt adds to each). Of equals the first wins. Scores are in
            `state.meta(name)["scores"]`.

    Raises:
        InvalidPrimitive: no choices, an empty one, two equal ones, an unknown method or a temperature.

    Example:
        >>> "Is the sky blue? " + select("answer", choices=["yes", "no"])
        <ConstantText + Select>
    """
    if name is not None:
        check_name("select", name)
    if number(f"select({name!r})", "temperature", temperature, 0.0, 100.0) > GREEDY:
        raise InvalidPrimitive(
            f"select({name!r}): temperature is 0, not {temperature!r}", param="temperature"
        )
    method = METHODS[0] if choices_method is None else check_method(name, choices_method)
    return Slot(Select(name, check_choices(name, () if choices is None else choices), method))


def image(source: str | os.PathLike[str] | bytes) -> Expression:
    """An image, for models that take images: a file, or its bytes (PNG, JPEG, GIF, WebP, BMP; at most 20 MiB).

    A model that takes none fails the next gen with `UnsupportedMedia`.

    Raises:
        InvalidPrimitive: no such file, no known format, or too large.

    Example:
        >>> user(image(bytes.fromhex("89504e470d0a1a0a")) + "What is in it?")
        <RoleBegin + Media + ConstantText + RoleEnd>
    """
    return Expression((load(IMAGE, source),))


def video(source: str | os.PathLike[str] | bytes, num_frames: int = 8) -> Expression:
    """A video, for models that take videos: a file, or its bytes (MP4, WebM, AVI; at most 200 MiB).

    Args:
        source: the video.
        num_frames: frames the model looks at, spread evenly.

    Raises:
        InvalidPrimitive: no such file, no known format, or too large.

    Example:
        >>> user(video(bytes.fromhex("0000001866747970"), num_frames=4) + "What happens?")
        <RoleBegin + Media + ConstantText + RoleEnd>
    """
    return Expression((load(VIDEO, source, whole("video", "num_frames", num_frames, 1, MAX_FRAMES)),))


def separate_reasoning(expression: object, model_type: str) -> Expression:
    """Take the model's reasoning out of what `expression` generates.

    Each variable is the answer alone, `NAME_reasoning_content` the reasoning; the prompt goes on with the answer alone.

    Args:
        expression: one or more gens with names, and text.
        model_type: family of models, which says how reasoning is marked: see `reasoning.MODELS`.

    Raises:
        InvalidPrimitive: an unknown family, or nothing with a name is generated.

    Example:
        >>> assistant(separate_reasoning(gen("answer"), model_type="qwen3"))
        <RoleBegin + Gen + SeparateReasoning + RoleEnd>
    """
    nodes = as_nodes(expression)
    names = tuple(node.name for node in nodes if isinstance(node, Gen) and node.name)
    if not names:
        raise InvalidPrimitive("separate_reasoning: nothing with a name is generated in it")
    return Expression((*nodes, SeparateReasoning(names, check_model(model_type))))


def system(expression: object) -> Expression:
    """A system turn, as the model's chat template writes it.

    Example:
        >>> system("Be brief.")
        <RoleBegin + ConstantText + RoleEnd>
    """
    return role("system", expression)


def user(expression: object) -> Expression:
    """A user turn.

    Example:
        >>> user("What is a bee?")
        <RoleBegin + ConstantText + RoleEnd>
    """
    return role("user", expression)


def assistant(expression: object) -> Expression:
    """An assistant turn; what is generated inside continues it.

    Example:
        >>> assistant("A bee is " + gen("answer"))
        <RoleBegin + ConstantText + Gen + RoleEnd>
    """
    return role("assistant", expression)


def role(name: str, expression: object) -> Expression:
    """A turn of any role that the model's template knows; `InvalidPrimitive` if `expression` holds a turn itself.

    Example:
        >>> role("tool", "21 degrees")
        <RoleBegin + ConstantText + RoleEnd>
    """
    check_text("role", name, "name")
    nodes = as_nodes(expression)
    if any(isinstance(node, RoleBegin | RoleEnd) for node in nodes):
        raise InvalidPrimitive(f"{name}(…): a turn cannot stand inside another turn")
    return Expression((RoleBegin(name), *nodes, RoleEnd(name)))


def system_begin() -> Expression:
    """Open a system turn.

    Example:
        >>> system_begin() + "Text." + system_end()
        <RoleBegin + ConstantText + RoleEnd>
    """
    return Expression((RoleBegin("system"),))


def system_end() -> Expression:
    """Close it.

    Example:
        >>> system_begin() + "Text." + system_end()
        <RoleBegin + ConstantText + RoleEnd>
    """
    return Expression((RoleEnd("system"),))


def user_begin() -> Expression:
    """Open a user turn.

    Example:
        >>> user_begin() + "Text." + user_end()
        <RoleBegin + ConstantText + RoleEnd>
    """
    return Expression((RoleBegin("user"),))


def user_end() -> Expression:
    """Close it.

    Example:
        >>> user_begin() + "Text." + user_end()
        <RoleBegin + ConstantText + RoleEnd>
    """
    return Expression((RoleEnd("user"),))


def assistant_begin() -> Expression:
    """Open an assistant turn.

    Example:
        >>> assistant_begin() + "Text." + assistant_end()
        <RoleBegin + ConstantText + RoleEnd>
    """
    return Expression((RoleBegin("assistant"),))


def assistant_end() -> Expression:
    """Close it.

    Example:
        >>> assistant_begin() + "Text." + assistant_end()
        <RoleBegin + ConstantText + RoleEnd>
    """
    return Expression((RoleEnd("assistant"),))
