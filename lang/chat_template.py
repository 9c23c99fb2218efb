"""Renders a chat with the template of a model file, which is code from outside.

It runs in jinja2's immutable sandbox with bounds: a time limit, checked at every line of the template by a trace function;
the size of the output; the size of what an operator or a concatenation makes. Not bounded: a filter that builds one huge string by
itself. The worst that does is end the tokenizer's process, which its supervisor restarts.
What a template may use is what transformers offers: `raise_exception`, `strftime_now`, `tojson`, loop controls, `generation`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang import tool_turns

MAX_OUTPUT = 8 << 20
"""Characters of a rendered chat at most."""
MAX_SECONDS = 2.0
"""Seconds that rendering may take."""

_WIDE = re.compile(r"\d{5}|\*")
_CONTINUE = "\ue0c7\ue0a1continue\ue0a1\ue0c7"


class ChatTemplate:
    """A compiled template.

    Rendering is synchronous and safe to do in any thread.
    """

    def __init__(
        self,
        source: str,
        tokens: dict[str, str],
        *,
        clock: Callable[[], datetime] = datetime.now,
        max_seconds: float = MAX_SECONDS,
        max_output: int = MAX_OUTPUT,
    ) -> None:
        """Compile `source`; `tokens` are the names it may use for special tokens.

        Raises:
            InvalidRequest: it is no jinja2 template.
        """
        self.max_seconds = max_seconds
        self.max_output = max_output
        self.knows_tools = tool_turns.are_known_to(source)
        environment = _Environment(max_output)
        environment.globals["strftime_now"] = lambda layout: clock().strftime(layout)
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source, globals=tokens)
        except (jinja2.TemplateError, RecursionError) as error:
            raise InvalidRequest(f"the model's chat template is broken: {error}", param="messages") from None

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: str = "",
    ) -> str:
        """Return the chat as text.

        A template that knows tools in the form of `tool_turns` writes them itself; for any other they, their calls and their answers are put into
        plain turns.

        With `continue_final` the text ends with the content of the last message, which must be an assistant's, so that
        a model goes on with it; no generation prompt is added then.

        Raises:
            InvalidRequest: no messages, a last message that cannot be continued, or the template refused, failed or ran too long.
        """
        if not messages:
            raise InvalidRequest("messages must not be empty", param="messages")
        try:
            known = json.loads(tools) if tools else None
            if not self.knows_tools:
                messages, known = tool_turns.plain(messages, known), None
            turns = [tool_turns.for_template(message) for message in messages]
        except (ValueError, TypeError, KeyError):
            raise InvalidRequest(
                "tools and tool_calls are the JSON text of lists in the OpenAI API's form", param="messages"
            ) from None
        if continue_final:
            if messages[-1].role != "assistant":
                raise InvalidRequest("only an assistant's last message can be continued", param="messages")
            turns[-1]["content"] += _CONTINUE
        text = self._render(
            messages=turns,
            add_generation_prompt=add_generation_prompt and not continue_final,
            tools=known,
        )
        if continue_final:
            text, found, _rest = text.rpartition(_CONTINUE)
            if not found:
                raise InvalidRequest(
                    "the model's chat template leaves out the message to continue", param="messages"
                )
        return text

    def _render(self, **variables: Any) -> str:
        """Render within the bounds."""
        try:
            with _Deadline(time.monotonic() + self.max_seconds):
                return _bounded(self._template.generate(documents=None, **variables), self.max_output)
        except Exception as error:  # noqa: BLE001 - whatever a template's expressions may raise
            raise InvalidRequest(f"the model's chat template: {_describe(error)}", param="messages") from None


def _bounded(pieces: Iterable[str], limit: int) -> str:
    """Join `pieces`, of `limit` characters at most."""
    text, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise _LimitError(f"more than {limit} characters")
        text.append(piece)
    return "".join(text)


class _LimitError(Exception):
    """A bound was hit."""


def _describe(error: Exception) -> str:
    text = str(error) or "failed"
    return (
        text if isinstance(error, (jinja2.TemplateError, _LimitError)) else f"{type(error).__name__}: {text}"
    )


class _Deadline:
    """Raises `_LimitError` in the template's own code once `until` (monotonic seconds) has passed."""

    def __init__(self, until: float) -> None:
        self.until = until

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self.call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self.line if frame.f_code.co_filename == "<template>" else None

    def line(self, _frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > self.until:
            raise _LimitError("it takes too long")
        return self.line


class _CodeGenerator(CodeGenerator):
    """Makes `~` go through the environment, so that it can be bounded."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with bounds on what operators make."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, max_output: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.max_output = max_output

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, (str, list, tuple, bytes)) else 0 for side in (left, right)]
        number = next((abs(side) for side in (left, right) if isinstance(side, int)), 1)
        too_long = sum(sizes) * (number if operator == "*" else 1) > self.max_output
        too_large = operator in {"**", "*"} and any(
            isinstance(side, int) and side.bit_length() > 64 for side in (left, right)
        )
        too_wide = operator == "%" and isinstance(left, str) and _WIDE.search(left) is not None
        if too_long or too_large or too_wide or (operator == "**" and number > 1024):
            raise _LimitError(f"the operator {operator} makes too much")
        return super().call_binop(context, operator, left, right)

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        """What `~` does."""
        return _bounded((str(part) for part in parts), self.max_output)


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks an assistant's part for training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as transformers has it: no HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=None if indent is None else min(indent, 16),
        separators=separators,
        sort_keys=sort_keys,
    )
