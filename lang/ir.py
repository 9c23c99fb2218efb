"""What a program says, as data: frozen nodes that `+` puts in a row.

A stream is a list of nodes. The same nodes are written by a running body, recorded by the tracer, sent to a node as a graph and
interpreted by a stream actor. Nodes travel as msgpack and hold nothing but data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import msgspec

from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.errors import InvalidPrimitive

GATHER = "gather_variable"
"""Join mode: each branch's variable becomes an item of a list in the parent; the parent's prompt stays as it is."""
APPEND = "concate_and_append"
"""Join mode: what each branch added to its prompt is added to the parent's, branch by branch."""
JOIN_MODES = (GATHER, APPEND)
IMAGE: Final = "image"
VIDEO: Final = "video"
REASONING: Final = "_reasoning_content"
"""End of the name of the variable that takes the reasoning before an answer."""

T_co = TypeVar("T_co", covariant=True)


class Composable:
    """What `+` can put in a row: it has `nodes`. Strings and further expressions are added from either side."""

    __slots__ = ()

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """The row."""
        raise NotImplementedError

    def __add__(self, other: object) -> Expression:
        return Expression((*self.nodes, *as_nodes(other)))

    def __radd__(self, other: object) -> Expression:
        return Expression((*as_nodes(other), *self.nodes))

    def __repr__(self) -> str:
        return f"<{' + '.join(type(node).__name__ for node in self.nodes) or 'nothing'}>"

    def __str__(self) -> str:
        raise InvalidPrimitive(
            f"{self!r} inside of an f-string or str(…) would be those letters and generate nothing; write "
            '"…" + gen(…) + "…"'
        )

    def __format__(self, spec: str) -> str:
        return str(self)


class Expression(Composable):
    """Nodes in a row."""

    __slots__ = ("_nodes",)

    def __init__(self, nodes: Iterable[AnyNode] = ()) -> None:
        self._nodes = tuple(nodes)

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """The row."""
        return self._nodes


class Slot(Expression, Generic[T_co]):
    """Where the model writes: an expression of one gen or select. `s[slot]` is its variable, of type `T_co`.

    Example:
        >>> slot = gen("age", type=int)
        >>> @function
        ... async def ask(s):
        ...     s += "Age: " + slot
        ...     return await s[slot] + 1
        >>> (await ask.run(backend=Mock(["41"]))).value
        42
    """

    __slots__ = ("name",)

    def __init__(self, node: Gen | Select) -> None:
        super().__init__((node,))
        self.name = node.name


class Node(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, tag=True):
    """Base of all nodes. The tag on the wire is the class's name."""

    def __add__(self, other: object) -> Expression:
        return Expression((*as_nodes(self), *as_nodes(other)))

    def __radd__(self, other: object) -> Expression:
        return Expression((*as_nodes(other), *as_nodes(self)))


class SamplingArgs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling arguments as far as they were given; None leaves it to `run(...)`, and then to the node's defaults.

    Meaning and ranges are those of `tokenizer.messages.SamplingOptions`.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    seed: int | None = None
    stop_regex: tuple[str, ...] | None = None
    jump_forward: bool | None = None


class ConstantText(Node, frozen=True):
    """Text as it stands."""

    text: str


class Gen(Node, frozen=True):
    """Text from the model, kept under `name` (without a name it only goes into the prompt).

    Attributes:
        logprobs, top_logprobs: report log probabilities of what is generated, and of that many alternatives.
        prompt_logprobs_start: report those of the prompt from this token on; -1 for none.
        count: completions; with more than one the variable is a list of them, and the prompt goes on with the first.
        constraint: what the text has to be.
        adapter: key of what makes the value of the text (`typed.adapter_of`); "" for text.
        parts: variables that named parts of the constraint give values to.
        tools: functions of which one or more are to be called, as the JSON text of a list in the OpenAI API's form; "" for none. `constraint` says the same
            for models that call none by themselves.
    """

    name: str | None = None
    sampling: SamplingArgs = SamplingArgs()
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs_start: int = -1
    count: int = 1
    constraint: Constraint | None = None
    adapter: str = ""
    parts: tuple[str, ...] = ()
    tools: str = ""


class Select(Node, frozen=True):
    """The best of `choices`, by one of the methods of `choices.METHODS`."""

    name: str | None
    choices: tuple[str, ...]
    method: str = "token_length_normalized"


class Media(Node, frozen=True):
    """An image or a video; `media_type` is what it is, `frames` how many of a video's frames are looked at."""

    kind: str
    data: bytes
    media_type: str
    frames: int = 0


