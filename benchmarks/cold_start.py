"""Cold start on a real log: items held out of training, given vectors by their side features, looked for by users.

One item in twenty is taken out of the log before training. For users who never trained, the history is their first 80 %
of events without those items; the targets are the rest. ``new``: recall@50 of targets among the held-out items, over
the whole catalogue. ``among new``: the same with the held-out items as the only candidates. ``share``: held-out items'
share of the lists of the users with such targets. ``trained``: recall@50 of the other targets, of all these users:
what the new items cost. Every vector of ``random`` and ``mean`` has the trained items' mean length.

    python benchmarks/cold_start.py                       # amazon-beauty, 500 steps of comirec_sa
    python benchmarks/cold_start.py --data ml-1m --json

The log comes from ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from gemirec.recommender import Recommender
from realdata import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator

N = 50
LEAST_EVENTS = 5
ROWS: dict[str, dict[str, Any]] = {
    "category": {"texts": []},
    "text": {"categories": []},
    "category and text": {},
    "the same, boost 0.9": {"boost": 0.9},
    "the same, boost 0.8": {"boost": 0.8},
    "the same, 4,096 buckets": {"buckets": 4096},
}


class Held(NamedTuple):
    """Held-out items, and what users who never trained did before and after the cut."""

    items: pl.DataFrame
    new: pl.DataFrame
    trained: pl.DataFrame


def users_of(events: pl.DataFrame, cold: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return tables ``user_id, item_id`` (history), ``target``: of targets that are held out, and of the others."""
    is_cold = pl.col("item_id").is_in(cold.implode())
    late = pl.int_range(pl.len()).over("user_id") >= (0.8 * pl.len().over("user_id")).floor()
    events = events.sort("user_id", "timestamp", maintain_order=True).with_columns(late=late)
    histories = events.filter(~pl.col("late") & ~is_cold).group_by("user_id", maintain_order=True).agg("item_id")

    def having(which: pl.Expr) -> pl.DataFrame:
        after = events.filter(pl.col("late") & which).group_by("user_id").agg(target=pl.col("item_id").unique())
        return histories.join(after, on="user_id", maintain_order="left")

    return having(is_cold), having(~is_cold)


def fit(data: str, steps: int, seed: int) -> tuple[Recommender, Held]:
    """Train without the held-out items."""
    events, items = (
        pl.read_parquet(DATA / data / "interactions.parquet"),
        pl.read_parquet(DATA / data / "items.parquet"),
    )
    frequent = events.group_by("item_id").len().filter(pl.col("len") >= LEAST_EVENTS)["item_id"].sort()
    cold = frequent.sample(fraction=0.05, seed=seed)
    is_cold = pl.col("item_id").is_in(cold.implode())
    overrides = {"training": {"steps": steps, "seed": seed}}
    recommender = Recommender.fit(events.filter(~is_cold), items=items, model="comirec_sa", overrides=overrides)
    assert recommender.dataset is not None
    users = recommender.dataset.users.filter(pl.col("split") != "train")["user_id"]
    new, trained = users_of(events.filter(pl.col("user_id").is_in(users.implode())), cold)
    return recommender, Held(items.filter(is_cold), new, trained)


def recall(recommender: Recommender, users: pl.DataFrame, allow: pl.Series | None = None) -> tuple[float, pl.Series]:
    """Return recall@50 over ``users``, and all items of their lists."""
    table = recommender.recommend(histories=users.select("user_id", "item_id"), k=N, exclude_seen=False, allow=allow)
    listed = table.group_by("user_id").agg(listed="item_id")
    hits = users.join(listed, on="user_id").select(
        pl.col("target").list.set_intersection("listed").list.len() / pl.col("target").list.len()
    )
    return float(hits.to_series().to_numpy().mean()), table["item_id"]


def candidates(recommender: Recommender, held: Held, seed: int) -> Iterator[tuple[str, Recommender]]:
    """Yield every row's recommender."""
    added = recommender.with_new_items(held.items)
    assert added.cold is not None
    item_ND = recommender.model.item_vectors().detach()[1:]
    length = item_ND.norm(dim=1).mean()
    shape = added.cold.vector_CD.shape
    random_CD = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for name, vector_CD in (("random", random_CD), ("mean", item_ND.mean(0).expand(shape))):
        cold = replace(added.cold, vector_CD=length * F.normalize(vector_CD, dim=1))
        yield name, Recommender(added.info, added.model, added.catalog.items, added._histories, cold=cold)
    for name, settings in ROWS.items():
        yield name, recommender.with_new_items(held.items, **settings)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="amazon-beauty")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recommender, held = fit(arguments.data, arguments.steps, arguments.seed)
    rows = {"without them": {"trained": recall(recommender, held.trained)[0]}}
    ids = held.items["item_id"]
    for name, row in candidates(recommender, held, arguments.seed):
        new, listed = recall(row, held.new)
        share = float(np.isin(listed, ids).mean())
        among, trained = recall(row, held.new, ids)[0], recall(row, held.trained)[0]
        rows[name] = {"new": new, "among new": among, "share": share, "trained": trained}
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{arguments.data}: {len(ids)} of {len(recommender.catalog) + len(ids)} items held out, ", end="")
    print(f"{held.new.height} users with such targets, {held.trained.height} with others, recall@{N}")
    columns = ("new", "among new", "share", "trained")
    print(f"{'':26}" + "".join(f"{name:>11}" for name in columns))
    for name, found in rows.items():
        print(f"{name:26}" + "".join(f"{found[key]:11.4f}" if key in found else f"{'':11}" for key in columns))


if __name__ == "__main__":
    main()
