"""The queue: batches, deadlines, refusals, and what happens to work that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from gemirec.errors import ConfigError
from gemirec.serving.batching import Batcher
from gemirec.serving.http import HttpError
from gemirec.serving.metrics import Metrics


class Slow:
    """An engine that doubles numbers, so slowly as it is told; it notes what it was asked."""

    version = "slow"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[Any]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def recommend(self, requests: Sequence[Any]) -> list[Any]:
        self.batches.append(list(requests))
        self.threads.add(threading.get_ident())
        self.gate.wait(10)
        time.sleep(self.seconds)
        if "bad" in requests:
            raise ValueError("one of these")
        return [ConfigError("odd", got=str(each), fix="even") if each == 13 else each * 2 for each in requests]

    similar = recommend

    def close(self) -> None: ...


def story(run: Callable[[Batcher, Slow], Coroutine[Any, Any, Any]], engine: Slow, **settings: Any) -> Any:
    async def whole() -> Any:
        batcher = Batcher(Metrics(), **{"max_batch": 4, "max_queue": 8, **settings})
        try:
            return await run(batcher, engine)
        finally:
            await batcher.stop()

    return asyncio.run(whole())


def later(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def test_requests_that_wait_are_answered_together_in_order_on_one_thread() -> None:
    async def run(batcher: Batcher, engine: Any) -> list[Any]:
        return list(await asyncio.gather(*(batcher.ask(engine, "recommend", [n], later()) for n in range(8))))

    engine = Slow(0.01)
    assert story(run, engine) == [[n * 2] for n in range(8)]
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(engine.threads) == 1


def test_one_that_finds_the_worker_free_does_not_wait_and_others_gather_meanwhile() -> None:
    async def run(batcher: Batcher, engine: Any) -> None:
        first = asyncio.create_task(batcher.ask(engine, "recommend", [1], later()))
        await asyncio.sleep(0.02)
        rest = [asyncio.create_task(batcher.ask(engine, "recommend", [n], later())) for n in (2, 3)]
        await asyncio.gather(first, *rest)

    engine = Slow(0.1)
    story(run, engine)
    assert engine.batches == [[1], [2, 3]]


def test_a_long_call_is_split_and_lets_others_in_between() -> None:
    async def run(batcher: Batcher, engine: Any) -> Any:
        long = asyncio.create_task(batcher.ask(engine, "recommend", list(range(20, 32)), later()))
        await asyncio.sleep(0)
        short = asyncio.create_task(batcher.ask(engine, "recommend", [1], later()))
        return await long, await short

    engine = Slow()
    long, short = story(run, engine)
    assert long == [n * 2 for n in range(20, 32)]
    assert short == [2]
    assert engine.batches.index([1]) < len(engine.batches) - 1


def test_questions_and_engines_are_not_mixed() -> None:
    other: Any = Slow()

    async def run(batcher: Batcher, engine: Any) -> None:
        ask = batcher.ask
        calls = [ask(engine, "recommend", [1], later()), ask(engine, "similar", [2], later())]
        calls += [ask(other, "similar", [3], later()), ask(other, "similar", [4], later())]
        await asyncio.gather(*calls)

    engine = Slow()
    story(run, engine)
    assert (engine.batches, other.batches) == ([[1], [2]], [[3, 4]])


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def run(batcher: Batcher, engine: Any) -> list[Any]:
        engine.gate.clear()
        tasks = [asyncio.create_task(batcher.ask(engine, "recommend", [n], later())) for n in range(20)]
        await asyncio.sleep(0.05)
        refused = [task for task in tasks if task.done()]
        engine.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(refused) == 12
        return done

    engine = Slow()
    done = story(run, engine)
    errors = [each for each in done if isinstance(each, HttpError)]
    assert [error.status for error in errors] == [429] * 12
    assert all(int(error.headers["retry-after"]) >= 1 for error in errors)
    assert sum(map(len, engine.batches)) == 8


def test_work_past_its_deadline_is_dropped_not_done() -> None:
    async def run(batcher: Batcher, engine: Any) -> Any:
        engine.gate.clear()
        first = asyncio.create_task(batcher.ask(engine, "recommend", [1], later()))
        await asyncio.sleep(0.01)
        start = time.perf_counter()
        late = await asyncio.gather(
            *(batcher.ask(engine, "recommend", [n], later(0.05)) for n in (2, 3)), return_exceptions=True
        )
        waited, waiting = time.perf_counter() - start, batcher.waiting
        gone = asyncio.create_task(batcher.ask(engine, "recommend", [4], later()))
        await asyncio.sleep(0.01)
        gone.cancel()
        engine.gate.set()
        return late, waited, waiting, await first, await batcher.ask(engine, "recommend", [5], later())

    engine = Slow()
    late, waited, waiting, first, fifth = story(run, engine)
    assert [error.status for error in late] == [504, 504]
    assert waited < 5
    assert waiting == 0
    assert (first, fifth) == ([2], [10])
    assert engine.batches == [[1], [5]]


def test_one_request_that_breaks_its_batch_breaks_alone() -> None:
    async def run(batcher: Batcher, engine: Any) -> list[Any]:
        asks: list[list[Any]] = [[1], ["bad"], [13], [2]]
        calls = (batcher.ask(engine, "recommend", ask, later()) for ask in asks)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    first, bad, odd, last = story(run, Slow())
    assert (first, last) == ([2], [4])
    assert isinstance(bad, ValueError)
    assert isinstance(odd, ConfigError)


def test_an_error_in_a_call_of_many_says_which() -> None:
    async def run(batcher: Batcher, engine: Any) -> None:
        await batcher.ask(engine, "recommend", [1, 2, 3, 4, 5, 13], later())

    with pytest.raises(ConfigError, match="request 5: 13"):
        story(run, Slow())


def test_stopping_answers_what_waits() -> None:
    async def run(batcher: Batcher, engine: Any) -> list[Any]:
        tasks = [asyncio.create_task(batcher.ask(engine, "recommend", [n], later())) for n in range(8)]
        await asyncio.sleep(0)
        await batcher.stop()
        return list(await asyncio.gather(*tasks))

    assert story(run, Slow(0.01)) == [[n * 2] for n in range(8)]
