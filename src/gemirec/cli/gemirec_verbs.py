"""Verbs about the flagship model: ablate and probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Profile, Quiet, Set
from gemirec.cli.progress import Reporter

Split = Annotated[str, typer.Option("--split", help="Held-out part that is ranked: test or valid.")]


def ablate(
    dataset: Annotated[Path, typer.Argument(help="Prepared dataset (gemirec prepare).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and of ablate.json.")],
    profile: Profile = "tuned",
    variants: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help="full, -I, -J, -U, -M, random, +J, no-cells, no-user-vector, user-only, no-item-categories; or all.",
        ),
    ] = "full,-I,-J,-U,-M,random",
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Training seeds.")] = "1,2,3",
    split: Split = "test",
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train GemiRec without one of its parts at a time, and tabulate what each part is worth.

    -I takes preset categories as the interests, -J does not train the dictionary with the retriever, -U gives the
    generator no user features, -M takes interests by their frequency in the history, random starts from a random
    dictionary. A variant that the data or the profile make meaningless is listed with the reason. Keys of --set start
    with model., training. or evaluation. The same command goes on where it was stopped.

        gemirec ablate data --out ablation --profile paper

        gemirec ablate data --out quick --variants full,-M,user-only --seeds 1 --set training.steps=500

        gemirec ablate data --out ablation --variants all --split valid --json > ablation.json
    """
    from gemirec.experiments.ablate import VARIANTS
    from gemirec.experiments.ablate import ablate as run
    from gemirec.experiments.ablate_table import ablate_summary
    from gemirec.experiments.many_runs import parse_seeds
    from gemirec.experiments.summaries import layered

    names = list(VARIANTS) if variants == "all" else [name.strip() for name in variants.split(",") if name.strip()]
    with Reporter(quiet=quiet) as report:
        result = run(
            dataset,
            out,
            profile=profile,
            variants=names,
            seeds=parse_seeds(seeds),
            overrides=layered(config, overrides),
            split=split,
            watcher=report,
        )
    emit(result if as_json else ablate_summary(result), as_json)


def probe(
    artifact: Annotated[Path, typer.Argument(help="Trained gemirec model (OUT/artifact of gemirec train).")],
    dataset: Annotated[Path, typer.Argument(help="The prepared dataset it was trained on.")],
    split: Split = "test",
    users: Annotated[int, typer.Option(min=0, help="Most users, a fixed sample; 0 takes all.")] = 5000,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find what limits a trained GemiRec: predicting interests, retrieving for them, K, or epsilon. Trains nothing.

    Puts other interests in the generator's place (the true ones as an upper bound, the history's, random ones),
    sweeps K from 1 to 10 and epsilon from 1 to 5, measures the generator's hit rate and calibration apart for
    interests seen in the history and new ones, and what interests add to the user's own vector.

        gemirec probe run/artifact data

        gemirec probe run/artifact data --split valid --users 0 --json > probe.json
    """
    from gemirec.experiments.probe import probe as run
    from gemirec.experiments.probe import probe_summary

    with Reporter(quiet=quiet) as report:
        result = run(artifact, dataset, split=split, users=users, watcher=report)
    emit(result if as_json else probe_summary(result), as_json)
