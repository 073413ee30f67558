"""Stores that are killed, cut, overwritten, filled up, or away."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.components.selection import Selected
from gemirec.errors import ArtifactError, GemirecError, StorageError
from gemirec.retrieval.interest_cache import CacheInfo, CacheRows, write_cache
from gemirec.retrieval.stores import (
    Bulk,
    InterestStore,
    StoreUnavailableError,
    bulk_of_cache,
    fill_store,
    open_store,
    served_generation,
    switch_store,
)
from gemirec.retrieval.stores.base import Block
from support_stores import INFO, Clock, RedisServer, bulk, need_redis, records

ENGINES = ("memory_map", "lmdb")


def killed_while_filling(fill: Callable[[Bulk], object]) -> None:
    """Fill in a process of its own and kill it when some blocks are in."""
    reader, writer = os.pipe()

    def blocks() -> Iterator[Block]:
        for first in range(0, 100_000, 50):
            yield list(range(first, first + 50)), records(INFO.codec(), np.arange(first, first + 50) + 1, 10**15)
            os.write(writer, b".")
            time.sleep(0.01)

    process = os.fork()
    if not process:
        try:
            fill(Bulk(INFO, 100_000, blocks()))
        finally:
            os._exit(1)
    seen = b""
    while len(seen) < 5:
        seen += os.read(reader, 1)
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


def firsts(store: InterestStore, users: range = range(40)) -> list[int]:
    """The first interest of each user, -1 for those who are not found."""
    found = store.get_many(list(users))
    first_B: list[int] = np.where(found.found_B, found.record_B["index"][:, 0].astype(int), -1).tolist()
    return first_B


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_during_bulk_load_leaves_the_version_before(engine: str, tmp_path: Path) -> None:
    if engine == "lmdb":
        pytest.importorskip("lmdb")
    fill_store(tmp_path, bulk(range(40), 10**15), engine=engine)  # type: ignore[arg-type]
    before = served_generation(tmp_path)
    killed_while_filling(lambda slow: fill_store(tmp_path, slow, engine=engine))  # type: ignore[arg-type]
    assert served_generation(tmp_path) == before
    store = open_store(tmp_path)
    assert firsts(store) == list(range(40))
    store.close()
    fill_store(tmp_path, bulk(range(40), 10**15 + 1), engine=engine)  # type: ignore[arg-type]
    assert (
        len(list((tmp_path / "generations").iterdir())) == 2
    )  # the one before is kept for its readers, the wreck is not


def test_killed_during_bulk_load_of_redis_leaves_the_version_before(tmp_path: Path) -> None:
    need_redis()
    from gemirec.retrieval.stores.redis_store import fill_redis, open_redis

    server = RedisServer(tmp_path)
    try:
        fill_redis(server.url, bulk(range(40), 10**15))
        killed_while_filling(lambda slow: fill_redis(server.url, slow))
        store = open_redis(server.url)
        assert firsts(store) == list(range(40))
        client = store._shelf._connection.client  # type: ignore[attr-defined]
        assert client.dbsize() > 200
        fill_redis(server.url, bulk(range(40), 10**15 + 1))
        assert client.dbsize() == 82  # two generations and two keys about them: nothing of the wreck
        store.close()
    finally:
        server.kill()


def test_two_processes_do_not_fill_at_once(tmp_path: Path) -> None:
    def blocks() -> Iterator[object]:
        with pytest.raises(StorageError, match="another process is filling"):
            fill_store(tmp_path, bulk(range(3), 1))
        yield [1], records(INFO.codec(), [1], 10**15)

    fill_store(tmp_path, Bulk(INFO, 1, blocks()))  # type: ignore[arg-type]
    assert firsts(open_store(tmp_path), range(2)) == [-1, 1]


@pytest.mark.parametrize("limit", [2_000, 40_000, 200_000])
def test_a_full_disk_leaves_the_version_before(limit: int, tmp_path: Path) -> None:
    """The file system takes no file above a limit, which is met at different steps."""
    fill_store(tmp_path, bulk(range(40), 10**15))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StorageError, match="choose another"):
            fill_store(tmp_path, bulk(range(1, 20_000), 10**15, block=5000))
        store = open_store(tmp_path)
        store.set_many([1, "late"], records(store.codec, [5, 6], 10**15))  # its bytes were taken beforehand
        store.mark_stale([3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert firsts(store) == [0, 5, *range(2, 40)]
    assert store.get_many(["late"]).found_B.all()
    assert len(list((tmp_path / "generations").iterdir())) == 1


def test_files_that_are_cut_or_damaged_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a file is missing"):
        open_store(tmp_path)
    fill_store(tmp_path, bulk(range(40), 10**15))
    (values,) = tmp_path.glob("generations/*/values.bin")
    info = values.with_name("info.json")
    cases: list[tuple[Path, bytes, str]] = [
        (values, values.read_bytes()[:-1], "cut"),
        (values, b"", "cut"),
        (info, b"{", "damaged"),
        (info, info.read_bytes().replace(b'"k"', b'"q"'), "damaged"),
        (info, info.read_bytes().replace(b'"format_version": 1', b'"format_version": 9'), "another format version"),
        (tmp_path / "current.json", b"[]", "another format version"),
        (tmp_path / "current.json", b'{"format_version": 1, "generation": "../../etc"}', "pointer"),
        (tmp_path / "marks.bin", b"", "cut"),
        (tmp_path / "marks.bin", b"123", "cut"),
    ]
    for path, content, said in cases:
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=said):
            open_store(tmp_path)
        path.write_bytes(whole)
    with pytest.raises(ArtifactError, match="missing"):
        switch_store(tmp_path, "none")
    store = open_store(tmp_path)
    values.unlink()
    assert firsts(store) == list(range(40))  # an open file stays
    with pytest.raises(ArtifactError, match="missing"):
        open_store(tmp_path)


@pytest.mark.parametrize("content", [b"\0", b"\xff", None])
def test_a_file_of_any_content_serves_nothing_wrong(content: bytes | None, tmp_path: Path) -> None:
    """All of the map overwritten, while it is open: nobody is found, and it can be filled again by requests."""
    fill_store(tmp_path, bulk(range(40), 10**15))
    store = open_store(tmp_path)
    (values,) = tmp_path.glob("generations/*/values.bin")
    size = values.stat().st_size
    with values.open("r+b") as stream:
        stream.write(np.random.default_rng(0).bytes(size) if content is None else content * size)
    assert firsts(store) == [-1] * 40
    store.mark_stale(list(range(40)))
    for _ in range(2):  # the second time in place
        store.set_many(list(range(40)), records(store.codec, range(7, 47), store.now()))
        assert firsts(store) == list(range(7, 47))


def test_more_users_than_slots_are_forgotten_oldest_first_and_nothing_else_happens(tmp_path: Path) -> None:
    fill_store(tmp_path, bulk(range(10), 1))  # 4096 slots
    store = open_store(tmp_path)
    for first in range(0, 20_000, 500):
        users = np.arange(first, first + 500)
        store.set_many(users.tolist(), records(store.codec, users, 10**15 + first))
        found = store.get_many(users.tolist())
        assert found.found_B.mean() > 0.9
        assert (found.record_B["index"][found.found_B, 0] == users[found.found_B] % 300).all()
    found = store.get_many(list(range(20_000)))
    assert 3500 < found.found_B.sum() <= 4096
    assert found.found_B[-2000:].mean() > 0.6 > 0.2 > found.found_B[:10_000].mean()
    assert store.corrupt == 0


def parquet(path: Path, users: int, *, highest: int = 11) -> CacheInfo:
    info = CacheInfo(
        k=2, epsilon=3, levels=[1], sizes=[4, 3], dictionary_version="d", model_version="m", model="gemirec",
        dataset_fingerprint="f", history="all",
    )  # fmt: skip
    index_UK = torch.arange(2 * users).view(-1, 2) % (highest + 2) - 1
    chosen = Selected(index_UK, torch.where(index_UK < 0, -torch.inf, -index_UK.float() / 8))
    ids = pl.Series([f"u{number}" for number in range(users)])
    rows = [CacheRows(ids, chosen, np.arange(users))]
    write_cache(path, info, rows)
    return info


def test_the_streamed_file_fills_a_store(tmp_path: Path) -> None:
    info, path = parquet(tmp_path / "cache.parquet", 500), tmp_path / "cache.parquet"
    filled = fill_store(tmp_path / "store", bulk_of_cache(path, precision="float16"))
    assert (filled.version, filled.dictionary_version, filled.epsilon) == ("m", "d", 3)
    assert (filled.layout.k, filled.layout.entries) == (info.k, 12)
    store = open_store(tmp_path / "store")
    found = store.get_many([f"u{number}" for number in range(500)])
    assert found.found_B.all()
    chosen = store.codec.indices(found.record_B)
    index_UK = torch.arange(1000).view(-1, 2) % 13 - 1
    assert torch.equal(chosen.index_Bk, index_UK)
    assert torch.equal(chosen.logp_Bk, torch.where(index_UK < 0, -torch.inf, -index_UK.float() / 8))
    assert found.record_B["index"].dtype.itemsize == 1  # 12 interests and none: one byte
    written = found.record_B["written"]
    assert set(written.tolist()) == {round(1e6 * path.stat().st_mtime)}
    dated = bulk_of_cache(path, as_of=1000.5)
    assert next(iter(dated.blocks))[1]["written"][0] == 1_000_500_000


def test_a_damaged_streamed_file_leaves_the_version_before(tmp_path: Path) -> None:
    path = tmp_path / "cache.parquet"
    parquet(path, 500)
    fill_store(tmp_path / "store", bulk_of_cache(path))
    before = served_generation(tmp_path / "store")
    whole = path.read_bytes()
    for content in (whole[:100], whole[:200] + b"\xff" * 60 + whole[260:]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="damaged or cut"):
            fill_store(tmp_path / "store", bulk_of_cache(path))
    parquet(path, 500, highest=12)
    with pytest.raises(ArtifactError, match=r"indices that its dictionary does not have[\s\S]*-1 to 12, 12 interests"):
        fill_store(tmp_path / "store", bulk_of_cache(path))
    assert served_generation(tmp_path / "store") == before


def test_redis_gone_and_back(tmp_path: Path) -> None:
    """While it is gone each call fails, the later ones at once; when it is back it is used without a new connection."""
    need_redis()
    from gemirec.retrieval.stores.redis_store import fill_redis, open_redis

    server, clock = RedisServer(tmp_path), Clock()
    try:
        info = fill_redis(server.url, bulk(range(40), 10**15))
        store = open_redis(server.url, monotonic=lambda: clock.micros / 1e6)
        assert firsts(store) == list(range(40))
        server.kill()
        client = store._shelf._connection.client  # type: ignore[attr-defined]
        tried, real = [], client.mget

        def mget(keys: list[bytes]) -> object:
            tried.append(clock.micros)
            return real(keys)

        client.mget = mget
        start = time.perf_counter()
        for _ in range(200):
            with pytest.raises(StoreUnavailableError):
                store.get_many([1, 2])
            clock.sleep(0.1)
        assert time.perf_counter() - start < 2
        gaps = np.diff(tried) / 1e6
        assert gaps[:5] == pytest.approx([0.2, 0.3, 0.5, 0.9, 1.7], abs=0.11)
        assert gaps[-1] == pytest.approx(5, abs=0.11)
        with pytest.raises(StoreUnavailableError):
            store.set_many([1], records(store.codec, [1], 1))
        with pytest.raises(StoreUnavailableError):
            store.mark_stale([1])
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            open_redis(server.url)
        late = open_redis(server.url, info=info)  # a release knows its generation
        server.start()
        clock.sleep(6)
        assert firsts(store) == [-1] * 40
        store.set_many([1], records(store.codec, [1], 10**15))
        assert firsts(store, range(3)) == firsts(late, range(3)) == [-1, 1, -1]
        for part in (store, late):
            part.close()
    finally:
        server.kill()


def test_a_redis_that_hangs_costs_one_timeout(tmp_path: Path) -> None:
    need_redis()
    from gemirec.retrieval.stores.redis_store import fill_redis, open_redis

    server = RedisServer(tmp_path)
    try:
        fill_redis(server.url, bulk(range(40), 10**15))
        store = open_redis(server.url, timeout=0.1)
        assert firsts(store) == list(range(40))
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
        start = time.perf_counter()
        for _ in range(100):
            with pytest.raises(StoreUnavailableError):
                store.get_many([1])
        assert time.perf_counter() - start < 1.5
        server._process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert firsts(store) == list(range(40))
        store.close()
    finally:
        server.kill()


def test_a_full_redis_refuses_and_the_version_before_stays(tmp_path: Path) -> None:
    need_redis()
    import redis

    from gemirec.retrieval.stores.redis_store import fill_redis, open_redis

    server = RedisServer(tmp_path)
    try:
        fill_redis(server.url, bulk(range(40), 10**15))
        store = open_redis(server.url, timeout=5)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(GemirecError, match="Redis"):
                fill_redis(server.url, bulk(range(1, 20_000), 10**15))
            assert firsts(store) == list(range(40))
            client.config_set("maxmemory", 0)
        again = open_redis(server.url, timeout=5)
        assert again.info == store.info
        for part in (store, again):
            part.close()
    finally:
        server.kill()
