"""How a training step grows with the catalogue: ComiRec-SA at 10 k, 100 k and 1 M items, by item optimiser.

Dense Adam reads and writes the whole table and both moments at every step; the row optimisers only the rows of the
step, so what is left of growth is cache misses. The optimisers take turns; one thread, process CPU time, medians.

    python benchmarks/catalogue_growth.py
    python benchmarks/catalogue_growth.py --items 10000 100000 --json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from train_step import Ours, alternate, write_dataset

OPTIMIZERS = ("lazy_adam", "rowwise_adagrad", "adam")


def measure(items: int, batch: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of a step with each optimiser."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "data", items)
        runs = {name: Ours(dataset, Path(folder) / name, batch, name) for name in OPTIMIZERS}
        found = alternate({name: run.step for name, run in runs.items()}, rounds)
        for run in runs.values():
            run.loop.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {items: measure(items, arguments.batch, arguments.rounds) for items in arguments.items}
    if arguments.json:
        print(json.dumps([{"items": items, "batch": arguments.batch, **found} for items, found in results.items()]))
        return
    print(f"ms per step, batch {arguments.batch}\n{'items':>10}" + "".join(f"{name:>17}" for name in OPTIMIZERS))
    for items, found in results.items():
        print(f"{items:10,d}" + "".join(f"{found[name]:17.1f}" for name in OPTIMIZERS))


if __name__ == "__main__":
    main()
