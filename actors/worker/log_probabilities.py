"""Log probabilities of chosen tokens and of their most likely alternatives: of the unmodified distribution, at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sgl_actors.actors.worker.messages import TokenLogprob


def log_probabilities(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """One entry per row.

    Args:
        logits: [rows, vocabulary] fp32, as the model gave them.
        tokens: the token of each row.
        tops: how many alternatives each row reports, most likely first; more than the vocabulary gives all of it.
    """
    normed = logits.log_softmax(dim=-1)
    chosen = normed[
        torch.arange(len(tokens), device=logits.device), torch.tensor(tokens, device=logits.device)
    ].tolist()
    most = min(max(tops, default=0), logits.shape[-1])
    if not most:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen, strict=True)]
    top = normed.topk(most, dim=-1)
    return [
        TokenLogprob(token, value, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, value, ids, values, count in zip(
            tokens, chosen, top.indices.tolist(), top.values.tolist(), tops, strict=True
        )
    ]
