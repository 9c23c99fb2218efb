"""What a tokenizer hands to the class that takes its place in a running node: layout ``tokenizer/1``.

Plain: `TokenizerState`, msgpack of maps by field name; whoever reads it may declare a Struct of its own with the fields it cares for. Handles: ``requests``, a list of
`Request` to which the indices in the state point, and ``vocabulary``, the `Vocabulary` of the old one; who has another way to tokenise loads its own.

A successor must: end each of `streams` once, with chunks that begin at `sent` (text is made of the ids alone, so feed it ``ids[:sent]`` and throw away what comes of them),
answer each of `questions`, send `orders` to the scheduler in their order, and pass over updates of the ids in `ending` up to that many ends of each. The scheduler knows all of `streams` that have
no `finish`. What nobody listens to (`request` -1) goes on, or its end is kept, for `kept` seconds. The cell keeps its watch of the scheduler; asking for it again does no harm.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.messages import Abort, Decoding, Finish, ModelInfo, Sequence, Stop
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob

LAYOUT = "tokenizer/1"


class LiveStream(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request in flight, or one that has ended and may be asked for again.

    Attributes:
        sequence: as submitted, with the output that its asker began with.
        options: as asked.
        ids: all output tokens, those of `sequence.output` included.
        sent: how many of them its asker has.
        told: whether it has the prompt's data.
        logprobs: of `ids` behind `sequence.output`, if asked for.
        prompt_logprobs: those that are known, if asked for.
        cached: prompt tokens that came from the cache.
        decoding: how the output was made.
        finish: its end, if it has ended.
        known: as in `Generate`.
        request: where its `Request` is in the handle; -1: nobody listens.
        left: seconds until its deadline; None without one.
        kept: seconds that it is kept without an asker; None with one.
        resubmitted: the scheduler has been given it more than once.
    """

    sequence: Sequence
    options: SamplingOptions
    ids: list[int] = []
    sent: int = 0
    told: bool = False
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    cached: int = 0
    decoding: Decoding = Decoding()
    finish: Finish | None = None
    known: int = -1
    request: int = -1
    left: float | None = None
    kept: float | None = None
    resubmitted: bool = False


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has been asked and is to be begun anew: `generate` or `tokenize`; neither: `DescribeVocabulary`."""

    request: int
    generate: Generate | None = None
    tokenize: Tokenize | None = None


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the scheduler has not been told yet, as its mailbox was full: one of the two."""

    stop: Stop | None = None
    abort: Abort | None = None


class TokenizerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """See the module.

    Attributes:
        streams: those with an asker or in flight in the order they came, then those kept.
        questions: what is being tokenised in a thread, compiled or waits for the model.
        orders: oldest first.
        ending: requests ended here whose end by the scheduler is still to come, and how many times.
        scheduler: the incarnation that knows them; None while none is up.
        model: what it serves, once known.
        counts: for the statistics.
    """

    streams: list[LiveStream] = []
    questions: list[Question] = []
    orders: list[Order] = []
    ending: dict[str, int] = {}
    scheduler: Address | None = None
    model: ModelInfo | None = None
    counts: dict[str, int] = {}
