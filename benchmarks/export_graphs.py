"""What a request costs in torch, in ONNX Runtime, and there in 8 bits: one thread, the same histories.

    python benchmarks/export_graphs.py run/artifact

Histories are real if the artifact keeps them, made up otherwise. Of 200 calls the time is that which a tenth of them
stay below: what else the machine does moves it least.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gemirec.recommender import Recommender
from gemirec.recommender.export import ExportConfig, export
from gemirec.recommender.export.parity import open_graph, run
from gemirec.recommender.export.run import pool_of
from gemirec.recommender.export.traced import graphs_of

CALLS = 200


def milliseconds(call: Callable[[], object]) -> float:
    for _ in range(10):
        call()
    taken = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return float(np.quantile(taken, 0.1)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recommender = Recommender.from_pretrained(asked.artifact)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "export"
        facts = export(recommender, out, ExportConfig(int8=True, least_recall=0), which=["onnx"])
        for row in facts["graphs"]:
            recall = "" if row["recall"] is None else f"  recall {row['recall']:.3f}"
            print(f"{row['file']:20} {row['bytes']:>12,} bytes  differs by {row['relative']:.1e}{recall}")
        graph, pool = graphs_of(recommender.model)["model"], pool_of(recommender)
        sessions = {name: open_graph(out / f"{name}.onnx") for name in ("model", "model.int8")}
        for batch in asked.batches:
            some = {name: value[:batch] for name, value in vars(pool).items() if value is not None}
            with torch.no_grad():
                case = graph.case(replace(pool, **some))
                found = {"torch": milliseconds(partial(graph, *case.inputs.values()))}
            for name, session in sessions.items():
                found[name] = milliseconds(partial(run, session, case))
            print(f"batch {batch:4}  " + "  ".join(f"{name} {value:.2f} ms" for name, value in found.items()))


if __name__ == "__main__":
    main()
