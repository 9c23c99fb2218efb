"""Load generator for any OpenAI-compatible server, and our node against transformers.

    python benchmarks/serve.py --url http://127.0.0.1:30000 [--concurrency 1,16] [--requests 32]
    python benchmarks/serve.py --compare [--url …] [--rounds 3] [--check]

The workload "random" is prompts of random token ids (128 in, 64 out, `ignore_eos`, temperature 0, nothing shared). One JSON line per case.
`--compare` alternates, round by round and in changing order: the node at concurrency 1, the node at 16, and transformers' batched `generate` in
fp32 on the same 16 prompts, in a process of its own that is idle otherwise. It prints the ratios of the medians of output tokens per second.
Without `--url` it starts a node of its own with fp32 compute on a free port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
FIRST_ID, LAST_ID = 1_000, 32_000
"""Ids that are ordinary tokens in every vocabulary in question."""
TARGET_BATCHING, TARGET_TRANSFORMERS = 2.0, 1.2

Prompts = list[list[int]]


class LoadError(Exception):
    """The server refused or failed a request: there is nothing to measure. Raised within an exception group by `load`."""


@dataclass
class Sample:
    """One request as its client saw it; times in seconds.

    Attributes:
        started: clock when it was sent.
        arrivals: clock at each chunk with output.
        tokens: output tokens, by the server's usage (else the number of chunks).
        ended: clock at the end.
    """

    started: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0


def random_prompts(count: int, seed: int, *, tokens: int = PROMPT_TOKENS) -> Prompts:
    """`count` prompts of `tokens` random ids."""
    rng = random.Random(seed)
    return [[rng.randrange(FIRST_ID, LAST_ID) for _ in range(tokens)] for _ in range(count)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, interpolated; 0 for none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(samples: Sequence[Sample], seconds: float) -> dict[str, float]:
    """Rates over `seconds`; time to first token and between chunks in milliseconds."""
    first = [sample.arrivals[0] - sample.started for sample in samples if sample.arrivals]
    between = [
        b - a for sample in samples for a, b in zip(sample.arrivals, sample.arrivals[1:], strict=False)
    ]
    return {
        "requests": len(samples),
        "seconds": round(seconds, 3),
        "req_per_s": round(len(samples) / seconds, 3),
        "output_tok_per_s": round(sum(sample.tokens for sample in samples) / seconds, 2),
        "ttft_ms_p50": round(percentile(first, 0.5) * 1e3, 1),
        "ttft_ms_p99": round(percentile(first, 0.99) * 1e3, 1),
        "itl_ms_p50": round(percentile(between, 0.5) * 1e3, 1),
        "itl_ms_p99": round(percentile(between, 0.99) * 1e3, 1),
    }


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to ``[DONE]``; comments and other fields are skipped (WHATWG HTML, 9.2.6)."""
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text = "\n".join(data)
            data.clear()
            if text == "[DONE]":
                return
            event = json.loads(text)
            if "error" in event:
                raise LoadError(f"the server ended a stream with {event['error']}")
            yield event


async def complete(
    client: httpx2.AsyncClient,
    model: str,
    prompt: list[int],
    tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Send one prompt and follow its stream."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sample = Sample(started=clock())
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise LoadError(
                f"{response.status_code} from {response.url}: {(await response.aread()).decode()[:500]}"
            )
        async for event in events(response.aiter_lines()):
            usage = event.get("usage") or usage
            if any(
                choice.get("text") or choice.get("finish_reason") is None
                for choice in event.get("choices", ())
            ):
                sample.arrivals.append(clock())
    sample.ended = clock()
    sample.tokens = int(usage.get("completion_tokens", len(sample.arrivals)))
    return sample


async def load(
    url: str, prompts: Prompts, *, concurrency: int, tokens: int = OUTPUT_TOKENS
) -> dict[str, float]:
    """Keep `concurrency` requests going until all prompts are answered; return the `summary`."""
    waiting = list(reversed(prompts))
    samples: list[Sample] = []
    limits = httpx2.Limits(max_connections=concurrency)
    async with httpx2.AsyncClient(base_url=url, timeout=httpx2.Timeout(600), limits=limits) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]

        async def work() -> None:
            while waiting:
                samples.append(await complete(client, model, waiting.pop(), tokens))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        seconds = time.perf_counter() - began
    return summary(samples, seconds)


@contextmanager
def node(threads: int) -> Iterator[str]:
    """A node of our own with fp32 compute; yields its URL when it is healthy."""
    from sgl_actors.actors.node.record import read_record

    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder) / "run"
        settings = {"node.runtime_dir": runtime, "model.dtype": "float32", "model.threads": threads}
        flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "sgl_actors.cli", "start", "--port", "0", *flags]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            yield _healthy(process, lambda: getattr(read_record(runtime), "url", ""))
        finally:
            process.terminate()
            process.wait(30)


