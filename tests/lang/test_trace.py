"""A trace: what of a run it shows, and in which form."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from html.parser import HTMLParser

import msgspec
import pytest
from rich.console import Console

from sgl_actors.lang.results import Failure, Outcome, Segment, Usage
from sgl_actors.lang.trace import PAGE, Prices, Trace, visible

PRICES = Prices(input=2.0, cached=0.5, output=8.0)


def branch(path: str, text: str, failure: Failure | None = None) -> Outcome:
    """One that was given a prompt and wrote a text, or failed before it."""
    given = Segment("given", "About it: ", begun=0.030)
    wrote = Segment("generated", text, "note", 120, 100, 16, 1, 0.035, 0.031, -1, 6, 5, 11, 2)
    return Outcome(
        path,
        segments=[given] if failure else [given, wrote],
        usage=Usage() if failure else Usage(120, 100, 16, 1),
        failure=failure,
    )


@pytest.fixture
def outcome() -> Outcome:
    """Two branches, the second of which failed, and a select."""
    failed = Failure("primitive_failed", "Overloaded: busy", "judge", "0.1", "note")
    return Outcome(
        "0",
        segments=[
            Segment("role", name="system"),
            Segment("given", "Judge <b>carefully</b>\n[red]"),
            Segment("fork", fork=2, prompt_tokens=100, calls=1, seconds=0.02, begun=0.01),
            Segment("join", name="note", fork=2, begun=0.08),
            Segment("selected", "fair", "grade", 400, 390, 0, 3, 0.2, 0.1),
        ],
        branches={2: [branch("0.0", "fine"), branch("0.1", "", failed)]},
        usage=Usage(500, 390, 0, 4),
    )


def test_a_terminal_gets_a_line_per_segment(outcome: Outcome) -> None:
    """Branches stand below their fork; totals include them; texts are no markup and stay on their line."""
    assert str(Trace(outcome, "judge", PRICES)).splitlines() == [
        "judge  620 (79% cached) + 16 tok, 5 calls, 300 ms, cost 0.000633",
        "├── role system",
        '├── given "Judge <b>carefully</b>\\n[red]"',
        "├── fork  100 (0% cached) + 0 tok, 20.0 ms, cost 0.0002",
        "│   ├── branch 0.0  120 (83% cached) + 16 tok, 1 call, 36.0 ms, cost 0.000218",
        '│   │   ├── given "About it: "',
        '│   │   └── generated note "fine"  120 (83% cached) + 16 tok, 11 forced, 35.0 ms, cost 0.000218',
        "│   └── branch 0.1  failed: \"Overloaded: busy (at 'note')\"",
        '│       └── given "About it: "',
        "├── join note",
        '└── selected grade "fair"  400 (98% cached) + 0 tok, 3 calls, 200 ms, cost 0.000215',
    ]


def test_turns_begin_and_end() -> None:
    """Also where a branch ends the turn that its parent has begun."""
    turn = Segment("role", name="user")
    group = [Outcome("0.0", segments=[turn, turn, turn])]
    outcome = Outcome("0", segments=[turn, turn, turn, Segment("fork", fork=3)], branches={3: group})
    root = Trace(outcome).root
    assert [one.kind for one in root.segments] == ["role", "end", "role", "fork"]
    assert [one.kind for one in root.segments[3].branches[0].segments] == ["end", "role", "end"]


def test_print_writes_to_a_console(outcome: Outcome) -> None:
    """With its colours, and never wider than it is."""
    file = io.StringIO()
    Trace(outcome).print(Console(file=file, width=50, force_terminal=True, color_system="standard"))
    assert "\x1b[32mgenerated\x1b[0m" in file.getvalue()
    plain = io.StringIO()
    Trace(outcome).print(Console(file=plain, width=50))
    assert max(map(len, plain.getvalue().splitlines())) <= 50


def test_json_holds_everything(outcome: Outcome) -> None:
    """Texts in full, numbers by their names, branches below their fork."""
    trace = Trace(outcome, "judge")
    assert json.loads(trace.to_json()) == trace.json()
    data = trace.json()
    assert (data["program"], data["path"], data["calls"], data["ms"]) == ("judge", "0", 5, 300.0)
    assert [one["kind"] for one in data["segments"]] == ["role", "given", "fork", "join", "selected"]
    first, second = data["segments"][2]["branches"]
    assert first["segments"][1] == {
        "kind": "generated", "name": "note", "text": "fine", "begun_ms": 31.0, "ms": 35.0,
        "prompt_tokens": 120, "cached_tokens": 100, "completion_tokens": 16, "calls": 1,
        "steps": 6, "sampled_tokens": 5, "forced_tokens": 11, "held_back_tokens": 2, "drafted_tokens": 0, "accepted_tokens": 0, "wasted_tokens": 0, "retries": 0,
    }  # fmt: skip
    assert (first["failure"], second["failure"]) == ("", "Overloaded: busy (at 'note')")


def test_cost_needs_prices(outcome: Outcome) -> None:
    """Cached tokens have a price of their own, or that of others; without prices nothing has a cost."""
    trace = Trace(outcome)
    assert trace.usage == Usage(620, 490, 16, 5)
    assert trace.cost(PRICES) == pytest.approx((130 * 2 + 490 * 0.5 + 16 * 8) / 1e6)
    assert trace.cost(Prices(2.0, 8.0)) == pytest.approx((620 * 2 + 16 * 8) / 1e6)
    assert Trace(outcome, prices=PRICES).cost() == trace.cost(PRICES)
    assert "cost" not in str(trace)
    with pytest.raises(ValueError, match="needs prices"):
        trace.cost()


def test_branches_of_an_outcome_without_segments_are_shown(outcome: Outcome) -> None:
    """What an older node sends still has its tree."""
    bare = msgspec.structs.replace(outcome, segments=[])
    assert [one.kind for one in Trace(bare).root.segments] == ["fork"]
    assert "branch 0.1  failed" in str(Trace(bare))


def test_what_cannot_be_seen_is_escaped_and_what_is_long_shortened() -> None:
    """No terminal and no reader is misled: controls and marks of direction are written out."""
    assert visible('a"b\\c\n\x1b[31m\u202eé', 40) == '"a\\"b\\\\c\\n\\x1b[31m\\u202eé"'
    assert visible("x" * 5000, 10) == '"xxxxxxxxxx…" (5,000 characters)'
    assert visible("\n" * 10, 10) == '"\\n\\n\\n\\n\\n…" (10 characters)'
    assert visible("x" * 10, 10) == '"xxxxxxxxxx"'


class Page(HTMLParser):
    """Tags in balance, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(trace: Trace) -> Page:
    """Of its HTML."""
    page = Page()
    page.feed(trace._repr_html_())
    page.close()
    assert page.open == []
    return page


