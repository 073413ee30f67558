"""The verb that measures a server under load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Set


class What(StrEnum):
    """What can be measured."""

    serve = "serve"


def bench(
    what: Annotated[What, typer.Argument(help="serve: a server under load.")],
    target: Annotated[str, typer.Argument(help="Trained model (a server is started for it), or URL of a server.")],
    rate: Annotated[float, typer.Option(help="Requests a second; with --find-rate the first to try.")] = 100.0,
    seconds: Annotated[float, typer.Option(help="Length of a run.")] = 20.0,
    find_rate: Annotated[
        bool, typer.Option("--find-rate", help="Look for the highest rate that is answered within --p99.")
    ] = False,
    p99: Annotated[float, typer.Option(help="With --find-rate: limit of the 99th percentile, milliseconds.")] = 50.0,
    k: Annotated[int, typer.Option("-k", help="Items asked for.")] = 200,
    users: Annotated[
        Path | None, typer.Option(help="Artifact, or table with user_id: who asks. Needed with a URL.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="GEMIREC_BENCH_KEY", help="API key with the scope read.")] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Put load on a server and measure how long its answers take.

    Requests leave at times drawn beforehand (Poisson; --set arrivals=constant), whatever becomes of those before, and
    latency counts from these times: a server that is stalled is seen to stall. Percentiles are over all requests,
    failed ones included. A large client_late_p99_ms says that this client was too slow, not the server.

        gemirec bench serve run/artifact --rate 100 --seconds 30

        gemirec bench serve run/artifact --find-rate --p99 50 -k 100

        gemirec bench serve https://host:8443 --users run/artifact --rate 20 --set arrivals=constant --json
    """
    from gemirec.config import from_dict
    from gemirec.experiments.bench_serve import BenchConfig, bench_serve
    from gemirec.experiments.summaries import layered

    values: dict[str, Any] = {"rate": rate, "seconds": seconds, "find_rate": find_rate, "p99_ms": p99, "k": k}
    settings = from_dict(BenchConfig, {**values, **layered(config, overrides)}, where="the load's configuration")
    emit(bench_serve(target, settings, users=users, key=key), as_json)
