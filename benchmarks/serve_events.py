"""What it costs to have an event on the disk: SQLite with shared commits, and a bare append with fdatasync.

    python benchmarks/serve_events.py --folder /path/on/the/disk

Calls of one event each from several clients at once, each waiting for its answer, against the server's event log
without HTTP; beside it the floor: a file that is only appended to, so many events to a sync.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import msgspec

from gemirec.serving.events import EventLog, EventWriter
from gemirec.serving.wire import Event

CLIENTS = (1, 16, 64)


def event(number: int) -> Event:
    return Event(user_id=number % 1000, item_id=number)


async def through_sqlite(folder: Path, clients: int, calls: int) -> list[float]:
    writer = EventWriter(EventLog(folder / f"events-{clients}.sqlite"))
    taken: list[float] = []

    async def client() -> None:
        for number in range(calls):
            start = time.perf_counter()
            await writer.store([event(number)])
            taken.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    await writer.stop()
    return sorted(taken)


def appended(folder: Path, group: int, calls: int) -> list[float]:
    taken = []
    file = os.open(folder / "events.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number in range(calls):
        start = time.perf_counter()
        os.write(file, b"".join(msgspec.json.encode(event(number)) for _ in range(group)))
        os.fdatasync(file)
        taken.append(time.perf_counter() - start)
    os.close(file)
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="Where the files lie while it runs; a folder on the disk in question."
    )
    parser.add_argument("--calls", type=int, default=200)
    args = parser.parse_args()
    print("| | clients | events/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for clients in CLIENTS:
            for what in ("sqlite", "append"):
                start = time.perf_counter()
                if what == "sqlite":
                    taken = asyncio.run(through_sqlite(Path(name), clients, args.calls))
                else:
                    taken = appended(Path(name), clients, args.calls)
                events = clients * args.calls / (time.perf_counter() - start)
                p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
                print(f"| {what} | {clients} | {events:.0f} | {1e3 * p50:.1f} | {1e3 * p99:.1f} |", flush=True)


if __name__ == "__main__":
    main()
