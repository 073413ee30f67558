"""The verb that sets models beside each other: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.gemirec_verbs import Split
from gemirec.cli.options import ConfigFile, Json, Profile, Quiet, Set
from gemirec.cli.progress import Reporter


def compare(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Prepared datasets (gemirec prepare).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs, tables and report.")],
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Models, variants named in --config; all: the catalogue.")
    ] = "popularity,item_mean,single_vector,comirec_sa,gemirec",
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Training seeds.")] = "1,2,3",
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model to test the others against; default comirec_sa.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Start no run that would end later than this; 0 trains nothing.")
    ] = None,
    profile: Profile = "tuned",
    split: Split = "test",
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    r"""Train and evaluate models on data sets with several seeds, and set them in one table with intervals and tests.

    OUT gets table.md, table.parquet, compare.json and report.html, which stands on its own. Finished runs are kept by
    configuration and data, and never done twice: the same command goes on where it was stopped, and more models, data
    sets and seeds can be asked of the same folder. Keys of --set start with model., training. or evaluation. (every
    model), or models.NAME. (one model, or a variant with models.NAME.base).

        gemirec compare data --out comparison

        gemirec compare beauty ml-1m --out comparison --models all --against comirec_sa --minutes 120

        gemirec compare data --out comparison --models comirec_sa,k1 --set models.k1.base=comirec_sa \
            --set models.k1.model.num_interests=1

        gemirec compare data --out comparison --minutes 0        # tables of what is there, and what is missing
    """
    from gemirec.experiments.compare import compare as run
    from gemirec.experiments.compare_table import compare_summary
    from gemirec.experiments.many_runs import parse_seeds
    from gemirec.experiments.summaries import layered

    with Reporter(quiet=quiet) as report:
        result = run(
            datasets,
            out,
            models=[name.strip() for name in models.split(",") if name.strip()],
            seeds=parse_seeds(seeds),
            against=against,
            minutes=minutes,
            profile=profile,
            overrides=layered(config, overrides),
            split=split,
            watcher=report,
        )
    emit(result if as_json else compare_summary(result), as_json)
