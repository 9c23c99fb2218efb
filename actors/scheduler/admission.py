"""What is wrong with a request before anything is computed for it."""

from __future__ import annotations

import math

from sgl_actors.actors.scheduler.messages import Finish, Sequence
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import ContextLengthExceeded, InvalidRequest, SglActorsError


def refusal(sequence: Sequence, info: ModelInfo | None) -> Finish | None:
    """Why `sequence` can never run, or None. What depends on the model is looked at once `info` is known."""
    error = _error(sequence, info)
    return None if error is None else failed(error)


def failed(error: SglActorsError) -> Finish:
    """The end of a request by that error."""
    return Finish("error", None, error.code, error.message)


def _error(sequence: Sequence, info: ModelInfo | None) -> SglActorsError | None:
    if not sequence.prompt:
        return InvalidRequest("the prompt is empty", param="prompt")
    if not 0 <= sequence.timeout < math.inf:
        return InvalidRequest(
            f"timeout is {sequence.timeout}, must be seconds, or 0 for none", param="timeout"
        )
    if "\x1f" in sequence.tenant:
        return InvalidRequest("the tenant's name has a control character", param="tenant")
    if sequence.max_tokens < 0:
        return InvalidRequest(
            f"max_tokens is {sequence.max_tokens}, must not be negative", param="max_tokens"
        )
    if len(sequence.output) > sequence.max_tokens:
        return InvalidRequest(f"{len(sequence.output)} tokens of output, max_tokens is {sequence.max_tokens}")
    if info is None:
        return None
    for name, token_ids in (("prompt", sequence.prompt), ("output", sequence.output)):
        for token_id in (min(token_ids), max(token_ids)) if token_ids else ():
            if not 0 <= token_id < info.vocabulary:
                return InvalidRequest(
                    f"{name}: token id {token_id} is not in the vocabulary of {info.vocabulary}"
                )
    prompt, reserve = len(sequence.prompt), len(sequence.prompt) + sequence.max_tokens
    if reserve > info.context:
        return ContextLengthExceeded(
            f"prompt of {prompt} tokens and max_tokens {sequence.max_tokens} make {reserve}, the model's context is {info.context}"
        )
    if reserve > info.pages * info.page_size:
        return InvalidRequest(
            f"prompt of {prompt} tokens and max_tokens {sequence.max_tokens} make {reserve}, "
            f"the KV pool holds {info.pages * info.page_size}"
        )
    return None
