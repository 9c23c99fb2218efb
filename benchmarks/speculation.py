"""Speculative decoding on the default model: what drafts from the text and from the prefix cache bring, and that they cost nothing elsewhere.

    python -m benchmarks.speculation [--data DIR] [--only edit,chat] [--concurrency 1,16] [--rounds 4] [--requests 6] [--set KEY=VALUE] [--check]

Where outputs repeat what stands before: `edit` (write a text again with its misspelled words corrected), `quote` (answer from three passages, word for
word), `code` (write a function again under another name), `again` (a request whose answer the cache has). Elsewhere: `chat` and, at temperature 0.8,
`sampled` (MT-bench), `random` (128 random token ids, 64 tokens). One node serves them; in each round every task runs with drafts and without, one after
the other in changing order, on an empty cache (`again`: on one that has seen the requests). `tokens_per_s` counts output tokens over the wall time of a
run, prompts included. Outputs with and without have to be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import LiveNode, median, running, show, table, verdict
from benchmarks.workload.programs import read
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate, SamplingOptions

TIMEOUT = 600.0
GAIN, LOSS = 1.5, 0.97
"""Least ratio of output tokens per second, drafts on over off: where outputs repeat what stands before, and elsewhere."""
CODE = '''\
def {name}(rows, key, reverse=False):
    """Sort rows of a table by one of their columns.

    Rows that lack the column come last, in the order in which they were given.
    """
    with_key = [row for row in rows if key in row]
    without_key = [row for row in rows if key not in row]
    with_key.sort(key=lambda row: row[key], reverse=reverse)
    return with_key + without_key


def {name}_and_count(rows, key):
    """Sort rows and count how many of them have each value of the column."""
    counts = {{}}
    for row in {name}(rows, key):
        value = row.get(key)
        counts[value] = counts.get(value, 0) + 1
    return counts
'''
NAMES = ("order", "arrange", "sort_rows", "rank", "line_up", "sequence", "group", "organise")


@dataclass(frozen=True)
class Task:
    """Requests of one kind.

    Attributes:
        prompts: (folder of the data, how many) -> chats (text) or token ids.
        tokens: most output tokens of each.
        least: ratio to be reached.
        temperature: of its sampling.
        ignore_eos: all tokens are generated.
        warm: the cache has seen the requests.
    """

    prompts: Callable[[Path, int], list[str | list[int]]]
    tokens: int
    least: float
    temperature: float = 0.0
    ignore_eos: bool = False
    warm: bool = False


def _edits(folder: Path, count: int) -> list[str | list[int]]:
    """Texts of about 200 tokens with a few words spelled wrong."""
    rng = random.Random(1)
    passages = [row["text"] for row in read(folder, "rag/passages.jsonl") if 300 < len(row["text"]) < 500]
    prompts: list[str | list[int]] = []
    for number in range(count):
        words = " ".join(passages[2 * number : 2 * number + 2]).split()
        for place in rng.sample([n for n, word in enumerate(words) if word.isalpha() and len(word) > 5], 3):
            words[place] = words[place][:2] + words[place][3] + words[place][2] + words[place][4:]
        prompts.append(
            f"Write this text again, word for word, with its spelling corrected:\n\n{' '.join(words)}"
        )
    return prompts


def _quotes(folder: Path, count: int) -> list[str | list[int]]:
    """Questions with the passages that answer them and one more."""
    passages = {row["title"]: row["text"] for row in read(folder, "rag/passages.jsonl")}
    prompts: list[str | list[int]] = []
    for row in read(folder, "rag/questions_100.jsonl")[:count]:
        titles = [*row["supporting_titles"], row["context_titles"][0]]
        texts = "\n\n".join(f"{title}: {passages[title]}" for title in titles if title in passages)
        prompts.append(f"{texts}\n\nQuote the passages that answer this question, in full: {row['question']}")
    return prompts


def _codes(_: Path, count: int) -> list[str | list[int]]:
    """A small module, to be written again with its function renamed."""
    return [
        f"Rename the function {NAMES[n % len(NAMES)]} to {NAMES[n % len(NAMES)]}_table and write the whole module again:\n\n"
        f"```python\n{CODE.format(name=NAMES[n % len(NAMES)])}```\n(version {n})"
        for n in range(count)
    ]


def _chats(folder: Path, count: int) -> list[str | list[int]]:
    """First turns of MT-bench."""
    return [row["turns"][0] for row in read(folder, "mt_bench/question_40.jsonl")][:count]


def _noise(_: Path, count: int) -> list[str | list[int]]:
    """Random token ids."""
    rng = random.Random(2)
    return [[rng.randrange(1000, 40000) for _ in range(128)] for _ in range(count)]


TASKS = {
    "edit": Task(_edits, 192, GAIN),
    "quote": Task(_quotes, 128, GAIN),
    "code": Task(_codes, 256, GAIN),
    "again": Task(_chats, 128, GAIN, warm=True),
    "chat": Task(_chats, 128, LOSS),
    "sampled": Task(_chats, 128, LOSS, temperature=0.8),
    "random": Task(_noise, 64, LOSS, ignore_eos=True),
}


@dataclass
class Results:
    """All rounds of a task at one concurrency, drafts on and off."""

    rates: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    steps: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    drafted: int = 0
    accepted: int = 0
    same: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Output tokens per second, on over off."""
        return median(self.rates[True]) / median(self.rates[False])


