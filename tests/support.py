"""A small prepared dataset with planted interests, written straight as arrays, for tests that need only data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from gemirec.data.dataset import Dataset, FeatureInfo, new_info


def write_planted_dataset(
    path: Path,
    *,
    num_users: int = 400,
    num_items: int = 120,
    num_clusters: int = 6,
    interests_per_user: int = 2,
    length: tuple[int, int] = (8, 24),
    num_shards: int = 2,
    seed: int = 0,
    weights: bool = False,
    user_features: bool = False,
) -> Dataset:
    """Users draw items from ``interests_per_user`` clusters (item i is in cluster (i - 1) % num_clusters).

    The first 80 % of users train, the next 10 % validate, the rest test; evaluation cuts at floor(0.8 x length).
    """
    rng = np.random.default_rng(seed)
    cluster_N = (np.arange(num_items) % num_clusters).astype(np.int32)
    members = [np.flatnonzero(cluster_N == c) + 1 for c in range(num_clusters)]
    histories, main_cluster = [], []
    for _ in range(num_users):
        own = rng.choice(num_clusters, size=interests_per_user, replace=False)
        main_cluster.append(int(own[0]))
        size = int(rng.integers(length[0], length[1] + 1))
        histories.append(np.array([rng.choice(members[c]) for c in rng.choice(own, size=size)], dtype=np.int32))
    path.mkdir(parents=True)
    part_U = np.where(np.arange(num_users) < 0.8 * num_users, 0, np.where(np.arange(num_users) < 0.9 * num_users, 1, 2))
    rng.shuffle(part_U)
    shard_users, train_count_N = [], np.zeros(num_items + 1, dtype=np.int64)
    digest = hashlib.sha256()
    for shard, users in enumerate(np.array_split(np.arange(num_users), num_shards)):
        folder = path / "shards" / f"{shard:05d}"
        folder.mkdir(parents=True)
        events = np.concatenate([histories[u] for u in users])
        offsets = np.concatenate([[0], np.cumsum([len(histories[u]) for u in users])]).astype(np.int64)
        bounds = np.zeros((len(users), 5), dtype=np.int32)
        for row, u in enumerate(users):
            size, cut = len(histories[u]), int(0.8 * len(histories[u]))
            bounds[row] = [(size, 0, 0, 0, 0), (0, cut, size, 0, 0), (0, 0, 0, cut, size)][part_U[u]]
            if part_U[u] == 0:
                np.add.at(train_count_N, histories[u], 1)
        np.save(folder / "events.npy", events)
        np.save(folder / "times.npy", np.arange(len(events), dtype=np.int64))
        np.save(folder / "offsets.npy", offsets)
        np.save(folder / "bounds.npy", bounds)
        if weights:
            np.save(folder / "weights.npy", rng.uniform(0.5, 2.0, len(events)).astype(np.float32))
        digest.update(events.tobytes() + bounds.tobytes())
        shard_users.append(len(users))
    features = []
    if user_features:
        np.save(path / "user_categorical.npy", (np.array(main_cluster, dtype=np.int32) + 1)[:, None])
        np.save(path / "user_numeric.npy", rng.normal(size=(num_users, 2)).astype(np.float32))
        features = [FeatureInfo("taste", "categorical", [f"t{c}" for c in range(num_clusters)])]
        features += [FeatureInfo(f"x{j}", "numeric") for j in range(2)]
    pl.DataFrame(
        {
            "item_id": [f"item-{i}" for i in range(1, num_items + 1)],
            "count": np.bincount(np.concatenate(histories), minlength=num_items + 1)[1:],
            "train_count": train_count_N[1:],
            "category": [f"c{c}" for c in cluster_N],
            "category_index": cluster_N + 1,
        }
    ).write_parquet(path / "items.parquet")
    pl.DataFrame({"user_id": [f"user-{u}" for u in range(num_users)]}).write_parquet(path / "users.parquet")
    info = new_info(
        name="planted",
        num_users=num_users,
        num_items=num_items,
        num_events=int(sum(map(len, histories))),
        users_per_split={s: int((part_U == p).sum()) for p, s in enumerate(("train", "valid", "test"))},
        user_id_type="string",
        item_id_type="string",
        shard_users=shard_users,
        fingerprint=digest.hexdigest(),
        categories=[f"c{c}" for c in range(num_clusters)],
        user_features=features,
    )
    (path / "dataset.json").write_text(json.dumps(msgspec.to_builtins(info)))
    return Dataset.open(path)
