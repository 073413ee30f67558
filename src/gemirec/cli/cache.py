"""The verb that fills the interest cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Quiet, Set
from gemirec.cli.progress import Reporter


def cache(
    artifact: Annotated[Path, typer.Argument(help="Trained model with a dictionary (OUT/artifact of gemirec train).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file of the cache.")],
    dataset: Annotated[
        Path | None,
        typer.Argument(help="The prepared dataset it was trained on; without it the artifact's own histories."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="valid or test: only the held-out users, up to the cut. Without it all events of all users."),
    ] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Work out which interests each user is served, ahead of the request (GemiRec).

    A row per user: the K most probable interests of the model's dictionary, no code of a sub-dictionary more than
    epsilon times. K and epsilon are the model's own unless --set says otherwise (the paper: 5 and 3; epsilon=0 for no
    limit). The file carries the dictionary's version, and a server refuses it beside another one. A file that is there
    is replaced when the new one is whole.

        gemirec cache run/artifact data --out cache.parquet

        gemirec cache run/artifact --out cache.parquet --set k=5 --set epsilon=3

        gemirec cache run/artifact data --out test.parquet --split test --json
    """
    from gemirec.config import from_dict
    from gemirec.experiments.cache import CacheConfig, build_cache
    from gemirec.experiments.summaries import layered

    settings = from_dict(CacheConfig, layered(config, overrides), where="the cache's configuration")
    with Reporter(quiet=quiet) as report:
        result = build_cache(artifact, dataset, out, config=settings, split=split, progress=report.counted)
    emit(result, as_json)
