"""What a scheduler hands to the class that takes its place in a running node: layout ``scheduler/1``.

Plain: `SchedulerState`, msgpack of maps by field name; whoever reads it may declare a Struct of its own with the fields it cares for. Handles: ``drains`` and
``flushes``, lists of `Request` that are to be answered by `Drained` and `Flushed` (or failed).

At that moment nothing is under way: no step, no question to the cache, no lease. What the requests had computed is in the tree, and each finds its own again with
the next `Match` or `Grant`. The cell keeps its monitors and watches; asking for them again does no harm.

A successor must: end each of `requests` once, go on with its `output` (all of it has been told), keep to `left` and `kept`, begin tokens where `output` ends, and send `unsent`. For
the batch it has a choice. Either it goes on in `epoch` (if `ready`): then its next `Step` has the number `step` and ends the sequences `ends`, its sequences and leases
have numbers beyond `numbers`, and `entries` are committed before any page is asked for. Or it begins anew with an epoch beyond `epoch`: `Describe`, then
`Reset` of the worker and of the cache, as after a start; then `step`, `ends`, `entries` and `info` mean nothing, and all that is cached is lost.
What `Standing` and `Learned` say, and the trials, may be ignored: nobody is lost or computed wrongly for that.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.cache.messages import Entry
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.messages import Configure, Decoding, Finish, ModelInfo, Sequence, Update
from sgl_actors.actors.worker.messages import TokenLogprob

LAYOUT = "scheduler/1"


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a request stands in line and before the quarantine.

    Attributes:
        since: tokens that had been computed for anybody when it came (`Learned.counters`, "computed_tokens").
        place: the same of when its program began.
        overtaken: tokens computed for those that went before it although they came later.
        modest: it is to have pages for the output expected of it; false: for the longest possible, as that went wrong.
        goal: it is suspected of a crash until that many of its tokens have been computed; 0: it is not.
        strikes: crashes of the worker while it ran alone.
    """

    since: int = 0
    place: int = 0
    overtaken: int = 0
    modest: bool = True
    goal: int = 0
    strikes: int = 0


class LiveRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request that has not ended, or the end of one whose submitter is gone.

    Attributes:
        sequence: as it was submitted.
        arrival: number in the order of arrival.
        owner: whom to tell; None while its submitter is gone.
        output: all output tokens so far, those of `sequence.output` included.
        logprobs: of `output` behind `sequence.output`, if asked for.
        prompt_logprobs: those that are known, if asked for.
        left: seconds until its deadline; None without one.
        kept: seconds that it goes on, or that its end is kept, without a submitter; None if it has one.
        cached: cached prompt tokens at its first admission; -1 before.
        decoding: how its output was made.
        finish: its end, which nobody has been told; None while it lives.
        standing: may be ignored.
    """

    sequence: Sequence
    arrival: int
    owner: Address | None = None
    output: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    left: float | None = None
    kept: float | None = None
    cached: int = -1
    decoding: Decoding = Decoding()
    finish: Finish | None = None
    standing: Standing = Standing()


class Unsent(msgspec.Struct, frozen=True):
    """Ends that a submitter could not be told, as it took no mail."""

    owner: Address
    updates: list[Update]


class Began(msgspec.Struct, frozen=True, array_like=True):
    """When a program began, in tokens computed for anybody."""

    namespace: str
    program: str
    computed: int


class Learned(msgspec.Struct, frozen=True, omit_defaults=True):
    """Totals and experience.

    Attributes:
        counters: totals of its statistics, by name without "_total": they are to go on, not to begin at 0.
        step_seconds: time in steps.
        order_seconds: time in ordering.
        most_overtaken: the most tokens by which anybody was ever overtaken.
        lengths: of the last outputs, in tokens, oldest first.
        decode: seconds of a step without prompt tokens.
        rate: seconds that each prompt token adds to one.
        programs: those whose calls stand in line where they began, the longest silent first.
    """

    counters: dict[str, int] = {}
    step_seconds: float = 0.0
    order_seconds: float = 0.0
    most_overtaken: int = 0
    lengths: list[int] = []
    decode: float = 0.0
    rate: float = 0.0
    programs: list[Began] = []


class SchedulerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A scheduler at rest; see the module for what has to be done with it.

    Attributes:
        epoch: of the batch, the last that was used.
        ready: worker and cache hold that epoch. If not, it is lost: begin with the next one.
        step: number of the next step in it.
        ends: sequences that the worker still holds and is to end with that step.
        entries: what the cache could not be told, as it took no mail.
        numbers: the last number that a sequence or lease of that epoch had.
        arrivals: the last number of an arrival.
        info: what the worker serves; None unless `ready`.
        worker, cache: who is up.
        requests: in order of arrival.
        unsent: ends that are still to be told.
        draining: new requests are refused, for good.
        configured: what was changed at run time, by `Configure`.
        trials: ids of the requests suspected of a crash, in the groups in which they are to be tried, the first one now.
        learned: may be ignored.
    """

    epoch: int
    ready: bool
    step: int = 0
    ends: list[int] = []
    entries: list[Entry] = []
    numbers: int = 0
    arrivals: int = 0
    info: ModelInfo | None = None
    worker: Address | None = None
    cache: Address | None = None
    requests: list[LiveRequest] = []
    unsent: list[Unsent] = []
    draining: bool = False
    configured: Configure = Configure()
    trials: list[list[str]] = []
    learned: Learned = Learned()
