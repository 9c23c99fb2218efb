"""What goes wrong in a program. All are `ProgramError`s: mend the program (or its input) and run it again."""

from __future__ import annotations

from sgl_actors.errors import ProgramError, SglActorsError, UnknownVariable

__all__ = [
    "BodyFailed", "BranchCancelled", "BudgetExceeded", "InvalidPrimitive", "PrimitiveFailed", "ProgramChanged", "ProgramError",
    "SpeculationMiss", "StreamEnded", "UnknownVariable", "UnresolvedVariable", "Unsupported", "UnsupportedMedia", "cause_of",
]  # fmt: skip


class InvalidPrimitive(ProgramError):
    """A primitive was written in a way that has no meaning: empty choices, a role inside a role, `s += None`.

    Example:
        >>> select("answer", ["yes", "yes"])
        Traceback (most recent call last):
        InvalidPrimitive: select('answer'): two of its choices are equal
    """

    code = "invalid_primitive"
    status = 400


class UnresolvedVariable(ProgramError):
    """A variable was used as a value before it was awaited. Write `await s["name"]`; the message names the line.

    Example:
        >>> @function
        ... async def hasty(s):
        ...     s += gen("mood")
        ...     return s["mood"] == "calm"
        >>> await hasty.run()
        Traceback (most recent call last):
        UnresolvedVariable: ...== of s["mood"] before it has a value; write `await s["mood"]`...
    """

    code = "unresolved_variable"


class StreamEnded(ProgramError):
    """Something was appended to a stream that has been joined, or whose program is over. Fork anew instead.

    Example:
        >>> @function
        ... async def late(s):
        ...     branches = s.fork(2)
        ...     branches.join()
        ...     branches += "more"
        >>> await late.run()
        Traceback (most recent call last):
        StreamEnded: program 'late'...: branch 0.0 has been joined and takes nothing more...
    """

    code = "stream_ended"


class PrimitiveFailed(ProgramError):
    """A gen, select, fork or join failed. `__cause__` is what the node said; it tells whether retrying helps.

    Example:
        >>> @function
        ... async def ask(s):
        ...     s += "Name: " + gen("name")
        >>> await ask.run(backend=Mock([OSError("no such disk")]))
        Traceback (most recent call last):
        PrimitiveFailed: program 'ask', variable 'name', ...: RemoteError: OSError: no such disk; the prompt ends: 'Name: '
    """

    code = "primitive_failed"


class ProgramChanged(ProgramError):
    """A durable program is not the one that its journal has recorded under that id. Run it under a new id, or put it back as it was.

    It is another function or has other arguments, or a primitive asks for something else than before; the message says which.

    Example:
        >>> @function
        ... async def greet(s, name):
        ...     s += f"Dear {name}, " + gen("greeting")
        >>> state = await greet.run("Ada", durable="journal.db", id="first")
        >>> await greet.run("Bob", durable="journal.db", id="first")
        Traceback (most recent call last):
        ProgramChanged: program 'first' is recorded with other arguments; take another id
    """

    code = "program_changed"


class BranchCancelled(ProgramError):
    """The branch was cancelled (`branch.cancel()`), so it has no such value. Read what you need of it before.

    Example:
        >>> @function
        ... async def give_up(s):
        ...     branch = s.fork()[0]
        ...     branch.cancel("too late")
        ...     await branch["note"]
        >>> await give_up.run()
        Traceback (most recent call last):
        BranchCancelled: program 'give_up', branch 0.0...: the branch was cancelled: too late...
    """

    code = "branch_cancelled"


class BudgetExceeded(ProgramError):
    """The program has used up its `budget`. Give it more, or have it ask for less.

    Example:
        >>> @function
        ... async def for_ever(s):
        ...     while True:
        ...         s += gen("text")
        ...         await s["text"]
        >>> await for_ever.run(budget=Budget(calls=3))
        Traceback (most recent call last):
        BudgetExceeded: program 'for_ever', variable 'text', ...: the program's budget of 3 calls is used up...
    """

    code = "budget_exceeded"


class UnsupportedMedia(ProgramError):
    """The model takes no images or videos. Use one that does.

    Example:
        >>> UnsupportedMedia("the model takes no images").code
        'unsupported_media'
    """

    code = "unsupported_media"
    status = 400


class Unsupported(ProgramError):
    """The backend cannot do what a primitive asks for; the message says which can.

    Example:
        >>> Unsupported("gen('name'): openai gpt-4o (chat) takes no top_k; anthropic, gemini and vllm do").code
        'unsupported'
    """

    code = "unsupported"
    status = 400


class SpeculationMiss(ProgramError):
    """A model that writes only whole turns did not keep to the template of one, however often it was asked.

    The message says what was expected and what came. Simplify the turn, divide it into several, or use a model that goes on with text.

    Example:
        >>> SpeculationMiss("the turn 'Name: {name}' was not kept to in 3 tries").code
        'speculation_miss'
    """

    code = "speculation_miss"


class BodyFailed(ProgramError):
    """The program's own code raised. `__cause__` is what it raised.

    Example:
        >>> @function
        ... async def divide(s):
        ...     return 1 / 0
        >>> await divide.run()
        Traceback (most recent call last):
        BodyFailed: program 'divide'...: the body raised ZeroDivisionError: division by zero
    """

    code = "body_failed"


def cause_of(error: BaseException) -> SglActorsError | None:
    """The error of our family that `error` was raised from, if any: its `retryable` tells whether to try again."""
    cause = error.__cause__
    return cause if isinstance(cause, SglActorsError) else None
