"""What a program did, to look at: a tree of the segments of its prompts, with tokens, time and cost.

`Trace` is made of an `Outcome`. It shows itself in a terminal (`print`), as JSON and in a notebook (HTML without scripts, which also works in
exported notebooks and on a light and a dark page).
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sgl_actors.lang.results import Outcome, Segment, Usage

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

SHOWN: Final = (40, 400)
"""Characters of a segment's text that the HTML shows: fewer the more segments there are."""
PAGE: Final = 100_000
"""Characters of text that it shows of all segments together, as long as there are not too many."""
OPEN: Final = 16
"""Branches that a fork shows unfolded."""
STYLES: Final = {
    "given": ("dim", "#57606a"),
    "generated": ("green", "#1a7f37"),
    "selected": ("magenta", "#8250df"),
    "role": ("cyan", "#0969da"),
    "end": ("cyan dim", "#57606a"),
    "set": ("blue", "#0550ae"),
    "fork": ("bold", "#24292f"),
    "join": ("bold", "#24292f"),
}
"""By kind: how rich writes it, and the background of white letters in HTML."""
INDENT: Final = 4
"""Columns of one level of the tree in a terminal."""
QUOTES: Final = len(' ""')
LENGTH: Final = len("… (1,234,567 characters)")
LEAST: Final = 16
"""Characters of a text that a terminal shows at least."""
PLAIN: Final = ("", "#57606a")
FAILED: Final = "#cf222e"
BADGE: Final = "color:#fff;border-radius:3px;padding:0 4px;background:"


class Prices(msgspec.Struct, frozen=True):
    """What a million tokens cost, in any currency.

    Attributes:
        input: of prompts.
        output: generated.
        cached: of prompts, from the cache; None for the price of other prompt tokens.

    Example:
        >>> Prices(input=2.0, cached=0.5, output=8.0).of(Usage(1000, 400, 100))
        0.0022
    """

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """Cost of that many tokens."""
        cached = self.input if self.cached is None else self.cached
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.input + usage.cached_tokens * cached + usage.completion_tokens * self.output
        ) / 1e6


class TraceSegment(msgspec.Struct, frozen=True):
    """One segment of a branch's prompt.

    Attributes:
        kind: as of a `Segment`; a "role" is a turn that begins, an "end" one that ends.
        text, name: see `Segment`.
        usage: of the calls that made it.
        ms, begun_ms: milliseconds that it took, and when it began, from the program's start.
        branches: of a fork.
        cost: None without prices.
    """

    kind: str
    text: str
    name: str
    usage: Usage
    ms: float
    begun_ms: float
    branches: tuple[TraceBranch, ...] = ()
    cost: float | None = None


class TraceBranch(msgspec.Struct, frozen=True):
    """One stream of the program; the root is the program itself.

    Attributes:
        path: "0" is the root, "0.1" its second branch.
        segments: in order, those of a branch from its fork on.
        usage, cost: of all of it, its own branches included.
        ms: milliseconds from its first segment's beginning to its last one's end.
        failure: why it failed, "" if it did not.
    """

    path: str
    segments: tuple[TraceSegment, ...]
    usage: Usage
    ms: float
    failure: str = ""
    cost: float | None = None