def test_html_is_static_and_holds_what_the_program_said_as_text(outcome: Outcome) -> None:
    """Balanced, without script, style sheet, link or picture, so that exported notebooks show it."""
    outcome = msgspec.structs.replace(outcome, failure=Failure("x", "<script>alert(1)</script> & more"))
    page = parsed(Trace(outcome, "judge<i>", PRICES))
    assert page.tags == {"div", "details", "summary", "b", "span"}
    assert page.attributes == {"style", "open"}
    for text in (
        "judge<i>",
        '"Judge <b>carefully</b>\\n[red]"',
        '"<script>alert(1)</script> & more"',
        "branch 0.1",
    ):
        assert text in page.text


def test_html_of_a_long_run_stays_small() -> None:
    """1,000 segments with long texts of the most expensive characters take less than 1 MB; a short run shows more of each."""
    long = [Segment("generated", "&<" * 5000, "n" * 20, 10**6, 10**5, 10**5, 3, 100.0, 100.0)] * 1000
    page = Trace(Outcome("0", segments=long), prices=PRICES)._repr_html_()
    assert len(page.encode()) < 1_000_000
    assert page.count("(10,000 characters)") == 1000
    assert parsed(Trace(Outcome("0", segments=long[:1]))).text.count("&") == min(PAGE, 400) // 2


def test_a_fork_of_many_is_folded() -> None:
    """Notebooks show few branches unfolded and many folded."""

    def opened(count: int) -> int:
        group = [branch(f"0.{i}", "x") for i in range(count)]
        outcome = Outcome("0", segments=[Segment("fork", fork=0)], branches={0: group})
        return Trace(outcome)._repr_html_().count("<details open")

    assert (opened(3), opened(100)) == (4, 1)


def test_a_trace_needs_no_model() -> None:
    """Importing it and using it all imports no torch."""
    program = (
        "import sys; from sgl_actors.lang.trace import Trace; from sgl_actors.lang.results import Outcome;"
        "t = Trace(Outcome('0')); t.json(); t._repr_html_(); print(t); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)
    assert done.stdout == b"program\n"


def test_what_an_api_call_wasted_is_shown_of_the_whole() -> None:
    """Waste and further tries belong to a program; of one gen they say little, as a later one may use what it wrote."""
    used = Segment("generated", "Ada", "name", 7, 0, 14, 1, wasted_tokens=7, retries=2, cost=0.5)
    outcome = Outcome("0", segments=[used], usage=used.usage)
    first, second = str(Trace(outcome, "card")).splitlines()
    assert "7 wasted, 2 tried again" in first
    assert "wasted" not in second
    assert "cost 0.5" in second
