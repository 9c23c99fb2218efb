"""What the worker understands and answers. It talks to the scheduler, and asks the tokenizer for the vocabulary when it is to constrain an output.

A worker keeps, per sequence, its token ids, its pages and its sampling state; a `Step` carries only what changed.
Tokens it samples are appended to the sequence by the worker itself and reported in `StepDone`.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.lang.constraints.constraint import Constraint

JUMP = 64
"""Most tokens that the worker appends behind one sampled token; what is forced beyond them follows with the next step."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[model]` of node.toml.

    Attributes:
        path: a .gguf file, a Hugging Face folder with safetensors, or a name known to `sgl-actors models`.
        served_name: name that requests use; by default made from the path.
        compute: how a CPU keeps and multiplies weights: "auto" (4-bit codes as the file has them, int8 for what it keeps in 16 or 32 bits), "fp32" (exact),
            "int8", "int4" (lossy for what the file keeps in more). Other than fp32 needs the native kernels.
        kv: how a CPU keeps keys and values: "auto" (float32), "float32", "float16".
        deterministic: refuse to start where a sequence's output could depend on what runs beside it; the native kernels never let it.
        dtype: compute type without the native kernels: "auto" (fp32 on a CPU, bf16 on a GPU), "float32", "bfloat16", "float16".
        device: "auto", "cpu", "cuda", "cuda:1".
        cuda_graphs: on a GPU, capture the decode step of each batch size once and replay it. Not run on hardware yet.
        threads: compute threads; 0 for one per core.
        nice: by how much the compute threads give way to everybody else on their cores, 0 to 19 (Linux).
        context: most tokens per sequence; 0 for what the checkpoint states.
    """

    path: str = "smollm2"
    served_name: str = ""
    compute: str = "auto"
    kv: str = "auto"
    deterministic: bool = False
    dtype: str = "auto"
    device: str = "auto"
    cuda_graphs: bool = False
    threads: int = 0
    nice: int = 5
    context: int = 0


class Sampling(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """How the next token of one sequence is chosen. Defaults leave the distribution as it is.

    Attributes:
        seed: with the position it fixes the random draw: a token is a pure function of (logits, seed, position).
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: number of candidates kept, -1 for all.
        min_p: least probability relative to the most likely token, in [0, 1].
        frequency_penalty: subtracted per occurrence among the output tokens.
        presence_penalty: subtracted once for each token among the output tokens.
        repetition_penalty: divides positive, multiplies negative logits of tokens in prompt or output; 1 is off.
        min_tokens: end tokens are forbidden before that many output tokens, unless the constraint leaves nothing else.
        end_ids: token ids that end the sequence (eos unless ignored, and stop token ids).
        logit_bias: (token id, value added to its logit).
        constraint: what the output has to be as a whole; tokens that it does not allow are left out after penalties and bias, before temperature,
            top_k, top_p and min_p, which therefore choose among those allowed.
        jump_forward: append text that the constraint leaves no choice about in one go; without, the same tokens come one by one.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    jump_forward: bool = True

    def ended_by(self, token_id: int, generated: int) -> bool:
        """Whether an output of `generated` tokens has ended with `token_id`, its last: by an end token that does not come too early.

        Under a constraint none does, as one before `min_tokens` is only sampled where nothing else can be.
        """
        return token_id in self.end_ids and (generated > self.min_tokens or self.constraint is not None)