class Trace:
    """See the module. `print(trace)` shows it, and so does a notebook.

    Args:
        outcome: of the run.
        program: its name.
        prices: of tokens; without them the cost is what API models were paid, if there are price tables for them.

    Example:
        >>> print(Trace(Outcome("0", segments=[Segment("given", "Hi")]), "greet"), end="")
        greet
        └── given "Hi"
    """

    def __init__(self, outcome: Outcome, program: str = "program", prices: Prices | None = None) -> None:
        self.program, self.prices = program, prices
        self.root = _branch(outcome, prices)

    def __repr__(self) -> str:
        return f"<Trace of {self.program}: {_count(self.root)} segments>"

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(
            file=io.StringIO(), width=160, color_system=None, force_terminal=False, legacy_windows=False
        )
        with console.capture() as captured:
            self.print(console)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    @property
    def usage(self) -> Usage:
        """Tokens and calls of the whole program."""
        return self.root.usage

    def cost(self, prices: Prices | None = None) -> float:
        """What the whole program cost, by those prices, the trace's own, or those of its API models; `ValueError` without any."""
        found = _cost(self.usage, prices or self.prices)
        if found is None:
            raise ValueError("a cost needs prices: cost(Prices(input=…, output=…))")
        return found

    def print(self, console: Console | None = None) -> None:
        """Write it to a terminal (standard output by default), one line per segment."""
        if console is None:
            from rich.console import Console

            console = Console()
        console.print(_tree(self.root, self.program, console.width))

    def json(self) -> dict[str, Any]:
        """All of it as plain data: texts in full, usage by its names."""
        return {"program": self.program, **_plain_branch(self.root)}

    def to_json(self, indent: int = 2) -> str:
        """`json()` as text."""
        return msgspec.json.format(msgspec.json.encode(self.json()), indent=indent).decode()

    def _repr_html_(self) -> str:
        """For a notebook: static, all in one piece."""
        limit = min(max(PAGE // max(_count(self.root), 1), SHOWN[0]), SHOWN[1])
        style = "font:12px/1.5 ui-monospace,monospace;overflow-wrap:anywhere"
        return f'<div style="{style}">{"".join(_html(self.root, self.program, limit))}</div>'


# -- the tree ---------------------------------------------------------------------------------------------


def _branch(outcome: Outcome, prices: Prices | None, role: str = "") -> TraceBranch:
    """`role`: of the turn that is open where it begins."""
    left = dict(outcome.branches)
    segments = []
    for one in outcome.segments:
        kind = one.kind
        if kind == "role":
            kind, role = ("end", "") if one.name == role else (kind, one.name)
        group = left.pop(one.fork, []) if kind == "fork" else []
        segments.append(_segment(one, kind, tuple(_branch(child, prices, role) for child in group), prices))
    for group in left.values():  # of an outcome without segments
        branches = tuple(_branch(child, prices) for child in group)
        segments.append(_segment(Segment("fork"), "fork", branches, prices))
    begun = [one.begun for one in outcome.segments]
    ended = [one.begun + one.seconds for one in outcome.segments]
    failure = outcome.failure
    return TraceBranch(
        outcome.stream,
        tuple(segments),
        outcome.total,
        1000 * (max(ended) - min(begun)) if ended else 0.0,
        ""
        if failure is None
        else failure.message + (f" (at {failure.variable!r})" if failure.variable else ""),
        _cost(outcome.total, prices),
    )


def _cost(usage: Usage, prices: Prices | None) -> float | None:
    """By the prices given, else by those of the API models that were asked, if they have any."""
    return prices.of(usage) if prices is not None else usage.cost or None


def _segment(
    one: Segment, kind: str, branches: tuple[TraceBranch, ...], prices: Prices | None
) -> TraceSegment:
    usage = one.usage
    cost = _cost(usage, prices)
    return TraceSegment(kind, one.text, one.name, usage, 1000 * one.seconds, 1000 * one.begun, branches, cost)


def _count(branch: TraceBranch) -> int:
    return sum(1 + sum(map(_count, one.branches)) for one in branch.segments)


# -- as data ----------------------------------------------------------------------------------------------


def _plain_branch(branch: TraceBranch) -> dict[str, Any]:
    return {
        "path": branch.path,
        "failure": branch.failure,
        **_plain_numbers(branch),
        "segments": [
            {"kind": one.kind, "name": one.name, "text": one.text, "begun_ms": round(one.begun_ms, 3)}
            | _plain_numbers(one)
            | ({"branches": [_plain_branch(child) for child in one.branches]} if one.branches else {})
            for one in branch.segments
        ],
    }


def _plain_numbers(one: TraceBranch | TraceSegment) -> dict[str, Any]:
    cost = {} if one.cost is None else {"cost": one.cost}
    used = msgspec.structs.asdict(one.usage)
    del used["cost"]  # by the price table of its backend: the same, unless the trace has prices of its own
    return used | {"ms": round(one.ms, 3)} | cost


# -- as lines ---------------------------------------------------------------------------------------------


def _numbers(one: TraceBranch | TraceSegment) -> str:
    """Tokens, share of the cache, time and cost, as far as there are any."""
    usage, parts = one.usage, []
    if usage.calls:
        share = f" ({usage.cached_tokens / usage.prompt_tokens:.0%} cached)" if usage.prompt_tokens else ""
        parts = [f"{usage.prompt_tokens:,}{share} + {usage.completion_tokens:,} tok"]
        if usage.forced_tokens:
            parts.append(f"{usage.forced_tokens:,} forced")
        if isinstance(one, TraceBranch) or usage.calls > 1:
            parts.append(f"{usage.calls} call{'s' * (usage.calls > 1)}")
    if isinstance(one, TraceBranch):
        parts += [f"{usage.wasted_tokens:,} wasted"] * (usage.wasted_tokens > 0)
        parts += [f"{usage.retries:,} tried again"] * (usage.retries > 0)
    if one.ms >= 0.05:
        parts.append(f"{one.ms:,.1f} ms" if one.ms < 100 else f"{one.ms:,.0f} ms")
    if one.cost:
        parts.append(f"cost {one.cost:.6g}")
    return ", ".join(parts)


def _title(branch: TraceBranch, name: str) -> str:
    return name if branch.path == "0" else f"branch {branch.path}"


def visible(text: str, limit: int) -> str:
    r"""The text as a line in quotes: what cannot be seen is escaped (``\n``), and what is too long shortened, with its length."""
    shown: list[str] = []
    for character in text:
        piece = character if character.isprintable() and character not in '"\\' else _escaped(character)
        limit -= len(piece)
        if limit < 0:
            return f'"{"".join(shown)}…" ({len(text):,} characters)'
        shown.append(piece)
    return f'"{"".join(shown)}"'


def _escaped(character: str) -> str:
    return f"\\{character}" if character in '"\\' else ascii(character)[1:-1]


def _tree(branch: TraceBranch, name: str, width: int) -> RenderableType:
    from rich.tree import Tree

    tree = Tree(_head(branch, name), highlight=False)
    _fill(tree, branch, width - INDENT)
    return tree


def _fill(tree: Any, branch: TraceBranch, width: int) -> None:
    """Add a branch's lines to a tree, each at most `width` characters wide."""
    for one in branch.segments:
        line = tree.add(_line(one, width))
        for child in one.branches:
            _fill(line.add(_head(child, "")), child, width - 2 * INDENT)


def _head(branch: TraceBranch, name: str) -> Text:
    from rich.text import Text

    line = Text(_title(branch, name), "bold", no_wrap=True, overflow="ellipsis").append(
        _after(_numbers(branch)), "not bold dim"
    )
    return line.append(f"  failed: {visible(branch.failure, 200)}", "bold red") if branch.failure else line


def _line(one: TraceSegment, width: int) -> Text:
    from rich.text import Text

    style, numbers = STYLES.get(one.kind, PLAIN)[0], _after(_numbers(one))
    line = Text(one.kind, style, no_wrap=True, overflow="ellipsis").append(
        f" {one.name}" * bool(one.name), "bold"
    )
    if one.text:
        room = width - line.cell_len - len(numbers) - QUOTES
        shown = visible(one.text, max(room, LEAST))
        if len(shown) > room + QUOTES - 1:
            shown = visible(one.text, max(room - LENGTH, LEAST))
        if len(shown) > room + QUOTES - 1:  # a narrow terminal: the numbers matter more than the length
            shown = visible(one.text, max(room - 1, 1)).removesuffix(f" ({len(one.text):,} characters)")
        line.append(f" {shown}")
    return line.append(numbers, "dim")


def _after(numbers: str) -> str:
    return f"  {numbers}" if numbers else ""


# -- as HTML ----------------------------------------------------------------------------------------------


def _html(branch: TraceBranch, name: str, limit: int, *, unfold: bool = True) -> Iterator[str]:
    badge = (
        _badge("failed", FAILED) + f" {html.escape(visible(branch.failure, 400))}" if branch.failure else ""
    )
    head = f"<b>{html.escape(_title(branch, name))}</b> {_faint(_numbers(branch))} {badge}"
    yield f'<details{" open" if unfold else ""} style="margin-left:1em"><summary>{head}</summary>'
    for one in branch.segments:
        yield f'<div style="margin-left:1em">{"".join(_html_line(one, limit))}'
        for child in one.branches:
            yield from _html(child, "", limit, unfold=len(one.branches) <= OPEN)
        yield "</div>"
    yield "</details>"


def _html_line(one: TraceSegment, limit: int) -> Iterable[str]:
    yield _badge(html.escape(one.kind), STYLES.get(one.kind, PLAIN)[1])
    if one.name:
        yield f" <b>{html.escape(one.name)}</b>"
    if one.text:
        yield f" {html.escape(visible(one.text, limit), quote=False)}"
    yield f" {_faint(_numbers(one))}"


def _badge(text: str, colour: str) -> str:
    return f'<span style="{BADGE}{colour}">{text}</span>'


def _faint(text: str) -> str:
    return f'<span style="opacity:.7">{html.escape(text)}</span>' if text else ""
