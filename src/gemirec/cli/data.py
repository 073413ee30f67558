"""Verbs that make data: prepare and simulate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Overwrite, Quiet, Set
from gemirec.cli.progress import Reporter


def prepare(
    log: Annotated[
        Path, typer.Argument(help="Log: .parquet, .csv, .tsv, .jsonl, RecBole .inter, ComiRec .txt, or a folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the prepared dataset.")],
    items: Annotated[Path | None, typer.Option(help="Item table: item_id, category, title, anything.")] = None,
    users: Annotated[Path | None, typer.Option(help="User table: user_id and features.")] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the table engine; without it POLARS_MAX_THREADS, or one.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    r"""Turn a log into a dataset folder: filter, map ids, order, split.

    A log has a user, an item and a time per row (and, if you have them, an event, a weight, your own split). Ids are
    integers or strings. Nothing is half-written: the folder appears when it is complete.

        gemirec prepare events.parquet --out data

        gemirec prepare clicks.csv --out data --items shop.parquet \
            --set columns.user=visitor --set columns.item=sku --set columns.timestamp=at

        gemirec prepare events.parquet --out data --set filter=k_core --set split=leave_one_out
    """
    if threads is not None:
        os.environ["POLARS_MAX_THREADS"] = str(threads)
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from gemirec.config import from_dict
    from gemirec.data.prepare import PrepareConfig
    from gemirec.data.prepare import prepare as run
    from gemirec.experiments.summaries import dataset_summary, layered

    settings = from_dict(PrepareConfig, layered(config, overrides), where="the preparation's configuration")
    with Reporter(quiet=quiet) as report:
        dataset = run(log, out, items=items, users=users, config=settings, overwrite=overwrite, progress=report.staged)
    emit(dataset_summary(dataset), as_json)


def simulate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the simulated log.")],
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a log with planted interests, and the truth beside it.

    Users have several interests that drift and are born; items lie in clusters with categories. The generative model
    is in the documentation of gemirec.data.simulator, in formulas.

        gemirec simulate --out log

        gemirec simulate --out log --set num_users=1000000 --set num_items=400000 --set seed=7
    """
    from gemirec.config import from_dict
    from gemirec.data.simulator import SimulatorConfig
    from gemirec.data.simulator import simulate as run
    from gemirec.experiments.summaries import layered

    settings = from_dict(SimulatorConfig, layered(config, overrides), where="the simulator's configuration")
    with Reporter(quiet=quiet) as report:
        log = run(out, settings, progress=report.counted)
    emit({"log": str(log.interactions), "items": str(log.items), "users": str(log.users)}, as_json)
