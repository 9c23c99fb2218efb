"""What programs say in arguments, checked where it is said: before any backend, with the primitive's name in the error."""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final

from sgl_actors.actors.cache.messages import LONGEST_PIN, PIN_NAME, PIN_NAME_WORDS, SHORTEST_PIN
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.choices import METHODS
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import SamplingArgs, check_text

MAX_COUNT: Final = (1 << 31) - 1
"""Greatest count and token id."""
MAX_SEED: Final = (1 << 63) - 1
MAX_TIMEOUT: Final = 1e9
"""Seconds."""
MAX_COST: Final = 1e12
MAX_TOP_LOGPROBS: Final = 100
MAX_PRIORITY: Final = 1000
MAX_SALT: Final = 256

COUNTS: Final = {
    "max_tokens": (0, MAX_COUNT),
    "min_tokens": (0, MAX_COUNT),
    "top_k": (-1, MAX_COUNT),
    "seed": (-MAX_SEED - 1, MAX_SEED),
}
NUMBERS: Final = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
}
FLAGS: Final = frozenset({"ignore_eos", "no_stop_trim", "skip_special_tokens", "jump_forward"})


def sampling_args(where: str, values: Mapping[str, Any]) -> SamplingArgs:
    """Sampling arguments as nodes hold them; None is not given.

    Args:
        where: what they were given to, for the message.
        values: by the names of `SamplingArgs`; `stop` may be one string, `logit_bias` a mapping.

    Raises:
        InvalidPrimitive: a wrong type, a number that is not finite or out of its range; `param` names it.
    """
    found = SamplingArgs(**{name: _argument(where, name, v) for name, v in values.items() if v is not None})
    if found.min_tokens is not None and found.max_tokens is not None and found.min_tokens > found.max_tokens:
        raise InvalidPrimitive(
            f"{where}: min_tokens is {found.min_tokens}, more than max_tokens, {found.max_tokens}",
            param="min_tokens",
        )
    return found


def _argument(where: str, name: str, value: Any) -> Any:
    if name in COUNTS:
        return whole(where, name, value, *COUNTS[name])
    if name == "top_p" and value == 0:
        raise InvalidPrimitive(f"{where}: top_p is a number above 0, up to 1, not {value!r}", param=name)
    if name in NUMBERS:
        return number(where, name, value, *NUMBERS[name])
    if name in FLAGS:
        return flag(where, name, value)
    if name in ("stop", "stop_regex"):
        return strings(where, name, value)
    if name == "stop_token_ids":
        return tuple(whole(where, name, token, 0, MAX_COUNT) for token in _items(where, name, value))
    pairs = _items(where, name, value.items() if isinstance(value, Mapping) else value)
    try:
        named = [(token, bias) for token, bias in pairs]
    except (TypeError, ValueError):
        raise InvalidPrimitive(f"{where}: {name} maps token ids to numbers", param=name) from None
    return tuple(
        sorted(
            (whole(where, name, token, 0, MAX_COUNT), number(where, name, bias, -100.0, 100.0))
            for token, bias in named
        )
    )


def whole(where: str, name: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high], as a plain int; `InvalidPrimitive` for anything else."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or not low <= found <= high:
        raise InvalidPrimitive(
            f"{where}: {name} is a whole number from {low} to {high}, not {_shown(value)}", param=name
        )
    return found


def number(where: str, name: str, value: object, low: float, high: float) -> float:
    """A finite number in [low, high], as a plain float; `InvalidPrimitive` for anything else."""
    try:
        found = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    except OverflowError:
        found = math.inf
    if not low <= found <= high:
        raise InvalidPrimitive(
            f"{where}: {name} is a number from {low:g} to {high:g}, not {_shown(value)}", param=name
        )
    return found


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python does not write out integers of thousands of digits
        return "a number of thousands of digits"


def strings(where: str, name: str, value: object) -> tuple[str, ...]:
    """One string or several, none of them empty; `InvalidPrimitive` for anything else."""
    items = (value,) if isinstance(value, str) else _items(where, name, value)
    if not all(isinstance(item, str) and item for item in items):
        raise InvalidPrimitive(
            f"{where}: {name} is a string or strings, none of them empty, not {value!r:.80}", param=name
        )
    for item in items:
        check_text(f"{where}: {name}", item, name)
    return items


