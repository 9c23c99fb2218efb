"""What all streams of one program share. It stays in the process: a client, a cache of frames, a deadline."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from sgl_actors.actors.programs.journal_entry import Entry
from sgl_actors.actors.programs.journal_history import key_of
from sgl_actors.actors.tokenizer.messages import ChatMessage, Tokenize
from sgl_actors.errors import DeadlineExceeded, SglActorsError
from sgl_actors.lang.budget import Books, Budget
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.ir import SamplingArgs
from sgl_actors.lang.prompt import Prompt, Shape, mark, split
from sgl_actors.lang.protocols import Call, Client
from sgl_actors.lang.results import Usage

FRAMES = 256
"""Shapes of chats whose frames are remembered."""


class Frames:
    """The chat template's frames by shape, asked of the node once each."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: OrderedDict[Shape, tuple[str, ...]] = OrderedDict()

    def through(self, client: Client) -> Frames:
        """The same frames; what is not known yet is asked by `client`."""
        other = Frames(client)
        other._known = self._known
        return other

    async def text(self, prompt: Prompt) -> str:
        """The prompt as the model sees it.

        Raises:
            InvalidPrimitive: the template has no place for one of the turns.
            SglActorsError: what the node said to the template's rendering.
        """
        shapes = prompt.shapes()
        frames: Mapping[Shape, tuple[str, ...]] = {shape: await self._frame(shape) for shape in shapes}
        return prompt.text(frames)

    async def _frame(self, shape: Shape) -> tuple[str, ...]:
        frame = self._known.get(shape)
        if frame is None:
            roles, generation = shape
            messages = [ChatMessage(role, mark(index)) for index, role in enumerate(roles)]
            rendered = await self._client.tokenize(
                Tokenize(messages=messages, add_generation_prompt=generation)
            )
            frame = self._known[shape] = split(rendered.text, shape)
            if len(self._known) > FRAMES:
                self._known.popitem(last=False)
        self._known.move_to_end(shape)
        return frame


@dataclass(frozen=True, slots=True)
class Setup:
    """One run of one program.

    Attributes:
        program: its id; its streams are the actors ``program/<id>/<path>``.
        name: for people.
        seed: of all its samples.
        deadline: on the kernel's clock.
        sampling, priority, cache_salt, fork_hint: see `RunOptions`.
        books: what it has used of its budget.
        started: when it began, on the kernel's clock.
        usage: of each of its streams so far, also of those that are gone.
        entry: where a durable one is recorded.
        speculation, live: see `RunOptions`.
    """

    program: str
    name: str
    client: Client
    frames: Frames
    seed: int
    deadline: float
    sampling: SamplingArgs = field(default_factory=SamplingArgs)
    priority: int = 0
    cache_salt: str = ""
    fork_hint: bool = True
    books: Books = field(default_factory=lambda: Books(Budget()))
    started: float = 0.0
    usage: dict[str, Usage] = field(default_factory=dict)
    entry: Entry | None = None
    speculation: int = -1
    live: bool = False

    def request_id(self, call: Call) -> str:
        """Id of a request: fresh; a durable program's is the same in each of its tries."""
        if self.entry is None:
            return f"{self.program}-{secrets.token_hex(8)}"
        return self.entry.request_id(key_of(call))

    def actor(self, path: str) -> str:
        """Name of the stream actor at `path`."""
        return f"program/{self.program}/{path}"

    def late(self) -> SglActorsError:
        """What to raise when the program's time is over."""
        if self.books.budget.seconds is not None:
            return BudgetExceeded(f"the program's budget of {self.books.budget.seconds:g} s is used up")
        return DeadlineExceeded("the program's time is over")
