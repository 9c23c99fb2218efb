"""What the radix tree costs: time per operation in a small and a large tree, alternately, and memory per cached token. No model.

    python benchmarks/radix.py [--rounds 300] [--page-size 1] [--eviction lru] [--check]

Every operation is one call of the cache's core on packed keys of 2,000 tokens, at a random place of the tree:

- match: a key whose first 1,952 tokens are cached;
- grant: a lease for such a key (locks, reads out all page numbers, takes free pages);
- insert: a commit that adds its last 48 tokens; insert_new: one that adds all 2,000;
- evict: a grant of 1,000 tokens' pages (1,000 with pages of one token) when none is free.

Two shapes, each with 10⁴ and with 10⁶ tokens, keys of the same length and the same number of edges on the path. `layers`: prompts of 512 tokens,
each continued by documents of 1,440, each asked some 30 questions of 48 tokens (10⁴ of them in the large tree; 2 edges on the way to a new
question). `spine`, adversarial: trunks of 1,952 tokens with 200 branches (200 edges, in the large tree all cold in the processor's caches).

Prints one JSON line per shape and operation (microseconds; ratio of medians) and a table on stderr. `--check` exits with 1 if `layers` misses a
target: match 100 µs, insert 200 µs, evict 2 ms (medians in the large tree); at most 2 times those of the small one; 24 bytes per cached token,
which is all memory that the tree and its page pool allocate, measured by tracemalloc.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import DEFAULT, Entry, Probe, Want, pack

KEY = 2000
STEM = 1952
EVICTED = 1000
SLACK = 3000
"""Free tokens between rounds: what is inserted between two evictions."""
VOCABULARY = 50_000
TARGETS = {"match": 100.0, "insert": 200.0, "insert_new": 200.0, "evict": 2000.0}
RATIO = 2.0
BYTES = 24.0
OPERATIONS = ("match", "grant", "insert", "insert_new", "evict")


@dataclass(frozen=True)
class Shape:
    """`stems` of `STEM` tokens, of which the first `shared` are those of one of `prompts`, and where leaves of `leaf` tokens branch off.

    A leaf hangs at the end of a stem, or with `spread` at one of as many places along it as the stem has leaves.
    """

    prompts: int
    shared: int
    stems: int
    leaves: int
    leaf: int
    spread: bool = False

    @property
    def tokens(self) -> int:
        """Distinct tokens in all."""
        return self.prompts * self.shared + self.stems * (STEM - self.shared) + self.leaves * self.leaf

    def grow(self, chance: random.Random) -> tuple[list[list[int]], Iterator[list[int]]]:
        """The stems, and a key for every leaf."""
        prompts = [tokens(chance, self.shared) for _ in range(self.prompts)]
        stems = [
            prompts[number % self.prompts] + tokens(chance, STEM - self.shared)
            for number in range(self.stems)
        ]
        each = self.leaves // self.stems

        def keys() -> Iterator[list[int]]:
            for number in range(self.leaves):
                branch, stem = divmod(number, self.stems)
                end = STEM - branch * STEM // each if self.spread else STEM
                yield stems[stem][:end] + tokens(chance, self.leaf)

        return stems, keys()


SHAPES = {
    "layers": (Shape(1, 512, 2, 138, 48), Shape(100, 512, 325, 10_000, 48)),
    "spine": (Shape(1, 0, 1, 200, 40, spread=True), Shape(1, 0, 50, 10_000, 90, spread=True)),
}


def tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(VOCABULARY) for _ in range(count)]


@dataclass
class Tree:
    """One tree under measurement; every operation leaves it about as large as it was."""

    cache: RadixCache
    stems: list[list[int]]
    chance: random.Random
    lease: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})

    def question(self) -> bytes:
        """A key of which everything but the tail is cached."""
        return pack(self.chance.choice(self.stems) + tokens(self.chance, KEY - STEM))

    def grant(self, key: bytes, count: int) -> None:
        """A new lease for `count` tokens."""
        self.lease += 1
        assert self.cache.grant(Want(self.lease, key, count, count)) is not None

    def commit(self, lease: int, key: bytes) -> None:
        """End a lease."""
        assert self.cache.commit(Entry(lease, key))

    def timed(self, name: str, work: Callable[[], object]) -> None:
        """Do it and keep how long it took."""
        begin = time.perf_counter()
        work()
        self.seconds[name].append(time.perf_counter() - begin)

    def match(self) -> None:
        """How much of a question is cached."""
        probes = [Probe(self.question())]
        self.timed("match", lambda: self.cache.match(probes))

    def insert(self) -> None:
        """A question that is answered with nothing."""
        key = self.question()
        self.timed("grant", lambda: self.grant(key, KEY))
        self.timed("insert", lambda: self.commit(self.lease, key))

    def insert_new(self) -> None:
        """A prompt that shares nothing with any other."""
        key = pack(tokens(self.chance, KEY))
        self.grant(key, KEY)
        self.timed("insert_new", lambda: self.commit(self.lease, key))

    def evict(self) -> None:
        """Take what is free, then a thousand tokens more, then what was inserted beyond that, and give all back."""
        free, size = self.cache.free, self.cache.page_size
        self.grant(b"", free * size)
        self.timed("evict", lambda: self.grant(b"", EVICTED))
        self.grant(b"", max(0, SLACK - free * size - EVICTED))
        for lease in range(self.lease - 2, self.lease + 1):
            self.commit(lease, b"")

    def median(self, name: str) -> float:
        """Microseconds."""
        return statistics.median(self.seconds[name]) * 1e6

    def edges(self) -> float:
        """Edges on the path of a question, on average."""
        counts: list[int] = []
        for stem in self.stems:
            node = self.cache.tree.find(DEFAULT, pack(stem)).node
            counts.append(0)
            while node.parent is not None:
                counts[-1] += 1
                node = node.parent
        return statistics.fmean(counts)


def build(shape: Shape, page_size: int, eviction: str, seed: int) -> tuple[Tree, float]:
    """A tree and the bytes it takes per cached token."""
    chance = random.Random(seed)
    stems, keys = shape.grow(chance)
    gc.collect()
    tracemalloc.start()
    tree = Tree(RadixCache((shape.tokens + SLACK) // page_size, page_size, eviction), stems, chance)
    for key in keys:
        tree.grant(pack(key), len(key))
        tree.commit(tree.lease, pack(key))
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return tree, size / (tree.cache.cached * page_size)


def measure(shape: str, rounds: int, page_size: int, eviction: str) -> Iterator[dict[str, object]]:
    """Both sizes of a shape, operation by operation in turn."""
    built = [build(size, page_size, eviction, seed=1) for size in SHAPES[shape]]
    small, large = (tree for tree, _ in built)
    facts = {
        "shape": shape,
        "page_size": page_size,
        "eviction": eviction,
        "tokens": [tree.cache.cached * page_size for tree in (small, large)],
        "leaves": [size.leaves for size in SHAPES[shape]],
        "edges_on_path": [round(tree.edges(), 1) for tree in (small, large)],
    }
    gc.collect()
    for number in range(rounds):
        for operation in (Tree.match, Tree.insert):
            for tree in (small, large):
                operation(tree)
        if number % 20 == 19:
            for operation in (Tree.evict, Tree.insert_new):
                for tree in (small, large):
                    operation(tree)
    assert small.cache.check(full=False) == large.cache.check(full=False) == []
    for name in OPERATIONS:
        before, after = small.median(name), large.median(name)
        p99 = statistics.quantiles(large.seconds[name], n=100)[98] * 1e6
        yield facts | {
            "operation": name,
            "small_us": round(before, 1),
            "large_us": round(after, 1),
            "large_p99_us": round(p99, 1),
            "ratio": round(after / before, 2),
        }
    yield facts | {"operation": "memory", "bytes_per_token": round(built[1][1], 1)}


def missed(row: dict[str, object]) -> list[str]:
    """Targets that one line misses, in words."""
    name, found = str(row["operation"]), list[str]()
    if name == "memory":
        if float(str(row["bytes_per_token"])) > BYTES:
            found.append(f"{row['bytes_per_token']} bytes per token > {BYTES}")
    elif name in TARGETS:
        if float(str(row["large_us"])) > TARGETS[name]:
            found.append(f"{name}: {row['large_us']} µs > {TARGETS[name]}")
        if float(str(row["ratio"])) > RATIO:
            found.append(f"{name}: {row['ratio']} times the small tree's > {RATIO}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of the radix tree.")
    parser.add_argument(
        "--rounds", type=int, default=300, help="matches and inserts; one eviction for twenty"
    )
    parser.add_argument("--page-size", type=int, default=1, choices=(1, 4, 16))
    parser.add_argument("--eviction", default="lru", choices=("lru", "lfu", "priority"))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    problems: list[str] = []
    print(
        f"{'shape':8}{'edges':>7}  {'operation':12}{'10⁴ tokens':>12}{'10⁶ tokens':>12}{'ratio':>7}",
        file=sys.stderr,
    )
    for shape in SHAPES:
        for row in measure(shape, max(40, options.rounds), options.page_size, options.eviction):
            print(json.dumps(row), flush=True)
            edges = row["edges_on_path"]
            assert isinstance(edges, list)
            if row["operation"] == "memory":
                text = f"{'memory':12}{'':12}{row['bytes_per_token']:>7} B/t"
            else:
                text = f"{row['operation']:12}{row['small_us']:>9} µs{row['large_us']:>9} µs{row['ratio']:>7}"
            print(f"{shape:8}{edges[1]:>7}  {text}", file=sys.stderr)
            if shape == "layers":
                problems += missed(row)
    for problem in problems:
        print(f"missed: {problem}", file=sys.stderr)
    return 1 if options.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
