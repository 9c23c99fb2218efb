"""What the scheduler understands and answers. The tokenizer asks; the scheduler alone ends requests."""

from __future__ import annotations

from typing import Literal

import msgspec

from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.actors.worker.messages import Logprobs, ModelInfo, Sampling, TokenLogprob


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[scheduler]` of node.toml.

    Attributes:
        policy: order of admission: longest shared prefix first, heaviest subtree first, first come, highest response ratio next.
        overtake: uncached tokens of requests that came later that may be admitted before a waiting one, within one priority; 0: no limit.
            What came while at most that many (or 512) tokens were computed is not later, and calls of a program that began
            before are not, until 65,536 tokens have been computed since (docs/design/0013).
        sharing: who shares an uncached prefix with a request that is being computed waits for that one's.
        reuse: take prefixes from the cache and leave some there; false computes everything (for comparison).
        overlap: send step n+1 before the results of step n are known.
        max_batch: most sequences in a step.
        chunk: most prompt tokens in a step (chunked prefill).
        stall: a step with prompt tokens takes about that many times as long as one without, while others are generating; 0: whatever `chunk` takes.
        queue: most requests waiting; more are refused with `overloaded`.
        timeout: seconds a request may take when it states no deadline itself.
        speculation: let the worker guess tokens from the text so far and from what followed it before, and check several in one pass,
            where that is faster. Outputs are the same.
        speculation_tokens: most tokens guessed for a sequence in a pass.
    """

    policy: Literal["lpm", "dfs-weight", "fcfs", "hrrn"] = "lpm"
    overtake: int = 1024
    sharing: bool = True
    reuse: bool = True
    overlap: bool = False
    max_batch: int = 32
    chunk: int = 512
    stall: float = 3.2
    queue: int = 1024
    timeout: float = 600.0
    speculation: bool = True
    speculation_tokens: int = 16


class Sequence(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One request in token ids.

    Attributes:
        id: chosen by the asker, unique. Submitting a live id again re-attaches to it (progress is sent anew from `len(output)` on);
            another request under a live id is refused.
        prompt: token ids, at least one.
        max_tokens: output tokens at most; 0 computes the prompt only (fills the cache, prompt log probabilities).
        output: tokens that the asker has already (a re-submission after a fault); they count towards max_tokens.
        timeout: seconds it may take from now; 0 for no limit.
        tenant: whose request it is; nobody sees another tenant's cached prefixes.
        salt: a cache namespace of its own within the tenant.
        program: program id; its calls stand in line where it began.
        trace: trace id for the logs.
        priority: higher ones are admitted first, whatever the policy.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    logprobs: Logprobs = Logprobs()
    output: list[int] = []
    timeout: float = 0.0
    tenant: str = "default"
    salt: str = ""
    program: str = ""
    trace: str = ""
    priority: int = 0


class Submit(Message):
    """Cast on the control lane. Enter requests; every one of them ends in exactly one `Update` with `finish`, sent to the caster.

    If the caster goes down, they go on for some seconds: its successor submits them again and is told from there on.
    """

    sequences: list[Sequence]


class Finish(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Why a request ended.

    Attributes:
        reason: "stop" (end token or stop string), "length", "abort" (cancelled, deadline), "error".
        matched: end token id or stop string.
        code: error code of `sgl_actors.errors` for abort and error.
        message: for people.
    """

    reason: str
    matched: int | str | None = None
    code: str = ""
    message: str = ""


class Decoding(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """How an output was made, since the request was submitted (a re-submission after a fault begins at 0).

    Attributes:
        steps: forward passes that brought output tokens.
        sampled: tokens that the model chose.
        forced: tokens that a constraint left no choice about.
        held_back: tokens of forced text that were left to the model, as they might have been joined with what followed.
        drafted: tokens that were guessed and run.
        accepted: those of them that turned out to be the model's choice, and are among `sampled`.
    """

    steps: int = 0
    sampled: int = 0
    forced: int = 0
    held_back: int = 0
    drafted: int = 0
    accepted: int = 0


class Update(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Progress of one request since the last update.

    Attributes:
        id: the request.
        first_index: position of token_ids[0] among all its output tokens.
        token_ids: new output tokens (an end token that matched is included).
        logprobs: one per token if asked for.
        prompt_logprobs: new ones since the last update, if asked for.
        cached: leading prompt tokens whose KV came from the cache (as of its first admission).
        finish: set in its last update.
        decoding: how the output was made so far.
    """

    id: str
    first_index: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    cached: int = 0
    finish: Finish | None = None
    decoding: Decoding = Decoding()


class Progress(Message):
    """Cast to whoever submitted: one message per step and submitter."""

    updates: list[Update]


class Stop(Message):
    """Cast by the tokenizer on the control lane: a stop string was completed by output token number `keep_tokens`; later ones do not count."""

    id: str
    keep_tokens: int
    matched: str


class Abort(Message):
    """Cast on the control lane, as `Submit`. End requests now; unknown ids are ignored. Empty `ids` and `all`: every request."""

    ids: list[str]
    all: bool = False


class FlushCache(Message):
    """Call, answered by `Flushed`; refused (`done` false) while requests run or wait."""


class Flushed(Message):
    """Whether the tree was emptied, and how many requests stood in the way."""

    done: bool
    busy: int = 0


class DescribeModel(Message):
    """Call, answered by the worker's `ModelInfo`; `NotReady` until a worker is up."""


class Configure(Message):
    """Call, answered by `Configuration`: change how requests are ordered, from the next round on; None leaves a value as it is.

    What runs or waits is not touched. A restart of the scheduler goes back to node.toml.
    """

    policy: Literal["lpm", "dfs-weight", "fcfs", "hrrn"] | None = None
    overtake: int | None = None
    sharing: bool | None = None
    reuse: bool | None = None
    stall: float | None = None
    speculation: bool | None = None


class Configuration(Message):
    """What is in force."""

    policy: str
    overtake: int
    sharing: bool
    reuse: bool
    stall: float
    speculation: bool = True


class Drain(Message):
    """Call, answered by `Drained` when no request is left; new ones are refused with `not_ready` from now on, for good."""


class Drained(Message):
    """Nothing is in flight."""


class Tick(Message):
    """Cast by the scheduler to itself when a deadline is due."""


__all__ = [
    "Abort", "Configuration", "Configure", "Decoding", "DescribeModel", "Drain", "Drained", "Finish", "FlushCache", "Flushed", "Logprobs", "ModelInfo", "Progress",
    "Sampling", "Sequence", "Stop", "Submit", "Tick", "TokenLogprob", "Update",
]  # fmt: skip
