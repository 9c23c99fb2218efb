"""What a program has said of how a stream goes on, and how much of that one call of an API model can be for.

How much it has said by the time a gen's turn comes is a matter of time. A durable program that is resumed asks for as much at once as it did the first time, whatever
its body takes its time for now: else it would ask for something that was never recorded, and pay twice.
"""

from __future__ import annotations

from typing import Final

from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.ir import ConstantText, Gen, ScopeBegin, ScopeEnd, Select, SetVariable
from sgl_actors.lang.sampling import resolve
from sgl_actors.lang.speculation import FollowUp, alike, follow_up

AHEAD_PART: Final = 1 << 16
"""`Call.part` of a request for several gens: the parts below are the gen's own completions."""
FORM_PART: Final = 1 << 17
"""`Call.part` of the first request for a form; the requests below are for gens by themselves."""


def was_asked(stream: Stream, setup: Setup, part: int) -> bool:
    """Whether a run before this one has made this request for the node that is being done."""
    entry = setup.entry
    return entry is not None and entry.made(stream.path, stream.number, part) is not None


def looked_at(stream: Stream, setup: Setup) -> int | None:
    """At how many nodes behind the one that is being done a run before this one has looked to ask for it; None if it has not asked."""
    entry = setup.entry
    if entry is None:
        return None
    asks = [entry.made(stream.path, stream.number, part) for part in (AHEAD_PART, FORM_PART, 0)]
    return max((ask.looked for ask in asks if ask is not None), default=None)


def is_open(stream: Stream) -> bool:
    """Whether what is appended next may still belong to the call for the node that is being done."""
    going_on = (ConstantText, SetVariable, ScopeBegin, ScopeEnd, Gen, Select)
    return all(isinstance(step.node, going_on) for step in stream.later())


def alone(sampling: SamplingOptions) -> FollowUp:
    """A gen by itself."""
    return follow_up([sampling], [])


def upcoming(stream: Stream, setup: Setup, sampling: SamplingOptions) -> FollowUp:
    """What of the nodes behind the gen that is being done can be asked for with it."""
    least = setup.speculation if setup.speculation > 0 else None
    slots, texts, text = [sampling], list[str](), ""
    if setup.speculation == 0 or sampling.constraint is not None:
        return alone(sampling)
    for _, node in stream.later():
        match node:
            case ConstantText(more):
                text += more
            case SetVariable() | ScopeBegin() | ScopeEnd():
                continue
            case Gen(count=1, tools="") if not (node.logprobs or node.top_logprobs):
                following = resolve(node.sampling, setup.sampling, 0, node.constraint)
                if not _goes_on(slots[-1], text, following):
                    break
                texts.append(text)
                slots.append(following)
                text = ""
            case _:
                break
    return follow_up(slots, texts, least)


def _goes_on(slot: SamplingOptions, text: str, following: SamplingOptions) -> bool:
    """Whether a model that goes on past a slot's stop writes `text` there, and then another slot like it."""
    begins = any(text.startswith(stop) or stop.startswith(text) for stop in slot.stop) and bool(text)
    told = bool(following.stop) or following.constraint is None
    return begins and told and alike(slot, following) and not (slot.stop_regex or slot.no_stop_trim)
