"""The whole server under load at 400,000 items: GemiRec with cached interests beside ComiRec-SA, in the same run.

Releases are made (--home keeps them) of ComiRec-SA and of GemiRec in both profiles: clustered unit vectors of width 64,
the same for all (tuned GemiRec adds a coordinate for each of its 64 cells), users with 20 items from four clusters,
untrained weights, five interests, and an index whose recall of lists of 200 is at least .97 on the interests of these
users. Models that search the same vectors get the same index, chosen for the queries of both: untrained interests are
harder or easier to search by accident. GemiRec's interests are cached; ComiRec-SA encodes each history.

Servers run in processes of their own, and so does the load. Printed: latency at a fixed rate from the intended arrivals
(open loop, Poisson), in turns; the highest rate that keeps a p99; processor milliseconds of a request; the recommender
in one's own process; and the load of the machine beside all of it, for on a busy machine these numbers say little.

    python benchmarks/serving.py                                                  # about 6 minutes on a free machine
    python benchmarks/serving.py --index ivf_sq8 --cluster 1000 --spread 0.3      # clusters that do not overlap
    python benchmarks/serving.py --items 20000 --seconds 3 --turns 1 --no-rate      # a small try
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np
import polars as pl
import torch

from gemirec import Recommender
from gemirec.artifacts import write_json
from gemirec.config import merge, to_dict
from gemirec.data.dataset import DataSpec
from gemirec.experiments.bench_serve import BenchConfig, bench_serve, started
from gemirec.experiments.cache import CacheConfig, build_cache
from gemirec.experiments.index import sample_interests
from gemirec.models.catalog import build_model, load_profile
from gemirec.recommender.artifact import ArtifactInfo, write_artifact
from gemirec.recommender.release import ReleaseFolder
from gemirec.retrieval.index import IndexConfig, build_index
from gemirec.retrieval.stores import bulk_of_cache

MODELS = {
    "comirec_sa": ("comirec_sa", "tuned"),
    "gemirec-paper": ("gemirec", "paper"),
    "gemirec-tuned": ("gemirec", "tuned"),
}
"""Name of the release: model and profile."""
DIM, INTERESTS, LENGTH, K = 64, 5, 20, 200
OWN = 4
"""Clusters of a user."""
BLOCK = 50_000


def clustered_items(
    items: int, size: int, spread: float, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return ``[N + 1, D]`` vectors, row 0 padding, and the cluster of each item: overlapping clusters."""
    centre_CD = rng.standard_normal((max(8, items // size), DIM), dtype=np.float32)
    cluster_N = rng.integers(len(centre_CD), size=items + 1)
    vector_ND = centre_CD[cluster_N] + spread * rng.standard_normal((items + 1, DIM), dtype=np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    vector_ND[0] = 0
    return vector_ND, cluster_N


def histories(users: int, cluster_N: np.ndarray[Any, Any], rng: np.random.Generator) -> pl.DataFrame:
    """Return users whose items are from a few clusters each."""
    order = np.argsort(cluster_N[1:], kind="stable") + 1
    first = np.searchsorted(cluster_N[order], np.arange(cluster_N.max() + 2))
    own_UL = rng.integers(cluster_N.max() + 1, size=(users, OWN))[
        np.arange(users)[:, None], rng.integers(OWN, size=(users, LENGTH))
    ]
    size_UL = np.maximum(1, first[own_UL + 1] - first[own_UL])
    item_UL = order[np.minimum(first[own_UL] + rng.integers(1 << 30, size=own_UL.shape) % size_UL, len(order) - 1)]
    return pl.DataFrame({"user_id": np.arange(users), "items": pl.Series(item_UL.tolist(), dtype=pl.List(pl.Int32))})


def model_of(name: str, profile: str, vector_ND: np.ndarray[Any, Any]) -> Any:
    """Return an untrained model over these item vectors, at its last stage."""
    torch.manual_seed(0)
    items = len(vector_ND) - 1
    over = {"dim": DIM, "num_interests": INTERESTS, "max_length": LENGTH}
    values = merge(load_profile(name, profile)["model"], over)
    count_N = np.concatenate([[0], 1 + (1e6 / np.arange(1, items + 1)).astype(np.int64)])
    model: Any = build_model(name, values, DataSpec(items, count_N))
    with torch.no_grad():
        model.item_table.weight.copy_(torch.from_numpy(vector_ND))
        if name == "gemirec":
            model.start_dictionary()
            model.start_joint()
    return model.eval()


def make_releases(home: Path, args: argparse.Namespace) -> None:
    """Make the releases, if they are not there."""
    if all((home / name / "current.json").exists() for name in MODELS):
        return
    rng = np.random.default_rng(1)
    vector_ND, cluster_N = clustered_items(args.items, args.cluster, args.spread, rng)
    histories(args.users, cluster_N, rng).write_parquet(home / "histories.parquet")
    served: dict[str, tuple[torch.Tensor, str, torch.Tensor]] = {}
    for name, (kind, profile) in MODELS.items():
        model = model_of(kind, profile, vector_ND)
        items = pl.DataFrame({"item_id": np.arange(args.items), "train_count": model.spec.train_count_N[1:]})
        info = ArtifactInfo(model=kind, config=to_dict(model.config), num_items=args.items, history_events=None)
        artifact = home / f"{name}-artifact"
        write_artifact(artifact, info, model, items, None, overwrite=True, histories=home / "histories.parquet")
        recommender = Recommender.from_pretrained(artifact)
        served[name] = *recommender.served_items(), sample_interests(recommender, artifact, 500)
    for name, (item_ND, version, own_QD) in served.items():
        query_QD = torch.cat([other for _, _, other in served.values() if other.shape[1] == own_QD.shape[1]])
        config = IndexConfig(kind=args.index, recall=args.recall, k=K, queries=len(query_QD))
        index = build_index(item_ND, config, query_QD[torch.randperm(len(query_QD))], version=version)
        index.save(home / f"{name}-index", overwrite=True)
        assert index.measured is not None
        facts = f"{args.index} of width {index.dim}, {index.params}, recall {index.measured.recall:.4f}"
        print(f"{name:14} {facts}, built in {index.measured.build_s:.0f} s", flush=True)
        cache = None
        if name.startswith("gemirec"):
            build_cache(home / f"{name}-artifact", None, home / f"{name}.parquet", config=CacheConfig())
            cache = bulk_of_cache(home / f"{name}.parquet")
        folder = ReleaseFolder(home / name)
        folder.add("one", home / f"{name}-artifact", index=home / f"{name}-index", cache=cache)
        folder.switch("one")


def in_process(home: Path, calls: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of ``recommend`` and of the server's engine, for one user, models in turns.

    ``_cpu`` is processor time, which other processes disturb less.
    """
    from gemirec.serving.metrics import Metrics
    from gemirec.serving.recommender_engine import RecommenderEngine
    from gemirec.serving.wire import RecommendRequest

    ways: dict[str, Any] = {}
    for name in MODELS:
        recommender = ReleaseFolder(home / name).open().recommender
        engine = RecommenderEngine.load(home / name, events=None, metrics=Metrics())
        ways[name] = {
            "recommend": lambda user, it=recommender: it.recommend([user], k=K),
            "engine": lambda user, it=engine: it.recommend([RecommendRequest(user_id=user, k=K)]),
        }
    taken: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in MODELS}
    for user in range(calls):
        for name in MODELS:
            for way, call in ways[name].items():
                start, cpu = time.perf_counter(), time.process_time()
                call(user)
                taken[name][way].append(1000 * (time.perf_counter() - start))
                taken[name][f"{way}_cpu"].append(1000 * (time.process_time() - cpu))
    return {name: {way: statistics.median(times[5:]) for way, times in of.items()} for name, of in taken.items()}


def cpu_seconds() -> float:
    """Return the processor time of this process's children."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += (int(fields[11]) + int(fields[12])) if int(fields[1]) == os.getpid() else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def under_load(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return latencies at the fixed rate, in turns, and the highest rates."""
    out: dict[str, Any] = {name: {"turns": []} for name in MODELS}
    users = home / "histories.parquet"
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(started(home / name)) for name in MODELS}
        for _ in range(args.turns):
            for name in MODELS:
                before = cpu_seconds()
                found = bench_serve(urls[name], BenchConfig(rate=args.rate, seconds=args.seconds, k=K), users=users)
                found["cpu_ms"] = 1000 * (cpu_seconds() - before) / (found["requests"] + 50)
                out[name]["turns"].append(found)
                keys = (
                    "p50_ms",
                    "p95_ms",
                    "p99_ms",
                    "max_ms",
                    "errors",
                    "cpu_ms",
                    "client_late_p99_ms",
                    "load_average",
                )
                print(f"{name:14}", "  ".join(f"{key} {found[key]:.2f}" for key in keys), flush=True)
        for name in MODELS if args.find_rate else ():
            config = BenchConfig(rate=args.rate, seconds=args.seconds / 2, k=K, find_rate=True, p99_ms=args.p99)
            found = bench_serve(urls[name], config, users=users)
            out[name]["highest_rate"] = found["highest_rate"]
            print(f"{name:14} highest rate with p99 <= {args.p99:g} ms: {found['highest_rate']}", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=400_000)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--index", default="pq")
    parser.add_argument("--cluster", type=int, default=200, help="items of a cluster")
    parser.add_argument("--spread", type=float, default=0.7, help="of items around their cluster's centre, which has 1")
    parser.add_argument("--recall", type=float, default=0.97)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--p99", type=float, default=50)
    parser.add_argument("--no-rate", dest="find_rate", action="store_false")
    parser.add_argument("--home", type=Path, help="keep the releases here")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() if args.home is None else contextlib.nullcontext(args.home) as folder:
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        make_releases(home, args)
        print(f"{args.items:,} items, lists of {K}, load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        alone = in_process(home, 200)
        for name, of in alone.items():
            print(
                f"{name:14} in process, ms:", ", ".join(f"{way} {value:.2f}" for way, value in of.items()), flush=True
            )
        served = under_load(home, args)
    # Other processes only ever add time, so the least of the turns is nearest to the server's own.
    p50 = {name: min(turn["p50_ms"] for turn in of["turns"]) for name, of in served.items()}
    for name in p50:
        ratio = alone[name]["engine_cpu"] / alone["comirec_sa"]["engine_cpu"]
        least = p50[name] / p50["comirec_sa"]
        print(f"{name:14} over comirec_sa: least p50 {least:.3f}, processor time of the engine {ratio:.3f}")
    if args.out:
        write_json(args.out, {"in_process": alone, "served": served, "argv": sys.argv[1:]})


if __name__ == "__main__":
    main()
