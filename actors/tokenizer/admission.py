"""From a `Generate` to the scheduler's `Sequence`: every field is checked here, once, before anything is computed.

Ranges (others are refused with `InvalidRequest` naming the field): temperature [0, 100], top_p (0, 1], top_k -1 or ≥ 1, min_p [0, 1],
frequency and presence penalty [-2, 2], repetition_penalty (0, 100], logit_bias [-100, 100] for ids of the vocabulary,
max_tokens ≥ 0, min_tokens ≤ max_tokens, top_logprobs [0, 100], at most 64 stop strings of 1 to 1,024 characters, at most 16 stop
patterns of 1 to 1,024 characters, a constraint of at most 65,536 characters. What patterns and constraints say is checked by `constraints`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items

from sgl_actors.actors.scheduler.messages import Sequence
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.actors.worker.messages import Logprobs, ModelInfo, Sampling
from sgl_actors.errors import ContextLengthExceeded, InvalidRequest
from sgl_actors.lang.constraints.constraint import KINDS, Constraint

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_PATTERNS = 16
MAX_CONSTRAINT_LENGTH = 65_536
MAX_LISTED_IDS = 4096
MAX_TOP_LOGPROBS = 100
MAX_ID_LENGTH = 256


def check(request: Generate) -> None:
    """Check all that needs neither the prompt's ids nor the model.

    Raises:
        InvalidRequest: with the offending field in `param`.
    """
    if not 0 < len(request.id) <= MAX_ID_LENGTH:
        raise InvalidRequest(f"id must have 1 to {MAX_ID_LENGTH} characters", param="id")
    if sum(prompt is not None for prompt in (request.text, request.input_ids, request.messages)) != 1:
        raise InvalidRequest("exactly one of text, input_ids and messages is needed", param="prompt")
    if request.text == "" or request.input_ids == []:
        raise InvalidRequest("the prompt must not be empty", param="prompt")
    if request.continue_final and request.messages is None:
        raise InvalidRequest("continue_final needs messages", param="continue_final_message")
    _within("top_logprobs", request.top_logprobs, 0, MAX_TOP_LOGPROBS)
    _check_sampling(request.sampling)


def admit(
    request: Generate,
    prompt: list[int],
    *,
    model: ModelInfo,
    eos_ids: Items[int],
    seed: int,
    timeout: float,
    trace: str,
) -> Sequence:
    """The request in ids, after `check`.

    Args:
        request: what was asked.
        prompt: its ids.
        model: what the node serves.
        eos_ids: ids that end an output unless ignored.
        seed: used where the request names none.
        timeout: seconds it may take, 0 for no limit.
        trace: id for the logs.

    Raises:
        InvalidRequest: an id outside the vocabulary, or a number that does not fit the prompt.
        ContextLengthExceeded: prompt and max_tokens together do not fit the context.
    """
    options = request.sampling
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    _known_ids("prompt", prompt, model.vocabulary)
    _known_ids("output", request.output, model.vocabulary)
    _known_ids("stop_token_ids", options.stop_token_ids, model.vocabulary)
    _known_ids("logit_bias", [token for token, _bias in options.logit_bias], model.vocabulary)
    max_tokens = _max_tokens(len(prompt), options.max_tokens, model)
    if options.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {options.min_tokens}, more than max_tokens, {max_tokens}", param="min_tokens"
        )
    _within("prompt_logprobs_start", request.prompt_logprobs_start, -1, len(prompt))
    ignores_eos = options.ignore_eos and options.constraint is None
    ends = set(options.stop_token_ids) if ignores_eos else {*options.stop_token_ids, *eos_ids}
    return Sequence(
        id=request.id,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=Sampling(
            seed=(seed if options.seed is None else options.seed) % (1 << 63),
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            repetition_penalty=options.repetition_penalty,
            min_tokens=options.min_tokens,
            end_ids=tuple(sorted(ends)),
            logit_bias=options.logit_bias,
            constraint=options.constraint,
            jump_forward=options.jump_forward,
        ),
        logprobs=Logprobs(request.logprobs, request.top_logprobs, request.prompt_logprobs_start),
        output=list(request.output),
        timeout=timeout,
        tenant=request.tenant,
        salt=request.salt,
        program=request.program,
        trace=trace,
        priority=request.priority,
    )


def _check_sampling(options: SamplingOptions) -> None:
    if options.max_tokens is not None and options.max_tokens < 0:
        raise InvalidRequest(f"max_tokens is {options.max_tokens}; it must be at least 0", param="max_tokens")
    if options.min_tokens < 0:
        raise InvalidRequest(f"min_tokens is {options.min_tokens}; it must be at least 0", param="min_tokens")
    _within("temperature", options.temperature, 0, 100)
    _within("top_p", options.top_p, 0, 1, above=True)
    _within("min_p", options.min_p, 0, 1)
    _within("frequency_penalty", options.frequency_penalty, -2, 2)
    _within("presence_penalty", options.presence_penalty, -2, 2)
    _within("repetition_penalty", options.repetition_penalty, 0, 100, above=True)
    if options.top_k != -1 and options.top_k < 1:
        raise InvalidRequest(f"top_k is {options.top_k}; it must be -1 (off) or at least 1", param="top_k")
    for _token, bias in options.logit_bias:
        _within("logit_bias", bias, -100, 100)
    if len(options.stop) > MAX_STOPS:
        raise InvalidRequest(f"{len(options.stop)} stop strings; at most {MAX_STOPS} are taken", param="stop")
    if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in options.stop):
        raise InvalidRequest(f"a stop string must have 1 to {MAX_STOP_LENGTH} characters", param="stop")
    if len(options.stop_regex) > MAX_STOP_PATTERNS:
        raise InvalidRequest(
            f"{len(options.stop_regex)} stop patterns; at most {MAX_STOP_PATTERNS} are taken",
            param="stop_regex",
        )
    if not all(0 < len(pattern) <= MAX_STOP_LENGTH for pattern in options.stop_regex):
        raise InvalidRequest(
            f"a stop pattern must have 1 to {MAX_STOP_LENGTH} characters", param="stop_regex"
        )
    _check_constraint(options.constraint)
    for name, listed in (("stop_token_ids", options.stop_token_ids), ("logit_bias", options.logit_bias)):
        if len(listed) > MAX_LISTED_IDS:
            raise InvalidRequest(
                f"{name} has {len(listed)} entries; at most {MAX_LISTED_IDS} are taken", param=name
            )


def _check_constraint(constraint: Constraint | None) -> None:
    if constraint is None:
        return
    if constraint.kind not in KINDS:
        raise InvalidRequest(
            f"constraint: {constraint.kind[:32]!r} is none of {', '.join(KINDS)}", param="constraint"
        )
    if len(constraint.source) > MAX_CONSTRAINT_LENGTH:
        raise InvalidRequest(
            f"{constraint.kind}: {len(constraint.source)} characters; at most {MAX_CONSTRAINT_LENGTH} are taken",
            param=constraint.kind,
        )


def _within(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Refuse what is not in [low, high], or (low, high] with `above`; NaN never is."""
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return
    raise InvalidRequest(
        f"{name} is {value:g}; it must be in {'(' if above else '['}{low:g}, {high:g}]", param=name
    )


def _known_ids(name: str, ids: Items[int], size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < size):
        wrong = next(i for i in ids if not 0 <= i < size)
        raise InvalidRequest(f"{name}: {wrong} is no token id; the vocabulary has {size}", param=name)


def _max_tokens(prompt: int, wanted: int | None, model: ModelInfo) -> int:
    """Output tokens at most. The KV pool may hold less than the context."""
    room = min(model.context, model.pages * model.page_size)
    if prompt + (1 if wanted is None else wanted) <= room:
        return room - prompt if wanted is None else wanted
    limit = f"the model's context is {model.context} tokens" + (
        "" if room == model.context else f" and the KV pool holds {room}"
    )
    raise ContextLengthExceeded(
        f"{limit}, but {prompt + (wanted or 0)} are needed: {prompt} in the prompt and {'at least 1' if wanted is None else wanted}"
        " for the output",
        param="prompt",
    )
