"""Report of an online experiment: from served lists and events to lift with intervals.

The unit is the user. A user's clicks are those on an item that a list showed the user at most a window earlier; the
same item of the same list counts once. A click is of a *new interest* if no earlier event of the user, neither in the
log that the models were trained on nor since, is of an item with the same label: the category, or whatever column says
what an item is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from gemirec.config import Config
from gemirec.data.sources import read_table, scan
from gemirec.errors import ConfigError, DataError
from gemirec.evaluation.significance import check_confidence
from gemirec.experiments.ab_stats import Rate, lift, rate, ratio_mismatch

MISMATCH = 0.001
"""Below this probability the split is called broken."""
FEW = 30
"""Fewer users than this with any of a metric: its interval is a rough one."""
METRICS = {
    "ctr": ("clicks", "shown", "clicks per shown item"),
    "clicks_per_user": ("clicks", None, "clicks per user"),
    "new_interest_clicks_per_user": ("new_clicks", None, "clicks on a label that is new to the user, per user"),
    "new_interest_ctr": ("new_clicks", "shown", "clicks on a label that is new to the user, per shown item"),
}
"""Name: numerator, denominator (``None``: users), in words."""


class AbConfig(Config, frozen=True, kw_only=True):
    """What counts.

    Raises:
        ConfigError: A number is out of range.
    """

    clicks: tuple[str, ...] = ("click",)
    """Kinds of events that count as a click."""
    window_hours: float = 24.0
    """Longest time between a list and a click on it."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    min_users: int = 100
    """Fewest users of each variant; with fewer there is no report."""

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        if not self.window_hours > 0 or self.min_users < 2:
            got = f"window_hours {self.window_hours}, min_users {self.min_users}"
            raise ConfigError("the window must be above 0 and min_users at least 2", got=got, fix="leave the defaults")


class Labels(NamedTuple):
    """What items are about, and what users did before the experiment.

    Attributes:
        items: ``item_id`` and ``label``, as text.
        history: ``user_id`` and ``item_id``, as text; may be empty.
    """

    items: pl.DataFrame
    history: pl.LazyFrame


def read_labels(
    artifact: Path | None, items: Path | None, history: Path | None, column: str = "category"
) -> Labels | None:
    """Return labels and histories, from an artifact or from tables.

    Args:
        artifact: A served artifact, for its items and histories; files win over it.
        items: Table with ``item_id`` and the label.
        history: Log with ``user_id`` and ``item_id``: what users did before.
        column: The label.

    Raises:
        DataError: A column is missing.
    """
    table = items or (artifact and artifact / "items.parquet")
    if not table:
        return None
    found = read_table(table)
    if not {"item_id", column} <= set(found.columns):
        fix = "name the column with --label, or give --items a table that has it"
        raise DataError("the item table lacks a column", got=f"{table}: {', '.join(found.columns)}", fix=fix)
    own = pl.col("item_id", "label").cast(pl.String)
    labels = found.select("item_id", pl.col(column).alias("label")).select(own).drop_nulls().unique("item_id")
    text = pl.col("user_id", "item_id").cast(pl.String)
    past = pl.LazyFrame(schema={"user_id": pl.String, "item_id": pl.String})
    if history is not None:
        past = scan(history).select(text)
    elif artifact is not None and (artifact / "histories.parquet").exists():
        ids = read_table(artifact / "items.parquet")["item_id"].cast(pl.String)  # row r is item index r + 1
        number = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("items")
        names = pl.LazyFrame({"item_id": ids}).with_columns(number)
        stored = pl.scan_parquet(artifact / "histories.parquet").select("user_id", "items").explode("items")
        past = stored.with_columns(pl.col("items").cast(pl.Int64)).join(names, on="items").select(text)
    return Labels(labels, past)


