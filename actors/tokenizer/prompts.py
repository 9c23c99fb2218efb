"""From a prompt as it is asked for (text, ids or messages) to its canonical ids."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from sgl_actors.actors.tokenizer.messages import ChatMessage, Generate, TokenIds, Tokenize
from sgl_actors.actors.tokenizer.prompt_memory import Key, PromptMemory
from sgl_actors.actors.tokenizer.retokenise import retokenise, utf8
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import ContextLengthExceeded, InvalidRequest
from sgl_actors.lang.chat_template import ChatTemplate


class Prompts:
    """Encodes prompts; may be used from several threads.

    A prompt mostly goes on from an earlier one, so the ids of those are remembered and only what follows the last seam is encoded
    anew (`retokenise`). The ids are the same with and without.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Compile the chat template; a broken one fails the chats, not the start."""
        self.vocabulary = vocabulary
        self._template: ChatTemplate | InvalidRequest
        try:
            self._template = _template(vocabulary)
        except InvalidRequest as error:
            self._template = error
        self._memory = PromptMemory()
        self._lock = Lock()

    def ids(self, request: Generate) -> list[int]:
        """Ids of the request's prompt.

        Raises:
            InvalidRequest: the template refused, or the text is no valid Unicode.
        """
        if request.input_ids is not None:
            return request.input_ids
        if request.messages is not None:
            text = self.render(request.messages, continue_final=request.continue_final, tools=request.tools)
        else:
            text = request.text or ""
        return self._encode(text, request.tenant, request.salt)

    def tokenise(self, request: Tokenize) -> TokenIds:
        """Ids and text of what is asked.

        Raises:
            InvalidRequest: not exactly one of text and messages, or as for `ids`.
        """
        if (request.text is None) == (request.messages is None):
            raise InvalidRequest("exactly one of text and messages is needed", param="prompt")
        if request.messages is not None:
            text = self.render(
                request.messages,
                add_generation_prompt=request.add_generation_prompt,
                continue_final=request.continue_final,
                tools=request.tools,
            )
        else:
            text = request.text or ""
        if request.tenant and not request.add_special_tokens:
            return TokenIds(self._encode(text, request.tenant, request.salt), text)
        return TokenIds(self.vocabulary.encode(text, add_special_tokens=request.add_special_tokens), text)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: str = "",
    ) -> str:
        """The chat as the model's template writes it."""
        if isinstance(self._template, InvalidRequest):
            raise InvalidRequest(self._template.message, param="messages")
        return self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final=continue_final,
            tools=tools,
        )

    def _encode(self, text: str, tenant: str, salt: str) -> list[int]:
        """Ids of a text, from those of the text that shares most with it."""
        vocabulary, key = self.vocabulary, Key(tenant, salt, utf8(text))
        if not vocabulary.seams:
            return vocabulary.encode(text)
        with self._lock:
            old, old_ids = self._memory.closest(key)
        keep, new = retokenise(vocabulary, old_ids, text, canonical=len(old_ids), old_bytes=old)
        ids = [*old_ids[:keep], *new]
        kept = len(old) - sum(map(len, vocabulary.bytes_of(old_ids[keep:])))
        if (
            b"".join(vocabulary.bytes_of(new)) == key.text[kept:]
        ):  # else bytes without a token, a normalised text
            with self._lock:
                self._memory.keep(key, ids)
        return ids


def _template(vocabulary: Vocabulary) -> ChatTemplate:
    if vocabulary.chat_template is None:
        raise InvalidRequest("the model has no chat template; send text or token ids", param="messages")
    return ChatTemplate(vocabulary.chat_template, vocabulary.tokens)


def check_size(request: Generate, vocabulary: Vocabulary, context: int) -> None:
    """Refuse a text that is too long whatever its tokens are, before work and memory go into finding them.

    Raises:
        ContextLengthExceeded: even of the longest tokens it would take more than `context`.
    """
    least = -(-size(request) // vocabulary.longest)
    if least > context:
        raise ContextLengthExceeded(
            f"the prompt has {size(request)} characters, at least {least} tokens; the context is {context} tokens",
            param="prompt",
        )


def size(request: Generate | Tokenize) -> int:
    """Characters that have to be tokenised."""
    messages = request.messages or ()
    turns = sum(len(message.content) + len(message.tool_calls) for message in messages)
    return len(request.text or "") + turns + len(request.tools)
