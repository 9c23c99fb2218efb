"""Prometheus metrics: the requests this gateway saw, and what every actor counts of itself.

Names are SGLang's with the prefix ``sgl_actors_``. The gateway's own counts carry ``gateway_`` or ``http_`` where an
actor counts the same thing node-wide, so that no family appears twice and no sum counts anything twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sgl_actors.actors.microkernel.messages import ActorRow, Actors
from sgl_actors.actors.node.client import prompt_counts

PREFIX = "sgl_actors_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
WHOLE = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100, 200, 400, 600)
"""Upper bounds of the histograms' buckets in seconds."""

Family = CounterMetricFamily | GaugeMetricFamily


class Metrics:
    """All metrics of one gateway, in a registry of its own."""

    def __init__(self, node: str) -> None:
        self.registry = CollectorRegistry()
        self._own: set[str] = {"http_requests_running", "node_ready", "cache_hit_rate"}
        self._actors = ActorCollector(node, self._own)
        self.registry.register(self._actors)
        model = ("model_name",)
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Request to first token.", FIRST_TOKEN
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Token to next token.", BETWEEN_TOKENS
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "Request to last token.", WHOLE)
        self.prompt_tokens = self._counter(
            "gateway_prompt_tokens", "Prompt tokens of answered requests.", model
        )
        self.cached_tokens = self._counter(
            "gateway_cached_tokens", "Prompt tokens found in the cache.", model
        )
        self.generated = self._counter(
            "gateway_generation_tokens", "Output tokens of answered requests.", model
        )
        self.requests = self._counter("gateway_requests", "Generation requests begun.", model)
        self.aborted = self._counter(
            "gateway_aborted_requests", "Generation requests that did not end well.", model
        )
        self.responses = self._counter("http_responses", "Answers by route and status.", ("route", "status"))
        self.running = Gauge(
            PREFIX + "http_requests_running", "HTTP requests in work.", registry=self.registry
        )

    def expose(self, actors: Actors | None) -> bytes:
        """The exposition text; `actors` is the root's latest answer, None when it gave none."""
        self._actors.actors = actors
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        self._own.add(name)
        return Histogram(PREFIX + name, text, ("model_name",), buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        self._own.add(name + "_total")
        return Counter(PREFIX + name, text, labels, registry=self.registry)


class ActorCollector(Collector):
    """Turns the root's list of actors into metrics at scrape time.

    A statistic that is named like one of `taken` gets ``actor_`` in front: a family that appears twice makes the whole
    exposition unreadable.
    """

    def __init__(self, node: str, taken: set[str]) -> None:
        self.actors: Actors | None = None
        self._node, self._taken = node, taken

    def describe(self) -> list[Family]:
        """Nothing is known beforehand."""
        return []

    def collect(self) -> Iterator[Family]:
        """One family per statistic, one sample per actor; names ending in ``_total`` are counters."""
        if self.actors is None:
            return
        ready = GaugeMetricFamily(PREFIX + "node_ready", "Whether all actors are up.", labels=("node",))
        ready.add_metric((self._node,), float(self.actors.ready and not self.actors.draining))
        yield ready
        prompt, cached = prompt_counts(self.actors)
        if prompt:
            text = "Share of all prompt tokens so far that came from the cache; over a window: rate(cached) / rate(prompt)."
            rate = GaugeMetricFamily(PREFIX + "cache_hit_rate", text, labels=("node",))
            rate.add_metric((self._node,), cached / prompt)
            yield rate
        families: dict[str, Family] = {}
        for row in self.actors.rows:
            actor = row.address.partition("#")[0]
            for statistic, value in _statistics(row):
                name = f"actor_{statistic}" if statistic in self._taken else statistic
                if name not in families:
                    families[name] = _family(name)
                families[name].add_metric((self._node, actor), value)
        yield from families.values()
        yield from self._kernels(self.actors)

    def _kernels(self, actors: Actors) -> Iterator[Family]:
        """What the kernel of each process counts, one family per counter."""
        counters = sorted({counter for counts in actors.kernels.values() for counter in counts})
        for counter in counters:
            name = f"{PREFIX}kernel_{counter.removesuffix('_total')}"
            family = CounterMetricFamily(
                name, f"{counter} as each kernel counts them.", labels=("node", "process")
            )
            for process, counts in actors.kernels.items():
                if counter in counts:
                    family.add_metric((self._node, process), counts[counter])
            yield family


def _statistics(row: ActorRow) -> Iterator[tuple[str, float]]:
    yield "actor_restarts_total", float(row.restarts)
    yield "actor_mailbox_messages", float(row.mailbox)
    yield "actor_resident_memory_bytes", float(row.rss)
    yield from row.statistics.items()


def _family(name: str) -> Family:
    labels = ("node", "actor")
    text = f"{name} as the actor counts it."
    if name.endswith("_total"):
        return CounterMetricFamily(PREFIX + name, text, labels=labels)
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)
