"""What an API model can do: declared per backend and model, and asked before anything is sent."""

from __future__ import annotations

from typing import Final

import msgspec

TEXT: Final = "text"
"""It goes on with any text (`/completions`)."""
PREFILL: Final = "prefill"
"""It goes on with the assistant's turn that ends a chat."""
NONE: Final = "none"
"""It only ever begins a new turn."""
CONTINUATIONS: Final = (TEXT, PREFILL, NONE)


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """See the module. The defaults are a chat model that can do nothing else.

    Attributes:
        continuation: what it can go on with, one of `CONTINUATIONS`.
        stops: most stop strings per request; more are looked for on our side. 0 for a model that takes none, None for any number.
        schema: a whole answer follows a JSON schema.
        constraints: kinds of constraints (`lang.constraints.constraint.KINDS`) that are kept to while it writes, wherever it begins; or that its vendor's file knows
            how to say in a schema.
        logprobs: most alternatives per generated token that it reports; 0 for its own token's only, -1 for nothing.
        scoring: it reports log probabilities of given text (`echo`), which is how `select` compares choices.
        logit_bias: it takes a bias by token id.
        tokenizer: token ids of a text can be had.
        images, videos: it looks at them.
        tools: it calls functions.
        seed: it takes one.
        count: most completions of one request.
        sampling: names of `SamplingOptions` beyond max_tokens and stop that it takes.
        counting: a stream says as it goes how many tokens it has used, so that one can be left early without losing count.
    """

    continuation: str = NONE
    stops: int | None = 4
    schema: bool = False
    constraints: tuple[str, ...] = ()
    logprobs: int = -1
    scoring: bool = False
    logit_bias: bool = False
    tokenizer: bool = False
    images: bool = False
    videos: bool = False
    tools: bool = False
    seed: bool = False
    count: int = 1
    sampling: tuple[str, ...] = ("temperature", "top_p")
    counting: bool = False
