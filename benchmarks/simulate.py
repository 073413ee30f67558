"""What simulating a log costs, and what the planted interests are worth.

Run: ``python benchmarks/simulate.py`` (about a minute); ``--events 1000000 --skip-oracle`` for one size alone.

The first table gives wall and CPU seconds, the peak resident memory of a process that does nothing else, and rows per
second. The second gives Recall@50 of rankings that know a part of the planted truth, on the demo's log, in the
protocol of the field (history = first 80 % of a user's events, targets = the rest): the ceiling and the floor for
every model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.data.simulator import SimulatedLog, simulate
from large_logs import large_log, peak_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

GIB = 2**30
TOP = 50
LATE = 0.9
"""Share of a user's life at which the oracle reads the drifting weights: the middle of the targets."""


def child(folder: str, events: int) -> None:
    """Simulate one log in this process and print what it cost, as JSON."""
    start, cpu = time.perf_counter(), time.process_time()
    log = simulate(Path(folder) / "log", large_log(events))
    cost = {
        "rows": log.num_events,
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": peak_bytes(),
        "bytes": sum(path.stat().st_size for path in log.path.iterdir()),
    }
    print(json.dumps(cost))


def measure(events: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder, "--events", str(events)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    cost: dict[str, float] = json.loads(result.stdout)
    return cost


class Truth:
    """The planted truth of a log, as arrays, and the rankings that know parts of it."""

    def __init__(self, log: SimulatedLog) -> None:
        assert not log.config.string_ids
        self.config = log.config
        self.item_E = pl.read_parquet(log.interactions, columns=["item_id"])["item_id"].to_numpy()
        items = pl.read_parquet(log.truth_items)
        self.cluster_N = items["cluster"].to_numpy()
        vector_ND = items["vector"].to_numpy()
        self.unit_ND = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
        self.chance_CN = np.zeros((log.config.num_clusters, len(items)))
        self.chance_CN[self.cluster_N, np.arange(len(items))] = items["popularity"].to_numpy()
        centre_CD = np.stack([vector_ND[self.cluster_N == c].mean(axis=0) for c in range(log.config.num_clusters)])
        self.unit_CD = centre_CD / np.linalg.norm(centre_CD, axis=1, keepdims=True)
        self.users = pl.read_parquet(log.truth_users).to_dicts()
        self.offset_U1 = np.concatenate([[0], np.cumsum([u["num_events"] for u in self.users])])
        self.count_N = np.bincount(self.item_E, minlength=len(items)).astype(np.float64)

    def rankings(self, user: dict[str, Any], history: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return item scores ``[N]`` by name."""
        weight_J = np.array(user["weights"]) * np.exp(np.array(user["drift"]) * LATE)
        own_C = np.zeros(len(self.unit_CD))
        own_C[user["interests"]] = weight_J / weight_J.sum()
        all_C = own_C.copy()
        if user["born_cluster"] is not None:
            all_C *= 1 - self.config.birth_weight
            all_C[user["born_cluster"]] += self.config.birth_weight
        known_C = all_C if (user["birth_event"] or np.inf) < len(history) else own_C
        recent = history[-20:]
        seen_C = np.bincount(self.cluster_N[recent], minlength=len(own_C))
        repeated = np.flatnonzero(seen_C >= min(2, seen_C.max()))
        return {
            "oracle: interests, weights, every birth": all_C @ self.chance_CN,
            "oracle without births that lie ahead": known_C @ self.chance_CN,
            "clusters of the last 20 items, counted": seen_C @ self.chance_CN,
            "one vector per repeated cluster, best one per item": (self.unit_ND @ self.unit_CD[repeated].T).max(axis=1),
            "one vector: mean of the last 20 items' latents": self.unit_ND @ self.unit_ND[recent].mean(axis=0),
            "popularity": self.count_N,
        }


def oracle(sample: int = 1500) -> None:
    """Print Recall@50 of the rankings that know the truth, for the demo's log."""
    with tempfile.TemporaryDirectory() as folder:
        log = simulate(Path(folder) / "log")
        truth = Truth(log)
    recall = defaultdict(list)
    for number in np.random.default_rng(0).choice(len(truth.users), size=sample, replace=False):
        events = truth.item_E[truth.offset_U1[number] : truth.offset_U1[number + 1]]
        cut = int(0.8 * len(events))
        for name, score_N in truth.rankings(truth.users[number], events[:cut]).items():
            top = np.argpartition(-score_N, TOP)[:TOP]
            recall[name].append(len(np.intersect1d(events[cut:], top)) / (len(events) - cut))
    print(f"\ndemo log: {log.num_events:,} events; Recall@{TOP} over {sample:,} users (mean, standard error)")
    for name, value in recall.items():
        print(f"  {name:52s} {np.mean(value):.3f} +- {np.std(value) / np.sqrt(len(value)):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--skip-oracle", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.events[0])
        return
    print(
        f"{'events':>12} {'users':>9} {'items':>8} {'seconds':>8} {'CPU s':>6} {'peak MiB':>9} {'rows/s':>9} {'MiB':>4}"
    )
    for events in arguments.events:
        config, cost = large_log(events), measure(events)
        size = f"{cost['rows']:12,} {config.num_users:9,} {config.num_items:8,}"
        spent = f"{cost['seconds']:8.1f} {cost['cpu']:6.1f} {cost['peak'] / 2**20:9.0f}"
        print(f"{size} {spent} {cost['rows'] / cost['seconds']:9,.0f} {cost['bytes'] / 2**20:4.0f}")
        print(f"{'':12} {'within' if cost['peak'] <= GIB else 'NOT within'} 1 GiB")
    if not arguments.skip_oracle:
        oracle()


if __name__ == "__main__":
    main()
