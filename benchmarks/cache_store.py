"""What keeps cached interests best: a memory map, LMDB or Redis. Bulk load, look-ups, writes, size, and damaged files.

Users have K random interests of a dictionary of 16,384, in a Parquet file as ``gemirec cache`` writes it. Look-ups ask
for users at random, one in ten unknown; times are of the CPU, of this process (Redis works in another one). Each engine
is then opened again with bytes flipped at random, in a process of its own: what it answers, and whether it lives.

    python benchmarks/cache_store.py
    python benchmarks/cache_store.py --users 100000 --engines memory_map lmdb redis --damaged 40
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from gemirec.components.selection import Selected
from gemirec.retrieval.interest_cache import CacheInfo, CacheRows, write_cache
from gemirec.retrieval.stores import InterestStore, bulk_of_cache, fill_store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
K, CODES, BLOCK = 5, (128, 128), 65_536
INFO = CacheInfo(
    k=K, epsilon=3, levels=[1, 2], sizes=list(CODES), dictionary_version="d" * 64, model_version="m" * 64,
    model="gemirec", dataset_fingerprint="f", history="all",
)  # fmt: skip


def interests(users: int) -> Iterator[CacheRows]:
    rng = np.random.default_rng(0)
    for first in range(0, users, BLOCK):
        number_B = np.arange(first, min(first + BLOCK, users))
        index_BK = torch.from_numpy(rng.integers(0, CODES[0] * CODES[1], (len(number_B), K)))
        logp_BK = torch.from_numpy(-rng.random((len(number_B), K), dtype=np.float32))
        yield CacheRows(pl.Series(number_B * 7919), Selected(index_BK, logp_BK), np.full(len(number_B), 20))


def per_second(work: Callable[[int], Any], size: int, seconds: float = 0.3) -> float:
    work(0)
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        done += 1
        work(done)
    return done * size / (time.process_time() - start)


def measure(name: str, store: InterestStore, users: int) -> None:
    rng = np.random.default_rng(1)
    asked = [rng.integers(0, int(1.1 * users), 512) * 7919 for _ in range(64)]
    record_B = store.get_many(asked[0].tolist()).record_B
    for size in (1, 32, 512):
        ids = [part[:size].tolist() for part in asked]
        got = per_second(lambda i, ids=ids: store.get_many(ids[i % 64]), size)  # type: ignore[misc]
        part_B = np.resize(record_B[record_B["written"] > 0], size)
        put = per_second(lambda i, ids=ids, part=part_B: store.set_many(ids[i % 64], part), size)  # type: ignore[misc]
        print(
            f"{name:<11} {size:>4} users a call: {got:>11,.0f} get/s ({1e6 * size / got:7.0f} us a call), "
            f"{put:>11,.0f} put/s ({1e6 * size / put:7.0f} us)"
        )


def timed_fill(name: str, fill: Callable[[], Any], users: int, size: Callable[[], int]) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    fill()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{name:<11} bulk load of {users:,}: {wall:.1f} s, {cpu:.1f} CPU s, {size() / 1e6:,.0f} MB")


def folder_bytes(root: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in root.rglob("*") if file.is_file())


def embedded(engine: str, parquet: Path, home: Path, users: int, damaged: int) -> None:
    root = home / engine
    timed_fill(
        engine,
        lambda: fill_store(root, bulk_of_cache(parquet), engine=engine),  # type: ignore[arg-type]
        users,
        lambda: folder_bytes(root),
    )
    store = open_store(root)
    measure(engine, store, users)
    store.close()
    small, copy = home / f"{engine}-small", home / f"{engine}-damaged"
    bulk = bulk_of_cache(home / "small.parquet")
    fill_store(small, bulk, engine=engine)  # type: ignore[arg-type]
    outcomes: dict[str, int] = {}
    for seed in range(damaged):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(small, copy)
        words = [sys.executable, __file__, "--read-damaged", str(copy), str(seed)]
        done = subprocess.run(words, capture_output=True, text=True)
        said = done.stdout.strip() if done.returncode == 0 else f"process ended with {done.returncode}"
        outcomes[said] = outcomes.get(said, 0) + 1
    for said, count in sorted(outcomes.items()):
        print(f"{engine:<11} {count:>4} of {damaged} damaged files: {said}")


def read_damaged(root: Path, seed: int) -> None:
    """Flip bytes, then read all users; prints what came of it."""
    rng = np.random.default_rng(seed)
    (path,) = [file for file in root.glob("generations/*/*") if file.suffix in (".bin", ".mdb") and file.stem != "lock"]
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), 200):
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    try:
        store = open_store(root)
        found = store.get_many([7919 * number for number in range(20_000)])
        truth = np.concatenate([block.chosen.index_Bk.numpy() for block in interests(20_000)])
        wrong = found.found_B & (found.record_B["index"] != truth).any(axis=1)
        print("wrong interests served" if wrong.any() else "a few users missing, the others right")
    except Exception as error:
        print(f"refused: {type(error).__name__}")


def redis(parquet: Path, users: int) -> None:
    from gemirec.retrieval.stores.redis_store import fill_redis, open_redis

    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/socket"
        words = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            while not Path(socket).exists():
                time.sleep(0.05)
            url = f"unix://{socket}"
            store: list[InterestStore] = []

            def memory() -> int:
                store.append(open_redis(url, timeout=5))
                return int(store[0]._shelf._connection.client.info("memory")["used_memory"])  # type: ignore[attr-defined]

            timed_fill("redis", lambda: fill_redis(url, bulk_of_cache(parquet)), users, memory)
            measure("redis", store[0], users)
            store[0].close()
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--engines", nargs="*", default=["memory_map", "lmdb", "redis"])
    parser.add_argument("--damaged", type=int, default=20)
    parser.add_argument("--read-damaged", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read_damaged:
        read_damaged(Path(args.read_damaged[0]), int(args.read_damaged[1]))
        return
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):  # BLAS reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_cache(home / "cache.parquet", INFO, interests(args.users))
        write_cache(home / "small.parquet", INFO, interests(20_000))
        for engine in args.engines:
            if engine == "redis":
                redis(home / "cache.parquet", args.users)
            else:
                embedded(engine, home / "cache.parquet", home, args.users, args.damaged)


if __name__ == "__main__":
    main()