def user_table(
    lists: pl.DataFrame, events: pl.DataFrame, config: AbConfig, labels: Labels | None = None
) -> tuple[pl.DataFrame, int]:
    """Return what each user was shown and clicked, and how many users were left out because both variants had them.

    Args:
        lists: ``number``, ``user_id``, ``variant``, ``shown`` (seconds) and ``items`` (ids as text) of served lists.
        events: ``number``, ``user_id``, ``item_id``, ``event`` and ``received`` (seconds), in the order of arrival.
        config: What counts.
        labels: For new interests.

    Returns:
        ``user_id``, ``variant``, ``lists``, ``shown`` (items), ``clicks`` and, with labels, ``new_clicks``.
    """
    both = lists.group_by("user_id").agg(pl.col("variant").n_unique().alias("variants")).filter(pl.col("variants") > 1)
    lists = lists.join(both, on="user_id", how="anti")
    users = lists.group_by("user_id").agg(
        pl.col("variant").first(), pl.len().alias("lists"), pl.col("items").list.len().sum().alias("shown")
    )
    clicks = _clicks(lists, events.filter(pl.col("event").is_in(config.clicks)), config.window_hours * 3600)
    if labels is not None:
        clicks = clicks.join(_firsts(lists, events, labels), on="number", how="left", maintain_order="left")
        counts = [pl.len().alias("clicks"), pl.col("new").fill_null(value=False).sum().alias("new_clicks")]
    else:
        counts = [pl.len().alias("clicks")]
    per_user = clicks.group_by("user_id").agg(counts)
    names = per_user.columns[1:]
    table = users.join(per_user, on="user_id", how="left", maintain_order="left")
    return table.with_columns(pl.col(names).fill_null(0)).sort("user_id"), both.height


def _clicks(lists: pl.DataFrame, clicks: pl.DataFrame, window: float) -> pl.DataFrame:
    """Return the clicks on shown items: each with the latest list before it, one for each item of a list."""
    shown = lists.select("user_id", "shown", "items", list="number").explode("items").rename({"items": "item_id"})
    key = ["user_id", "item_id"]
    shown = shown.join(clicks.select(key), on=key, how="semi").sort("shown")
    found = (
        clicks.select("number", *key, "received")
        .sort("received", maintain_order=True)
        .join_asof(
            shown,
            left_on="received",
            right_on="shown",
            by=key,
            strategy="backward",
            tolerance=window,
            check_sortedness=False,
        )
    )
    return found.drop_nulls("list").unique(["list", "item_id"], keep="first", maintain_order=True)


def _firsts(lists: pl.DataFrame, events: pl.DataFrame, labels: Labels) -> pl.DataFrame:
    """Return ``number`` and ``new``: of each event, whether its label is new to its user."""
    users = lists.select("user_id").unique()
    past = labels.history.join(users.lazy(), on="user_id", how="semi").unique()
    before = past.select("user_id", "item_id", number=pl.lit(0, pl.Int64))
    since = events.lazy().filter(pl.col("event") != "impression").select("user_id", "item_id", "number")
    labelled = pl.concat([before, since]).join(labels.items.lazy(), on="item_id").collect()
    first = pl.col("number").min().over("user_id", "label")
    return labelled.select("number", new=(pl.col("number") == first) & (pl.col("number") > 0)).filter(
        pl.col("number") > 0
    )


def ab_report(
    lists: pl.DataFrame,
    events: pl.DataFrame,
    *,
    share: float,
    config: AbConfig | None = None,
    labels: Labels | None = None,
    lost: int = 0,
    salt: str = "",
) -> dict[str, Any]:
    """Return the report of an experiment.

    Args:
        lists: Served lists, as for :func:`user_table`; ``version`` and ``source`` too, if they are known.
        events: What users did, as for :func:`user_table`.
        share: Share of the users that B was to have.
        config: What counts.
        labels: For new interests.
        lost: Lists that were served and not logged.
        salt: Name of the experiment.

    Returns:
        Plain facts: ``variants`` (users, lists, items shown, clicks, share of lists from a fallback, versions),
        ``metrics`` (a row each: A, B, difference and lift with their intervals, p-value), ``split`` (expected and
        found share of B, p-value, whether it is broken) and ``warnings``.

    Raises:
        DataError: A variant has too few users.
    """
    config = config or AbConfig()
    table, both = user_table(lists, events, config, labels)
    parts = {name: table.filter(pl.col("variant") == name) for name in ("A", "B")}
    users_a, users_b = (part.height for part in parts.values())
    if min(users_a, users_b) < config.min_users:
        raise DataError(
            "there are too few users for a report",
            got=f"{users_a} users with A, {users_b} with B, at least {config.min_users} of each are needed",
            fix="serve longer; an interval over so few users would not hold what it says",
        )
    p_split = ratio_mismatch(users_a, users_b, share)
    rows = [
        _metric(name, parts, config.confidence)
        for name, (top, _, _) in METRICS.items()
        if top in table.columns and all(part["shown"].sum() for part in parts.values())
    ]
    return {
        "experiment": salt,
        "confidence": config.confidence,
        "variants": [_variant(name, part, lists) for name, part in parts.items()],
        "split": {
            "share_b": share,
            "found": users_b / (users_a + users_b),
            "p_value": p_split,
            "broken": p_split < MISMATCH,
        },
        "metrics": rows,
        "warnings": _warnings(rows, p_split, both, lost),
    }


