"""POST /generate: SGLang's native endpoint, as its stock client and its users know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.body import refuse_field
from sgl_actors.actors.gateway.constraints import Asked, native_constraint
from sgl_actors.actors.gateway.generation import Ask, Prompt
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.limits import (
    MAX_TOP_LOGPROBS,
    check_choices,
    check_ids,
    check_stops,
    one_salt,
)
from sgl_actors.actors.gateway.native_types import GenerateBody, NativeSampling
from sgl_actors.actors.gateway.native_writer import NativeItem, NativeWriter
from sgl_actors.actors.gateway.retry import NATIVE, Retry
from sgl_actors.actors.gateway.sampling import (
    OPENAI_UNSUPPORTED,
    biases,
    check_min_tokens,
    stop_ids,
)
from sgl_actors.actors.gateway.service import exchange_of, reply, service_of
from sgl_actors.actors.gateway.turns import MEDIA
from sgl_actors.actors.gateway.view import check_model
from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.errors import InvalidRequest

DEFAULT_MAX_NEW_TOKENS = 128

_CONSTRAINTS = ("json_schema", "regex", "choice", "lark", "ebnf", "structural_tag")
_ELSEWHERE = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip
_INSTEAD = f"it is for the OpenAI-compatible endpoints; sampling_params have {', '.join(_CONSTRAINTS)}"
UNSUPPORTED = {
    "image_data": MEDIA,
    "audio_data": MEDIA,
    "video_data": MEDIA,
    "input_embeds": "embeddings cannot be given to this node",
    "session_params": "sessions are not supported by this node",
    "custom_logit_processor": "code is not taken from requests",
    "token_ids_logprob": "log probabilities of given ids are not supported, top_logprobs_num is",
    "return_prompt_token_ids": "prompt ids are returned by /tokenize",
    **{name: OPENAI_UNSUPPORTED[name] for name in ("lora_path", "return_hidden_states")},
    **dict.fromkeys(_CONSTRAINTS, "it belongs into sampling_params"),
    **dict.fromkeys(_ELSEWHERE, _INSTEAD),
}
"""Fields of /generate that this node cannot honour."""

UNSUPPORTED_SAMPLING = {
    "custom_params": "code is not taken from requests",
    **dict.fromkeys(_ELSEWHERE, _INSTEAD),
}
"""Fields of `sampling_params` that this node cannot honour."""

T = TypeVar("T")


async def generate(request: Request) -> Response:
    """Answer as JSON (a list for a list of prompts or n > 1) or as a stream with cumulative texts."""
    service = service_of(request)
    body = await service.read(request, GenerateBody, UNSUPPORTED)
    service = await service.serving(body.model)
    info = await service.view.admit()
    check_model(body.model, info)
    asks, items = native_asks(body, info.vocabulary, service.options.max_choices)
    exchange = exchange_of(request)
    retry = Retry.of(request.headers, exchange.tenant.name, stream=bool(body.stream), rid=body.rid)
    rids = native_rids(body.rid, len(asks), retry.digest[:24])
    job = Job(service, exchange, asks, prefix=NATIVE, model=info.served_name, retry=retry, rids=rids)
    many = job.generation.choices > 1 or isinstance(body.text, list) or _is_batch(body.input_ids)
    writer = NativeWriter(service, job, items, rids, many=many)
    if body.stream:
        return service.stream(request, writer.stream)
    await job.collect(request, raise_abort=False)
    answers = await writer.whole()
    return reply(answers if many else answers[0])


def native_asks(body: GenerateBody, vocabulary: int, max_choices: int) -> tuple[list[Ask], list[NativeItem]]:
    """What to ask the node for, and what to report of each prompt.

    Raises:
        InvalidRequest: not exactly one prompt form, empty or too many prompts, lists of other lengths, or values that
            contradict each other.
    """
    prompts = native_prompts(body, vocabulary)
    count = len(prompts)
    params = per_prompt(body.sampling_params, count, "sampling_params")
    wanted = per_prompt(body.return_logprob, count, "return_logprob")
    starts = per_prompt(body.logprob_start_len, count, "logprob_start_len")
    tops = per_prompt(body.top_logprobs_num, count, "top_logprobs_num")
    texts = per_prompt(body.return_text_in_logprobs, count, "return_text_in_logprobs")
    salts = per_prompt(body.cache_salt, count, "cache_salt")
    extras = per_prompt(body.extra_key, count, "extra_key")
    check_choices(max((param.n or 1) for param in [*params, NativeSampling()] if param), count, max_choices)
    asks: list[Ask] = []
    items: list[NativeItem] = []
    for prompt, param, logprob, start, top, text, salt, extra in zip(
        prompts, params, wanted, starts, tops, texts, salts, extras, strict=True
    ):
        asked = native_constraint(param or NativeSampling())
        sampling = native_sampling(param or NativeSampling(), vocabulary, asked)
        if (top or 0) > MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs_num: {top} is over {MAX_TOP_LOGPROBS}", param="top_logprobs_num"
            )
        first = start if start is not None else (0 if sampling.max_tokens == 0 else -1)
        item = NativeItem(bool(logprob), first if logprob else -1, (top or 0) if logprob else 0, bool(text))
        items.append(item)
        asks.append(
            Ask(
                prompt,
                sampling,
                (param and param.n) or 1,
                item.wanted,
                item.top,
                prompt_logprobs_start=item.start,
                salt=one_salt(salt, extra),
                priority=body.priority or 0,
                asked=asked,
            )
        )
    return asks, items


def native_prompts(body: GenerateBody, vocabulary: int) -> list[Prompt]:
    """The prompts of a request in their order."""
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("text: give exactly one of text and input_ids", param="text")
    if body.text is not None:
        texts = [body.text] if isinstance(body.text, str) else body.text
        if not texts or not all(texts):
            raise InvalidRequest("text: it is empty; a prompt has at least one token", param="text")
        return [Prompt(text=text) for text in texts]
    ids = body.input_ids or []
    lists = [entry for entry in ids if isinstance(entry, list)] if _is_batch(ids) else [_flat(ids)]
    if len(lists) != len(ids) and _is_batch(ids):
        raise InvalidRequest("input_ids: a list holds ids or lists of ids, not both", param="input_ids")
    if not lists or not all(lists):
        raise InvalidRequest("input_ids: it is empty; a prompt has at least one token", param="input_ids")
    for entry in lists:
        check_ids(entry, vocabulary, "input_ids")
    return [Prompt(input_ids=entry) for entry in lists]


def native_rids(rid: str | list[str] | None, count: int, stem: str) -> list[str]:
    """One id per prompt: the client's; one id for many prompts gets their numbers."""
    if isinstance(rid, list):
        if len(rid) != count or len(set(rid)) != count:
            raise InvalidRequest(f"rid: {count} prompts need {count} different ids", param="rid")
        return rid
    one = rid or stem
    return [one] if count == 1 else [f"{one}_{index}" for index in range(count)]


