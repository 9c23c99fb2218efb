"""What a request asks of its output, checked before the request is admitted: the grammar actor compiles the constraint, stop patterns are compiled here."""

from __future__ import annotations

import asyncio

from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Context, Request
from sgl_actors.actors.tokenizer.messages import SamplingOptions, VocabularyInfo
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import ActorDown, NotReady
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.stop_patterns import compile_pattern

PATIENCE = 30.0
"""Seconds that a request waits for a grammar actor that is down."""
RETRY = 0.1
"""Seconds between two questions to it."""
LONGEST = 600.0
"""Seconds that a request without a deadline waits for its constraint."""


def describe(vocabulary: Vocabulary, eos_ids: tuple[int, ...]) -> VocabularyInfo:
    """The vocabulary as grammars need it; `eos_ids` where the checkpoint's tokenizer names none. Takes a fraction of a second."""
    return VocabularyInfo(vocabulary.tokenizer.to_str(), len(vocabulary), vocabulary.eos_ids or eos_ids)


def check_stop_patterns(options: SamplingOptions) -> None:
    """Raise `InvalidRequest` for one that does not compile or makes no sense. May take long: not for the loop."""
    for source in options.stop_regex:
        compile_pattern(source)


async def check_constraint(ctx: Context, constraint: Constraint, request: Request) -> None:
    """Have it compiled, so that the request's steps wait for nothing.

    Raises:
        InvalidRequest: what is wrong with it.
        NotReady: the grammar actor did not come up.
        Overloaded, DeadlineExceeded: too many wait for theirs.
    """
    until = ctx.now() + PATIENCE
    while True:
        left = LONGEST if request.remaining is None else max(RETRY, request.remaining)
        try:
            await ctx.call(
                ctx.peer("grammar"), Compile(constraint), Compiled, timeout=left, trace=request.trace
            )
        except ActorDown:
            if ctx.now() >= until:
                raise NotReady("constraints cannot be compiled: the grammar actor is down") from None
            await asyncio.sleep(RETRY)
        else:
            return
