"""Micro-batches: requests that arrive at the same time are answered together, on one thread.

Torch runs on one worker thread while the event loop reads and writes. A request that finds the worker free starts at
once; while it is busy others gather, and the next batch takes all of one kind that wait, up to a limit. Waiting for
company on purpose (``wait_s``) only pays where a batch costs hardly more than one request.

Nothing waits without bound: the queue is finite (429 beyond it), every request has a deadline (504), and whoever gave
up is dropped before any work is done for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemirec.errors import GemirecError
from gemirec.serving.http import HttpError

if TYPE_CHECKING:
    from gemirec.serving.engine import Engine, Kind
    from gemirec.serving.metrics import Metrics


@dataclass(eq=False)
class Job:
    """Requests of one call that wait together."""

    engine: Engine
    kind: Kind
    requests: Sequence[Any]
    future: asyncio.Future[list[Any]]
    since: float
    taken: bool = False


class Batcher:
    """Gathers requests and answers them on one thread.

    Args:
        metrics: Where waiting times, batch sizes and the length of the queue go.
        max_batch: Most requests of one batch; a longer call is split.
        max_queue: Most requests that wait.
        wait_s: How long the first of a batch waits for others while the worker is free.
    """

    def __init__(self, metrics: Metrics, *, max_batch: int, max_queue: int, wait_s: float = 0.0) -> None:
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._wait_s = wait_s
        self._jobs: deque[Job] = deque()
        self._waiting = 0
        self._worker = ThreadPoolExecutor(1, "gemirec-worker")
        self._running: asyncio.Task[None] | None = None
        self._request_s = 0.005
        """Running mean of the seconds of one request."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._waiting

    async def ask(
        self,
        engine: Engine,
        kind: Kind,
        requests: Sequence[Any],
        deadline: float,
        numbers: Sequence[int] | None = None,
    ) -> list[Any]:
        """Return the answers of ``engine`` to ``requests``.

        Args:
            engine: Who answers.
            kind: The question.
            requests: Any number; more than a batch are answered batch by batch, so that others are not held up.
            deadline: By the clock of the event loop.
            numbers: What the requests are called in errors, if they are a part of a call; ``None`` counts from 0.

        Raises:
            HttpError: The queue is full (429) or the deadline has passed (504).
            GemirecError: What is wrong with a request.
        """
        out: list[Any] = []
        for start in range(0, len(requests), self._max_batch):
            out += await self._ask(engine, kind, requests[start : start + self._max_batch], deadline)
        for number, answer in enumerate(out):
            if isinstance(answer, GemirecError):
                name = number if numbers is None else numbers[number]
                raise answer if len(out) == 1 and name == 0 else _numbered(answer, name)
            if isinstance(answer, Exception):
                raise answer
        return out

    async def stop(self) -> None:
        """Answer what waits, then let the thread go."""
        if self._running is not None:
            await self._running
        self._worker.shutdown()

    async def _ask(self, engine: Engine, kind: Kind, requests: Sequence[Any], deadline: float) -> list[Any]:
        """Put one job in the queue and wait for it."""
        if self._waiting and self._waiting + len(requests) > self._max_queue:
            seconds = max(1, math.ceil(self._waiting * self._request_s))
            raise HttpError(
                429,
                "the server has more to do than it can",
                got=f"{self._waiting} requests are waiting",
                fix="ask again after the seconds in Retry-After",
                headers={"retry-after": str(seconds)},
            )
        loop = asyncio.get_running_loop()
        job = Job(engine, kind, requests, loop.create_future(), loop.time())
        self._jobs.append(job)
        self._add(len(requests))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout_at(deadline):
                return await job.future
        except TimeoutError:
            raise HttpError(
                504,
                "there was no answer before the deadline",
                got=f"{loop.time() - job.since:.3f} s in the queue and at work",
                fix="ask again later, or with a longer X-Deadline-Ms",
            ) from None
        finally:
            if not job.taken:  # given up while it waited: drop it
                self._jobs.remove(job)
                self._add(-len(requests))

    def _add(self, count: int) -> None:
        self._waiting += count
        self._metrics.queue.set(self._waiting)

    async def _work(self) -> None:
        """Answer batch after batch until nothing waits."""
        loop = asyncio.get_running_loop()
        if self._wait_s:
            await asyncio.sleep(self._wait_s)
        while jobs := self._take():
            requests = [request for job in jobs for request in job.requests]
            for job in jobs:
                self._metrics.observe("queue", loop.time() - job.since)
            self._metrics.batch(len(requests))
            start = time.perf_counter()
            method = getattr(jobs[0].engine, jobs[0].kind)
            answers = await loop.run_in_executor(self._worker, _answers, method, requests)
            self._request_s += 0.05 * ((time.perf_counter() - start) / len(requests) - self._request_s)
            for job in jobs:
                taken, answers = answers[: len(job.requests)], answers[len(job.requests) :]
                if not job.future.done():
                    job.future.set_result(taken)

    def _take(self) -> list[Job]:
        """Take the first job and those right behind it of the same question, as many as fit."""
        jobs: list[Job] = []
        size = 0
        while self._jobs:
            job = self._jobs[0]
            alike = not jobs or (job.engine is jobs[0].engine and job.kind == jobs[0].kind)
            if jobs and (not alike or size + len(job.requests) > self._max_batch):
                break
            job.taken = True
            jobs.append(self._jobs.popleft())
            size += len(job.requests)
            self._add(-len(job.requests))
        return jobs


def _answers(method: Callable[[Sequence[Any]], Sequence[Any]], requests: Sequence[Any]) -> list[Any]:
    """Return the answers of a batch; if it fails as a whole, each request stands for itself."""
    try:
        return list(method(requests))
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [_answers(method, [request])[0] for request in requests]


def _numbered(error: GemirecError, number: int) -> GemirecError:
    """Return an error that says which request of a batch it belongs to."""
    got = f"request {number}: {error.got}"
    if isinstance(error, HttpError):
        return HttpError(error.status, error.what, got=got, fix=error.fix, headers=error.headers)
    return type(error)(error.what, got=got, fix=error.fix)
