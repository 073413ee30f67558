"""Load test of a server: a given rate, or the highest one that keeps a limit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl
from msgspec import Meta

from gemirec.config import Config
from gemirec.data.sources import read_table
from gemirec.errors import ConfigError, DataError, StorageError
from gemirec.experiments.load import Load, Target, arrivals, highest_rate, run_clocked, run_load
from gemirec.recommender.release import ReleaseFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_USERS = 10_000
"""Most users whose requests are taken in turn."""
WARM_UP = 50
"""Requests before those that are measured."""


class BenchConfig(Config, frozen=True, kw_only=True):
    """A load."""

    rate: Annotated[float, Meta(gt=0)] = 100.0
    """Requests a second; with ``find_rate`` the first rate to try."""
    seconds: Annotated[float, Meta(gt=0)] = 20.0
    """Length of a run."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """How requests arrive: at random times, as users do, or evenly."""
    k: Annotated[int, Meta(ge=1)] = 200
    """Items asked for."""
    find_rate: bool = False
    """Look for the highest rate at which all is answered and p99 keeps ``p99_ms``."""
    p99_ms: Annotated[float, Meta(gt=0)] = 50.0
    """The limit of ``find_rate``."""
    timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """After which a request counts as not answered."""
    seed: int = 1
    """Seed of arrivals and users."""


def bench_serve(
    target: str, config: BenchConfig | None = None, *, users: Path | None = None, key: str | None = None
) -> dict[str, Any]:
    """Put load on ``POST /recommend`` and return what became of it.

    Args:
        target: URL of a server; or an artifact or folder of releases, for which a server is started and stopped.
        config: The load.
        users: Artifact, releases or table with ``user_id``, whose users ask; ``None`` takes those of ``target``.
        key: API key.

    Returns:
        Plain facts: the plan; ``p50_ms``, ``p95_ms``, ``p99_ms``, ``max_ms`` from the intended arrivals, ``errors`` and
        ``by_status``; with ``find_rate`` ``highest_rate`` and the ``trials``. ``load_average`` is the machine's before
        the run.

    Raises:
        ConfigError: The target is no server and no artifact, or there is nobody to ask for.
        StorageError: No server answers.
    """
    config = config or BenchConfig()
    url = target.startswith(("http://", "https://"))
    if users is None and url:
        raise ConfigError(
            "whose requests shall be sent", got=target, fix="give --users: an artifact, or a table of ids"
        )
    bodies = user_bodies(Path(target) if users is None else users, config.k, config.seed)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with contextlib.nullcontext(target) if url else started(Path(target)) as address:
        where = Target.parse(address, headers)

        def measure(rate: float, seconds: float = config.seconds) -> Load:
            at_N = arrivals(rate, seconds, config.arrivals, config.seed)
            return run_clocked(run_load(where, bodies, at_N, seconds=seconds, timeout_s=config.timeout_s))

        warm = measure(WARM_UP, 1.0)
        if not warm.status_N.any():
            raise StorageError("no server answers there", got=address, fix="start it: gemirec serve ARTIFACT")
        facts = {"target": target, "arrivals": config.arrivals, "seconds": config.seconds, "k": config.k}
        facts["load_average"] = round(os.getloadavg()[0], 2)
        if not config.find_rate:
            return {**facts, **measure(config.rate).summary()}
        best, trials = highest_rate(measure, p99_ms=config.p99_ms, start=config.rate)
        return {**facts, "p99_limit_ms": config.p99_ms, "highest_rate": round(best, 1), "trials": trials}


def user_bodies(source: Path, k: int, seed: int) -> Sequence[bytes]:
    """Return requests of users drawn at random.

    Args:
        source: An artifact that keeps histories, a folder of releases, or a table with ``user_id``.
        k: Items asked for.
        seed: Of the draw.

    Raises:
        DataError: There are no users.
    """
    if (source / "current.json").is_file():
        source = source / "releases" / ReleaseFolder(source).current / "artifact"
    path = source / "histories.parquet" if source.is_dir() else source
    if not path.is_file():
        fix = "give an artifact that keeps histories, or --users with a table that has user_id"
        raise DataError("there are no users to ask for", got=path, fix=fix)
    if path.suffix == ".parquet":
        table = pl.read_parquet(path, columns=["user_id"])
    else:
        table = read_table(path, what="table of users")
    ids = table["user_id"].unique(maintain_order=True)
    rows = np.random.default_rng(seed).permutation(len(ids))[:MOST_USERS]
    return [json.dumps({"user_id": user, "k": k}).encode() for user in ids.gather(rows).to_list()]


@contextlib.contextmanager
def started(artifact: Path, *options: str | Path) -> Iterator[str]:
    """Run ``gemirec serve`` in a process of its own for the length of the block; gives its URL.

    Raises:
        ConfigError: It does not start; the message has what it said.
    """
    with tempfile.TemporaryDirectory(prefix="gemirec-bench-") as home:
        words = ["serve", artifact, "--port", "0", "--json", "--events", Path(home) / "events.sqlite", *options]
        command = [sys.executable, "-c", "from gemirec.cli import main; main()", *map(str, words)]
        environ = {name: value for name, value in os.environ.items() if name != "GEMIREC_API_KEYS"}
        said = Path(home) / "stderr"
        with said.open("w") as stderr:  # a pipe that nobody reads would stop the server when it is full
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            facts = json.loads(line) if line.startswith("{") else {}
            if "url" not in facts:
                process.wait(60)
                error = facts.get("error") or {"what": "it ended", "got": said.read_text()[-2000:], "fix": "see there"}
                raise ConfigError(f"the server does not start: {error['what']}", got=error["got"], fix=error["fix"])
            yield facts["url"]
        finally:
            process.terminate()
            process.communicate(timeout=60)