def _metric(name: str, parts: dict[str, pl.DataFrame], confidence: float) -> dict[str, Any]:
    """Return one row of the report."""
    top, below, _ = METRICS[name]
    a, b = (_rate(part, top, below) for part in parts.values())
    return {
        "metric": name,
        "a": a.value,
        "b": b.value,
        **lift(a, b, confidence)._asdict(),
        "users": min(a.users, b.users),
    }


def _rate(part: pl.DataFrame, top: str, below: str | None) -> Rate:
    x_U = part[top].to_numpy().astype(np.float64)
    return rate(x_U, np.ones_like(x_U) if below is None else part[below].to_numpy().astype(np.float64))


def _variant(name: str, part: pl.DataFrame, lists: pl.DataFrame) -> dict[str, Any]:
    """Return the facts of a variant."""
    own = lists.filter(pl.col("variant") == name)
    facts: dict[str, Any] = {"variant": name, "users": part.height}
    facts |= {key: int(part[key].sum()) for key in ("lists", "shown", "clicks", "new_clicks") if key in part.columns}
    if "source" in own.columns and own.height:
        facts["fallback"] = float((own["source"] != "model").mean())  # type: ignore[arg-type]
    if "version" in own.columns:
        facts["versions"] = sorted(own["version"].unique().to_list())
    return facts


def _warnings(rows: Sequence[dict[str, Any]], p_split: float, both: int, lost: int) -> list[str]:
    """Return what a reader must know before believing the report."""
    out = []
    if p_split < MISMATCH:
        out.append(f"the split is broken (p = {p_split:.1e}): users of one variant are missing; trust nothing below")
    if both:
        out.append(f"{both} users had lists of both variants and are left out")
    if lost:
        out.append(f"{lost} served lists could not be logged")
    out += [
        f"{row['metric']}: only {row['users']} users of a variant have any; its interval is a rough one"
        for row in rows
        if row["users"] < FEW
    ]
    return out


def markdown(report: dict[str, Any]) -> str:
    """Return a report for a reader."""
    percent = f"{report['confidence']:.0%}"
    split = report["split"]
    lines = [f"# Experiment {report['experiment']}".rstrip(), ""]
    lines += [f"**Warning:** {warning}.\n" for warning in report["warnings"]]
    columns = list(report["variants"][0])
    lines += [*_table(columns, [[_cell(row[key]) for key in columns] for row in report["variants"]])]
    verdict = "broken" if split["broken"] else "as planned"
    lines += [
        "",
        f"Share of B: {split['found']:.4f} of the users, {split['share_b']:g} expected (p = {split['p_value']:.3f}): "
        f"{verdict}.",
        "",
    ]
    body = [
        [
            METRICS[row["metric"]][2],
            f"{row['a']:.5f}",
            f"{row['b']:.5f}",
            f"{row['difference']:+.5f} [{row['low']:+.5f}, {row['high']:+.5f}]",
            "-" if row["lift"] is None else f"{row['lift']:+.1%} [{row['lift_low']:+.1%}, {row['lift_high']:+.1%}]",
            f"{row['p_value']:.2g}",
        ]
        for row in report["metrics"]
    ]
    heads = ["metric", "A", "B", f"B - A [{percent}]", f"lift [{percent}]", "p"]
    return "\n".join([*lines, *_table(heads, body)]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
