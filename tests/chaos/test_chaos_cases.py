"""Small forms of the cases in benchmarks/chaos, on one node of the fake worker where that is possible. Nothing here depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import cancels, kills, swaps
from benchmarks.chaos.cancels import cancel_many
from benchmarks.chaos.case import Outcome, Plan
from benchmarks.chaos.crash_loop import crash_round
from benchmarks.chaos.full_disk import full_disk_round
from benchmarks.chaos.fuzz import frame_round, fuzz_http
from benchmarks.chaos.kills import ACTORS, kill_under_load
from benchmarks.chaos.node import ChaosNode
from benchmarks.chaos.node_kills import node_kill_round
from benchmarks.chaos.orphans import orphan_round
from benchmarks.chaos.simulation import simulation_round
from benchmarks.chaos.swaps import swap_all

pytestmark = pytest.mark.timeout(120)
SEED = 1


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults follow each other more quickly than in the long forms, and a class is refused once."""
    monkeypatch.setattr(kills, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(swaps, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(swaps, "ROLL_BACKS", 1)
    monkeypatch.setattr(cancels, "STILL", 2.2)


async def test_kills(chaos_node: ChaosNode, outcome: Outcome, tmp_path: Path) -> None:
    """Each actor is killed once under programs, streams and bus clients: nothing is lost, nothing doubled, outputs are as without."""
    await kill_under_load(chaos_node, Plan(SEED, len(ACTORS), tmp_path), outcome, programs=4)
    assert outcome.counts["kills"] == len(ACTORS)
    assert outcome.counts["requests"] > 50


async def test_swaps(chaos_node: ChaosNode, outcome: Outcome, tmp_path: Path) -> None:
    """Each actor's class is swapped and swapped back under load, and a class whose restore raises is refused: no request fails or is asked for twice."""
    await swap_all(chaos_node, Plan(SEED, 2, tmp_path), outcome, programs=4)
    assert [outcome.counts[f"swaps {actor}"] for actor in ACTORS] == [2] * len(ACTORS)
    assert outcome.counts["rolled back"] == len(ACTORS)


async def test_cancels(chaos_node: ChaosNode, outcome: Outcome, tmp_path: Path) -> None:
    """Requests given up at random moments leave nothing behind, and nobody computes for them afterwards."""
    await cancel_many(chaos_node, Plan(SEED, 72, tmp_path), outcome, together=24)


@pytest.mark.slow
async def test_http_fuzz(chaos_node: ChaosNode, outcome: Outcome, tmp_path: Path) -> None:
    """Malformed requests get an answer that is no 5xx, and no actor ends."""
    await fuzz_http(chaos_node, Plan(SEED, 100, tmp_path), outcome)
    if outcome.skipped:
        pytest.skip(outcome.skipped)


@pytest.mark.slow
async def test_frames(outcome: Outcome, tmp_path: Path) -> None:
    """Frames that nobody should send are dropped; honest clients are answered."""
    outcome.failures += (await frame_round(Plan(SEED, 2000, tmp_path))).failures


async def test_crash_loop(outcome: Outcome, tmp_path: Path) -> None:
    """An actor that cannot start ends the node with exit code 1 and the first cause in the last line."""
    found = await crash_round(Plan(SEED, 1, tmp_path))
    outcome.failures += found.failures
    assert found.counts["starts of the failing actor"] > 1


async def test_orphans(outcome: Outcome, tmp_path: Path) -> None:
    """Nobody survives the root, or a program that has brought its own node."""
    outcome.failures += (await orphan_round(Plan(SEED, 3, tmp_path))).failures


async def test_node_kills(outcome: Outcome, tmp_path: Path) -> None:
    """Durable programs whose node and script are killed and whose journal has lost its tail finish as without."""
    found = await node_kill_round(Plan(SEED, 1, tmp_path), fake=True)
    outcome.failures += found.failures
    assert found.counts["killed both"] == 1
    assert found.counts["identical"] == found.counts["programs"]


async def test_full_disk(outcome: Outcome, tmp_path: Path) -> None:
    """Where neither journal nor logs can be written, new durable programs are refused and all else is served."""
    found = await full_disk_round(Plan(SEED, 1, tmp_path))
    if found.skipped:
        pytest.skip(found.skipped)
    outcome.failures += found.failures
    assert found.counts["refused with 503"] == 1


@pytest.mark.slow
async def test_simulation(outcome: Outcome, tmp_path: Path) -> None:
    """Some seeds of the simulation hold."""
    found = await simulation_round(Plan(SEED, 2, tmp_path))
    outcome.failures += found.failures
    assert found.counts["seeds"] == 2
