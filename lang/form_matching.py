"""A turn's text against its template: the texts of the blanks, if there is exactly one way to read it (`lang.forms`).

Every way is looked for, all positions of a text at once: from each place that a part can begin at, the places where it can end. So nothing depends on
which of several ways is found first, and a text that can be read in two ways is filled in in none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.form_blanks import Blank, Mismatch, shown
from sgl_actors.lang.stops import find_stop

Part: TypeAlias = str | Blank
STEPS: Final = 100_000
"""Places that are looked at before a text counts as one that can be read in too many ways."""
AROUND: Final = 4
"""Characters of white space at either end that are left out one by one."""
_FENCED: Final = re.compile(r"\s*(`{3,})[^\n`]*\n(.*?)\n?\1\s*", re.DOTALL)


class _Unclear(Mismatch):
    """There is more than one way to read it."""


class _Reading(NamedTuple):
    """An answer as it stands, or without what is forgiven, and the parts to match."""

    parts: tuple[Part, ...]
    answer: str


def fill(parts: Sequence[Part], titles: Mapping[int, str], answer: str) -> dict[int, str]:
    """The text of each blank, by its number.

    White space around the answer and a code fence are forgiven where it fits without them, unless it also fits with them in a way that differs in more
    than white space. Behind the last blank's stop more may follow, as behind a gen's, if there is text of the template before it that shows where the turn is.

    Args:
        parts: text and blanks of the turn, from its beginning on; no two texts in direct succession.
        titles: what to call the blanks in messages, by number.
        answer: the text.

    Raises:
        Mismatch: it fits in no way, or in several.
    """
    try:
        answer.encode()
    except UnicodeEncodeError:
        raise Mismatch("the answer is no valid Unicode") from None
    found: list[dict[int, str]] = []
    failure: Mismatch | None = None
    for reading in _readings(tuple(parts), answer):
        try:
            found.append(_read(reading, titles))
        except _Unclear:
            raise
        except Mismatch as error:
            failure = error
    if failure is not None and not found:
        raise failure
    first = found[0]
    for other in found[1:]:
        for number, text in first.items():
            if other[number].strip() != text.strip():
                raise Mismatch(
                    f"{titles[number]} is {shown(text)} with what stands around the answer (white space, a code fence), and {shown(other[number])} without"
                )
    return first


def _readings(parts: tuple[Part, ...], answer: str) -> Iterator[_Reading]:
    """The answer as it stands first. If the turn is nothing but an open blank, a code fence is what the model wrote there."""
    bodies, bare = [answer], _stripped(parts)
    if any(isinstance(part, str) or not part.is_open for part in bare):
        bodies += [match[2] for match in [_FENCED.fullmatch(answer)] if match]
    yield from dict.fromkeys(
        reading
        for body in bodies
        for reading in (
            _Reading(parts, body),
            *(_Reading(parts, text) for text in _shortened(body)),
            _Reading(bare, body.strip()),
        )
    )


def _shortened(body: str) -> Iterator[str]:
    """Without some of the white space around it: what the template begins or ends with may be a part of that."""
    lead, trail = len(body) - len(body.lstrip()), len(body) - len(body.rstrip())
    for start in range(min(lead, AROUND) + 1):
        for end in range(min(trail, AROUND) + 1):
            yield body[start : len(body) - end]


def _stripped(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Without white space at the ends of the template."""
    found = list(parts)
    if isinstance(found[0], str):
        found[0] = found[0].lstrip()
    last = found[-1]
    if isinstance(last, str):
        found[-1] = last.rstrip()
    return tuple(part for part in found if part != "")


def _read(reading: _Reading, titles: Mapping[int, str]) -> dict[int, str]:
    parts, answer = reading
    layers: list[dict[int, list[int]]] = [{0: []}]
    steps = 0
    for number, part in enumerate(parts):
        following = parts[number + 1] if number + 1 < len(parts) else None
        layer: dict[int, list[int]] = {}
        for start in layers[-1]:
            for end in _ends(part, following, answer, start, titles, anchored=number > 0):
                layer.setdefault(end, []).append(start)
                steps += 1
                if steps > STEPS:
                    raise _Unclear("there are too many ways to tell the blanks apart")
        if not layer:
            raise Mismatch(_missing(part, following, answer[max(layers[-1]) :], titles))
        layers.append(layer)
    if len(answer) not in layers[-1]:
        raise Mismatch(f"more follows on the end of the turn: {shown(answer[max(layers[-1]) :])}")
    return _traced(parts, answer, layers, titles)


