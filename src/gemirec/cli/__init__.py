"""The command line: ``gemirec VERB``. Each verb calls one function; torch and polars load when a verb needs them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import gemirec
from gemirec.cli import (
    ab,
    bench,
    cache,
    compare,
    data,
    export,
    gemirec_verbs,
    index,
    machine,
    models,
    new_items,
    pictures,
    serve,
)
from gemirec.cli.console import Verbs

app = typer.Typer(
    cls=Verbs,
    name="gemirec",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(gemirec.__version__)
        raise typer.Exit


@app.callback()
def gemirec_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multi-interest candidate retrieval: from a log of who did what, to interests, to the items each retrieves.

    The road, verb by verb:

        gemirec simulate   --out log                    # or take your own log
        gemirec prepare    log/interactions.parquet --items log/items.parquet --out data
        gemirec train      data --model comirec_sa --out run
        gemirec evaluate   run/artifact data
        gemirec recommend  run/artifact --history 12,7,31 -k 5

    Items that came after training, by their category, text or vector: gemirec extend.

    Models beside each other, with intervals and a report: gemirec compare.

    What a trained gemirec knows: gemirec probe, ablate, picture; its users' interests as a file: gemirec cache.

    A trained model over HTTP, with events, keys and metrics: gemirec serve. Two at once, and what users made of them:
    gemirec ab-report. Under load: gemirec bench serve.

    An index of a model's items, its recall measured: gemirec index. Vectors, ONNX graphs and a map of the catalogue for
    other systems: gemirec export.

    All of it at once: gemirec demo. Every verb has --help with examples and --json for programs. Exit codes: 0 done,
    2 wrong input (with what, what was got and how to mend it), 1 a fault of gemirec.
    """


for verb in (
    data.prepare,
    data.simulate,
    models.train,
    models.evaluate,
    models.recommend,
    new_items.extend,
    compare.compare,
    cache.cache,
    index.index,
    export.export,
    gemirec_verbs.probe,
    gemirec_verbs.ablate,
    pictures.picture,
    serve.serve,
    ab.ab_report,
    bench.bench,
    machine.demo,
    machine.doctor,
):
    app.command()(verb)


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    # Threads that wait for work by spinning slow each other down 3 to 5 times where another process is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
