"""What HTTP clients can do wrong, or on purpose, to a node that runs: malformed requests, and slow or greedy ones.

    python -m benchmarks.chaos.http_fuzz run URL [--requests 10000] [--seed 0] [--key KEY]
    python -m benchmarks.chaos.http_fuzz slow URL [--seconds 40] [--seed 0] [--key KEY]

`run` sends requests made from the node's own OpenAPI description (schemathesis) and mutations of good ones (broken JSON, wrong types, deep nesting, huge
numbers, odd heads, broken chunks), and counts what came back: no answer may be an unforeseen 5xx, no actor may restart. `slow` measures good clients without and with
slowloris heads, dribbling bodies, bodies of 64 MB and clients that do not read beside them. Bodies are tamed, so that a valid one asks for a few tokens only.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PARALLEL = 8
PATIENCE = 30.0
"""Seconds for one answer."""
ENDLESS = frozenset({"/cache/events"})
"""Routes whose answer has no end: the client leaves after its first bytes."""
UNSENT = frozenset({"/models/load", "/models/unload"})
"""Routes that are left out: with luck they would do what they say."""
EXPECTED = frozenset({"503", "504"})
"""What a busy node answers on purpose; any other 5xx is a failure."""
BATCH = 250
"""Cases that schemathesis makes at a time."""
SAMPLES = 10
GROWTH = 20 << 20
"""Bytes that the node's processes may grow by (with a real worker, set `cache.claim = false`: its pool fills in the background)."""
LARGE = 64 << 20
SETTLE = 1.5
"""Seconds after which the root has looked at the processes again."""

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "n": 1, "logprobs": True, "top_logprobs": 2, "stream": False, "logit_bias": {"5": 1.0}, "response_format": {"type": "text"}, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 2, "n": 1, "echo": True, "logprobs": 1, "stream": True, "seed": 3, "stop_token_ids": [1], "regex": "[a-z]+"}),
    ("/generate", {"text": "hello", "sampling_params": {"max_new_tokens": 2, "temperature": 0, "json_schema": {"type": "string"}}, "return_logprob": True, "logprob_start_len": 0, "stream": False, "rid": "a"}),
    ("/tokenize", {"prompt": "hello", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/cache/pin", {"text": "hello", "ttl": 1.0, "name": "fuzz"}),
    ("/abort_request", {"rid": "a"}),
    ("/scheduler", {"policy": "lpm"}),
]  # fmt: skip
"""Requests that are right, to be made wrong."""

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 0.1, "", "x", "\x00", "\ud800", "🙂" * 50, "x" * 5000, [], [[]], {}, {"": None},
    ["x"] * 300, [None], [0, "x"], {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, "data:image/png;base64,AAAA", "file:///etc/passwd",
    {"$ref": "#"}, "(a+)+$", "${jndi:ldap://x}", "{{ ''.__class__ }}", "../../etc/passwd",
]  # fmt: skip
"""Values that are wrong in most places."""


@dataclass
class Sent:
    """One request as it goes over the wire.

    Attributes:
        raw: all of its bytes.
        what: how to name it in a report.
        whole: whether it is a request that has to be answered; others may just end the connection.
        endless: its answer has no end.
    """

    raw: bytes
    what: str
    whole: bool = True
    endless: bool = False


@dataclass
class Tally:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    server_errors: int = 0
    timeouts: int = 0
    unanswered: int = 0

    def fail(self, why: str, sent: Sent) -> None:
        """Keep the first few."""
        if len(self.failures) < SAMPLES:
            self.failures.append(f"{why}: {sent.what}: {sent.raw[:300]!r}")


class Target:
    """A node's address, and how requests to it begin."""

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.url, self.host, self.port, self.key = url.rstrip("/"), parts.hostname, parts.port or 80, key

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is broken off at the end."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def head(self, method: str, path: str, fields: dict[str, str]) -> bytes:
        """A request's head."""
        auth = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in {**auth, **fields}.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")

    def post(self, path: str, body: bytes) -> bytes:
        """A whole request."""
        return (
            self.head("POST", path, {"Content-Type": "application/json", "Content-Length": str(len(body))})
            + body
        )

    def get(self, path: str) -> Any:
        """What a route says, as JSON."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=headers), timeout=PATIENCE
        ) as answer:
            return json.load(answer)

    def processes(self) -> dict[str, Any]:
        """Restarts of all actors and resident bytes of all processes."""
        rows = self.get("/server_info")["actors"]
        rss = {row["pid"]: row["rss"] for row in rows if row["pid"]}
        return {"restarts": sum(row["restarts"] for row in rows), "rss": sum(rss.values())}


def run(
    url: str, requests: int = 10_000, seed: int = 0, *, key: str = "", described: float = 0.5
) -> dict[str, Any]:
    """Send that many bad requests; everything about them follows from `seed`.

    Args:
        url: of the node.
        requests: how many.
        seed: of the cases.
        key: the admin's, if the node wants one.
        described: share of the cases that schemathesis makes from the node's description.

    Returns:
        Counts by status, the failures (5xx, no answer in time, no answer at all, restarts) with samples, and resident memory before and after.
    """
    target, tally = Target(url, key), Tally()
    made = int(requests * described)
    asyncio.run(
        send_all(target, mutations(target, min(500, requests), seed + 1), Tally())
    )  # warms up: caches, compilers
    time.sleep(SETTLE)
    before, began = target.processes(), time.monotonic()
    asyncio.run(send_all(target, described_cases(target, target.get("/openapi.json"), made, seed), tally))
    asyncio.run(send_all(target, mutations(target, requests - made, seed), tally))
    took = time.monotonic() - began
    time.sleep(SETTLE)
    after = target.processes()
    restarts = after["restarts"] - before["restarts"]
    return {
        "requests": requests,
        "seed": seed,
        "seconds": round(took, 1),
        "statuses": dict(sorted(tally.statuses.items())),
        "server_errors": tally.server_errors,
        "timeouts": tally.timeouts,
        "unanswered": tally.unanswered,
        "restarts": restarts,
        "rss_before": before["rss"],
        "rss_after": after["rss"],
        "rss_growth": after["rss"] - before["rss"],
        "failures": tally.failures,
        "ok": not (tally.server_errors or tally.timeouts or tally.unanswered or restarts)
        and after["rss"] - before["rss"] <= GROWTH,
    }


async def send_all(target: Target, cases: Iterator[Sent], tally: Tally) -> None:
    """Send them over several connections at once and note what comes back."""
    turn = asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:  # in a thread: making cases takes seconds, in which answers must not seem late
                sent = await asyncio.to_thread(next, cases, None)
            if sent is None:
                return
            await _send(target, sent, tally)

    async with asyncio.TaskGroup() as group:
        for _ in range(PARALLEL):
            group.create_task(work())


async def _send(target: Target, sent: Sent, tally: Tally) -> None:
    try:
        async with asyncio.timeout(PATIENCE), target.connected() as (reader, writer):
            with suppress(ConnectionError):
                writer.write(sent.raw)
                await writer.drain()
                if not sent.whole:
                    writer.write_eof()
            line = b""
            with suppress(ConnectionError):
                line = await reader.readline()
                await (reader.read(1) if sent.endless else reader.read())
    except TimeoutError:
        tally.timeouts += 1
        tally.fail("no end", sent)
        return
    except ConnectionError:
        line = b""
    status = line.split()[1].decode() if line.startswith(b"HTTP/1.1 ") else "none"
    tally.statuses[status] += 1
    if status.startswith("5") and status not in EXPECTED:
        tally.server_errors += 1
        tally.fail(status, sent)
    elif status == "none" and sent.whole:
        tally.unanswered += 1
        tally.fail("no answer", sent)


def described_cases(target: Target, described: Any, count: int, seed: int) -> Iterator[Sent]:
    """Cases that schemathesis makes from the node's OpenAPI description, right ones and wrong ones."""
    import hypothesis
    import schemathesis
    from hypothesis import strategies as st
    from requests import Request
    from schemathesis.core.result import Ok

    schema = schemathesis.openapi.from_dict(described)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    strategies = [
        operation.as_strategy(generation_mode=mode)
        for operation in operations
        if operation.path not in UNSENT
        for mode in modes
    ]

    def batch(size: int, number: int) -> list[Any]:
        made: list[Any] = []

        @hypothesis.seed(seed * 100_003 + number)
        @hypothesis.settings(
            max_examples=size,
            phases=[hypothesis.Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.one_of(strategies))
        def collect(case: Any) -> None:
            made.append(case)

        with suppress(hypothesis.errors.Unsatisfiable):
            collect()
        return made[:size]

    done = number = 0
    while done < count:
        for case in batch(min(BATCH, count - done), number):
            if isinstance(case.body, dict):
                tame(case.body)
                if case.operation.path == "/profile":
                    case.body.setdefault("seconds", 0.05)
            prepared = Request(**case.as_transport_kwargs(base_url=target.url)).prepare()
            given = prepared.body
            body = given.encode() if isinstance(given, str) else given if isinstance(given, bytes) else b""
            fields = {
                name: _plain(value)
                for name, value in prepared.headers.items()
                if name.lower() not in ("connection", "host", "content-length")
            }
            if body:
                fields["Content-Length"] = str(len(body))
            raw = target.head(str(prepared.method), prepared.path_url, fields) + body
            yield Sent(raw, case.operation.label, endless=case.operation.path in ENDLESS)
            done += 1
        number += 1


def _plain(value: Any) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return "".join(character for character in text if character.isprintable())


def tame(body: dict[str, Any]) -> None:
    """Have a valid body ask for little."""
    few = {
        "max_tokens": 3,
        "max_completion_tokens": 3,
        "max_new_tokens": 3,
        "n": 2,
        "best_of": 2,
        "seconds": 0.05,
        "min_tokens": 0,
        "min_new_tokens": 0,
    }
    for name, most in few.items():
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
            body[name] = most
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is None and ("messages" in body or "prompt" in body):
            body["max_tokens"] = 3
    for inner in params if isinstance(params := body.get("sampling_params"), list) else [params]:
        if isinstance(inner, dict):
            tame(inner)
            if inner.get("max_new_tokens") is None:
                inner["max_new_tokens"] = 3


def mutations(target: Target, count: int, seed: int) -> Iterator[Sent]:
    """Good requests made wrong: in their values, their JSON, their bytes, or their HTTP."""
    draw = random.Random(seed)
    for _ in range(count):
        path, good = draw.choice(GOOD)
        kind = draw.choice(["value", "value", "value", "json", "bytes", "nesting", "http"])
        if kind == "value":
            body = json.dumps(_with_odd_values(good, draw)).encode("utf-8", "surrogatepass")
        elif kind == "json":
            body = _broken_json(json.dumps(good), draw)
        elif kind == "bytes":
            raw = bytearray(json.dumps(good).encode())
            for _ in range(draw.randint(1, 8)):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            body = bytes(raw)
        elif kind == "nesting":
            depth = draw.choice([50, 2000, 100_000])
            opening, closing = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
            name = draw.choice([*good, "metadata", "json_schema"])
            body = b'{"%s":' % name.encode() + opening * depth + b"1" + closing * depth + b"}"
        else:
            yield _broken_http(target, path, json.dumps(good).encode(), draw)
            continue
        yield Sent(target.post(path, body), f"{kind} {path}")


def _with_odd_values(good: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(good))
    for _ in range(draw.randint(1, 3)):
        place: Any = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            at = draw.choice(keys)
            if isinstance(place[at], dict | list) and place[at] and draw.random() < 0.6:
                place = place[at]
                continue
            place[at] = copy.deepcopy(draw.choice(ODD))
            break
    tame(body)
    return body


def _broken_json(text: str, draw: random.Random) -> bytes:
    at = draw.randrange(len(text))
    return draw.choice(
        [
            text[:at],
            text[:at] + draw.choice('{}[]",:0x') + text[at:],
            text + text,
            text.replace('"', "'"),
            text[:-1] + ',"max_tokens":1,"max_tokens":2}',
            "\ufeff" + text,
            text.replace(":", ": NaN,", 1),
            "[" + text + "]",
        ]
    ).encode()  # fmt: skip


def _broken_http(target: Target, path: str, body: bytes, draw: random.Random) -> Sent:
    """Heads that are odd and bodies that do not end as they say."""
    post = target.post(path, body)
    chunked = target.head("POST", path, {"Transfer-Encoding": "chunked"})
    sized = target.head("POST", path, {"Content-Length": str(len(body) + 50)})
    odd: list[tuple[bytes, bool]] = [
        (post.replace(b"HTTP/1.1", b"HTTP/9.9"), False),
        (post.replace(b"Content-Length: ", b"Content-Length: -"), False),
        (post.replace(b"Content-Length: ", b"Content-Length: 99999999999999999999"), False),
        (post.replace(b"Host:", b"Host\x00:"), False),
        (post.replace(b"\r\n", b"\n"), False),
        (post.replace(b"POST /", b"POST /%ff%00?"), True),
        (post.replace(b"POST /", b"POST http://other/"), True),
        (post.replace(b"POST", draw.choice([b"GET", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"HEAD"])), False),
        (post.replace(b"POST", b"BREW"), False),
        (post.replace(b"Host:", b"X-Request-Id: ../../x\r\nHost:"), True),
        (post.replace(b"Host:", b"X: " + b"y" * draw.choice([100, 70_000]) + b"\r\nHost:"), False),
        (post.replace(b"Host:", b"".join(b"X-%d: y\r\n" % n for n in range(draw.choice([50, 500]))) + b"Host:"), False),
        (post.replace(b"Host:", b"Content-Length: 3\r\nHost:"), False),
        (post.replace(b"Host:", b"Expect: 100-continue\r\nHost:"), False),
        (post.replace(b"Connection: close", b"Connection: Upgrade\r\nUpgrade: websocket"), False),
        (post.replace(b"Host:", b"Last-Event-ID: 1-99999999999999999999\r\nHost:"), True),
        (chunked + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n", True),
        (chunked + b"ffffffffffffffffff\r\n" + body, False),
        (chunked + b"zz\r\n" + body, False),
        (chunked + b"%x\r\n" % len(body) + body + b"\r\n", False),
        (sized + body, False),
        (post + b"\x00" * draw.randint(1, 100), False),
        (bytes(draw.randrange(256) for _ in range(draw.randint(1, 400))), False),
        (b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(200), False),
        (b"", False),
    ]  # fmt: skip
    number = draw.randrange(len(odd))
    raw, whole = odd[number]
    return Sent(raw, f"http {number} {path}", whole=whole)


def slow(url: str, seconds: float = 40.0, seed: int = 0, *, key: str = "") -> dict[str, Any]:
    """Latencies of good clients without and with bad ones beside them, in turns; the bad ones are another process.

    Args:
        url: of the node.
        seconds: in all; half of them without.
        seed: of the bad clients' moments.
        key: a tenant's, if the node wants one.

    Returns:
        p50 and p99 of both in seconds, their ratio, how many good requests failed, and resident memory before and at its highest.
    """
    target = Target(url, key)
    return asyncio.run(_slow(target, seconds, seed))


async def _slow(target: Target, seconds: float, seed: int) -> dict[str, Any]:
    rounds = max(1, round(seconds / 20))
    turn = seconds / rounds / 2
    times: dict[bool, list[float]] = {False: [], True: []}
    failed, most = 0, 0
    await _good(target, 1.0)
    before = (await asyncio.to_thread(target.processes))["rss"]
    for number in range(rounds):
        for attacked in (False, True):
            bad = None
            if attacked:
                arguments = (
                    "-m",
                    "benchmarks.chaos.http_fuzz",
                    "attack",
                    target.url,
                    "--seconds",
                    str(turn + 2),
                    "--seed",
                    str(seed + number),
                )
                bad = await asyncio.create_subprocess_exec(sys.executable, *arguments, "--key", target.key)
                await asyncio.sleep(2)
            took, lost = await _good(target, turn)
            times[attacked] += took
            failed += lost
            most = max(most, (await asyncio.to_thread(target.processes))["rss"])
            if bad is not None:
                await bad.wait()
    result: dict[str, Any] = {
        "seconds": seconds,
        "seed": seed,
        "failed": failed,
        "rss_before": before,
        "rss_most": most,
    }
    for attacked, name in ((False, "alone"), (True, "beside")):
        cut = statistics.quantiles(times[attacked], n=100)
        result[name] = {"requests": len(times[attacked]), "p50": round(cut[49], 4), "p99": round(cut[98], 4)}
    result["p99_ratio"] = round(result["beside"]["p99"] / result["alone"]["p99"], 2)
    result["ok"] = not failed and result["p99_ratio"] <= 2
    return result


async def _good(target: Target, seconds: float, clients: int = 4) -> tuple[list[float], int]:
    """Times of requests that are right, and how many of them failed."""
    times: list[float] = []
    failed = 0
    ends = time.monotonic() + seconds

    async def client(number: int) -> None:
        nonlocal failed
        count = 0
        while time.monotonic() < ends:
            count += 1
            body = json.dumps({"prompt": f"client {number} asks {count}", "max_tokens": 16}).encode()
            began = time.monotonic()
            async with asyncio.timeout(PATIENCE), target.connected() as (reader, writer):
                writer.write(target.post("/v1/completions", body))
                answer = await reader.read()
            if answer.startswith(b"HTTP/1.1 200"):
                times.append(time.monotonic() - began)
            else:
                failed += 1

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return times, failed


async def attack(target: Target, seconds: float, seed: int) -> None:
    """Slowloris heads, dribbling bodies, bodies of 64 MB, and readers that do not read, for so long."""
    draw = random.Random(seed)

    async def again(what: Any) -> None:
        while True:
            with suppress(ConnectionError, TimeoutError):
                await what()
            await asyncio.sleep(draw.uniform(0.1, 0.5))

    async def dribble(raw: bytes) -> None:
        async with target.connected() as (_, writer):
            for byte in raw:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(draw.uniform(0.2, 2))

    async def large() -> None:
        async with target.connected() as (_, writer):
            writer.write(target.head("POST", "/v1/completions", {"Content-Length": str(LARGE)}))
            part = b"x" * (64 << 10)
            for _ in range(LARGE // len(part)):
                writer.write(part)
                await writer.drain()

    async def unread() -> None:
        async with target.connected() as (_, writer):
            body = json.dumps(
                {"prompt": "x", "max_tokens": 16, "n": 2, "stream": True, "logprobs": 5}
            ).encode()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(target.post("/v1/completions", body))
            await asyncio.sleep(draw.uniform(5, 10))

    head = target.head("POST", "/generate", {"Content-Length": "100000", "X-Long": "y" * 500})
    tasks = [asyncio.ensure_future(again(lambda: dribble(head))) for _ in range(200)]
    tasks += [
        asyncio.ensure_future(again(lambda: dribble(head[:60] + b"\r\nContent-Length: 9999\r\n\r\n{")))
        for _ in range(50)
    ]
    tasks += [asyncio.ensure_future(again(large)) for _ in range(8)]
    tasks += [asyncio.ensure_future(again(unread)) for _ in range(20)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "slow", "attack"])
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default="")
    given = parser.parse_args()
    if given.what == "attack":
        asyncio.run(attack(Target(given.url, given.key), given.seconds, given.seed))
        return
    if given.what == "run":
        found = run(given.url, given.requests, given.seed, key=given.key)
    else:
        found = slow(given.url, given.seconds, given.seed, key=given.key)
    print(json.dumps(found))
    sys.exit(not found["ok"])


if __name__ == "__main__":
    main()