def _traced(
    parts: Sequence[Part], answer: str, layers: Sequence[Mapping[int, list[int]]], titles: Mapping[int, str]
) -> dict[int, str]:
    """The one way through the layers, from its end back."""
    found: dict[int, str] = {}
    end = len(answer)
    for number in range(len(parts) - 1, -1, -1):
        part, starts = parts[number], layers[number + 1][end]
        if len(starts) > 1:
            before = next(one for one in reversed(parts[:number]) if isinstance(one, Blank))
            ways = " or ".join(str(start) for start in starts[:2])
            raise _Unclear(
                f"it cannot be told where {titles[before.number]} ends: what follows it could begin at character {ways}"
            )
        if isinstance(part, Blank):
            found[part.number] = part.cut(answer[starts[0] : end])
        end = starts[0]
    return dict(reversed(found.items()))


def _ends(
    part: Part, following: Part | None, answer: str, start: int, titles: Mapping[int, str], *, anchored: bool
) -> Iterable[int]:
    """Where a part that begins at `start` can end."""
    if isinstance(part, str):
        return [start + len(part)] if answer.startswith(part, start) else []
    if following is None:
        text = part.cut(answer[start:])
        return [len(answer)] if part.fits(text) and (anchored or _is_all(part, answer[start:])) else []
    if isinstance(following, Blank) and part.is_open and following.is_open and not _keeps_stop(part):
        raise _Unclear(
            f"nothing tells where {titles[part.number]} ends and {titles[following.number]} begins"
        )
    return [
        end
        for end in _candidates(part, following, answer, start)
        if (isinstance(following, Blank) or answer.startswith(following, end))
        and _is_whole(part, answer[start:end], following)
    ]


def _candidates(part: Blank, following: Part, answer: str, start: int) -> Iterator[int]:
    if part.options:
        yield from {start + len(text): None for text in part.options if answer.startswith(text, start)}
        return
    if part.constraint is not None:
        data = answer[start:].encode()
        yield from (start + len(data[:end].decode()) for end in bytewise.ends(part.constraint, data))
        return
    last = _limit(part, answer, start)
    if isinstance(following, Blank):
        yield from range(start, last + 1)
        return
    end = answer.find(following, start, last + len(following))
    while end >= 0:
        yield end
        end = answer.find(following, end + 1, last + len(following))


def _limit(part: Blank, answer: str, start: int) -> int:
    """The last place where it can end by its stop strings."""
    sampling = part.sampling
    stop = None if sampling.stop_regex else find_stop(answer[start:], sampling)
    return len(answer) if stop is None else start + stop.end


def _is_whole(part: Blank, text: str, following: Part) -> bool:
    """Whether a text is one that its gen could have ended with: it holds no stop, or ends with one that is kept."""
    stop = None if part.choices else find_stop(text, part.sampling)
    if _keeps_stop(part):
        if isinstance(following, Blank) and part.is_open:
            return stop is not None and stop.end == len(text)
        return stop is None or stop.end == len(text)
    return stop is None


def _keeps_stop(part: Blank) -> bool:
    return part.sampling.no_stop_trim and bool(part.sampling.stop or part.sampling.stop_regex)


def _is_all(part: Blank, rest: str) -> bool:
    """Whether nothing follows on the stop of a blank."""
    stop = find_stop(rest, part.sampling)
    return stop is None or not rest[stop.end :].strip()


def _missing(part: Part, following: Part | None, rest: str, titles: Mapping[int, str]) -> str:
    came = shown(rest) if rest else "the end of the answer"
    if isinstance(part, str):
        return f"expected the text {shown(part)}, and there is {came}"
    then = f", followed by {shown(following)}" if isinstance(following, str) else ""
    return f"{titles[part.number]}: expected {part.expected:.400}{then}, and there is {came}"
