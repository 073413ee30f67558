"""The verb that adds items without interactions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Overwrite, Set


def extend(
    artifact: Annotated[Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train).")],
    items: Annotated[Path, typer.Argument(help="Table of new items: item_id, and category, title or other features.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new artifact.")],
    known: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Table with the same features of the trained items; default: the artifact's."
        ),
    ] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    r"""Add items without interactions: they get vectors from their side features and are retrieved from then on.

    What the features say of vectors is learnt from the trained items, in closed form; the model and its items stay as
    they are. Columns are category and title unless --set categories, texts or vectors names others; boost below 1 makes
    new items rarer, above 1 more frequent.

        gemirec extend run/artifact new_items.parquet --out extended

        gemirec extend run/artifact new.csv --out extended --set categories=[brand,category] --set texts=[title]

        gemirec extend run/artifact all.parquet --known all.parquet --out extended \
            --set vectors=[embedding] --set existing=skip
    """
    from gemirec.experiments.new_items import extend_run
    from gemirec.experiments.summaries import layered

    result = extend_run(artifact, items, out, known=known, overrides=layered(config, overrides), overwrite=overwrite)
    emit(result, as_json)
