"""Shared by the benchmarks of large logs: what is simulated, and how memory is read."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemirec.data.simulator import SimulatorConfig


def large_log(events: int, *, write_event_truth: bool = True) -> SimulatorConfig:
    """Ten events a user, 2.5 users an item: 10 M events are 1 M users and 400 k items."""
    from gemirec.data.simulator import SimulatorConfig

    return SimulatorConfig(
        num_users=events // 10,
        num_items=max(2_000, events // 25),
        num_super_clusters=20,
        clusters_per_super=25 if events >= 500_000 else 5,
        mean_events=10.0,
        min_events=3,
        max_events=200,
        write_event_truth=write_event_truth,
    )


def peak_bytes() -> int:
    """Return this process's peak resident memory; ``ru_maxrss`` alone would carry over the parent's across ``exec``."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