def _items(where: str, name: str, value: object) -> tuple[Any, ...]:
    try:
        return tuple(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidPrimitive(f"{where}: {name} is a list, not {value!r:.80}", param=name) from None


def check_salt(where: str, salt: object) -> str:
    """A cache salt, "" for none; `InvalidPrimitive` for what is long, has control characters or is no text."""
    if (
        not isinstance(salt, str)
        or len(salt) > MAX_SALT
        or any(unicodedata.category(c) == "Cc" for c in salt)
    ):
        raise InvalidPrimitive(
            f"{where}: cache_salt is a string of at most {MAX_SALT} characters, none of them a control character, not {salt!r:.80}",
            param="cache_salt",
        )
    check_text(f"{where}: cache_salt", salt, "cache_salt")
    return salt


def check_pin(where: str, ttl: object, name: object) -> float:
    """The seconds of a pin; `InvalidPrimitive` for none between 1 and 30 days, or a name (not "") that no pin can have."""
    seconds = number(where, "ttl", ttl, SHORTEST_PIN, LONGEST_PIN)
    if not isinstance(name, str) or (name and not re.fullmatch(PIN_NAME, name)):
        raise InvalidPrimitive(f"{where}: name is {PIN_NAME_WORDS}, not {name!r:.80}", param="name")
    return seconds


def flag(where: str, name: str, value: object) -> bool:
    """True or False; `InvalidPrimitive` for anything else, also for what Python takes for one of them."""
    if not isinstance(value, bool):
        raise InvalidPrimitive(f"{where}: {name} is True or False, not {value!r:.80}", param=name)
    return value


def check_choices(name: str | None, choices: Sequence[str]) -> tuple[str, ...]:
    """Choices of a `select`; `InvalidPrimitive` for none, an empty one, two equal ones or no strings."""
    where = f"select({name!r})"
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise InvalidPrimitive(f"{where}: choices is a list of strings, not {choices!r:.80}", param="choices")
    if not choices or not all(choices):
        raise InvalidPrimitive(f"{where}: choices is empty or holds an empty string", param="choices")
    if len(set(choices)) != len(choices):
        raise InvalidPrimitive(f"{where}: two of its choices are equal", param="choices")
    for choice in choices:
        check_text(f"{where}: choices", choice, "choices")
    return tuple(choices)


def check_method(name: str | None, method: object) -> str:
    """A choice method; `InvalidPrimitive` for an unknown one."""
    if method not in METHODS:
        raise InvalidPrimitive(
            f"select({name!r}): choices_method is one of {', '.join(METHODS)}, not {method!r:.80}",
            param="choices_method",
        )
    return str(method)


def check_budget(where: str, budget: object) -> Budget:
    """A budget; `InvalidPrimitive` for what is none, or has a negative part."""
    if not isinstance(budget, Budget):
        raise InvalidPrimitive(f"{where}: budget is a Budget, not {budget!r:.80}", param="budget")
    if budget.tokens is not None:
        whole(where, "budget.tokens", budget.tokens, 0, MAX_SEED)
    if budget.calls is not None:
        whole(where, "budget.calls", budget.calls, 0, MAX_SEED)
    if budget.seconds is not None:
        number(where, "budget.seconds", budget.seconds, 0.0, MAX_TIMEOUT)
    if budget.cost is not None:
        number(where, "budget.cost", budget.cost, 0.0, MAX_COST)
    return budget


def check_speculation(where: str, value: object) -> int:
    """What `speculation` says, as `RunOptions` has it: True as the program shows, False none, or a number of tokens."""
    if isinstance(value, bool):
        return -1 if value else 0
    return whole(where, "speculation", value, -1, MAX_COUNT)


def check_name(where: str, name: object) -> None:
    """A variable's name; `InvalidPrimitive` for what is no text."""
    if not isinstance(name, str) or not name:
        raise InvalidPrimitive(
            f"{where}: a variable's name is a non-empty string, not {name!r:.80}", param="name"
        )
    check_text(f"{where}: the variable's name", name, "name")
