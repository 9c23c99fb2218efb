"""What the language needs of the outside, so that it has no I/O of its own.

`Client` is how a stream asks a node; `Stream`, `Run` and `Runtime` are how a body writes to its streams. The runtime
of this package is `actors.programs.runtime`; the recorder of `lang.graph` is another one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions, TokenIds, Tokenize
from sgl_actors.errors import ConfigError, SglActorsError
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.durable import Durable, Past
from sgl_actors.lang.errors import ProgramError
from sgl_actors.lang.ir import AnyNode, Join, Media, SamplingArgs
from sgl_actors.lang.results import Failure, Outcome, Usage
from sgl_actors.lang.speculation import Part


class RunOptions(msgspec.Struct, frozen=True):
    """How a program is run.

    Attributes:
        seed: of the whole program; None draws one. The same seed gives the same samples.
        timeout: seconds that the whole program may take.
        sampling: defaults for gens that do not state them.
        priority: requests of higher ones are admitted first.
        cache_salt: cached prefixes are shared only with programs and requests of the same salt.
        fork_hint: a fork has the prefix of its branches computed before they start.
        budget: what it may use.
        durable: under which id it is recorded; None if it is not.
        speculation: of API models: -1 asks for as much at once as the program shows to come, 0 for each gen by itself, a number for at least that many tokens.
        live: of API models: text is handed out while it is written, whether somebody reads it already or not.
    """

    seed: int | None = None
    timeout: float = 3600.0
    sampling: SamplingArgs = SamplingArgs()
    priority: int = 0
    cache_salt: str = ""
    fork_hint: bool = True
    budget: Budget = Budget()
    durable: Durable | None = None
    speculation: int = -1
    live: bool = False


class Call(NamedTuple):
    """What a request is for: which primitive of which stream asks. For clients that script or log; a node needs it not.

    Attributes:
        kind: "gen", "select" (one of its scorings) or "prefix" (a fork's or a cache's).
        name: the variable; "" for none.
        stream: path of the stream.
        position: place in program order: for each fork on the way its node's number and the branch's, then the number of the own node.
        choices: of a select.
        part: number of this request within the primitive: which completion, which choice; from `len(choices)` on, a choice without its prompt.
        media: images and videos of the prompt.
        completions: that the primitive wants, each a request of its own; an API model may be asked for all at once.
        live: somebody reads while it is written.
        follow: what the text has to follow, see `lang.speculation`.
        first: most tokens of the first slot of `follow`; None for any number.
        tools: functions of which one or more are to be called, as JSON text in the OpenAI API's form; "" for none.
        looked: how many nodes behind its own it was made for, of those that had been appended by then; -1 if that is of no account. A resumed program looks at as many.
        basis: prompt and sampling that the program itself asks for, where the request says more; a resumed program has to ask for the same.
    """

    kind: str
    name: str = ""
    stream: str = "0"
    position: tuple[int, ...] = (0,)
    choices: tuple[str, ...] = ()
    part: int = 0
    media: tuple[Media, ...] = ()
    completions: int = 1
    live: bool = False
    follow: tuple[Part, ...] = ()
    first: int | None = None
    tools: str = ""
    looked: int = -1
    basis: tuple[Any, SamplingOptions] | None = None


class ApiModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API model as programs see it.

    Attributes:
        title: for messages.
        capabilities: what it can do.
        priced: whether its prices are known, so that a run may have a budget of cost.
    """

    title: str
    capabilities: Capabilities
    priced: bool = True


class Client(Protocol):
    """A node as a stream sees it. `actors.node.client.NodeClient` is one; over HTTP there is another.

    Attributes:
        takes: kinds of media that the model understands.
        api: what is known of an API model; None for a node of ours, which takes everything and goes on with any text.
    """

    takes: frozenset[str]

    @property
    def api(self) -> ApiModel | None:
        """As it is known now."""

    def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        """Yield chunks up to and including the one with `finish`; an async generator."""

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """All of it as one chunk."""

    async def flush(self) -> Any:
        """Empty the cache, unless something runs."""

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """Ids and text of a text or a chat."""

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = "",
        salt: str = "",
        timeout: float = 600.0,
        trace: str = "",
    ) -> Pinned:
        """Compute a prefix unless it is cached, and keep it from eviction for `ttl` seconds."""


