"""A prompt as the messages of a chat, for models that take nothing else. What a chat cannot say is an error that says what to write instead."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.lang.errors import Unsupported
from sgl_actors.lang.ir import Media
from sgl_actors.lang.prompt import Prompt

SHOWN: Final = 60
"""Characters of a text that a message shows."""
WAY_OUT: Final = (
    "a chat model takes nothing but turns: write s += sgl.system(…), s += sgl.user(…) or s += sgl.assistant(…) "
    "(a completions model takes plain text)"
)


def messages_of(prompt: Prompt) -> list[ChatMessage]:
    """The turns of a prompt as a chat, each with its media where they stand in its text.

    White space outside of turns is left out. So is an open assistant turn without text and media: the model begins one by itself. One that holds
    something comes last; the model has to be asked to go on with it (`Ask.continue_final`).

    Raises:
        Unsupported: other text, or media, outside of turns; an open turn that is not the assistant's; no turn at all.
    """
    _check(prompt)
    media: defaultdict[int, list[tuple[int, Media]]] = defaultdict(list)
    for turn, offset, one in prompt.media:
        media[turn].append((offset, one))
    messages = [
        ChatMessage(turn.role, turn.content, media=tuple(media[index]))
        for index, turn in enumerate(prompt.turns)
    ]
    if prompt.open and not messages[-1].content and not messages[-1].media:
        messages.pop()
    if not messages:
        raise Unsupported(f"the prompt is empty, there is no turn to answer; {WAY_OUT}")
    return messages


def _check(prompt: Prompt) -> None:
    """Raise for what is no part of a chat."""
    for text in (*(turn.before for turn in prompt.turns), prompt.after):
        if text.strip():
            raise Unsupported(f"the text {_shown(text)} stands outside of turns; {WAY_OUT}")
    for turn, _, media in prompt.media:
        if turn < 0:
            article = "an" if media.kind == "image" else "a"
            raise Unsupported(
                f"{article} {media.kind} stands outside of turns; write s += sgl.user(sgl.{media.kind}(…) + …)"
            )
    if prompt.open and prompt.turns[-1].role != "assistant":
        role = prompt.turns[-1].role
        raise Unsupported(
            f"the model is to write into the open {role} turn, but a chat model writes none but the assistant's: close it, and write "
            "s += sgl.assistant(sgl.gen(…)) (a completions model writes anywhere)"
        )


def _shown(text: str) -> str:
    bare = text.strip()
    return repr(bare if len(bare) <= SHOWN else f"{bare[:SHOWN]}…")