class ScopeBegin(Node, frozen=True):
    """From here on the prompt's text belongs to variable `name`."""

    name: str


class ScopeEnd(Node, frozen=True):
    """Up to here."""

    name: str


class SeparateReasoning(Node, frozen=True):
    """Take the reasoning out of the variables `names`, and out of the prompt; `model` says how it is marked."""

    names: tuple[str, ...]
    model: str


class RoleBegin(Node, frozen=True):
    """A turn of the chat opens."""

    role: str


class RoleEnd(Node, frozen=True):
    """It closes."""

    role: str


class Variable(Node, frozen=True):
    """The value of a variable, as text.

    `stream` is the path of the stream it belongs to and `position` up to where that one counts; "" is this stream, up to here.
    """

    name: str
    stream: str = ""
    position: int = 0


class SetVariable(Node, frozen=True):
    """Give a variable a value (plain data: what msgpack knows), or a text of which `adapter` makes it."""

    name: str
    value: Any
    adapter: str = ""


class Argument(Node, frozen=True):
    """An argument of the body, in a recording that was made without it."""

    name: str


class Fork(Node, frozen=True):
    """`count` child streams begin with what this stream holds now."""

    count: int


class Join(Node, frozen=True):
    """Wait for the children that node number `fork` of this stream began, and collect.

    `name` None gathers every variable that a child set itself. With `keep`, a child that failed leaves None in its place.
    """

    fork: int
    name: str | None = None
    mode: str = GATHER
    keep: bool = False


AnyNode: TypeAlias = (
    ConstantText
    | Gen
    | Select
    | RoleBegin
    | RoleEnd
    | Variable
    | SetVariable
    | Media
    | ScopeBegin
    | ScopeEnd
    | SeparateReasoning
    | Argument
    | Fork
    | Join
)
"""What may stand in a stream."""


def as_nodes(value: object) -> tuple[AnyNode, ...]:
    """Nodes of a string, a node or an expression; `InvalidPrimitive` for anything else."""
    if isinstance(value, str):
        check_text("s += …", value)
        return (ConstantText(value),) if value else ()
    if isinstance(value, Composable):
        return value.nodes
    if isinstance(value, Node):
        return (cast("AnyNode", value),)
    raise InvalidPrimitive(
        f"cannot be part of a prompt: {type(value).__name__} {value!r:.80}{_way_out(value)}"
    )


def _way_out(value: object) -> str:
    """What to write instead."""
    if callable(getattr(value, "constraint", None)):
        return "; write gen(constraint=…)"
    if isinstance(value, (list, tuple)):
        return "; put its items in a row with +"
    if value is None or callable(value):
        return ""
    return "; convert it with str(…)"


def check_text(where: str, text: str, param: str | None = None) -> None:
    """`InvalidPrimitive` for text with half of a surrogate pair: it is no Unicode text and can be sent nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise InvalidPrimitive(
            f"{where}: the text is no Unicode text, it holds the lone surrogate U+{ord(text[error.start]):04X} "
            f"at {error.start}: {around!r}",
            param=param,
        ) from None


def defines(node: AnyNode) -> tuple[str, ...]:
    """Variables that `node` gives a value (a nameless gather gives some, too: which, shows only when it is done)."""
    match node:
        case Gen(name=name, parts=parts):
            return (name, *parts) if name else parts
        case Select(name=str(name)) | SetVariable(name=name) | ScopeEnd(name=name):
            return (name,)
        case SeparateReasoning(names=names):
            return (*names, *(name + REASONING for name in names))
        case Join(name=str(name)):
            return (name,)
        case _:
            return ()


def may_define(node: AnyNode, name: str) -> bool:
    """Whether `node` gives variable `name` a value, or may do so."""
    if isinstance(node, Join):
        return node.mode == GATHER and node.name in (None, name)
    return name in defines(node)


def outline(node: AnyNode) -> str:
    """A node as it appears in the tail of a prompt in an error message."""
    match node:
        case ConstantText(text=text):
            return text
        case Gen(name=name) | Select(name=name):
            kind = type(node).__name__.lower()
            return f"{{{kind} {name}}}" if name else f"{{{kind}}}"
        case Variable(name=name) | Argument(name=name):
            return f"{{{name}}}"
        case RoleBegin(role=role):
            return f"{{{role}}}"
        case Media(kind=kind):
            return f"{{{kind}}}"
        case _:
            return ""
