"""The verb that draws a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import Json, Quiet
from gemirec.cli.progress import Reporter


def picture(
    artifact: Annotated[Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train).")],
    dataset: Annotated[Path, typer.Argument(help="The prepared dataset it was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pictures.")] = Path("pictures"),
    beside: Annotated[
        Path | None, typer.Option(help="Another artifact of the same dataset, beside the first on the item map.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Id of a held-out user; without it one whose interests evolve.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder (OUT/run of gemirec train), for the curves.")] = None,
    which: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="map, tree, posterior, refinement, curves; without it all that can be drawn.",
        ),
    ] = None,
    items: Annotated[int, typer.Option(min=10, max=2000, help="Most items on the map.")] = 1500,
    depth: Annotated[int, typer.Option(min=1, help="Levels of the dictionary shown in the tree.")] = 2,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a trained model as PNG files (needs matplotlib: pip install 'gemirec[plots]').

    map: items by their vectors (t-SNE), with a held-out user's history, interests and future; --beside puts a second
    model next to it, in the same colours. tree: what each code of GemiRec's dictionary holds; also as tree.json and
    tree.txt. posterior: which interests GemiRec's generator expects, event by event along the history. refinement: what
    lies nearest to each interest before, during and after DMI's reverse process. curves: every loss term, validation
    and the dictionary's health, stage by stage. Files that are there are replaced.

        gemirec picture run/artifact data --out pictures

        gemirec picture run/artifact data --beside comirec/artifact --user 17 --run run/run

        gemirec picture comirec/artifact data --which map --items 800 --json
    """
    from gemirec.experiments.pictures import pictures

    names = None if which is None else [name.strip() for name in which.split(",") if name.strip()]
    with Reporter(quiet=quiet) as report:
        result = pictures(
            artifact,
            dataset,
            out,
            beside=beside,
            user=user,
            run=run,
            which=names,
            items=items,
            depth=depth,
            watcher=report,
        )
    emit(result, as_json)
