"""How fast the interest cache is filled and read, on one thread: users/s, and look-ups of a request.

A GemiRec with the paper's generator and dictionary and random weights, random histories of 20 items, made in memory:
what is timed is the generator, the limit on repeated codes, and the file.

    python benchmarks/interest_cache.py
    python benchmarks/interest_cache.py --users 100000 --head factorised --batch 256 512 1024
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from gemirec.config import merge
from gemirec.data.dataset import DataSpec
from gemirec.experiments.cache import CacheConfig, UserBlock, cache_info, select_block
from gemirec.models.base import Histories
from gemirec.models.catalog import build_model, load_profile
from gemirec.models.gemirec import GemiRec
from gemirec.retrieval.interest_cache import InterestCache, cached_interests, take_users, write_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
BLOCK, LENGTH = 65_536, 20


def random_model(items: int, head: str) -> GemiRec:
    torch.manual_seed(0)
    values = merge(load_profile("gemirec", "paper")["model"], {"decoder": {"head": head}})
    model = build_model("gemirec", values, DataSpec(items, np.ones(items + 1, dtype=np.int64)))
    assert isinstance(model, GemiRec)
    with torch.no_grad():
        model.start_dictionary()
        model.start_joint()
        for weight in model.decoder.head.parameters() if model.decoder is not None else ():
            weight.mul_(8)
    return model.eval()


def random_users(users: int, items: int) -> Iterator[UserBlock]:
    rng = np.random.default_rng(0)
    for first in range(0, users, BLOCK):
        number_B = np.arange(first, min(first + BLOCK, users))
        item_BL = torch.from_numpy(rng.integers(1, items + 1, (len(number_B), LENGTH)))
        yield UserBlock(pl.Series(number_B), Histories(item_BL), np.full(len(number_B), LENGTH))


def fill(model: GemiRec, users: int, items: int, batch: int, path: Path) -> None:
    info = cache_info(model, CacheConfig(), name="gemirec", fingerprint="", history="all")
    start, cpu = time.perf_counter(), time.process_time()
    write_cache(path, info, (select_block(model, block, info, batch) for block in random_users(users, items)))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = path.stat().st_size / users
    print(f"fill   batch {batch:>5}: {users / wall:>8,.0f} users/s, {users / cpu:>8,.0f} per CPU s, {size:.1f} B/user")


def read(model: GemiRec, users: int, items: int, path: Path) -> None:
    start = time.perf_counter()
    cache = InterestCache.open(path)
    print(f"open   {1e3 * (time.perf_counter() - start):.1f} ms for {len(cache):,} users")
    block = next(random_users(min(users, BLOCK), items))
    for size in (1, 512):
        row_R = torch.arange(size)
        ids, histories = pl.Series(row_R.numpy()), take_users(block.histories, row_R)
        time_it(f"{size:>4} users, look-up", partial(cache.get_many, ids))
        time_it(f"{size:>4} users, cached road", partial(cached_interests, model, cache, histories, ids))
        time_it(f"{size:>4} users, own road", partial(model.interests, histories))


@torch.no_grad()
def time_it(what: str, way: Callable[[], object]) -> None:
    times = []
    for _ in range(30):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    print(f"serve  {what:<24} median {1e3 * float(np.median(times)):8.3f} ms, best {1e3 * min(times):8.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--head", choices=["flat", "factorised"], default="flat")
    parser.add_argument("--batch", type=int, nargs="*", default=[CacheConfig().batch_size])
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):  # BLAS reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    model = random_model(args.items, args.head)
    print(f"{args.users:,} users, {model.num_interests:,} interests, {args.head} head, one thread")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.parquet"
        fill(model, min(args.users, 1024), args.items, args.batch[0], path)
        for batch in args.batch:
            fill(model, args.users, args.items, batch, path)
        read(model, args.users, args.items, path)


if __name__ == "__main__":
    main()
