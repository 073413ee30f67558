"""The verb that exports a trained model to other systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Overwrite, Quiet, Set
from gemirec.cli.progress import Reporter


def export(
    artifact: Annotated[Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the export.")],
    which: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="items, users, map, onnx; without it all that there is."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also write each graph with its weights in 8 bits.")] = False,
    config: ConfigFile = None,
    overrides: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a trained model for other systems: vectors, the path of a request as ONNX, a map of the catalogue.

    items.parquet and users.parquet hold ids and vectors. model.onnx takes histories (for GemiRec also cached interests)
    to interest vectors; DMI's denoiser is a graph of its own. Each graph is run beside the model on users' histories:
    the largest difference and the recall of lists are printed, and a graph that does not give the model's numbers is
    not written. map.parquet lays the items out in two dimensions. The graphs need the extra export.

        gemirec export run/artifact --out run/export

        gemirec export run/artifact --out run/export --int8 --set least_recall=0.95 --overwrite

        gemirec export run/artifact --out run/vectors --which items,users,map --json
    """
    from gemirec.config import from_dict
    from gemirec.experiments.summaries import layered
    from gemirec.recommender.export import ExportConfig
    from gemirec.recommender.export import export as export_it

    values = {**({"int8": True} if int8 else {}), **layered(config, overrides)}
    settings = from_dict(ExportConfig, values, where="the export's configuration")
    names = None if which is None else [name.strip() for name in which.split(",") if name.strip()]
    with Reporter(quiet=quiet) as report:
        result = export_it(
            artifact,
            out,
            settings,
            which=names,
            overwrite=overwrite,
            note=report.note,
            progress=report.counted,
        )
    emit(result, as_json)