def native_sampling(params: NativeSampling, vocabulary: int, asked: Asked) -> SamplingOptions:
    """The node's options; what is absent has SGLang's default."""
    for name, why in UNSUPPORTED_SAMPLING.items():
        refuse_field(f"sampling_params.{name}", getattr(params, name), why)
    most = DEFAULT_MAX_NEW_TOKENS if params.max_new_tokens is UNSET else params.max_new_tokens
    least = params.min_new_tokens or 0
    check_min_tokens(least, most, "min_new_tokens", "max_new_tokens")
    return SamplingOptions(
        max_tokens=most,
        min_tokens=least,
        temperature=_or(params.temperature, 1.0),
        top_p=_or(params.top_p, 1.0),
        top_k=params.top_k or -1,
        min_p=_or(params.min_p, 0.0),
        frequency_penalty=_or(params.frequency_penalty, 0.0),
        presence_penalty=_or(params.presence_penalty, 0.0),
        repetition_penalty=_or(params.repetition_penalty, 1.0),
        stop=check_stops(params.stop),
        stop_token_ids=stop_ids(params.stop_token_ids, vocabulary),
        ignore_eos=bool(params.ignore_eos),
        no_stop_trim=bool(params.no_stop_trim),
        skip_special_tokens=params.skip_special_tokens is not False,
        logit_bias=biases(params.logit_bias, vocabulary),
        seed=params.sampling_seed,
        stop_regex=check_stops(params.stop_regex, "stop_regex"),
        constraint=asked.constraint,
        jump_forward=params.jump_forward is not False,
    )


def per_prompt(value: T | list[T | None] | None, count: int, param: str) -> Sequence[T | None]:
    """One value per prompt, from one for all or from a list with one each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InvalidRequest(f"{param}: {len(value)} entries for {count} prompts", param=param)
    return value


def _is_batch(ids: list[int | list[int]] | None) -> bool:
    return any(isinstance(entry, list) for entry in ids or ())


def _flat(ids: list[int | list[int]]) -> list[int]:
    return [entry for entry in ids if isinstance(entry, int)]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
