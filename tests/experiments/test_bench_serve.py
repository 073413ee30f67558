"""The load test: requests leave when they should, and their latency is what a user would have felt."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemirec.errors import ConfigError, DataError, StorageError
from gemirec.experiments.bench_serve import BenchConfig, bench_serve, user_bodies
from gemirec.experiments.load import Load, Target, arrivals, highest_rate, run_clocked, run_load
from support_cli import gemirec


class Fake:
    """A server that answers one request after the other, and stalls once."""

    def __init__(self, *, stall: tuple[float, float] = (0.0, 0.0), status: int = 200, cut_every: int = 0) -> None:
        self.stall, self.status, self.cut_every = stall, status, cut_every
        self.begun = 0.0
        self.seen: list[float] = []
        self.connections = 0
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                self.begun = self.begun or time.perf_counter()
                now = time.perf_counter() - self.begun
                self.seen.append(now)
                if self.stall[0] <= now < self.stall[1]:
                    await asyncio.sleep(self.stall[1] - now)
                if self.cut_every and len(self.seen) % self.cut_every == 0:
                    return
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % self.status)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def load(fake: Fake, at_N: np.ndarray[Any, Any], timeout_s: float = 5.0) -> Load:
    async def whole() -> Load:
        server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        found = await run_load(
            Target("127.0.0.1", port), [b"one", b"two", b"three"], at_N, seconds=1.0, timeout_s=timeout_s
        )
        server.close()
        return found

    return run_clocked(whole())


def test_a_stalled_server_is_seen_by_every_request_that_should_have_left() -> None:
    fake = Fake(stall=(0.3, 0.8))
    at_N = arrivals(200, 1.2, "constant")
    found = load(fake, at_N)
    assert (found.status_N == 200).all()
    first = at_N[0]
    inside = (at_N - first > 0.32) & (at_N - first < 0.75)
    felt = 0.8 - (at_N[inside] - first)  # what is left of the stall when the request arrives
    assert (found.latency_N[inside] > felt - 0.02).all()
    assert np.median(found.latency_N[inside] - felt) < 0.1
    assert found.summary()["p95_ms"] > 350  # a client that waits for its answers would have seen one slow request
    assert len(fake.seen) == len(at_N)
    assert fake.bodies[:3] == [b"one", b"two", b"three"]


def test_connections_are_kept_and_opened_only_where_requests_overlap() -> None:
    fake = Fake()
    load(fake, arrivals(50, 1, "constant"))
    assert fake.connections < 10
    busy = Fake(stall=(0.0, 0.5))
    load(busy, arrivals(60, 0.5))
    assert busy.connections > 20


def test_failures_are_counted_by_what_came_back() -> None:
    assert load(Fake(status=429), arrivals(30, 0.5)).summary()["by_status"] == {"429": 15}
    cut = load(Fake(cut_every=3), arrivals(30, 1, "constant")).summary()
    assert cut["by_status"] == {"no answer": 10, "200": 20}
    assert cut["errors"] == 10
    late = load(Fake(stall=(0.0, 9.0)), np.array([0.0, 0.01]), timeout_s=0.2)
    assert late.status_N.tolist() == [0, 0]
    assert (late.latency_N >= 0.2).all()


def test_arrivals_are_those_of_a_poisson_process() -> None:
    at_N = arrivals(1000, 20, seed=3)
    assert len(at_N) == 20_000
    assert (np.diff(at_N) >= 0).all()
    assert 0 <= at_N[0] < at_N[-1] < 20
    gaps = np.sort(np.diff(at_N))
    expected = -np.log1p(-(np.arange(len(gaps)) + 0.5) / len(gaps)) / 1000  # exponential
    assert np.abs(np.exp(-1000 * gaps) - np.exp(-1000 * expected)).max() < 1.95 / 20_000**0.5  # Kolmogorov, 0.1 %
    assert np.array_equal(arrivals(10, 3, seed=1), arrivals(10, 3, seed=1))
    with pytest.raises(ConfigError, match="at least one request"):
        arrivals(0.1, 1)


@pytest.mark.parametrize("limit", [3.0, 70.0, 137.0, 5000.0])
def test_the_highest_rate_is_found_within_a_twentieth(limit: float) -> None:
    asked = []

    def measure(rate: float) -> Load:
        asked.append(rate)
        latency = 0.01 if rate <= limit else 0.2
        count = 100
        return Load(np.full(count, latency), np.full(count, 200), np.zeros(count), 1.0)

    found, trials = highest_rate(measure, p99_ms=50, start=100)
    assert limit / 1.05 <= found <= limit
    assert len(asked) == len(trials) < 20
    assert {row["met"] for row in trials} == {True, False}


def test_a_rate_with_errors_is_not_met_and_a_hopeless_server_has_none() -> None:
    refused = Load(np.full(9, 0.001), np.array([200] * 8 + [429]), np.zeros(9), 1.0)
    found, trials = highest_rate(lambda rate: refused, p99_ms=50, start=8)
    assert found == 0
    assert [row["asked"] for row in trials] == [8, 4, 2, 1]


@pytest.mark.parametrize("url", ["localhost:80", "ftp://x", "http://", "http://x:99999"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no URL"):
        Target.parse(url)


def test_who_asks_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id\n1\n2\n2\n")
    assert sorted(user_bodies(tmp_path / "users.csv", 5, 0)) == [
        b'{"user_id": 1, "k": 5}',
        b'{"user_id": 2, "k": 5}',
    ]
    with pytest.raises(DataError, match="no users"):
        user_bodies(tmp_path, 5, 0)
    with pytest.raises(ConfigError, match="whose requests"):
        bench_serve("http://127.0.0.1:9")
    with pytest.raises(StorageError, match="no server answers"):
        bench_serve("http://127.0.0.1:9", BenchConfig(seconds=1), users=tmp_path / "users.csv")


def test_an_artifact_is_served_and_measured(planted: Any, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    from gemirec.recommender import Recommender

    Recommender.fit(planted, model="popularity").save_pretrained(tmp_path / "artifact")
    found = bench_serve(str(tmp_path / "artifact"), BenchConfig(rate=30, seconds=2, k=20))
    assert (found["requests"], found["errors"], found["by_status"]) == (60, 0, {"200": 60})
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    (tmp_path / "artifact" / "model.safetensors").write_bytes(b"")
    said = gemirec("bench", "serve", tmp_path / "artifact", "--rate", "1", cwd=tmp_path, code=2).stderr
    assert "the server does not start" in said
