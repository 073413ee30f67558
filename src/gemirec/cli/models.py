"""Verbs that make and use models: train, evaluate and recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Model, Profile, Quiet, Set
from gemirec.cli.progress import Reporter


def train(
    dataset: Annotated[Path, typer.Argument(help="Prepared dataset (gemirec prepare).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; holds run/ and artifact/.")],
    model: Model = "comirec_sa",
    profile: Profile = "tuned",
    config: ConfigFile = None,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    histories: Annotated[
        bool, typer.Option(help="Keep the users' histories in the artifact, so that it knows users by id.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a prepared dataset.

    Values come from the profile, then --config, then --set; keys start with model. or training. The artifact that
    evaluate and recommend read lies in OUT/artifact. A run that was stopped goes on with --resume and ends with the
    weights of an uninterrupted one, bit for bit (on the CPU).

        gemirec train data --out run

        gemirec train data --out run --model mind --profile paper --set training.steps=500 --set model.dim=32

        gemirec train data --out run --resume
    """
    from gemirec.experiments.runs import train_run
    from gemirec.experiments.summaries import layered

    with Reporter(quiet=quiet) as report:
        result = train_run(
            dataset,
            out,
            model=model,
            profile=profile,
            overrides=layered(config, overrides),
            resume=resume,
            histories=histories,
            progress=report.training,
        )
    emit(result, as_json)


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train).")],
    dataset: Annotated[Path, typer.Argument(help="The prepared dataset it was trained on.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for evaluation.json and users.parquet (a row per user).")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Simulated log (gemirec simulate): score its planted truth too.")
    ] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank the whole catalogue for the held-out users and measure the lists, with intervals.

    gemirec evaluate run/artifact data

    gemirec evaluate run/artifact data --truth log

    gemirec evaluate run/artifact data --set split=valid --set top_n=[10,20] --set exclude_seen=true --out scores

    gemirec evaluate run/artifact data --set merge.kind=diverse --set merge.diversity=0.2
    """
    from gemirec.experiments.runs import evaluate_run
    from gemirec.experiments.summaries import evaluation_summary, layered

    with Reporter(quiet=quiet) as report:
        result = evaluate_run(
            artifact, dataset, overrides=layered(config, overrides), out=out, truth=truth, progress=report.counted
        )
    emit(result if as_json else evaluation_summary(result), as_json)


def recommend(
    artifact: Annotated[Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train).")],
    user: Annotated[list[str] | None, typer.Option("--user", help="Id of a user in the log. Repeatable.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", metavar="ID,ID,...", help="Raw history, oldest item first. Repeatable."),
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Parquet, CSV or JSONL with user_id and item_id (and timestamp)."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Items per user.")] = 20,
    exclude_seen: Annotated[bool, typer.Option(help="Leave out the items of the history.")] = True,
    allow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file: the only item ids to return, one per line.")
    ] = None,
    merge: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="Lists of the interests to one: max (best score), weighted, diverse or quota."
        ),
    ] = "max",
    diversity: Annotated[
        float, typer.Option(help="With diverse: penalty for each earlier item of the category, in units of the scores.")
    ] = 0.0,
    pool: Annotated[int, typer.Option(help="With diverse: candidates, in lengths of the list.")] = 4,
    quota: Annotated[
        str, typer.Option(help="With quota: equal, weight (the model's own), or a share per interest: 2,1,1.")
    ] = "equal",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Parquet file for the answer.")] = None,
    as_json: Json = False,
) -> None:
    """Recommend items to known users or to histories never seen.

    Items that the model does not know are skipped and counted (column skipped). A user without any known item gets
    the artifact's fallback, by default the most popular items (column source). What --merge makes of the interests'
    lists, evaluate measures with --set merge.kind=KIND (merge.diversity, merge.pool, merge.quota).

        gemirec recommend run/artifact --user 17 --user 42 -k 10

        gemirec recommend run/artifact --history 12,7,31 --json

        gemirec recommend run/artifact --histories new_users.parquet --out answers.parquet

        gemirec recommend run/artifact --user 17 --merge diverse --diversity 0.2

        gemirec recommend run/artifact --user 17 --merge quota --quota 2,1,1
    """
    from gemirec.experiments.runs import recommend_run

    table = recommend_run(
        artifact,
        users=user,
        histories=history,
        history_file=histories,
        k=k,
        exclude_seen=exclude_seen,
        allow=allow,
        merge={"kind": merge, "diversity": diversity, "pool": pool, "quota": quota},
        out=out,
    )
    emit({"recommendations": table.to_dicts()}, as_json)
