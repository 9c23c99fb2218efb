"""What a program says, as data: frozen nodes that `+` puts in a row.

A stream is a list of nodes. The same nodes are written by a running body, recorded by the tracer, sent to a node as a graph and
interpreted by a stream actor. Nodes travel as msgpack and hold nothing but data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from sgl_actors.lang.errors import InvalidPrimitive

GATHER = "gather_variable"
"""Join mode: each branch's variable becomes an item of a list in the parent; the parent's prompt stays as it is."""
APPEND = "concate_and_append"
"""Join mode: what each branch added to its prompt is added to the parent's, branch by branch."""
JOIN_MODES = (GATHER, APPEND)


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


class Expression(Composable):
    """Nodes in a row."""

    __slots__ = ("_nodes",)

    def __init__(self, nodes: Iterable[AnyNode] = ()) -> None:
        self._nodes = tuple(nodes)

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """The row."""
        return self._nodes


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


class ConstantText(Node, frozen=True):
    """Text as it stands."""

    text: str


class Gen(Node, frozen=True):
    """Text from the model, kept under `name` (without a name it only goes into the prompt)."""

    name: str | None = None
    sampling: SamplingArgs = SamplingArgs()
    logprobs: bool = False
    top_logprobs: int = 0


class Select(Node, frozen=True):
    """The most likely of `choices`, by the mean log probability of a choice's tokens."""

    name: str | None
    choices: tuple[str, ...]


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
    """Give a variable a value (plain data: what msgpack knows)."""

    name: str
    value: Any


class Fork(Node, frozen=True):
    """`count` child streams begin with what this stream holds now."""

    count: int


class Join(Node, frozen=True):
    """Wait for the children that node number `fork` of this stream began, and collect.

    `name` None gathers every variable that a child set itself.
    """

    fork: int
    name: str | None = None
    mode: str = GATHER


AnyNode: TypeAlias = ConstantText | Gen | Select | RoleBegin | RoleEnd | Variable | SetVariable | Fork | Join
"""What may stand in a stream."""

_NODES = ConstantText | Gen | Select | RoleBegin | RoleEnd | Variable | SetVariable | Fork | Join


def as_nodes(value: object) -> tuple[AnyNode, ...]:
    """Nodes of a string, a node or an expression; `InvalidPrimitive` for anything else."""
    if isinstance(value, str):
        check_text("s += …", value)
        return (ConstantText(value),) if value else ()
    if isinstance(value, Composable):
        return value.nodes
    if isinstance(value, _NODES):
        return (value,)
    raise InvalidPrimitive(
        f"cannot be part of a prompt: {type(value).__name__} {value!r:.80}; convert it with str(…)"
    )


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


def may_define(node: AnyNode, name: str) -> bool:
    """Whether `node` gives variable `name` a value (a nameless gather may: that shows only when it is done)."""
    if isinstance(node, Gen | Select | SetVariable):
        return node.name == name
    return isinstance(node, Join) and node.mode == GATHER and node.name in (None, name)


def outline(node: AnyNode) -> str:
    """A node as it appears in the tail of a prompt in an error message."""
    match node:
        case ConstantText(text):
            return text
        case Gen(name) | Select(name):
            return (
                f"{{{type(node).__name__.lower()} {name}}}" if name else f"{{{type(node).__name__.lower()}}}"
            )
        case Variable(name):
            return f"{{{name}}}"
        case RoleBegin(role):
            return f"{{{role}}}"
        case _:
            return ""
