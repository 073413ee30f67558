"""Open-loop load: requests leave at times fixed beforehand, and latency counts from those times.

A client that waits for an answer before it asks again asks less often when the server is slow, and so never sees what
users would have seen (coordinated omission). Here the times of arrival are drawn before the first request. A request
that cannot leave in time, because this process or the connections are busy, is late from its intended time on.

Axes: N requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from numpy.typing import NDArray

MOST_CONNECTIONS = 512
"""Most connections; requests beyond wait for one, and that is in their latency."""
_LENGTH = b"content-length:"


class Target(NamedTuple):
    """Where requests go.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: Whether it speaks TLS.
        path: Of the route.
        headers: Further headers, such as an API key.
    """

    host: str
    port: int
    tls: bool = False
    path: str = "/recommend"
    headers: Mapping[str, str] = {}

    @classmethod
    def parse(cls, url: str, headers: Mapping[str, str] | None = None) -> Target:
        """Return the target of a URL.

        Raises:
            ConfigError: It is none.

        Example:
            >>> Target.parse("http://localhost:8000")[:4]
            ('localhost', 8000, False, '/recommend')
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError("this is no URL of a server", got=url, fix="give one like http://localhost:8000")
        tls = parts.scheme == "https"
        path = parts.path if parts.path not in ("", "/") else "/recommend"
        return cls(parts.hostname, port or (443 if tls else 80), tls, path, headers or {})

    def message(self, body: bytes) -> bytes:
        """Return a request as it goes over the wire."""
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-type: application/json\r\n"
            f"{more}content-length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body


class Load(NamedTuple):
    """What became of the requests of a run.

    Attributes:
        latency_N: ``[N]`` seconds from the intended arrival to the last byte of the answer, or to the failure.
        status_N: ``[N]`` HTTP status, 0 where there was no answer.
        late_N: ``[N]`` seconds by which the client itself sent too late: large values mean that the client, not the
            server, is measured.
        seconds: Length of the plan.
    """

    latency_N: NDArray[np.float64]
    status_N: NDArray[np.int64]
    late_N: NDArray[np.float64]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return counts, rates, and latency in milliseconds of all requests, failed ones included."""
        ends = np.percentile(self.latency_N, [50, 95, 99]) * 1000
        counts = Counter(self.status_N.tolist())
        return {
            "requests": len(self.latency_N),
            "rate": len(self.latency_N) / self.seconds,
            **{name: round(float(value), 2) for name, value in zip(("p50_ms", "p95_ms", "p99_ms"), ends, strict=True)},
            "max_ms": round(float(self.latency_N.max()) * 1000, 2),
            "errors": len(self.latency_N) - counts[200],
            "by_status": {str(status or "no answer"): count for status, count in sorted(counts.items())},
            "client_late_p99_ms": round(float(np.percentile(self.late_N, 99)) * 1000, 2),
        }


def arrivals(
    rate: float, seconds: float, kind: Literal["poisson", "constant"] = "poisson", seed: int = 1
) -> NDArray[np.float64]:
    """Return the times at which requests are to leave, in seconds from the start.

    Raises:
        ConfigError: There would be none.

    Example:
        >>> arrivals(4, 1, "constant").tolist()
        [0.0, 0.25, 0.5, 0.75]
    """
    count = int(rate * seconds) if rate > 0 and seconds > 0 else 0
    if not count:
        got = f"{rate} requests a second for {seconds} s"
        raise ConfigError("a load needs at least one request", got=got, fix="give a higher --rate or more --seconds")
    if kind == "constant":
        return np.arange(count) / rate
    # Given their number, the arrivals of a Poisson process are uniform: equal runs ask equally often.
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, count))


class _Connections:
    """Kept connections, as many as are busy at once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._limit = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(self, message: bytes) -> tuple[int, float]:
        """Send a request; return its status and when it was sent.

        Raises:
            OSError: There is no answer.
            EOFError: The answer is cut.
        """
        async with self._limit:
            pair = self._free.pop() if self._free else await self._open()
            try:
                sent = time.perf_counter()
                pair[1].write(message)
                status, keep = await _answer(pair[0])
            except BaseException:
                pair[1].close()
                raise
            if keep:
                self._free.append(pair)
            else:
                pair[1].close()
            return status, sent

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._target.host, self._target.port, ssl=self._target.tls or None)

    def close(self) -> None:
        """Close what is kept."""
        for _, writer in self._free:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read an answer to its end; return its status, and whether the connection stays."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(_LENGTH)[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or 0))
    return int(head[9:12]), b"connection: close" not in head


async def run_load(
    target: Target, bodies: Sequence[bytes], at_N: NDArray[np.float64], *, seconds: float, timeout_s: float = 30.0
) -> Load:
    """Send requests at the times ``at_N``, whatever becomes of those before.

    Args:
        target: Where to.
        bodies: Taken in turn.
        at_N: ``[N]`` ascending seconds from the start.
        seconds: Length of the plan, for the rate.
        timeout_s: After which a request counts as not answered.
    """
    connections, tasks = _Connections(target), []
    messages = [target.message(body) for body in bodies]
    latency_N, late_N = np.zeros(len(at_N)), np.zeros(len(at_N))
    status_N = np.zeros(len(at_N), dtype=np.int64)
    start = time.perf_counter() + 0.05

    async def one(number: int, due: float) -> None:
        late_N[number] = time.perf_counter() - due
        with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                status_N[number], sent = await connections.ask(messages[number % len(messages)])
                late_N[number] = sent - due
        latency_N[number] = time.perf_counter() - due

    for number, due in enumerate((start + at_N).tolist()):
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    connections.close()
    return Load(latency_N, status_N, late_N, seconds)


def run_clocked(load: Coroutine[Any, Any, Load]) -> Load:
    """Run a load in an event loop that wakes on time: epoll waits in whole milliseconds, select in microseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(load)


def highest_rate(
    measure: Callable[[float], Load], *, p99_ms: float, start: float, within: float = 0.05
) -> tuple[float, list[dict[str, Any]]]:
    """Return the highest rate at which every request is answered and p99 stays below a limit, and all trials.

    The rate is doubled until it fails, then bisected by its logarithm. Where already the first fails, it is halved.

    Args:
        measure: Runs a load of so many requests a second.
        p99_ms: The limit, milliseconds.
        start: First rate to try.
        within: Stop when the rate is known so well.

    Returns:
        The rate, 0 if none was met down to 1 request a second; and a row for each trial.
    """
    trials: list[dict[str, Any]] = []

    def meets(rate: float) -> bool:
        found = measure(rate).summary()
        ok = found["errors"] == 0 and float(found["p99_ms"]) <= p99_ms
        trials.append({"asked": round(rate, 1), "met": ok, **found})
        return ok

    met, failed = 0.0, math.inf
    rate = start
    while failed == math.inf or not met:
        if meets(rate):
            met, rate = rate, 2 * rate
        else:
            failed, rate = rate, rate / 2
            if failed <= 1:
                return 0.0, trials
        if met and failed < math.inf:
            break
    while failed / met > 1 + within:
        rate = math.sqrt(met * failed)
        met, failed = (rate, failed) if meets(rate) else (met, rate)
    return met, trials
