"""What a server counts, for Prometheus."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Literal

from gemirec.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Stage = Literal["queue", "history", "encode", "search", "merge", "events", "total"]
"""``queue``: waiting for the worker. ``history``: stored history and events. ``encode``: the model. ``search``: the
index. ``merge``: K lists to one. ``events``: writing to the disk. ``total``: from the first byte to the answer."""
BOUNDS = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the latency buckets, seconds."""


class Metrics:
    """Counters of one server, in a registry of its own: several servers in one process do not mix.

    Raises:
        MissingExtraError: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtraError("serve", "prometheus_client") from error
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gemirec_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "gemirec_stage_seconds",
            "Seconds of a request's stages; history, encode, search and merge are of the batch it was in.",
            ["stage"],
            buckets=BOUNDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "gemirec_batch_users", "Users worked on at once.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self._answers = Counter(
            "gemirec_answers", "Users answered, by source: model or a fallback.", ["source"], registry=self.registry
        )
        self._cache = Counter(
            "gemirec_cache", "Users whose interests were asked of the cache, by outcome.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self._trouble = Counter(
            "gemirec_cache_trouble", "Calls that found the cache away, values that were damaged.", ["what"],
            registry=self.registry,
        )  # fmt: skip
        self._index_trouble = Counter(
            "gemirec_index_trouble", "Searches that found the index away.", registry=self.registry
        )
        self._events = Counter("gemirec_events", "Events, by outcome.", ["outcome"], registry=self.registry)
        self._reloads = Counter("gemirec_reloads", "Reloads, by outcome.", ["outcome"], registry=self.registry)
        self.queue = Gauge("gemirec_queue_users", "Users that wait for the worker.", registry=self.registry)
        self._version = Gauge(
            "gemirec_version", "1 for the version that is served.", ["version"], registry=self.registry
        )
        self._variant_version = Gauge(
            "gemirec_variant_version", "1 for the version that a variant of a traffic split serves.",
            ["variant", "version"], registry=self.registry,
        )  # fmt: skip
        self._variant_requests = Counter(
            "gemirec_variant_requests", "Questions to a variant, by outcome: answered or refused.",
            ["variant", "outcome"], registry=self.registry,
        )  # fmt: skip
        self._variant_seconds = Histogram(
            "gemirec_variant_seconds", "Seconds until a variant answered, in the queue and at work.",
            ["variant"], buckets=BOUNDS, registry=self.registry,
        )  # fmt: skip
        self._variant_answers = Counter(
            "gemirec_variant_answers", "Users answered by a variant, by source: model or a fallback.",
            ["variant", "source"], registry=self.registry,
        )  # fmt: skip
        self._impressions = Counter(
            "gemirec_impressions", "Served lists for the impression log, by outcome: stored or dropped.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self._stage = {name: self._seconds.labels(name) for name in Stage.__args__}  # type: ignore[attr-defined]

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, status).inc()
        self.observe("total", seconds)

    def observe(self, stage: Stage, seconds: float) -> None:
        """Count the time of a stage."""
        self._stage[stage].observe(seconds)

    @contextlib.contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block as a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.observe(stage, time.perf_counter() - start)

    def batch(self, users: int) -> None:
        """Count a batch."""
        self._batch.observe(users)

    def answer(self, source: str, cache: str) -> None:
        """Count a user's answer."""
        self._answers.labels(source).inc()
        if cache != "off":
            self._cache.labels(cache).inc()

    def cache_trouble(self, what: Literal["unreachable", "corrupt"], count: int) -> None:
        """Count what went wrong with the cache and cost no more than the work of a miss."""
        if count:
            self._trouble.labels(what).inc(count)

    def index_trouble(self) -> None:
        """Count a search that found the index away."""
        self._index_trouble.inc()

    def events(self, outcome: str, count: int) -> None:
        """Count events."""
        self._events.labels(outcome).inc(count)

    def reload(self, outcome: str) -> None:
        """Count a reload."""
        self._reloads.labels(outcome).inc()

    def serves(self, versions: Mapping[Any, str]) -> None:
        """Say which version each variant serves; without a traffic split there is one."""
        self._version.clear()
        self._variant_version.clear()
        for variant, version in versions.items():
            self._version.labels(version).set(1)
            if len(versions) > 1:
                self._variant_version.labels(variant, version).set(1)

    def variant_request(self, variant: str, outcome: str, seconds: float) -> None:
        """Count a question to a variant."""
        self._variant_requests.labels(variant, outcome).inc()
        self._variant_seconds.labels(variant).observe(seconds)

    def variant_answer(self, variant: str, source: str) -> None:
        """Count a user's answer by a variant."""
        self._variant_answers.labels(variant, source).inc()

    def impressions(self, outcome: str, count: int) -> None:
        """Count served lists on their way to the impression log."""
        self._impressions.labels(outcome).inc(count)

    def text(self) -> bytes:
        """Return all counters in Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
