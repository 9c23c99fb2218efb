"""`gen` and its kin as SGLang has them: numbers and strings are given as the text that the model wrote."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from sgl_actors.lang import primitives
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Expression

REGEXES: Final = {
    "int": r"[-+]?[0-9]+[ \n]*",
    "float": r"[-+]?[0-9]*\.?[0-9]+[ \n]*",
    "bool": r"(True|False)",
    "str": r'"[\w\d\s]*"',
}
"""What a `dtype` stands for."""
NUMBER_ENDS: Final = (" ", "\n")


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
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: str | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Expression:
    """Have the model write here, and keep what it wrote as variable `name`: `sgl_actors.gen` with SGLang's way of mixing arguments.

    With `choices` it is a `select`, whatever else is given. A `dtype` (`int`, `float`, `bool`, `str` or its name) stands for a regular expression and
    goes before `regex`; the variable is the text.

    Raises:
        InvalidPrimitive: see `sgl_actors.gen`; an unknown dtype.

    Example:
        >>> "The capital of France is" + gen("capital", max_tokens=4, stop=".")
        <ConstantText + Gen>
    """
    if choices:
        return primitives.select(name, choices, temperature or 0.0, choices_method)
    if dtype is not None:
        kind = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", "")
        if kind not in REGEXES:
            raise InvalidPrimitive(
                f"gen({name!r}): dtype is one of {', '.join(REGEXES)}, not {dtype!r:.80}", param="dtype"
            )
        if regex is not None:
            warnings.warn(f"gen({name!r}): dtype goes before regex, which is not used", stacklevel=2)
        regex = REGEXES[kind]
        if kind in ("int", "float"):
            stop = (*((stop,) if isinstance(stop, str) else stop or ()), *NUMBER_ENDS)
    made: Expression = cast("Any", primitives.gen)(
        name, max_tokens, min_tokens, n, stop, stop_token_ids, stop_regex, temperature, top_p, top_k, min_p,
        frequency_penalty, presence_penalty, ignore_eos, return_logprob, logprob_start_len, top_logprobs_num,
        return_text_in_logprobs, regex=regex, json_schema=json_schema, **arguments,
    )  # fmt: skip
    return made


def gen_int(
    name: str | None = None, max_tokens: int | None = None, n: int | None = None, **arguments: Any
) -> Expression:
    """A whole number, as text. Arguments are those of `gen`.

    Example:
        >>> "2 + 2 = " + gen_int("sum")
        <ConstantText + Gen>
    """
    return gen(name, max_tokens, n=n, dtype=int, **arguments)


def gen_string(
    name: str | None = None, max_tokens: int | None = None, n: int | None = None, **arguments: Any
) -> Expression:
    """A string in double quotes, with them. Arguments are those of `gen`.

    Example:
        >>> "The title, in quotes: " + gen_string("title")
        <ConstantText + Gen>
    """
    return gen(name, max_tokens, n=n, dtype=str, **arguments)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: str | None = None,
) -> Expression:
    """Append the best of `choices` and keep it as variable `name`: see `sgl_actors.select`.

    Example:
        >>> "Is the sky blue? " + select("answer", choices=["yes", "no"])
        <ConstantText + Select>
    """
    return primitives.select(name, choices, temperature, choices_method)


def system(expr: object = None) -> Expression:
    """A system turn, as the model's chat template writes it; an empty one without an expression.

    Example:
        >>> system("Be brief.") + user("Hello")
        <RoleBegin + ConstantText + RoleEnd + RoleBegin + ConstantText + RoleEnd>
    """
    return primitives.role("system", "" if expr is None else expr)


def user(expr: object = None) -> Expression:
    """A user turn; see `system`.

    Example:
        >>> user("Hello")
        <RoleBegin + ConstantText + RoleEnd>
    """
    return primitives.role("user", "" if expr is None else expr)


def assistant(expr: object = None) -> Expression:
    """An assistant turn; what is generated inside continues it. See `system`.

    Example:
        >>> assistant(gen("answer"))
        <RoleBegin + Gen + RoleEnd>
    """
    return primitives.role("assistant", "" if expr is None else expr)
