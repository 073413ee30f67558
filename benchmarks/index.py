"""Kinds of index beside each other: recall, seconds to build, megabytes, milliseconds per query.

    python benchmarks/index.py                                   # 400,000 clustered vectors of width 64, lists of 200
    python benchmarks/index.py --items 20000 --queries 100       # a small try
    python benchmarks/index.py --artifact run/artifact           # the items and interests of a trained model
    python benchmarks/index.py --kinds exact ivf_sq8 --recall 0.99 --out index.json

Search parameters are the least that reach the recall, chosen as ``gemirec index`` does. Time is processor time on one
thread, the least of three passes, in calls of one query and of four (the interests of a user); megabytes are those of
the folder, without the float32 vectors that every kind keeps for the final scores, and all of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch

CALLS = 100


def clustered(items: int, dim: int, queries: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return item vectors (row 0 padding) and queries: overlapping clusters in 28 directions, lengths that vary."""
    generator = torch.manual_seed(seed)
    inner = min(28, dim)
    map_ID = torch.randn(inner, dim, generator=generator) / inner**0.5
    centre_CI = 0.6 * torch.randn(max(8, items // 400), inner, generator=generator)

    def draw(count: int, spread: float) -> torch.Tensor:
        cluster = torch.randint(0, len(centre_CI), (count,), generator=generator)
        vector_XI = centre_CI[cluster] + spread * torch.randn(count, inner, generator=generator)
        vector_XD: torch.Tensor = vector_XI @ map_ID + 0.05 * torch.randn(count, dim, generator=generator)
        return vector_XD

    length = torch.exp(0.25 * torch.randn(items + 1, 1, generator=generator))
    return draw(items + 1, 1.0) * length, draw(queries, 1.0)


def of_artifact(artifact: Path, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    from gemirec.experiments.index import sample_interests
    from gemirec.recommender import Recommender

    recommender = Recommender.from_pretrained(artifact)
    return recommender.served_items()[0], sample_interests(recommender, artifact, queries)


def milliseconds(index: Any, query_QD: torch.Tensor, k: int, size: int) -> float:
    """Return the least time of three passes, per call of ``size`` queries."""
    calls = torch.split(query_QD, size)[:CALLS]
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        for call_QD in calls:
            index.search(call_QD, k)
        best = min(best, time.process_time() - begin)
    return 1000 * best / len(calls)


def row_of(kind: str, item_ND: torch.Tensor, query_QD: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Build, save, load by mapping, and measure one kind."""
    from gemirec.retrieval.index import IndexConfig, build_index, load_index

    config = IndexConfig(kind=kind, recall=args.recall, k=args.k, queries=args.queries)  # type: ignore[arg-type]
    built = build_index(item_ND, config, query_QD)
    assert built.measured is not None
    with tempfile.TemporaryDirectory() as home:
        folder = built.save(Path(home) / "index", allow_low_recall=True)
        mb = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        index = load_index(folder)
        times = [milliseconds(index, query_QD, args.k, size) for size in (1, 4)]
    return {
        "kind": kind,
        "params": built.params,
        "recall": built.measured.recall,
        "build_s": built.measured.build_s,
        "own_mb": mb - (item_ND.numel() - item_ND.shape[1]) * 4e-6,
        "mb": mb,
        "ms1": times[0],
        "ms4": times[1],
    }


def main() -> None:
    """Print the table."""
    from gemirec.retrieval.index import IndexKind

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--items", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("-k", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.97)
    kinds = [kind for kind in get_args(IndexKind) if kind != "qdrant"]  # its local mode is not meant for this size
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=get_args(IndexKind))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.artifact:
        item_ND, query_QD = of_artifact(args.artifact, args.queries)
    else:
        item_ND, query_QD = clustered(args.items, args.dim, args.queries)
    print(f"{len(item_ND) - 1:,} items of width {item_ND.shape[1]}, {len(query_QD)} queries, lists of {args.k}")
    print("| kind | search | recall | build s | MB beside the vectors | MB in all | ms for 1 query | ms for 4 |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for kind in args.kinds:
        row = row_of(kind, item_ND, query_QD, args)
        rows.append(row)
        ms1, ms4 = f"{row['ms1']:.2f}", f"{row['ms4']:.2f}"
        search = ", ".join(f"{name} {value}" for name, value in row["params"].items()) or "-"
        print(
            f"| `{kind}` | {search} | {row['recall']:.4f} | {row['build_s']:.1f} | {row['own_mb']:.0f} "
            f"| {row['mb']:.0f} | {ms1} | {ms4} |",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
