"""The source of a `choice` constraint: a JSON array of the texts to choose from."""

from __future__ import annotations

import msgspec

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import CHOICE


def texts(source: str) -> list[str]:
    """The texts.

    Raises:
        InvalidRequest: it is no JSON array of strings, or an empty one.

    >>> texts('["yes", "no"]')
    ['yes', 'no']
    """
    try:
        found = msgspec.json.decode(source, type=list[str])
        for text in found:
            text.encode()
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidRequest(f"{CHOICE}: no JSON array of strings: {error}", param=CHOICE) from None
    if not found:
        raise InvalidRequest(f"{CHOICE}: there is nothing to choose from", param=CHOICE)
    return found
