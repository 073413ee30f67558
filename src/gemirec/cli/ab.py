"""The verb that reports an online experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Set


def ab_report(
    events: Annotated[Path, typer.Argument(metavar="EVENTLOG", help="Event log of gemirec serve A --split B.")],
    artifact: Annotated[
        Path | None, typer.Option(help="A served model, for categories and histories: what is new to a user.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table of item_id and the label, in place of the artifact's.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Log of what users did before, in place of the artifact's.")
    ] = None,
    label: Annotated[str, typer.Option(help="Column of the item table that says what an item is about.")] = "category",
    top: Annotated[
        int | None, typer.Option(help="Count only so many items of a list as shown; without it all of them.")
    ] = None,
    salt: Annotated[
        str | None, typer.Option(help="The experiment, by its salt; without it the one that was served last.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the Markdown to a file as well.")] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Report a traffic split: clicks and clicks on new interests of both models, lift and intervals over users.

    A click counts if a list showed the item to the user at most window_hours (24) before. New is a click on a category
    of which the user had no event before. A split that gave a variant fewer users than it should have is called broken.
    With fewer than min_users (100) users of a variant there is no report.

        gemirec ab-report run/events.sqlite --artifact run/artifact --top 10

        gemirec ab-report events.sqlite --items items.parquet --history log.parquet --label subcategory --json

        gemirec ab-report events.sqlite --salt spring --set window_hours=2 --set 'clicks=[click,buy]' --out report.md
    """
    from gemirec.artifacts import atomic_file
    from gemirec.config import from_dict
    from gemirec.experiments.ab import AbConfig, markdown, read_labels
    from gemirec.experiments.ab import ab_report as report_of
    from gemirec.experiments.summaries import layered
    from gemirec.serving.events import read_events
    from gemirec.serving.impressions import read_impressions

    settings = from_dict(AbConfig, layered(config, overrides), where="the report's configuration")
    found = read_impressions(events, salt=salt, top=top)
    labels = read_labels(artifact, items, history, label)
    report = report_of(
        found.lists,
        read_events(events),
        share=found.share,
        config=settings,
        labels=labels,
        lost=found.lost,
        salt=found.salt,
    )
    if out is not None:
        with atomic_file(out) as path:
            path.write_text(markdown(report), encoding="utf-8")
    if as_json:
        emit(report, as_json)
    else:
        print(markdown(report), end="")