def _healthy(process: subprocess.Popen[bytes], url: Callable[[], str], *, timeout: float = 120.0) -> str:
    """Wait for `/health` 200 and return the URL."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the node ended with {process.returncode}")
        found = url()
        try:
            if found and httpx2.get(f"{found}/health", timeout=5).status_code == 200:
                return found
        except httpx2.HTTPError:
            pass  # not listening yet
        time.sleep(0.05)
    raise SystemExit(f"the node was not healthy within {timeout:g} s")


class Transformers:
    """transformers' batched `generate` in fp32, in a process that does nothing unless asked."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        """Load `checkpoint` (.gguf file or folder); returns when that is done."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_transformers, args=(theirs, str(checkpoint), threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def generate(self, prompts: Prompts, tokens: int = OUTPUT_TOKENS) -> dict[str, float]:
        """All prompts as one batch, greedily, exactly `tokens` tokens each."""
        self._pipe.send((prompts, tokens))
        seconds = self._pipe.recv()
        return {
            "requests": len(prompts),
            "seconds": round(seconds, 3),
            "output_tok_per_s": round(len(prompts) * tokens / seconds, 2),
        }

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)


def _transformers(pipe: Connection, checkpoint: str, threads: int) -> None:
    """The child: load once, then time one batch per message until the pipe closes."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = Path(checkpoint)
    source = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval()
    pipe.send("loaded")
    while True:
        try:
            prompts, tokens = pipe.recv()
        except EOFError:
            return
        ids = torch.tensor(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        pipe.send(time.perf_counter() - began)
        assert out.shape == (len(prompts), ids.shape[1] + tokens)


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Ratios of the medians of `rates` (per case, one number per round)."""
    median = {case: statistics.median(values) for case, values in rates.items()}
    return {
        "batching": round(median["node@16"] / median["node@1"], 3),
        "over_transformers": round(median["node@16"] / median["transformers@16"], 3),
    }


def compare(url: str, baseline: Transformers, rounds: int) -> dict[str, float]:
    """Measure the three cases alternately; print a line for each and return the ratios.

    Each round has prompts of its own, so that no prefix cache has seen them; the first, shorter round warms up and does not count.
    """
    rates: dict[str, list[float]] = {"node@1": [], "node@16": [], "transformers@16": []}
    asyncio.run(load(url, random_prompts(16, 10**6), concurrency=16, tokens=4))
    baseline.generate(random_prompts(16, 10**6), tokens=4)
    for number in range(rounds):
        batch, single = random_prompts(16, 2 * number), random_prompts(4, 2 * number + 1)
        cases: dict[str, Callable[[], dict[str, float]]] = {
            "node@1": lambda single=single: asyncio.run(load(url, single, concurrency=1)),  # type: ignore[misc]
            "node@16": lambda batch=batch: asyncio.run(load(url, batch, concurrency=16)),  # type: ignore[misc]
            "transformers@16": lambda batch=batch: baseline.generate(batch),  # type: ignore[misc]
        }
        order = list(cases)
        for case in order[number % 3 :] + order[: number % 3]:
            result = cases[case]()
            rates[case].append(result["output_tok_per_s"])
            line = {"case": case, "round": number} | result | {"machine_load": round(os.getloadavg()[0], 1)}
            print(json.dumps(line), flush=True)
    return ratios(rates)


def main() -> None:
    """Run; a server that fails is one line on stderr and exit 1."""
    reason = ""
    try:
        run()
    except* (LoadError, httpx2.HTTPError) as group:
        reason = str(group.exceptions[0])
    if reason:
        sys.exit(reason)


def run() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="server to load; --compare starts a node without it")
    parser.add_argument("--concurrency", default="1,16", help="cases, by number of requests at once")
    parser.add_argument("--requests", type=int, default=32, help="prompts per case")
    parser.add_argument("--compare", action="store_true", help="the node at 1 and 16 against transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="compute threads of each side"
    )
    parser.add_argument(
        "--checkpoint", default="smollm2", help="the served model, for transformers: name or path"
    )
    parser.add_argument(
        "--check", action="store_true", help="exit 1 if a ratio of --compare misses its target"
    )
    arguments = parser.parse_args()
    if not arguments.compare:
        if not arguments.url:
            parser.error("--url is needed without --compare")
        for n, concurrency in enumerate(int(text) for text in arguments.concurrency.split(",")):
            prompts = random_prompts(arguments.requests, 10**7 + n)
            result = asyncio.run(load(arguments.url, prompts, concurrency=concurrency))
            print(json.dumps({"case": "random", "concurrency": concurrency} | result), flush=True)
        return
    from sgl_actors.actors.node.models import resolve

    baseline = Transformers(resolve(arguments.checkpoint).path, arguments.threads)
    try:
        if arguments.url:
            found = compare(arguments.url, baseline, arguments.rounds)
        else:
            with node(arguments.threads) as url:
                found = compare(url, baseline, arguments.rounds)
    finally:
        baseline.close()
    line = {
        "case": "ratios",
        "target_batching": TARGET_BATCHING,
        "target_over_transformers": TARGET_TRANSFORMERS,
    }
    print(json.dumps(line | found))
    missed = found["batching"] < TARGET_BATCHING or found["over_transformers"] < TARGET_TRANSFORMERS
    sys.exit(1 if arguments.check and missed else 0)


if __name__ == "__main__":
    main()
