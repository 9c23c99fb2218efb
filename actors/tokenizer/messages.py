"""The door to a node: programs, the gateway and the CLI all enter with `Generate`."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.actors.scheduler.messages import Decoding, Finish
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.ir import Media


class ChatMessage(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One turn of a chat.

    Attributes:
        role: as the template knows it: system, user, assistant, tool (what a tool answered), …
        content: its text.
        tool_calls: the assistant's calls, as the JSON text of a list in the OpenAI API's form; "" for none.
        tool_call_id: of a tool's turn, the call that it answers.
        name: of a tool's turn, the tool.
        media: images and videos, each with its offset in the content. API models take them so far.
    """

    role: str
    content: str
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""
    media: tuple[tuple[int, Media], ...] = ()


class SamplingOptions(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What the asker may say about sampling; meaning and ranges as in `worker.messages.Sampling`.

    Attributes:
        max_tokens: None for as many as the context leaves.
        min_tokens: neither an end token nor a stop string or pattern ends the output before one more than that many tokens.
        stop: strings that end the output and are trimmed from it.
        stop_token_ids: ids that end the output.
        ignore_eos: go on after the model's end token. Without effect under a constraint, which says itself where the output may end.
        no_stop_trim: leave the matched stop string in the text.
        seed: None draws one; it is reported in no answer, the asker should draw its own to be able to repeat.
        skip_special_tokens: leave special tokens out of the text.
        stop_regex: regular expressions whose first match ends the output and is trimmed from it, as a stop string is.
        constraint: what the output has to be as a whole. An end token is possible where the output is complete, and nothing else where it
            cannot go on, whatever `min_tokens` says; stop strings, stop ids and `max_tokens` may still end it before that.
        jump_forward: append text that the constraint leaves no choice about in one go; the text is the same without, it only takes longer.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop_regex: tuple[str, ...] = ()
    constraint: Constraint | None = None
    jump_forward: bool = True


class Generate(Message):
    """Stream of `Chunk`, the last one with `finish`. Exactly one of text, input_ids, messages.

    Attributes:
        id: unique; a retry after a fault carries the same id and the output ids received so far in `output`.
        text: prompt, tokenised as it is (special tokens in it are recognised, none are added).
        input_ids: prompt in token ids.
        messages: chat; rendered with the model's template, plus the generation prompt unless `continue_final`.
        continue_final: the last message is an assistant's and is to be continued.
        tools: functions that the chat is told of, as the JSON text of a list in the OpenAI API's form; "" for none.
        logprobs: report output tokens' log probabilities.
        top_logprobs: and that many alternatives.
        prompt_logprobs_start: report the prompt's from this index on; -1 for none.
        output: output ids that the asker has already.
        tenant: set by whoever authenticated the asker; nobody sees another tenant's cached prefixes.
        program: program id; the scheduler lets its calls stand in line where it began.
        salt: a cache namespace of its own within the tenant.
        priority: higher ones are admitted first.
        known: -1: nobody comes back for it, so it ends when its asker goes. From 0 on: when its asker goes or it ends, it is kept for some seconds
            (`[actors.tokenizer.options]`, see `kept.Options`), so that who asks the same again with the same id gets the same, as far as
            `output` leaves it open. That asker's own client has the first `known` output tokens: one chunk ends exactly there.
    """

    id: str
    text: str | None = None
    input_ids: list[int] | None = None
    messages: list[ChatMessage] | None = None
    continue_final: bool = False
    sampling: SamplingOptions = SamplingOptions()
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs_start: int = -1
    output: list[int] = []
    tenant: str = "default"
    program: str = ""
    salt: str = ""
    priority: int = 0
    tools: str = ""
    known: int = -1


class Chunk(Message):
    """What a request produced since its last chunk. Chunks merge when the asker is slow.

    Attributes:
        first_index: position of token_ids[0] among all output tokens; an asker drops what it has by it.
        token_ids: new output tokens.
        text: new text; whole characters only, and nothing that may still turn out to begin a stop string.
        logprobs: one per token, if asked for.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them came from the cache.
        prompt_logprobs: all of them in the first chunk, if asked for.
        finish: set in the last chunk.
        completion_tokens: output tokens so far that count (to the token that completed the stop).
        prompt_ids: prompt token ids, in the first chunk only.
        decoding: how the output was made, so far.
        tokens: of an API model, which tells no ids: texts of the tokens whose log probabilities are reported.
        retries, cost: of an API model, see `lang.results.Usage`.
        shared: it came with another completion's request, which has what that used.
    """

    first_index: int
    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprob] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprob] = []
    finish: Finish | None = None
    completion_tokens: int = 0
    prompt_ids: list[int] = []
    decoding: Decoding = Decoding()
    tokens: list[str] = []
    retries: int = 0
    cost: float = 0.0
    shared: bool = False


class Tokenize(Message):
    """Call, answered by `TokenIds`. Exactly one of text, messages.

    Attributes:
        tenant: on whose earlier prompts the work may build, within `salt`; "" builds on none and leaves nothing behind.
        tools: as in `Generate`.
    """

    text: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = False
    add_generation_prompt: bool = True
    continue_final: bool = False
    tenant: str = ""
    salt: str = ""
    tools: str = ""


class TokenIds(Message):
    """Ids, and the rendered text they come from."""

    token_ids: list[int]
    text: str


class Detokenize(Message):
    """Call, answered by `Text`, or `Texts` when `each` is set (one piece per token)."""

    token_ids: list[int]
    skip_special_tokens: bool = False
    each: bool = False


class Text(Message):
    """Decoded text; bytes that are no valid UTF-8 appear as U+FFFD."""

    text: str


class Texts(Message):
    """The text of each token by itself and its raw bytes."""

    pieces: list[str]
    raw: list[bytes]


class DescribeTokenizer(Message):
    """Call, answered by `TokenizerInfo`."""


class TokenizerInfo(Message):
    """What lm-eval and others ask for. The tokens are those that a chat template may name."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocabulary: int
    unk_token: str | None = None


class DescribeVocabulary(Message):
    """Call, answered by `VocabularyInfo`."""


class VocabularyInfo(Message):
    """What masks over token ids are made from.

    Attributes:
        tokenizer: the tokenizers library's JSON, some megabytes.
        size: token ids, from 0 on.
        eos_ids: ids that end an output; empty if neither tokenizer nor model name one.
    """

    tokenizer: str
    size: int
    eos_ids: tuple[int, ...]


class Deliver(Message):
    """Call, answered by `Delivered` once every asker has had its end: when nothing new comes any more."""


class Delivered(Message):
    """No request is live here, and none is being prepared."""


class Cancel(Message):
    """Cast. Abort by request id (a client that closes its stream needs no such message, unless it might come back). Empty and `all`: everything.

    `stems`: and those whose id is one of these with a dash and more behind it.
    """

    ids: list[str]
    all: bool = False
    stems: list[str] = []


class Expire(Message):
    """Cast by the tokenizer to itself when it has kept a request for long enough."""