class Logprobs(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Which log probabilities (natural log, of the unmodified model distribution at temperature 1) are wanted.

    A constraint does not change them: they say what the model would have thought of a token without it.

    Attributes:
        output: report each sampled token's.
        top: and the `top` most likely alternatives, for output tokens and for the prompt if `prompt_start` >= 0.
        prompt_start: report prompt tokens from this index on; -1 for none. Index 0 has no value (null).
    """

    output: bool = False
    top: int = 0
    prompt_start: int = -1


class Describe(Message):
    """Ask for `ModelInfo`."""


class ModelInfo(Message):
    """What is loaded and how large the KV pool is.

    Attributes:
        served_name: name that requests use.
        path: file or folder the weights came from.
        architecture: such as "LlamaForCausalLM".
        context: most tokens of a sequence, prompt and output together.
        vocabulary: rows of the output head.
        eos_ids: ids that end generation unless ignored.
        pages: size of the KV pool in pages.
        page_size: tokens per page.
        bytes_per_token: KV bytes of one token.
        dtype: of keys and values, such as "float32".
        device: such as "cpu".
        threads: compute threads.
        compute: how weights are kept and multiplied: "fp32", "int8", "int4" (whatever the file has, with "auto"), or the dtype without native kernels.
        deterministic: a sequence's output does not depend on what runs beside it, on chunks, or on what was cached.
        kernels: what computes: the native library for "vnni", "avx2" or as "portable"; "torch", "triton".
    """

    served_name: str
    path: str
    architecture: str
    context: int
    vocabulary: int
    eos_ids: tuple[int, ...]
    pages: int
    page_size: int
    bytes_per_token: int
    dtype: str
    device: str
    threads: int
    compute: str = ""
    deterministic: bool = False
    kernels: str = ""


class NewSequence(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A sequence that enters the batch.

    Attributes:
        seq: number chosen by the scheduler, unique while the sequence lives.
        token_ids: prompt and any output it already has.
        prompt_length: how many of them are prompt.
        cached: how many leading tokens have their KV in `pages` already; less than len(token_ids).
        pages: pages in order; token i lives in pages[i // page_size], slot i % page_size.
        most: tokens it may come to hold; nothing is drafted beyond them.
        drafts: most tokens that may be drafted for it in one pass; 0 for none.
        continuation: what followed `token_ids` another time, if that is known: something to draft from.
    """

    seq: int
    token_ids: list[int]
    prompt_length: int
    cached: int
    pages: list[int]
    sampling: Sampling
    logprobs: Logprobs = Logprobs()
    most: int = 0
    drafts: int = 0
    continuation: list[int] = []


class Work(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One sequence's share of a step.

    Attributes:
        seq: the sequence.
        count: how many of its next tokens without KV are run (a prefill chunk; when decoding 1 and those that were forced). With `sample`, forced
            tokens that the sender had not heard of are run too, as far as the pages reach; or drafts, so that the pages still have a place for one more token.
        pages: pages appended to the sequence before running.
        sample: sample a token after the last one run and append it to the sequence; only legal when
            no known token is left without KV.
    """

    seq: int
    count: int = 1
    pages: tuple[int, ...] = ()
    sample: bool = True


class Prepare(Message):
    """Call, answered by `Prepared`: sequences under this constraint will come, so that their steps do not wait for it to be read.

    Attributes:
        constraint: what they carry.
        automaton: the compiled constraint (`automaton.Automaton.pack`), empty if llguidance is to read the source.
    """

    constraint: Constraint
    automaton: bytes = b""


class Prepared(Message):
    """It is known here."""


class Step(Message):
    """One forward pass, as a change of the batch that the worker holds.

    Attributes:
        epoch: incarnation of the batch; a worker that holds another one answers `NeedFull`.
        number: counts up by one; steps run in order.
        end: sequences to forget, before the step runs.
        start: sequences to add, before the step runs.
        work: what to run; may be empty (only forget).
    """

    epoch: int
    number: int
    end: list[int]
    start: list[NewSequence]
    work: list[Work]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Log probability of one token; `logprob` is None for the first token of a sequence."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class SequenceResult(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a step did for one sequence.

    Attributes:
        token_id: the sampled token, -1 if none was.
        forced: tokens after it that the constraint left no choice about; they have no KV yet.
        chosen: `token_id` is the model's choice, not forced like those after it.
        held_back: tokens of forced text that were left out of `forced`, as they may still be joined with what follows.
        accepted: tokens sampled after `token_id` in the same pass, one for each draft that turned out right; all sampled tokens but the last have KV.
        drafted: drafts that were run.
        ran: tokens that were run and are right; 0 for as many as the work says.
        logprob: of the sampled token, if asked for.
        accepted_logprobs: of `accepted`, if asked for.
        forced_logprobs: of tokens that an earlier result had as `forced` and this step has run, if asked for.
        prompt_logprobs: of the prompt tokens from max(prompt_start, first token of this chunk) on, in order over the steps;
            the chunks of a prefill put together give exactly prompt[prompt_start:].
        error: why this sequence alone failed (others of the batch are unharmed); it has left the batch.
        code: error code of `sgl_actors.errors`; "" for `remote_error`.
    """

    seq: int
    token_id: int = -1
    forced: tuple[int, ...] = ()
    held_back: int = 0
    chosen: bool = True
    accepted: tuple[int, ...] = ()
    drafted: int = 0
    ran: int = 0
    logprob: TokenLogprob | None = None
    accepted_logprobs: tuple[TokenLogprob, ...] = ()
    forced_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    error: str = ""
    code: str = ""


class StepDone(Message):
    """The step's results, in the order of its work. `seconds` is the time spent in the forward pass and sampling."""

    epoch: int
    number: int
    results: list[SequenceResult]
    seconds: float = 0.0


class NeedFull(Message):
    """The worker does not hold that batch epoch: the scheduler has to `Reset` it and send its sequences anew."""

    epoch: int


class Reset(Message):
    """Forget all sequences and begin batch `epoch` at step 0. Answered by `ResetDone` when nothing runs any more."""

    epoch: int


class ResetDone(Message):
    """No earlier step touches a page from here on."""

    epoch: int


class Profile(Message):
    """Call, answered by `Profiled` after `seconds`: note where the time of every step goes.

    Attributes:
        seconds: how long.
        slices: keep every single operation, too.
    """

    seconds: float
    slices: bool = False


class StepTime(msgspec.Struct, frozen=True, array_like=True):
    """One step; times are monotonic seconds, the same clock in all processes of a machine.

    Attributes:
        received: when the `Step` came.
        began: when its thread took it.
        ended: when its results were there.
        sent: when `StepDone` was on its way.
        tokens: run through the model.
        sequences: that were run.
        sampled: that were to get a token.
        started: tokens known of each sequence that entered the batch with it.
        first: prompt tokens of each sequence whose first output token it sampled.
        goes_on: it ran a sequence that was in the batch before.
    """

    number: int
    received: float
    began: float
    ended: float
    sent: float
    tokens: int
    sequences: int
    sampled: int
    started: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    goes_on: bool = True


class PartTime(msgspec.Struct, frozen=True, array_like=True):
    """What one part of the steps took: a kind of operation, or what Python does between them ("batch", "sampling", "grammar").

    Attributes:
        seconds: of the thread that runs the steps.
        calls: how often.
        bytes: of weights or keys and values that it had to read; 0 where that is not known.
        operations: multiplications and additions; 0 where that is not known.
    """

    part: str
    seconds: float
    calls: int
    bytes: float = 0.0
    operations: float = 0.0


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """One operation: when it began, and how many seconds it took."""

    part: str
    began: float
    seconds: float


class Profiled(Message):
    """What the worker did from `began` to `ended`, which lie between two steps.

    Attributes:
        steps: in order, all within.
        parts: of all of them; what is missing to the steps' time is neither.
        slices: in order of their end, if asked for, up to a bound.
    """

    began: float
    ended: float
    threads: int
    steps: list[StepTime]
    parts: list[PartTime]
    slices: list[Slice]
