"""A node's profile: its arithmetic, its trace, and the verb that prints it on a node with the fake worker."""

from __future__ import annotations

import asyncio
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sgl_actors.actors.microkernel.record import Handled, ProcessRecord, Recorded
from sgl_actors.actors.node.profile import BUS, HANDOVER, IDLE, OTHER, SCHEDULER, Overlap, summarise, trace
from sgl_actors.actors.node.profile_client import check_seconds
from sgl_actors.actors.worker.messages import PartTime, Profiled, Slice, Step, StepTime
from sgl_actors.cli.app import app
from sgl_actors.cli.profile import show_profile, write_trace
from sgl_actors.errors import ConfigError, InvalidRequest
from tests.node.test_processes import running, write_config


def step(number: int, received: float, began: float, ended: float, sent: float, **more: Any) -> StepTime:
    return StepTime(number, received, began, ended, sent, 2, 1, 1, **more)


def recorded(*spans: tuple[float, float]) -> Recorded:
    handled = [Handled("scheduler", "worker.StepDone", began, ended) for began, ended in spans]
    return Recorded([ProcessRecord("front", 0.5, 10.0, handled)])


STEPS = [
    step(0, 100.0, 101.0, 103.0, 103.5, goes_on=False),
    step(1, 105.5, 106.0, 107.0, 107.25),
    step(2, 106.5, 107.5, 108.0, 108.0),
]
PROFILED = Profiled(
    99.0,
    110.0,
    2,
    STEPS,
    [PartTime("qkv", 2.0, 60, 4e9, 8e9), PartTime("sampling", 0.5, 3)],
    [Slice("qkv", 101.0, 1.0), Slice("sampling", 102.0, 0.5)],
)


def test_every_second_has_its_place() -> None:
    """A wait is the scheduler's while that works, else the bus's if the step goes on with something, else idle; a step that was there has no wait."""
    found = summarise(PROFILED, recorded((99.5, 99.75), (104.0, 104.5)))
    rows = {row.part: row for row in found.rows}
    assert {name: row.seconds for name, row in rows.items()} == pytest.approx(
        {
            "qkv": 2.0,
            "sampling": 0.5,
            OTHER: 1.0,
            HANDOVER: 1.0 + 0.5 + 0.5 + 0.5,
            SCHEDULER: 0.25 + 0.5,
            BUS: 1.5,
            IDLE: 0.75 + 2.0,
        }
    )
    assert (found.seconds, found.steps, found.tokens, found.sampled) == (11.0, 3, 6, 3)
    assert (rows["qkv"].bytes_per_second, rows["qkv"].operations_per_second) == (2e9, 4e9)
    assert found.processes[0].load == 0.05
    assert found.processes[0].busy == {"scheduler": 0.75}


times = st.lists(st.floats(0, 100), min_size=0, max_size=40).map(sorted)


