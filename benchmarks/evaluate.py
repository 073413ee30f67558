"""Evaluation against a bare chunked matrix product and top-k of the same sizes, in the same run.

Bare: for every block of users and every chunk of items, ``interests @ items.T`` and ``torch.topk`` per interest row,
then the best of the chunks; no merge over interests, no metric, no interval, no table. Ours: the whole of
:func:`gemirec.evaluation.evaluate.evaluate` with its defaults, a model that only looks its interests up, and a dataset
on disk. Both on one thread, alternately; process CPU time, medians. ``--numpy`` takes NumPy's product for the bare
version too.

    python benchmarks/evaluate.py                       # 12 k, 100 k and 400 k items
    python benchmarks/evaluate.py --items 12000 --users 4096 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import torch

from gemirec.config import EvaluationConfig
from gemirec.data.dataset import Dataset, new_info
from gemirec.evaluation.evaluate import evaluate
from gemirec.models.base import Histories, Interests, LossTerms, ModelConfig, RetrievalModel, TrainBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.data.dataset import DataSpec

HISTORY, TARGETS = 20, 5
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class LookUp(RetrievalModel):
    """K interests looked up by the first K items of the history: the cheapest model there can be."""

    def __init__(self, spec: DataSpec, dim: int, count: int) -> None:
        super().__init__(ModelConfig(dim=dim, max_length=HISTORY), spec)
        generator = torch.Generator().manual_seed(0)
        self.count = count
        self.item_ND = torch.randn(spec.num_items + 1, dim, generator=generator)
        self.query_ND = torch.randn(spec.num_items + 1, dim, generator=generator)

    def item_vectors(self, item_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return random vectors."""
        return self.item_ND if item_ids is None else self.item_ND[item_ids]

    def interests(self, histories: Histories) -> Interests:
        """Look up K vectors."""
        vector_BKD = self.query_ND[histories.item_BL[:, : self.count]]
        return Interests(vector_BKD, torch.ones(vector_BKD.shape[:2], dtype=torch.bool))

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Refuse to train."""
        raise NotImplementedError("this model only looks up")


def write_dataset(path: Path, users: int, items: int) -> Dataset:
    """Write ``users`` test users with random histories and targets, straight as arrays."""
    rng = np.random.default_rng(0)
    folder, size = path / "shards" / "00000", HISTORY + TARGETS
    folder.mkdir(parents=True)
    np.save(folder / "events.npy", rng.integers(1, items + 1, users * size, dtype=np.int32))
    np.save(folder / "times.npy", np.arange(users * size, dtype=np.int64))
    np.save(folder / "offsets.npy", np.arange(users + 1, dtype=np.int64) * size)
    np.save(folder / "bounds.npy", np.tile(np.array([[0, 0, 0, HISTORY, size]], dtype=np.int32), (users, 1)))
    category = rng.integers(1, 101, items).astype(np.int32)
    zero = np.zeros(items, dtype=np.int64)
    table = {"item_id": np.arange(items), "count": zero, "train_count": zero, "category_index": category}
    pl.DataFrame(table).write_parquet(path / "items.parquet")
    pl.DataFrame({"user_id": np.arange(users)}).write_parquet(path / "users.parquet")
    info = new_info(
        name="benchmark",
        num_users=users,
        num_items=items,
        num_events=users * size,
        users_per_split={"train": 0, "valid": 0, "test": users},
        user_id_type="integer",
        item_id_type="integer",
        shard_users=[users],
        fingerprint="benchmark",
        categories=[f"c{code}" for code in range(100)],
    )
    (path / "dataset.json").write_text(json.dumps(msgspec.to_builtins(info)))
    return Dataset.open(path)


def bare(query_QD: torch.Tensor, item_ND: torch.Tensor, config: EvaluationConfig, count: int, numpy: bool) -> None:
    """Multiply and take the top-k, block by block and chunk by chunk."""
    k, rows = max(config.top_n), config.batch_size * count
    for first in range(0, len(query_QD), rows):
        block_QD = query_QD[first : first + rows]
        score, place = [], []
        for start in range(0, len(item_ND), config.item_chunk):
            chunk_ND = item_ND[start : start + config.item_chunk]
            product = block_QD @ chunk_ND.T if not numpy else torch.from_numpy(block_QD.numpy() @ chunk_ND.numpy().T)
            best, index = torch.topk(product, min(k, len(chunk_ND)), dim=1)
            score.append(best)
            place.append(index + start)
        if len(score) > 1:
            best, index = torch.topk(torch.cat(score, dim=1), k, dim=1)
            torch.cat(place, dim=1).gather(1, index)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(items: int, users: int, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "data", users, items)
        model, config = LookUp(dataset.spec(), args.dim, args.interests), EvaluationConfig()
        event_UL = np.asarray(dataset.shards[0].events).reshape(users, -1)[:, : args.interests]
        query_QD = model.query_ND[torch.from_numpy(event_UL.ravel().astype(np.int64))]
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(args.rounds + 1):  # the first round warms up
            times["bare"].append(
                cpu_seconds(lambda: bare(query_QD, model.item_ND[1:], config, args.interests, args.numpy))
            )
            times["ours"].append(cpu_seconds(lambda: evaluate(model, dataset, config)))
        plain, ours = (statistics.median(times[name][1:]) for name in ("bare", "ours"))
        print(
            f"{items:>9,} {users:>7,} {plain:>10.2f} {ours:>10.2f} {users / plain:>12,.0f} {users / ours:>12,.0f} "
            f"{ours / plain:>7.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="*", default=[12_000, 100_000, 400_000])
    parser.add_argument("--users", type=int, default=0, help="0: 4096, 2048 and 1024, the more items the fewer")
    parser.add_argument("--interests", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--numpy", action="store_true", help="NumPy's product in the bare version too")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):  # BLAS reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    print(f"K {args.interests}, D {args.dim}, N 50, one thread, {args.rounds} rounds, median CPU seconds")
    print(
        f"{'items':>9} {'users':>7} {'bare s':>10} {'ours s':>10} {'bare user/s':>12} {'ours user/s':>12} {'ratio':>7}"
    )
    for items in args.items:
        measure(items, args.users or (4096 if items <= 20_000 else 2048 if items <= 200_000 else 1024), args)


if __name__ == "__main__":
    main()
