"""Stores under test, one factory for each kind, and a Redis of one's own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.selection import Selected
from gemirec.retrieval.stores import Bulk, InterestStore, Layout, StoreInfo, fill_store, memory_store, open_store
from gemirec.retrieval.stores.codec import Codec, Records

KINDS = ("memory", "memory_map", "lmdb", "redis")
INFO = StoreInfo(version="model-a", layout=Layout(kind="indices", k=3, entries=300), model="gemirec")


class Clock:
    """Microseconds that go on only when told."""

    def __init__(self) -> None:
        self.micros = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.micros

    def sleep(self, seconds: float) -> None:
        self.micros += round(1e6 * seconds)


class RedisServer:
    """A Redis on a socket in a folder, that can be killed and started again, with nothing kept."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        home = str(self.socket.parent)
        words = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", home]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        import redis

        for _ in range(400):
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.RedisError:
                time.sleep(0.025)
        raise AssertionError("redis-server does not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def need_redis() -> None:
    """Skip the test where there is no Redis."""
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server here")


class Kind:
    """One kind of store: fill a generation, open the one that is served."""

    def __init__(self, name: str, folder: Path, redis: Callable[[], RedisServer]) -> None:
        self.name, self.folder = name, folder
        self._redis = redis
        self._shelves: list[tuple[StoreInfo, Any]] = []
        self._marks: dict[bytes, int] = {}

    def forget(self) -> None:
        """Begin anew."""
        self._shelves, self._marks = [], {}
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.name == "redis":
            import redis

            with redis.Redis.from_url(self._redis().url) as client:
                client.flushall()

    def fill(self, bulk: Bulk) -> None:
        if self.name == "memory":
            store = memory_store(bulk.info, bulk, marks=self._marks)
            self._shelves.append((store.info, store._shelf))
        elif self.name == "redis":
            from gemirec.retrieval.stores.redis_store import fill_redis

            fill_redis(self._redis().url, bulk)
        else:
            if self.name == "lmdb":
                pytest.importorskip("lmdb")
            fill_store(self.folder, bulk, engine=self.name)  # type: ignore[arg-type]

    def open(self, **options: Any) -> InterestStore:
        if self.name == "memory":
            info, shelf = self._shelves[-1]
            return InterestStore(shelf, info, **options)
        if self.name == "redis":
            from gemirec.retrieval.stores.redis_store import open_redis

            return open_redis(self._redis().url, timeout=5, **options)
        return open_store(self.folder, **options)


def records(codec: Codec, number_B: Any, written: int) -> Records:
    """Records whose interests tell whose they are: numbers n, n + 1, n + 2 modulo 300."""
    index_BK = (torch.as_tensor(np.asarray(number_B))[:, None] + torch.arange(3)) % 300
    return codec.pack_indices(Selected(index_BK, -index_BK.float()), written)


def bulk(numbers: Any, written: int, info: StoreInfo = INFO, block: int = 100) -> Bulk:
    """Users called after their numbers."""
    numbers = np.asarray(numbers)
    codec = info.codec()
    parts = [numbers[start : start + block] for start in range(0, len(numbers), block)]
    return Bulk(info, len(numbers), ((part.tolist(), records(codec, part, written)) for part in parts))