@given(times, st.lists(st.floats(0, 50), max_size=4), times, st.data())
def test_shares_add_up_and_nothing_is_negative(
    at: list[float], parts: list[float], working: list[float], data: st.DataObject
) -> None:
    """Whatever the clocks said, also where parts claim more time than the steps took."""
    steps = [
        step(number, *at[4 * number : 4 * number + 4], goes_on=data.draw(st.booleans()))
        for number in range(len(at) // 4)
    ]
    spans = recorded(*zip(working[::2], working[1::2], strict=False))
    own = [PartTime(f"part{number}", seconds, 1) for number, seconds in enumerate(parts)]
    found = summarise(Profiled(0.0, 100.0, 1, steps, own, []), spans)
    assert sum(row.share for row in found.rows) == pytest.approx(1.0)
    assert all(row.seconds >= 0 for row in found.rows)
    assert sum(row.seconds for row in found.rows) == pytest.approx(100.0)


def test_overlap_is_asked_in_order() -> None:
    """A span that reaches over two questions counts in both."""
    busy = Overlap([Handled("a", "t", 1.0, 4.0), Handled("a", "t", 5.0, 6.0)])
    assert [busy.within(*span) for span in ((0.0, 2.0), (3.0, 5.5), (5.5, 9.0), (9.0, 9.0))] == [
        1.0,
        1.5,
        0.5,
        0.0,
    ]


def test_the_trace_is_valid_and_its_slices_nest() -> None:
    """JSON; every slice has a row with a name; in each row they are in order of their beginning and none crosses another."""
    written = msgspec.json.encode(
        trace(summarise(PROFILED, recorded((99.5, 99.75), (104.0, 104.5), (200.0, 201.0))))
    )
    events = json.loads(written)["traceEvents"]
    named = {(one["pid"], one["tid"]) for one in events if one["name"] == "thread_name"}
    rows: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append(event)
    assert rows.keys() == named
    assert [len(rows[0, 0]), len(rows[1, 0])] == [5, 2]
    for row in rows.values():
        open_until: list[float] = []
        for event in row:
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or event["ts"] + event["dur"] <= open_until[-1]
            open_until.append(event["ts"] + event["dur"])
        assert [event["ts"] for event in row] == sorted(event["ts"] for event in row)
    first = next(event for event in rows[0, 0] if event["name"] == "step")
    assert (first["ts"], first["dur"], first["args"]["tokens"]) == (101e6, 2e6, 2)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan")])
def test_lengths_that_are_refused(seconds: float) -> None:
    """The field and its bounds are named, by the verb as an option."""
    with pytest.raises(InvalidRequest, match="at most 60"):
        check_seconds(seconds)
    result = CliRunner().invoke(app, ["profile", "--seconds", str(seconds)])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message.startswith("--seconds: expected more than 0")


def test_a_trace_cannot_be_a_folder(tmp_path: Path) -> None:
    """That is said before anything is watched; what else keeps the file from being written, on one line."""
    result = CliRunner().invoke(app, ["profile", "--trace", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "is a folder" in result.exception.message
    with pytest.raises(ConfigError, match=r"--trace .*: No such file"):
        write_trace(summarise(PROFILED, recorded()), tmp_path / "gone" / "t.json")


def test_what_an_idle_node_is_shown_as() -> None:
    """The table says that nothing was computed, and has no name of the microkernel's own."""
    kernel = [Handled("@", "kernel.Record", 1.0, 1.5)]
    found = summarise(
        Profiled(0.0, 2.0, 1, [], [], []), Recorded([ProcessRecord("front", 0.5, 10.0, kernel)])
    )
    text = io.StringIO()
    show_profile(found, as_json=False, stream=text)
    assert "nothing was computed" in text.getvalue()
    assert "@" not in text.getvalue()


async def test_the_verb_on_a_node_with_the_fake_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While steps run it prints a table whose shares make 100 %, and writes a trace with those steps and the messages that brought them."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    file = write_config(tmp_path, {})
    worker = '[actors."worker/0"]\nclass = "sgl_actors.actors.worker.fake:FakeWorker"\n'
    text = file.read_text().replace('[actors."worker/0"]\nenabled = false\n', worker)
    file.write_text(text)
    words = ["profile", "--seconds", "0.4", "--config", str(file), "--trace", str(tmp_path / "t.json")]
    async with running(file) as (_, _, context):
        verb = asyncio.ensure_future(asyncio.to_thread(CliRunner().invoke, app, words))
        number = 0
        while not verb.done():
            context.cast("worker/0", Step(0, number, [], [], []), control=True)
            number += 1
            await asyncio.sleep(0.01)
        result = verb.result()
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line]
    shares = [float(line[2].rstrip("%")) for line in lines if len(line) > 2 and line[2].endswith("%")]
    assert shares[-1] == 100.0
    assert sum(shares[:-1]) == pytest.approx(100.0, abs=0.05 * len(shares))
    assert any(line[0] == "worker/0" for line in lines)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    steps = [event["args"]["number"] for event in events if event.get("cat") == "step"]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert int(lines[0][2].replace(",", "")) == len(steps)
    assert "worker.Step" in {event["name"] for event in events}
