"""One answer of an API model while it is written: what its asker may see of it so far, and what it has to be at its end."""

from __future__ import annotations

import json

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import BrokenAnswer, InvalidRequest
from sgl_actors.lang.backends.vendor import Ask, Completion
from sgl_actors.lang.backends.vendor_help import tool_text, unwrapped, wraps


def stops_of(ask: Ask, most: int | None) -> list[str]:
    """Stops that are sent: at most so many, and none where they would cut JSON; whoever asks cuts at all of them."""
    return [] if ask.tools or ask.sampling.constraint else list(ask.sampling.stop)[:most]


class Writing:
    """See the module.

    Attributes:
        raw: the model's own text so far.
        called: names and arguments of the functions that it has called.
    """

    def __init__(self, ask: Ask, lead: str = "") -> None:
        """`lead`: white space that the answer goes on behind, and that the model may write again."""
        self._lead = lead
        self._tools, self._constraint = bool(ask.tools), ask.sampling.constraint
        self._wrapped = wraps(self._constraint)
        self._given = 0
        self.raw = ""
        self.called: list[tuple[str, object]] = []

    def __repr__(self) -> str:
        return f"<Writing {len(self.raw)} characters, {len(self.called)} calls>"

    def add(self, piece: str) -> str:
        """More of the text; what may be shown now. Of called functions nothing is, before the end."""
        self.raw += piece
        if self._tools or (not self._wrapped and self._lead.startswith(self.raw)):
            return ""
        more = (
            unwrapped(self.raw)[self._given :] if self._wrapped else self.raw[self._skipped + self._given :]
        )
        self._given += len(more)
        return more

    def rest(self, completion: Completion) -> str:
        """What had not been shown of it."""
        return completion.text[self._given :]

    def completion(
        self,
        title: str,
        finish: Finish,
        logprobs: tuple[TokenLogprob, ...] = (),
        tokens: tuple[str, ...] = (),
        *,
        thought: bool = False,
    ) -> Completion:
        """The answer, whole; `thought`: the model thought before it, within `max_tokens`.

        Raises:
            InvalidRequest: `max_tokens` was too little for more than thoughts.
            BrokenAnswer: it ended of itself, and is no JSON where it had to be, or no call of a function. Whether JSON keeps its schema is whoever asked to see.
        """
        if finish.reason == "stop":
            self._check(title)
        elif thought and not (self.raw or self.called):
            raise InvalidRequest(
                f"{title}: all of max_tokens went into the model's thoughts; give it more, or limit them by `extra`",
                param="max_tokens",
            )
        if self._tools:
            text = tool_text(self.called)
            text = text if finish.reason == "stop" else text[:-1]  # cut off, so that nobody takes it for all
        else:
            text = unwrapped(self.raw) if self._wrapped else self.raw[self._skipped :]
        return Completion(text, finish, logprobs, tokens)

    @property
    def _skipped(self) -> int:
        """Characters that the model wrote again."""
        if self._wrapped:
            return 0
        same = [a == b for a, b in zip(self._lead, self.raw, strict=False)]
        return same.index(False) if False in same else len(same)

    def _check(self, title: str) -> None:
        """Whether it is what was asked for."""
        constraint = self._constraint
        if self._tools:
            if not self.called:
                raise BrokenAnswer(
                    f"{title} called none of its functions, it said {self.raw[:80]!r}; ask again"
                )
        elif constraint is not None:
            try:
                value = json.loads(self.raw)
                if self._wrapped and not isinstance(value["value"], str):
                    raise TypeError("its value is no text")  # noqa: TRY301 - the same way out
            except (ValueError, TypeError, KeyError) as error:
                raise BrokenAnswer(
                    f"{title}: the answer had to be JSON and is {self.raw[:80]!r} ({error!r}); ask again"
                ) from error