class Stream(Protocol):
    """One prompt state as the body sees it. Nothing but the coroutines ever waits."""

    @property
    def path(self) -> str:
        """Which stream of the program: "0" is the root, "0.1" its second child."""

    @property
    def length(self) -> int:
        """Nodes appended so far: a position."""

    def append(self, nodes: Sequence[AnyNode], line: str = "") -> int:
        """Add nodes and return the number of the first; `line` is where the program says so, as FILE:LINE.

        Raises `StreamEnded` after a join, a cancellation, or the end of the run.
        """

    def cancel(self, reason: str) -> None:
        """End this stream and those below it; what it asks of the node is cancelled."""

    def fork(self, count: int, line: str = "") -> tuple[int, Sequence[Stream]]:
        """Add a `Fork`; its number and the children."""

    def join(self, node: Join, children: Sequence[Stream], line: str = "") -> int:
        """Add a `Join` of those children, which take nothing more; its number."""

    async def read(self, name: str, position: int) -> Any:
        """Value of a variable, as of the last node before `position` that defines it."""

    async def meta(self, name: str, position: int) -> dict[str, Any]:
        """What the node reported about a variable."""

    async def result(self, number: int) -> Any:
        """What a `Join` collected."""

    async def snapshot(self) -> Outcome:
        """All that the nodes appended so far have led to; raises the stream's failure."""

    async def pin(self, text: str, ttl: float, name: str) -> Pinned:
        """Keep a text in the cache for `ttl` seconds."""

    async def once(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """A value from outside, which a durable run makes once and records: the call number n of that name on this stream."""

    async def tail(self) -> str:
        """End of the prompt as it is now; never raises."""

    async def usage(self) -> Usage:
        """Of this stream and all below it, once all that was appended so far is done or dropped."""

    async def failed(self) -> Failure | None:
        """Why it failed, once all that was appended so far is done or dropped. From here on the program knows of it."""

    def listen(self, name: str) -> AsyncIterator[str]:
        """Text of the next variable of that name while it is being written ("" is the whole prompt); an async generator."""


class Run(Protocol):
    """One run of a program."""

    @property
    def root(self) -> Stream:
        """The stream that the body gets as `s`."""

    @property
    def seed(self) -> int:
        """The seed it runs with, drawn or given."""

    @property
    def usage(self) -> Usage:
        """Of all its streams so far."""

    async def finish(self) -> Outcome:
        """Wait for every stream; raises the first failure that the body has not seen."""

    async def keep(self, outcome: Outcome, value: bytes | None) -> list[str]:
        """Record the result of a durable run, whose value can be packed or is None; warnings for the user."""

    def failed(self, error: SglActorsError) -> SglActorsError:
        """Why it failed, for the record of a durable run; what to raise instead, if that comes of something else."""

    async def close(self) -> None:
        """End every stream that is left. Never raises."""


class Runtime(Protocol):
    """Where programs run."""

    async def start(self, name: str, options: RunOptions) -> Run:
        """Begin a run: its root stream is there when this returns."""

    async def recall(self, name: str, options: RunOptions) -> Past | None:
        """What a durable run has left that has finished before; None if it has not."""


def check_backend(backend: Runtime) -> Runtime:
    """The backend; `ConfigError` for what is none."""
    if not callable(getattr(backend, "start", None)):
        raise ConfigError(
            f"backend: {backend!r:.80} is no backend; sgl.connect(URL), sgl.Node(FILE), sgl.OpenAI(MODEL), sgl.Mock(SCRIPT) and sgl.replay(FILE) are",
            param="backend",
        )
    return backend


_factory: list[Callable[[], Runtime]] = []


def install(factory: Callable[[], Runtime]) -> None:
    """Say where programs run when `run` is told nothing (`sgl_actors` does so when it is imported)."""
    _factory[:] = [factory]


def default_runtime() -> Runtime:
    """The installed runtime."""
    if not _factory:
        raise ProgramError("no runtime is installed: `import sgl_actors` first, or give run(backend=…)")
    return _factory[0]()
