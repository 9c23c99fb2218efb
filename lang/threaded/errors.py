"""Errors of ours that are also the built-in ones that programs written for SGLang expect in the same place."""

from __future__ import annotations

from sgl_actors.errors import UnknownVariable
from sgl_actors.lang.errors import InvalidPrimitive, PrimitiveFailed


class NoVariable(UnknownVariable, KeyError):
    """`s["v"]`: nothing defines that variable. The message lists those there are.

    Example:
        >>> @function
        ... def capital(s):
        ...     s += gen("city")
        ...     return s.get_var("city") if "city" in s else s["town"]
        >>> try:
        ...     capital.run()["town"]
        ... except KeyError as error:
        ...     print(type(error).__name__)
        NoVariable
    """

    __str__ = Exception.__str__


class NoValue(PrimitiveFailed, KeyError):
    """`s["v"]`: what should give it its value, or something before that, failed. `__cause__` is what the node said.

    Example:
        >>> issubclass(NoValue, KeyError)
        True
    """

    __str__ = Exception.__str__


class NoExpression(InvalidPrimitive, ValueError):
    """What was added to a state or given to a join is None, or nothing that belongs there.

    Example:
        >>> @function
        ... def nothing(s):
        ...     try:
        ...         s += None
        ...     except ValueError as error:
        ...         s["said"] = type(error).__name__
        >>> nothing.run()["said"]
        'NoExpression'
    """
