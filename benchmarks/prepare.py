"""What preparing a log costs, and how that grows.

Run: ``python benchmarks/prepare.py`` (logs of 1, 10 and 30 million events and the one with string ids: some minutes,
most of them for making the logs); ``--sizes 1 10 --skip-strings`` for a part; ``--keep folder`` to make the logs once.

Every case runs in a process of its own that does nothing else, with one thread: wall and CPU seconds of the call, peak
resident memory of the whole process (imports included), rows per second. ``growth`` is the CPU time per row against
the first row of the table.

* simulated: the simulator's log, integer ids, by user; 10 events a user, 25 an item; ComiRec's one-pass filter.
* shuffled: the same rows in random order, so that every sort has its full work.
* strings: 9 M events, ids like ``A3SGXH7AUHU8GW`` and ``B0006OBWM2``, in random order; the iterated 5-core
  leaves about 450 k users and 370 k items.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from large_logs import large_log, peak_bytes

ONE_THREAD = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def make_simulated(path: Path, events: int) -> None:
    """Write the simulator's log of about ``events`` events."""
    from gemirec.data.simulator import simulate

    folder = path.with_suffix("")
    simulate(folder, large_log(events, write_event_truth=False))
    (folder / "interactions.parquet").replace(path)
    shutil.rmtree(folder)


def make_shuffled(path: Path, source: Path) -> None:
    """Write the rows of ``source`` in random order."""
    import polars as pl

    pl.read_parquet(source).sample(fraction=1.0, shuffle=True, seed=1).write_parquet(path, row_group_size=1_000_000)


def make_strings(path: Path, events: int) -> None:
    """Write a log with string ids, skewed users and items, random order and times."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", dtype=np.uint8)

    def codes(size: int, sigma: float) -> Any:
        share = np.cumsum(rng.lognormal(0, sigma, size))
        return np.searchsorted(share / share[-1], rng.random(events)).clip(0, size - 1)

    def names(size: int, length: int, first: bytes) -> Any:
        text = letters[rng.integers(0, 36, (size, length))]
        text[:, 0] = first[0]
        return pa.array(text.reshape(-1).view(f"S{length}").astype(f"U{length}").tolist())

    user, item = codes(events * 69 // 1000, 0.9), codes(events * 58 // 1000, 1.15)
    users, items = names(int(user.max()) + 1, 14, b"A"), names(int(item.max()) + 1, 10, b"B")
    times = rng.integers(1_300_000_000, 1_400_000_000, events)
    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, events, 1_000_000):
            part = slice(start, start + 1_000_000)
            columns = [users.take(pa.array(user[part])), items.take(pa.array(item[part])), pa.array(times[part])]
            writer.write_table(pa.table(columns, schema=schema))


def child(log: str, out: str, rule: str) -> None:
    """Prepare one log in this process and print what it cost, as JSON."""
    from gemirec.data.prepare import PrepareConfig, prepare

    start, cpu = time.perf_counter(), time.process_time()
    dataset = prepare(log, out, config=PrepareConfig(filter=rule))  # type: ignore[arg-type]
    cost = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": peak_bytes(),
        "rows": dataset.info.raw["steps"][0]["events"],
        "users": dataset.num_users,
        "items": dataset.num_items,
        "events": dataset.info.num_events,
        "fingerprint": dataset.fingerprint[:12],
    }
    print(json.dumps(cost))


def measure(log: Path, rule: str, threads: int) -> dict[str, Any]:
    """Run :func:`child` in a fresh process."""
    env = os.environ | {name: str(threads) for name in ONE_THREAD}
    with tempfile.TemporaryDirectory(dir=log.parent) as folder:
        command = [sys.executable, __file__, "--child", str(log), f"{folder}/dataset", rule]
        found = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def cases(folder: Path, sizes: list[float], *, shuffled: bool, strings: bool) -> list[tuple[str, Path, str]]:
    """Make the logs that are not there yet; returns name, path and filter of every case."""
    found = []
    for size in sizes:
        path = folder / f"simulated-{size:g}m.parquet"
        if not path.exists():
            make_simulated(path, int(size * 1e6))
        found.append((f"simulated {size:g} M", path, "one_pass"))
    if shuffled:
        base = folder / f"simulated-{sizes[-2 if len(sizes) > 1 else -1]:g}m.parquet"
        path = base.with_name(base.name.replace("simulated", "shuffled"))
        if not path.exists():
            make_shuffled(path, base)
        found.append((path.stem.replace("-", " "), path, "one_pass"))
    if strings:
        path = folder / "strings-9m.parquet"
        if not path.exists():
            make_strings(path, 8_950_000)
        found.append(("strings 9 M, 5-core", path, "k_core"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10, 30], help="millions of simulated events")
    parser.add_argument("--skip-shuffled", action="store_true")
    parser.add_argument("--skip-strings", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the logs; made once")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        head = f"{'log':20} {'rows':>11} {'seconds':>8} {'CPU-s':>7} {'peak MB':>8} {'rows/s':>10} {'growth':>7}"
        print(head + "  left: users, items, events; fingerprint")
        first = 0.0
        for name, path, rule in cases(
            folder, args.sizes, shuffled=not args.skip_shuffled, strings=not args.skip_strings
        ):
            cost = measure(path, rule, args.threads)
            per_row = cost["cpu"] / cost["rows"]
            first = first or per_row
            print(
                f"{name:20} {cost['rows']:>11,} {cost['seconds']:>8.1f} {cost['cpu']:>7.1f} {cost['peak'] / 1e6:>8.0f} "
                f"{cost['rows'] / cost['seconds']:>10,.0f} {per_row / first:>7.2f}  "
                f"{cost['users']:,}, {cost['items']:,}, {cost['events']:,}; {cost['fingerprint']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
