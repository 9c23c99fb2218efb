"""Regular expressions of the JSON numbers that a schema allows, in the forms that llguidance lets them be written.

Without bounds a number may have a fraction and an exponent; with bounds there is no exponent. The fraction of a multiple of 10^-k has at most k digits.
"""

from __future__ import annotations

from decimal import Decimal
from math import ceil, floor

from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regular import any_of, group, literal, whole_numbers
from sgl_actors.lang.constraints.schema_nodes import Number, Unsatisfiable

_WHOLE = "(?:0|[1-9][0-9]*)"
_DIGITS = 9
"""Most digits of a fraction that ``multipleOf`` can ask for: llguidance counts in 32 bits."""


def number(found: Number) -> str:
    """The expression of a number; raises `Unsatisfiable` if there is none, Declined if it is not easily told."""
    (low, low_included), (high, high_included) = found.low, found.high
    if low is not None and high is not None:
        if low > high:
            raise Unsatisfiable(f"minimum {low:g} is greater than maximum {high:g}")
        if low == high and not (low_included and high_included):
            raise Unsatisfiable(f"{low:g} is the only number left, and excluded")
    places = _places(found.multiple_of)
    if found.integer:
        return _integer(low, low_included, high, high_included)
    if low is not None and low == high:
        if places is not None:
            raise Declined("multipleOf: of a single number")
        return literal(decimal_text(low))
    for bound in (low, high):
        if bound is not None and bound != int(bound):
            raise Declined("minimum or maximum: with a fraction")
    fraction = _Fraction(places)
    if low is None and high is None:
        exponent = "(?:[eE][+-]?[0-9]+)?" if places is None else ""
        return f"-?{_WHOLE}{fraction.free}{exponent}"
    return any_of(_signed(fraction, low, low_included, high, high_included))


def decimal_text(value: float) -> str:
    """The shortest decimal of a float without an exponent.

    >>> decimal_text(1e-7), decimal_text(-2.0)
    ('0.0000001', '-2')
    """
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


def _places(multiple_of: float | None) -> int | None:
    """The k for which `multiple_of` is 10^-k."""
    if multiple_of is None:
        return None
    for places in range(_DIGITS + 1):
        if multiple_of == float(f"1e-{places}"):
            return places
    raise Declined("multipleOf: not 1, 0.1, 0.01, …")


class _Fraction:
    """What may follow a whole number, with at most `places` digits.

    Attributes:
        free: any fraction or none.
        some: a fraction that is not zero.
        none: a fraction that is zero, or none.
    """

    def __init__(self, places: int | None) -> None:
        most = "" if places is None else str(places)
        self.free = "" if places == 0 else rf"(?:\.[0-9]{{1,{most}}})?"
        self.none = "" if places == 0 else rf"(?:\.0{{1,{most}}})?"
        before = "" if places is None else str(max(places - 1, 0))
        self.some = None if places == 0 else rf"\.[0-9]{{0,{before}}}[1-9]"


def _signed(
    fraction: _Fraction, low: float | None, low_included: bool, high: float | None, high_included: bool
) -> list[str]:
    parts: list[str] = []
    if low is None or low < 0:
        ends_below_zero = high is not None and high < 0
        nearest = -high if high is not None and ends_below_zero else 0.0
        sizes = _sizes(
            fraction,
            int(nearest),
            ends_below_zero and high_included,
            None if low is None else int(-low),
            low_included,
        )
        parts += [f"-{part}" for part in sizes]
    if high is None or high > 0 or (high == 0 and high_included):
        from_zero = low is None or low < 0
        start = 0 if low is None or from_zero else int(low)
        parts += _sizes(
            fraction,
            start,
            from_zero or low_included,
            None if high is None else int(high),
            high_included,
        )
    if not parts:
        raise Declined("minimum or maximum: no number between them")
    return parts


def _sizes(
    fraction: _Fraction, low: int, low_included: bool, high: int | None, high_included: bool
) -> list[str]:
    """Numbers without a sign from `low` to `high`."""
    if low == high:
        return [str(low)]
    parts: list[str] = []
    if not low_included:
        if fraction.some is not None:
            parts.append(f"{low}{fraction.some}")
        low += 1
    if high is None:
        parts.append(f"{_from(low)}{fraction.free}")
        return parts
    if low < high:
        parts.append(f"{whole_numbers(low, high - 1)}{fraction.free}")
    if high_included:
        parts.append(f"{high}{fraction.none}")
    return parts


def _from(low: int) -> str:
    """Whole numbers without a sign from `low` on."""
    if low <= 1:
        return _WHOLE if low == 0 else "[1-9][0-9]*"
    digits = len(str(low))
    return group(f"{whole_numbers(low, 10**digits - 1)}|[1-9][0-9]{{{digits},}}")


def _integer(low: float | None, low_included: bool, high: float | None, high_included: bool) -> str:
    first = None if low is None else ceil(low) + (1 if not low_included and low == int(low) else 0)
    last = None if high is None else floor(high) - (1 if not high_included and high == int(high) else 0)
    if first is None and last is None:
        return f"-?{_WHOLE}"
    if first is not None and last is not None:
        if first > last:
            raise Unsatisfiable(f"no whole number is between {low:g} and {high:g}")
        if first < 0 <= last:
            return group(f"-{whole_numbers(0, -first)}|{whole_numbers(0, last)}")
        return whole_numbers(first, last)
    if last is None:
        assert first is not None
        return _from(first) if first >= 0 else group(f"{whole_numbers(first, -1)}|{_WHOLE}")
    if last < 0:
        return f"-{_from(-last)}"
    return group(f"{whole_numbers(0, last)}|-[1-9][0-9]*")
