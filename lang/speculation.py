"""API speculative execution, without I/O: what a model that goes on with text wrote beyond what it was asked for, and how much of it can be used.

An API is paid by the token of every prompt, so a template of several slots costs its prompt once per slot. Where the program shows that template text and
further slots follow (`follow_up`), the first call asks for all of it: it goes on past its stop. What it wrote is kept (`Ahead`) as what the prompt is *expected* to
become. As long as the program's prompt agrees with that, letter by letter, its next gens take their texts from there; where it does not, the next gen
asks again, from the prompt as it is by then. So a text is never filled in that another model call would have had to be asked for, and a miss costs tokens,
never correctness.

The state belongs to one stream of one run. A fork's branches begin without it: they are there to differ.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.stops import find_stop

Part: TypeAlias = str | tuple[str, ...]
"""Of a template: text as it stands, or a slot, told by its stop strings (a last one without any goes on to the end)."""

OPEN: Final = "open"
DONE: Final = "done"
MISSED: Final = "missed"
CHARACTERS: Final = 3
"""Of template text per token, taken low: what is asked for at once has to have room for it."""


class Follower:
    """Reads a text as it is written, and says how far it keeps to a template.

    Attributes:
        state: `OPEN`, `DONE` once the last slot's stop was written, `MISSED` once it has left the template. More text changes neither of these.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = list(parts)
        self._count = len(self._parts)
        self._text = ""
        self.state = OPEN if self._parts else DONE

    def __repr__(self) -> str:
        return f"<Follower {self.state}, {len(self._parts)} parts to come>"

    @property
    def begins(self) -> bool:
        """Whether the text is in its first slot still."""
        return self.state == OPEN and len(self._parts) == self._count

    def feed(self, piece: str) -> str:
        """More text; the state."""
        self._text += piece
        while self._parts and self.state == OPEN:
            part = self._parts[0]
            if isinstance(part, str):
                if not self._text.startswith(part[: len(self._text)]):
                    self.state = MISSED
                if len(self._text) < len(part) or self.state == MISSED:
                    break
                self._text = self._text[len(part) :]
            else:
                stop = find_stop(self._text, SamplingOptions(stop=part))
                if stop is None:
                    break
                self._text = self._text[stop.start :]
            self._parts.pop(0)
        if not self._parts:
            self.state = DONE
        return self.state


class Taken(NamedTuple):
    """What a gen got without a call.

    Attributes:
        text: up to its stop.
        finish: why it ends.
        tokens: about how many it has.
        end: where its stop ends, in what the prompt was expected to become.
    """

    text: str
    finish: Finish
    tokens: int
    end: int = 0


class Ahead:
    """What the prompt is expected to become, see the module.

    Args:
        before: what has to stay as it is (the turns of the chat before this one; nothing for text).
        prompt: text that was gone on with.
        text: what was written, its own slot and all that follows.
        how: the sampling that it was written with; a gen with another one asks for itself.
        ended_by: None if a limit ended it; else the model itself, or one of these stops, which are not in the text.
        tokens: of `text`.
    """

    def __init__(
        self,
        before: Hashable,
        prompt: str,
        text: str,
        how: SamplingOptions,
        *,
        ended_by: tuple[str, ...] | None,
        tokens: int,
    ) -> None:
        self._before, self._expected, self._how = before, prompt + text, how
        self._start = self._used = len(prompt)
        self._ended_by, self._tokens = ended_by, tokens

    def __repr__(self) -> str:
        return f"<Ahead by {len(self._expected) - self._used} characters>"

    @property
    def wasted(self) -> int:
        """About how many tokens nobody has used so far."""
        whole = len(self._expected) - self._start
        return round(self._tokens * (len(self._expected) - self._used) / whole) if whole else self._tokens

    def find(self, before: Hashable, prompt: str, sampling: SamplingOptions) -> Taken | None:
        """The text of a gen at the end of `prompt`; None if it is not known, and has to be asked for.

        It is known if the gen samples alike, the prompt agrees with what was expected, the gen's own stop was written or ended the whole (or the model did so by itself), and
        the text is what its constraint says. Whether it has more than `max_tokens` cannot be told here.
        """
        if before != self._before or not self._expected.startswith(prompt) or len(prompt) < self._start:
            return None
        if sampling.min_tokens or not alike(self._how, sampling):
            return None
        rest = self._expected[len(prompt) :]
        stop = find_stop(rest, sampling)
        if stop is None and not self._is_last(sampling):
            return None
        text = rest if stop is None else rest[: stop.keep]
        if sampling.constraint is not None and not bytewise.accepts(sampling.constraint, text.encode()):
            return None
        end = len(prompt) + (len(text) if stop is None else stop.end)
        return Taken(text, Finish("stop", stop.matched if stop else None), self._count(text), end)

    def use(self, taken: Taken) -> int:
        """It is a gen's text; about how many tokens would have been wasted without that."""
        unused = self.wasted
        self._used = max(self._used, taken.end)
        return unused - self.wasted

    def _is_last(self, sampling: SamplingOptions) -> bool:
        """Whether what ended the whole would have ended this gen, too. A constraint without a stop ends where the model likes, so it does not tell."""
        if self._ended_by is None or sampling.no_stop_trim or (sampling.constraint and not sampling.stop):
            return False
        return all(stop in sampling.stop for stop in self._ended_by)

    def _count(self, text: str) -> int:
        whole = len(self._expected) - self._start
        return math.ceil(self._tokens * len(text) / whole) if whole else 0


def alike(one: SamplingOptions, two: SamplingOptions) -> bool:
    """Whether two gens sample in the same way, so that one call can be for both."""
    own = {"max_tokens": None, "stop": (), "seed": None, "constraint": None, "stop_regex": ()}
    return msgspec.structs.replace(one, **own) == msgspec.structs.replace(two, **own)


class FollowUp(NamedTuple):
    """What is asked for at once.

    Attributes:
        parts: the template from the first slot on; one slot alone if nothing follows that could be had with it.
        max_tokens: for all of it; None for any number.
        stop: strings that can end the whole, because they end the last slot and stand nowhere before.
    """

    parts: tuple[Part, ...]
    max_tokens: int | None
    stop: tuple[str, ...]


def follow_up(slots: Sequence[SamplingOptions], texts: Sequence[str], least: int | None = None) -> FollowUp:
    """Put slots and the template text between them together: ``len(texts) == len(slots) - 1``.

    Args:
        slots: sampling of each.
        texts: what stands between them.
        least: tokens that are asked for at least.
    """
    parts: list[Part] = [slots[0].stop]
    for text, slot in zip(texts, slots[1:], strict=True):
        parts += [text, slot.stop]
    if len(slots) == 1 and least is None:
        return FollowUp(tuple(parts), slots[0].max_tokens, slots[0].stop)
    limits = [slot.max_tokens for slot in slots]
    most = None
    if None not in limits:
        room = sum(limit for limit in limits if limit is not None)
        most = max(room + sum(len(text) // CHARACTERS + 2 for text in texts), least or 0)
    earlier = [*texts, *(stop for slot in slots[:-1] for stop in slot.stop)]
    ends = () if least is not None else slots[-1].stop
    return FollowUp(tuple(parts), most, tuple(s for s in ends if not any(s in e or e in s for e in earlier)))
