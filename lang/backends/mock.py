"""The script of a mock model, without I/O: who gets which answer, and what of an answer is written before it ends.

Branches of a program ask at the same time, so the order in which calls arrive says nothing. A call is known by its *place*: number of the
run, then for each fork on the way its node's number and the branch's, then the number of the call's own node. Places compare in program
order. An answer list is dealt by place, or the call is refused; see `Answers`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

import msgspec

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.backends.words import TOKEN
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.errors import InvalidPrimitive, ProgramError
from sgl_actors.lang.ir import Media
from sgl_actors.lang.results import shorten
from sgl_actors.lang.stops import find_stop

Place: TypeAlias = tuple[int, ...]
Key: TypeAlias = str | tuple[str, str]
"""A variable, or (path of the stream, variable)."""

SURE: Final = 0.9
"""Share of a choice that a script names without weights; the others have the rest in equal parts."""
LEAST: Final = 1e-9
"""Share of a choice that has none, so that every score is finite."""


class UnscriptedCall(ProgramError):
    """A mock was asked for something that its script has no answer for, or more than one. Mend the script, or the program.

    Example:
        >>> @function
        ... async def ask(s):
        ...     s += "Name: " + gen("name")
        >>> await ask.run(backend=Mock({"age": "36"}))
        Traceback (most recent call last):
        UnscriptedCall: program 'ask', variable 'name', ...: the script has nothing for gen 'name' of stream 0, it has 'age'; ...
    """

    code = "unscripted_call"


class MockCall(msgspec.Struct):
    """One gen or select that a `Mock` was asked for.

    Attributes:
        prompt: text before it, as the model sees it (the mock's chat template is ChatML).
        name: its variable; "" for none.
        path: of its stream: "0" is the program's root, "0.1" its second branch.
        choices: of a select; () for a gen.
        sampling: arguments of a gen, defaults filled in.
        media: images and videos in the prompt.
        program: id of the run.
        place: its place in program order, see the module.
        prompt_tokens, cached_tokens: of the prompt; cached are those that an earlier prompt of the mock begins with, too.
        answer: what it got; of a select the choice, None if it got nothing (yet).

    Example:
        >>> @function
        ... async def ask(s):
        ...     s += "Name: " + gen("name", max_tokens=8)
        >>> mock = Mock(["Ada"])
        >>> state = await ask.run(backend=mock)
        >>> [(call.title, call.prompt, call.max_tokens, call.answer) for call in mock.calls]
        [("gen 'name' of stream 0", 'Name: ', 8, 'Ada')]
    """

    prompt: str
    name: str = ""
    path: str = "0"
    choices: tuple[str, ...] = ()
    sampling: SamplingOptions = SamplingOptions()
    media: tuple[Media, ...] = ()
    program: str = ""
    place: Place = (0, 0, 0)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer: str | None = None

    def __repr__(self) -> str:
        return f"<MockCall {tail_of(self)}: {self.answer!r:.80}>"

    @property
    def kind(self) -> str:
        """What it is: "gen" or "select"."""
        return "select" if self.choices else "gen"

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that it wants, None for any number."""
        return self.sampling.max_tokens

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end its text."""
        return self.sampling.stop

    @property
    def constraint(self) -> Constraint | None:
        """What its text has to be. The mock does not check that."""
        return self.sampling.constraint

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.kind} {self.name!r} of stream {self.path}" if self.name else f"a nameless {self.kind}"


class Source(Protocol):
    """What a script says for one name."""

    def take(self, call: MockCall) -> Any:
        """The answer to a call; raises `UnscriptedCall`."""

    def unused(self) -> str:
        """What has not been asked for, for people; "" for nothing."""


class Always:
    """The same answer for every call."""

    def __init__(self, answer: Any) -> None:
        self._answer, self._taken = answer, False

    def take(self, call: MockCall) -> Any:  # noqa: ARG002
        """See `Source`."""
        self._taken = True
        return self._answer

    def unused(self) -> str:
        """See `Source`."""
        return "" if self._taken else f"{self._answer!r:.60}"


class Function:
    """Whatever a function says of a call."""

    def __init__(self, function: Callable[[MockCall], Any]) -> None:
        self._function = function

    def take(self, call: MockCall) -> Any:
        """See `Source`."""
        answer = self._function(call)
        if answer is None:
            raise UnscriptedCall("the script's function returned None")
        return answer

    def unused(self) -> str:
        """Nothing: it waits for no particular call."""
        return ""


class Answers:
    """A list of answers, each for one call.

    Calls of one stream take them one after the other. The branches of one fork take one each, by their number: branch i has answer i
    of those that are left at the fork. The runs of a batch do the same by theirs. Anything else that happens at the same time has no order,
    and is refused: a branch or run that takes a second one beside its siblings, or branches of two forks that are in branches themselves.

    `own`: all calls come from streams of one path.
    """

    def __init__(self, answers: Sequence[Any], *, own: bool = False) -> None:
        self._answers, self._own = answers, own
        self._taken: set[int] = set()
        self._next = self._base = 0
        self._lane: Place | None = None
        self._turn: Counter[Place] = Counter()
        self._streams: set[Place] = set()

    def take(self, call: MockCall) -> Any:
        """See `Source`."""
        stream = call.place[:-1]
        lane, rank = (stream, 0) if self._own else (stream[:-1], stream[-1])
        if lane != self._lane:
            self._begin(lane, stream)
        if len(self._turn) > (stream in self._turn) and (
            stream in self._turn or self._turn.total() > len(self._turn)
        ):
            raise UnscriptedCall(
                "branches (or runs) that go on at the same time take more than one answer each of its list"
            )
        index = self._next if stream in self._turn else self._base + rank
        if index >= len(self._answers):
            used = f"all {len(self._answers)} answers of its list are used up"
            raise UnscriptedCall(
                used
                if index == len(self._taken)
                else f"it takes answer {index + 1} of its list, which has {len(self._answers)}"
            )
        self._turn[stream] += 1
        self._streams.add(stream)
        self._taken.add(index)
        self._next = max(self._next, index + 1)
        return self._answers[index]

    def unused(self) -> str:
        """See `Source`."""
        left = [f"{a!r:.60}" for i, a in enumerate(self._answers) if i not in self._taken]
        return ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")

    def _begin(self, lane: Place, stream: Place) -> None:
        """From here on other streams take them; that has an order only if those before have ended."""
        if self._lane is not None and self._lane[0] != lane[0]:
            self._streams.clear()  # runs that have ended
        for other in self._streams:
            if at_once(stream, other):
                raise UnscriptedCall(
                    "streams that are no branches of one fork take from its list at the same time"
                )
        self._lane, self._base = lane, self._next
        self._turn.clear()


def at_once(one: Place, two: Place) -> bool:
    """Whether two streams are, or are below, different branches of one fork (or different runs of one batch)."""
    for depth, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return depth % 2 == 1
    return False


class _Nothing:
    """Where a script says nothing."""

    def __init__(self, known: Mapping[Key, Source]) -> None:
        self._known = known

    def take(self, call: MockCall) -> NoReturn:
        """Say so."""
        raise UnscriptedCall(
            f"the script has nothing for {call.title}, it has {', '.join(map(repr, self._known)) or 'nothing'}"
        )


class Script:
    """What a mock answers. See `sgl_actors.Mock` for what scripts look like."""

    def __init__(self, script: object, default: object = None) -> None:
        named = script if isinstance(script, Mapping) else {}
        self._sources: dict[Key, Source] = {_key(key): _source(value, key) for key, value in named.items()}
        rest = default if isinstance(script, Mapping) else script
        if not (isinstance(script, Mapping | list | tuple) or callable(script)):
            raise InvalidPrimitive(
                f"Mock: a script is a list of answers, a dictionary by variable, or a function of the call, not {script!r:.80}"
            )
        self._rest = None if rest is None else _source(rest)

    def __repr__(self) -> str:
        return f"<Script: {self.left() or 'nothing left'}>"

    def answer(self, call: MockCall) -> Any:
        """What the script says to a call.

        Raises:
            UnscriptedCall: nothing, or it cannot be told which of its answers is meant.
        """
        source = self._sources.get((call.path, call.name)) or self._sources.get(call.name) or self._rest
        try:
            return (source or _Nothing(self._sources)).take(call)
        except UnscriptedCall as error:
            raise UnscriptedCall(f"{error.message}; {self._advice(call)}", param=call.name or None) from None

    def left(self) -> str:
        """What has not been asked for, for people; "" for nothing."""
        sources = [*((f"{key!r}: ", s) for key, s in self._sources.items()), ("", self._rest)]
        parts = [(title, source.unused()) for title, source in sources if source is not None]
        return "; ".join(title + unused for title, unused in parts if unused)

    def _advice(self, call: MockCall) -> str:
        own = (call.path, call.name)
        ways = f"an answer of its own goes under {own!r}" if call.path != "0" else "add it to the script"
        return f"{ways}; not used: {self.left() or 'none'}"


def _key(key: object) -> Key:
    match key:
        case str() | (str(), str()):
            return key  # type: ignore[return-value]
    raise InvalidPrimitive(f"Mock: a script's key is a variable, or (path, variable), not {key!r:.80}")


def _source(value: object, key: object = "") -> Source:
    if callable(value) and not isinstance(value, type):
        return Function(value)
    return Answers(value, own=isinstance(key, tuple)) if isinstance(value, list | tuple) else Always(value)


def pieces_of(answer: object) -> list[str]:
    """An answer as the pieces it is written in: a string, a list of strings, or anything that JSON knows.

    Raises:
        UnscriptedCall: none of these.
    """
    if isinstance(answer, str):
        return [answer]
    if isinstance(answer, list | tuple) and all(isinstance(piece, str) for piece in answer):
        return [*answer]
    try:
        return [msgspec.json.encode(answer).decode()]
    except (TypeError, ValueError) as error:
        raise UnscriptedCall(f"the script's answer is no text, and cannot be JSON: {error}") from None


class Written(NamedTuple):
    """What of an answer is written: per piece its text and tokens, and why it ends."""

    pieces: list[tuple[str, list[str]]]
    finish: Finish


def write(pieces: Sequence[str], sampling: SamplingOptions) -> Written:
    """End an answer at the first stop string or expression, or after `max_tokens` tokens; a token is one of a piece."""
    tokens = [TOKEN.findall(piece) for piece in pieces]
    whole = "".join(pieces)
    stop = find_stop(whole, sampling)
    keep, end, matched = (
        (len(whole), len(whole), None) if stop is None else (stop.keep, stop.end, stop.matched)
    )
    lengths = [len(token) for row in tokens for token in row]
    needed, limit = _reaching(lengths, end), sampling.max_tokens
    finish = Finish("stop", matched)
    if limit is not None and needed > limit:
        needed, keep, finish = limit, sum(lengths[:limit]), Finish("length")
    written: list[tuple[str, list[str]]] = []
    for piece, row in zip(pieces, tokens, strict=True):
        written.append((piece[: max(keep, 0)], row[: max(needed, 0)]))
        keep, needed = keep - len(piece), needed - len(row)
    return Written(written, finish)


def _reaching(lengths: Sequence[int], end: int) -> int:
    """How many tokens it takes to reach character `end`."""
    count = 0
    for count, length in enumerate(lengths, 1):  # noqa: B007 - the number is what is wanted
        end -= length
        if end <= 0:
            break
    return count


def scores_of(choices: Sequence[str], answer: object) -> list[float]:
    """Log shares of a select's choices: `answer` names the winner, or has weights (a choice it leaves out weighs nothing).

    Raises:
        UnscriptedCall: a choice that there is not, or weights that are none.
    """
    if isinstance(answer, str):
        rest = (1 - SURE) / max(len(choices) - 1, 1)
        weights = {choice: SURE if choice == answer else rest for choice in choices}
        names = [answer]
    elif isinstance(answer, Mapping):
        weights, names = dict(answer), list(answer)
    else:
        raise UnscriptedCall(f"a select's answer is a choice, or weights by choice, not {answer!r:.80}")
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise UnscriptedCall(
            f"the script says {unknown[0]!r}, but the choices are {', '.join(map(repr, choices))}"
        )
    values = [weights.get(choice, 0.0) for choice in choices]
    if not all(isinstance(v, int | float) and 0 <= v < math.inf for v in values) or not sum(values):
        raise UnscriptedCall(f"weights are numbers from 0 on, not all of them 0, not {answer!r:.80}")
    total = sum(values)
    scores = [math.log((v / total + LEAST) / (1 + LEAST * len(values))) for v in values]
    best = scores.index(max(scores))
    return [s if i == best else min(s, scores[best] - LEAST) for i, s in enumerate(scores)]


def logprobs_of(rows: Sequence[Sequence[int]], scores: Sequence[float]) -> list[list[float]]:
    """Log probabilities of the choices' tokens, such that the best scored choice wins by each of the methods of `lang.choices`.

    A choice's mean is its score. Tokens that several begin with have the same value in all: the best score of those. Only where a choice is
    the beginning of another one, means are higher than the scores.
    """
    best: dict[tuple[int, ...], float] = {}
    passing: Counter[tuple[int, ...]] = Counter()
    for row, score in zip(rows, scores, strict=True):
        for end in range(1, len(row) + 1):
            key = tuple(row[:end])
            best[key] = max(best.get(key, score), score)
            passing[key] += 1
    winner = tuple(rows[max(range(len(rows)), key=scores.__getitem__)])
    if any(winner[: len(row)] == tuple(row) for row in rows if len(row) < len(winner)):
        best[winner] = 0.0  # so that its mean is more than that of the choice that it goes on from
    found = []
    for row, score in zip(rows, scores, strict=True):
        values = [best[tuple(row[:end])] for end in range(1, len(row) + 1)]
        if passing[tuple(row)] == 1 and tuple(row) != winner:
            values[-1] = len(row) * score - sum(values[:-1])
        found.append(values)
    return found


def tail_of(call: MockCall) -> str:
    """A call as it stands in a message: what it was for, and the end of its prompt."""
    return f"{call.title} after {shorten(call.prompt)!r}"
