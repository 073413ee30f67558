"""Verbs about the whole: demo and doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import Json, Model, Quiet, Set
from gemirec.cli.progress import Reporter


def demo(
    log: Annotated[Path | None, typer.Option(help="Your log; without it one is simulated.")] = None,
    items: Annotated[
        Path | None, typer.Option(help="Item table; without it items.parquet beside the log, if there is one.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="User table; without it users.parquet beside the log, if there is one.")
    ] = None,
    model: Model = "comirec_sa",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that comes out.")] = Path("demo"),
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole road once, in minutes: log, dataset, model beside its controls, scores, a few users, artifact.

    Keys of --set start with simulator., prepare., model. or training. A folder of an earlier demo is replaced.

        gemirec demo

        gemirec demo --log events.parquet --items items.parquet --model comirec_dr --out demo-dr

        gemirec demo --set simulator.num_users=2000 --set training.steps=300
    """
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from gemirec.experiments.demo import demo as run
    from gemirec.experiments.demo_text import demo_text
    from gemirec.experiments.summaries import layered

    with Reporter(quiet=quiet) as report:
        result = run(
            out, log=log, items=items, users=users, model=model, overrides=layered(None, overrides), watcher=report
        )
    if as_json:
        emit(result, as_json)
    else:
        print(demo_text(result))


def doctor(
    self_test: Annotated[
        bool, typer.Option(help="Simulate a small log, train on it and recommend (some seconds).")
    ] = True,
    as_json: Json = False,
) -> None:
    """Look at this machine: versions, device, extras, folders, and whether training and recommending work.

    gemirec doctor

    gemirec doctor --json > report.json     # for a bug report
    """
    from gemirec.experiments.doctor import doctor as run

    result = run(self_test=self_test)
    emit(result, as_json)
    if not result["ok"]:
        raise typer.Exit(1)