class Asker:
    """Sends a task's requests to one node."""

    def __init__(self, client: NodeClient, node: LiveNode) -> None:
        self._client, self._node = client, node
        self._count = 0

    async def run(self, task: Task, prompts: Sequence[str | list[int]], concurrency: int) -> list[Chunk]:
        """All of them, `concurrency` at once."""
        chunks: dict[int, Chunk] = {}
        waiting = list(enumerate(prompts))[::-1]

        async def work() -> None:
            while waiting:
                place, prompt = waiting.pop()
                chunks[place] = await self._ask(task, prompt, place)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        return [chunks[place] for place in sorted(chunks)]

    async def prepare(self, task: Task, prompts: Sequence[str | list[int]], *, on: bool) -> None:
        """Drafts on or off, and the cache as the task wants it."""
        await asyncio.to_thread(self._node.configure, speculation=on)
        await asyncio.to_thread(self._node.flush)
        if task.warm:
            await self.run(task, prompts, len(prompts))

    async def _ask(self, task: Task, prompt: str | list[int], place: int) -> Chunk:
        self._count += 1
        sampling = SamplingOptions(
            max_tokens=task.tokens,
            temperature=task.temperature,
            seed=place,
            ignore_eos=task.ignore_eos,
        )
        name = f"speculation-{self._count}"
        if isinstance(prompt, str):
            request = Generate(name, messages=[ChatMessage("user", prompt)], sampling=sampling)
        else:
            request = Generate(name, input_ids=prompt, sampling=sampling)
        return await self._client.complete(request, timeout=TIMEOUT)


async def compare(
    node: LiveNode,
    data: Path,
    names: Sequence[str],
    concurrencies: Sequence[int],
    *,
    rounds: int,
    requests: int,
) -> dict[tuple[str, int], Results]:
    """Every task at every concurrency, with drafts and without in turns."""
    handle = await join(node.record.endpoint)
    results: dict[tuple[str, int], Results] = {}
    try:
        asker = Asker(NodeClient(handle.context("benchmark")), node)
        for name in names:
            for concurrency in concurrencies:
                found = results[name, concurrency] = Results()
                prompts = TASKS[name].prompts(data, max(requests, 2 * concurrency if concurrency > 1 else 0))
                for round_ in range(rounds):
                    await play(asker, name, prompts, concurrency, round_, found)
    finally:
        await handle.close()
    return results


async def play(
    asker: Asker,
    name: str,
    prompts: Sequence[str | list[int]],
    concurrency: int,
    round_: int,
    found: Results,
) -> None:
    """One round."""
    task = TASKS[name]
    outputs: dict[bool, list[list[int]]] = {}
    for on in (True, False) if round_ % 2 else (False, True):
        await asker.prepare(task, prompts, on=on)
        began = time.perf_counter()
        chunks = await asker.run(task, prompts, concurrency)
        seconds = time.perf_counter() - began
        outputs[on] = [chunk.token_ids for chunk in chunks]
        tokens = sum(chunk.completion_tokens for chunk in chunks)
        counts = {
            one: sum(getattr(chunk.decoding, one) for chunk in chunks)
            for one in ("steps", "drafted", "accepted")
        }
        found.rates[on].append(tokens / seconds)
        found.steps[on].append(counts["steps"])
        found.drafted += counts["drafted"]
        found.accepted += counts["accepted"]
        measured: dict[str, Any] = {"output_tokens": tokens, "tokens_per_s": tokens / seconds, **counts}
        show(task=name, concurrency=concurrency, round=round_, speculation=on, **measured)
    equal = [one == other for one, other in zip(outputs[True], outputs[False], strict=True)]
    found.same.append(sum(equal) / len(equal))
    for place in (place for place, one in enumerate(equal) if not one):
        pairs = zip(outputs[True][place], outputs[False][place], strict=False)
        first = next((at for at, (one, other) in enumerate(pairs) if one != other), -1)
        show(task=name, concurrency=concurrency, round=round_, differs=place, at=first)


def report(results: dict[tuple[str, int], Results]) -> list[list[str]]:
    """A table of medians."""
    rows = [["task", "at once", "tok/s off", "tok/s on", "x", "steps off", "steps on", "drafted", "accepted %", "same %"]]  # fmt: skip
    for (name, concurrency), found in results.items():
        rows.append(
            [
                name,
                str(concurrency),
                *(f"{median(found.rates[on]):.1f}" for on in (False, True)),
                f"{found.ratio:.2f}",
                *(f"{median(found.steps[on]):.0f}" for on in (False, True)),
                str(found.drafted // max(1, len(found.same))),
                f"{found.accepted / max(1, found.drafted):.0%}"[:-1],
                f"{min(found.same):.0%}"[:-1],
            ]
        )
    return rows


def targets(results: dict[tuple[str, int], Results]) -> list[tuple[str, float, str, float]]:
    """What is to be reached, as far as it was measured; the gain alone, where batches are small."""
    aims: list[tuple[str, float, str, float]] = []
    for (name, concurrency), found in results.items():
        least = TASKS[name].least if concurrency == 1 else LOSS
        aims.append(
            (f"{name} at {concurrency}: output tokens/s, drafts on over off", found.ratio, ">=", least)
        )
        aims.append((f"{name} at {concurrency}: share of equal outputs", min(found.same), ">=", 1.0))
    return aims


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--only", default=",".join(TASKS), help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--concurrency", default="1,16", help="requests at once")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=6, help="per run, and at least two for each at once")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as of `sgl-actors start`"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    if not arguments.data:
        parser.error("the sample data: --data or $SGL_ACTORS_DATA (docs/data.md)")
    concurrencies = [int(one) for one in arguments.concurrency.split(",")]
    with running(*arguments.set) as node:
        found = asyncio.run(
            compare(
                node,
                Path(arguments.data),
                names,
                concurrencies,
                rounds=arguments.rounds,
                requests=arguments.requests,
            )
        )
    print(table(report(found)))
    verdict(targets(found), check=arguments.check)


if __name__ == "__main__":
    main()
