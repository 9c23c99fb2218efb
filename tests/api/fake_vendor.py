"""A vendor in this process that answers what a test tells it, and an actor that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, ClassVar

from sgl_actors.actors.api.actor import ApiActor
from sgl_actors.actors.programs.api_backend import ApiBackend
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.backends.capabilities import TEXT, Capabilities
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Event, Settings, Text, Tokens, Vendor
from sgl_actors.lang.trace import Prices

Step = Event | BaseException | asyncio.Event | Callable[[], None]
"""Of an answer: an event that comes, an error, something to wait for, something to do."""


def end(*texts: str, prompt: int = 10, cached: int = 0, output: int = 5, reason: str = "stop") -> End:
    """The end of an answer."""
    return End(tuple(Completion(text, Finish(reason)) for text in texts), Tokens(prompt, cached, output))


class FakeVendor:
    """See `lang.backends.vendor.Vendor`. `answers`: steps of one answer after the other, or a function of the request.

    Attributes:
        asked: requests.
        running, most: of them at a time.
        left: how many answers nobody read to their end; `on_left` is called then.
        opened, closed: how often it was.
        refuses: what opening it raises.
        chat: its template.
    """

    def __init__(self, answers: Sequence[Any] | Callable[[Ask], Any] = (), **capabilities: Any) -> None:
        self.title = "fake model"
        self.capabilities = Capabilities(**{"continuation": TEXT, "stops": None, **capabilities})
        self.answers = answers if callable(answers) else list(answers)
        self.asked: list[Ask] = []
        self.settings: Settings | None = None
        self.timeouts: list[float] = []
        self.running = self.most = self.left = self.opened = self.closed = 0
        self.refuses: list[SglActorsError] = []
        self.on_left: Callable[[], None] = lambda: None
        self.chat: tuple[str, Mapping[str, str]] = ("", {})

    async def open(self) -> None:
        self.opened += 1
        if self.refuses:
            raise self.refuses.pop(0)

    async def ask(self, ask: Ask, *, timeout: float) -> AsyncGenerator[Event, None]:
        self.asked.append(ask)
        self.timeouts.append(timeout)
        steps = self.answers(ask) if callable(self.answers) else self.answers.pop(0)
        self.running += 1
        self.most = max(self.most, self.running)
        ended = False
        try:
            for step in steps if isinstance(steps, list | tuple) else [steps]:
                if isinstance(step, BaseException):
                    ended = True
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Text | End):
                    ended = isinstance(step, End)
                    yield step
                else:
                    step()
        finally:
            self.running -= 1
            self.left += not ended
            if not ended:
                self.on_left()

    async def template(self) -> tuple[str, Mapping[str, str]]:
        return self.chat

    async def token_ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    async def close(self) -> None:
        self.closed += 1


class FakeApiActor(ApiActor):
    """Asks the vendor that is `chosen`, and never waits between tries."""

    chosen: ClassVar[FakeVendor]
    chance = staticmethod(lambda: 0.0)

    def make_vendor(self, settings: Settings) -> Vendor:
        self.chosen.settings = settings
        return self.chosen


class Fake(ApiBackend):
    """A backend on a `FakeVendor`."""

    actor = f"{__name__}:FakeApiActor"
    provider = "openai"

    def __init__(
        self,
        vendor: FakeVendor,
        *,
        api_key: str | None = "sk-secret",
        prices: Prices | None = None,
        **options: Any,
    ) -> None:
        FakeApiActor.chosen = vendor
        super().__init__("fake", api_key, prices, {"base_url": "", **options})


def replaced(error: SglActorsError, retry_after: float) -> SglActorsError:
    """The error with what the provider wishes."""
    error.retry_after = retry_after  # type: ignore[attr-defined]
    return error
