"""All cases, in the order in which they are run."""

from benchmarks.chaos import kills, node_kills
from benchmarks.chaos.cancels import CANCELS
from benchmarks.chaos.case import Case
from benchmarks.chaos.crash_loop import CRASH_LOOP
from benchmarks.chaos.full_disk import FULL_DISK
from benchmarks.chaos.fuzz import FRAMES, HTTP, SLOW
from benchmarks.chaos.orphans import ORPHANS
from benchmarks.chaos.simulation import SIMULATION
from benchmarks.chaos.soak import SOAK
from benchmarks.chaos.stops import BLOCKS, STOPS
from benchmarks.chaos.swaps import SWAPS

CASES: tuple[Case, ...] = (
    kills.FAKE, kills.MODEL, STOPS, BLOCKS, CRASH_LOOP, ORPHANS, SWAPS, node_kills.FAKE, node_kills.MODEL, FRAMES, HTTP, SLOW, CANCELS,
    FULL_DISK, SOAK, SIMULATION,
)  # fmt: skip
