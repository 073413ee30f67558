"""The report of an online experiment, against plain Python and NumPy, and against planted truth."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.errors import ConfigError, DataError
from gemirec.experiments.ab import AbConfig, Labels, ab_report, markdown, read_labels, user_table
from gemirec.experiments.ab_stats import lift, rate, ratio_mismatch
from support_cli import answer, gemirec

HOUR = 3600.0


def lists_of(rows: list[tuple[str, str, float, list[str]]]) -> pl.DataFrame:
    schema: dict[str, Any] = {
        "user_id": pl.String,
        "variant": pl.String,
        "shown": pl.Float64,
        "items": pl.List(pl.String),
    }
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.with_columns(number=pl.int_range(1, pl.len() + 1), version=pl.lit("v"), source=pl.lit("model"))


def events_of(rows: list[tuple[str, str, str, float]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "event": pl.String, "received": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(number=pl.int_range(1, pl.len() + 1))


def by_hand(
    lists: list[tuple[str, str, float, list[str]]],
    events: list[tuple[str, str, str, float]],
    window: float,
    label: dict[str, str],
    history: dict[str, set[str]],
) -> dict[str, tuple[str, int, int, int]]:
    """The definition, loop by loop: user -> variant, items shown, clicks, clicks on a new label."""
    out = {}
    for user in {row[0] for row in lists}:
        own = [row for row in lists if row[0] == user]
        if len({row[1] for row in own}) > 1:
            continue
        known = {label[item] for item in history.get(user, ()) if item in label}
        taken: set[tuple[int, str]] = set()
        new = 0
        for who, item, kind, when in events:
            if who != user or kind == "impression":
                continue
            fresh = label.get(item) not in known and item in label
            known |= {label[item]} if item in label else set()
            before = [(row[2], at) for at, row in enumerate(own) if item in row[3] and row[2] <= when]
            if kind != "click" or not before or when - max(before)[0] > window:
                continue
            key = (max(before)[1], item)
            if key not in taken:
                taken.add(key)
                new += fresh
        out[user] = (own[0][1], sum(len(row[3]) for row in own), len(taken), new)
    return out


ITEMS = [f"i{number}" for number in range(6)]
times = st.integers(0, 40).map(lambda hours: hours * HOUR)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), times, st.lists(st.sampled_from(ITEMS), unique=True)), max_size=8),
    st.lists(
        st.tuples(
            st.sampled_from("xyz"), st.sampled_from(ITEMS), st.sampled_from(["click", "buy", "impression"]), times
        ),
        max_size=14,
    ),
    st.dictionaries(st.sampled_from("xyz"), st.sets(st.sampled_from(ITEMS))),
    st.booleans(),
)
def test_the_table_of_users_is_the_definition(
    shown: list[Any], events: list[Any], history: dict[str, set[str]], mixed: bool
) -> None:
    variant = {"x": "A", "y": "B", "z": "A"}
    shown = list({(who, when): (who, when, items) for who, when, items in shown}.values())  # no two at the same time
    rows = [
        (who, "B" if mixed and who == "z" and at % 2 else variant[who], when, items)
        for at, (who, when, items) in enumerate(shown)
    ]
    events = sorted(events, key=lambda row: row[3])  # they arrive in order
    label = {item: f"label {number % 3}" for number, item in enumerate(ITEMS[:-1])}  # the last has none
    labels = Labels(
        pl.DataFrame({"item_id": list(label), "label": list(label.values())}),
        pl.LazyFrame(
            [(who, item) for who, items in history.items() for item in items],
            schema={"user_id": pl.String, "item_id": pl.String},
            orient="row",
        ),
    )
    table, _ = user_table(lists_of(rows), events_of(events), AbConfig(window_hours=12), labels)
    found = {
        row["user_id"]: (row["variant"], row["shown"], row["clicks"], row["new_clicks"]) for row in table.to_dicts()
    }
    assert found == by_hand(rows, events, 12 * HOUR, label, history)


def drawn(rng: np.random.Generator, users: int, ctr: float) -> tuple[Any, Any]:
    """Users who differ in how much they see and in how they click: clicks of a user come together."""
    shown_U = 10 * (1 + rng.negative_binomial(1, 0.3, users))
    own_U = rng.beta(20 * ctr, 20 * (1 - ctr), users)
    return rng.binomial(shown_U, own_U).astype(float), shown_U.astype(float)


@pytest.mark.parametrize("truth", [0.0, 0.3])
def test_intervals_hold_the_true_lift_95_times_in_100(truth: float) -> None:
    rng, turns = np.random.default_rng(5), 1200
    inside: dict[str, int] = defaultdict(int)
    for _ in range(turns):
        (click_a, shown_a), (click_b, shown_b) = drawn(rng, 250, 0.08), drawn(rng, 400, 0.08 * (1 + truth))
        one_a, one_b = np.ones(250), np.ones(400)
        for name, a, b in (
            ("ctr", rate(click_a, shown_a), rate(click_b, shown_b)),
            ("mean", rate(click_a, one_a), rate(click_b, one_b)),
        ):
            found = lift(a, b)
            assert found.lift_low is not None
            assert found.lift_high is not None
            inside[name + " lift"] += found.lift_low <= truth <= found.lift_high
            if name == "ctr" or truth == 0:
                inside[name] += found.low <= 0.08 * truth <= found.high
            if truth == 0:
                inside["p-value"] += found.p_value >= 0.05
    inside["p-value"] //= 2
    for name, count in inside.items():
        if count:
            assert 0.925 <= count / turns <= 0.975, name  # 4 standard errors are 0.025


def test_intervals_are_those_of_a_bootstrap_over_users_and_not_of_one_over_items() -> None:
    rng = np.random.default_rng(2)
    click_U, shown_U = drawn(rng, 3000, 0.1)
    draws = rng.integers(3000, size=(2000, 3000))
    resampled = click_U[draws].sum(axis=1) / shown_U[draws].sum(axis=1)
    found = rate(click_U, shown_U)
    assert found.value == pytest.approx(click_U.sum() / shown_U.sum())
    assert found.variance**0.5 == pytest.approx(resampled.std(), rel=0.06)
    naive = (found.value * (1 - found.value) / shown_U.sum()) ** 0.5
    assert found.variance**0.5 > 1.3 * naive


def test_the_mismatch_is_the_chi_squared_one_and_uniform_where_the_split_is_right() -> None:
    assert ratio_mismatch(540, 460, 0.5) == pytest.approx(0.011412, abs=1e-6)  # chi-squared 6.4, one degree
    rng = np.random.default_rng(1)
    users_b = rng.binomial(5000, 0.2, 4000)
    p = np.array([ratio_mismatch(5000 - int(b), int(b), 0.2) for b in users_b])
    for level in (0.01, 0.05, 0.5):
        assert abs((p < level).mean() - level) < 4 * (level * (1 - level) / 4000) ** 0.5 + 0.005
    assert ratio_mismatch(5000, 4500, 0.5) < 0.001  # a tenth of B is lost


def experiment(users: int, lifted: float, seed: int, *, lose: float = 0.0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Users with 3 lists of 5 items; those of B click ``lifted`` times as often; some of B are not logged."""
    rng, lists, events = np.random.default_rng(seed), [], []
    for user in range(users):
        variant = "AB"[int(rng.random() < 0.5)]
        chance = float(np.clip(rng.beta(2, 10) * (lifted if variant == "B" else 1.0), 0, 1))
        if variant == "B" and rng.random() < lose:
            continue
        for turn in range(3):
            items = [f"i{item}" for item in rng.choice(50, 5, replace=False)]
            lists.append((f"u{user}", variant, turn * HOUR, items))
            events += [(f"u{user}", item, "click", turn * HOUR + 60) for item in items if rng.random() < chance]
    return lists_of(lists), events_of(sorted(events, key=lambda row: row[3]))


def test_a_planted_lift_is_found_and_none_where_there_is_none() -> None:
    report = ab_report(*experiment(3000, 1.3, 13), share=0.5, salt="x")
    ctr = next(row for row in report["metrics"] if row["metric"] == "ctr")
    assert ctr["low"] > 0
    assert ctr["lift_low"] < 0.3 < ctr["lift_high"]
    assert ctr["p_value"] < 0.001
    assert (report["warnings"], report["split"]["broken"]) == ([], False)
    null = ab_report(*experiment(1000, 1.0, 4), share=0.5)
    assert all(row["low"] < 0 < row["high"] for row in null["metrics"])
    assert "+" in markdown(report)
    assert "as planned" in markdown(report)


def test_a_broken_split_says_so_first() -> None:
    report = ab_report(*experiment(3000, 1.0, 6, lose=0.25), share=0.5)
    assert report["split"]["broken"]
    assert markdown(report).splitlines()[2].startswith("**Warning:** the split is broken")


def test_what_a_reader_must_know_is_said() -> None:
    lists, events = experiment(400, 1.0, 8)
    twice = lists.head(30).with_columns(
        variant=pl.when(pl.col("variant") == "A").then(pl.lit("B")).otherwise(pl.lit("A"))
    )
    report = ab_report(pl.concat([lists, twice]), events.head(20), share=0.5, lost=7)
    text = " ".join(report["warnings"])
    assert "10 users had lists of both variants" in text
    assert "7 served lists could not be logged" in text
    assert "ctr: only" in text
    with pytest.raises(DataError, match="too few users"):
        ab_report(*experiment(150, 1.0, 8), share=0.5)
    with pytest.raises(ConfigError):
        AbConfig(window_hours=0)


def test_from_the_log_of_a_server_to_the_report(planted: Any, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from gemirec.recommender import Recommender
    from gemirec.serving.events import EventLog
    from gemirec.serving.impressions import ImpressionLog, ImpressionWriter, impressions_path
    from gemirec.serving.metrics import Metrics
    from gemirec.serving.split import Split
    from gemirec.serving.wire import Event, RecommendAnswer, RecommendedItem

    Recommender.fit(planted, model="popularity").save_pretrained(tmp_path / "artifact")
    path = tmp_path / "events.sqlite"
    log, split = EventLog(path), Split(artifact=Path(), salt="spring")
    writer = ImpressionWriter(ImpressionLog(impressions_path(path)), split, Metrics())
    rng, clicks = np.random.default_rng(0), []
    own: dict[str, set[int]] = {f"user-{number}": set() for number in range(400)}
    for user, items in zip(
        own, Recommender.from_pretrained(tmp_path / "artifact").known_histories(list(own)), strict=True
    ):
        own[user] = {(int(item.removeprefix("item-")) - 1) % 6 for item in items}
        shown = [int(item) for item in rng.choice(120, 8, replace=False) + 1]
        listed = [
            RecommendedItem(item_id=f"item-{item}", rank=at, score=0.0, interest=0, interest_rank=at)
            for at, item in enumerate(shown, 1)
        ]
        answered = RecommendAnswer(user_id=user, source="model", cache="off", skipped=0, version="v", items=listed)
        writer.add(split.variant(user), answered)
        clicks += [(user, item) for item in shown[:4] if rng.random() < (0.6 if split.variant(user) == "B" else 0.3)]
    log.append([[Event(user_id=user, item_id=f"item-{item}") for user, item in clicks]])
    writer.stop()
    log.close()
    report = answer("ab-report", path, "--artifact", tmp_path / "artifact", "--top", "4", cwd=tmp_path)
    metrics = {row["metric"]: row for row in report["metrics"]}
    users = {name: [user for user in own if split.variant(user) == name] for name in "AB"}
    for name, key in (("A", "a"), ("B", "b")):
        of = [(user, (item - 1) % 6) for user, item in clicks if split.variant(user) == name]
        assert metrics["ctr"][key] == pytest.approx(len(of) / len(users[name]) / 4)
        new = {(user, label) for user, label in of if label not in own[user]}  # a label is new once
        assert metrics["new_interest_clicks_per_user"][key] == pytest.approx(len(new) / len(users[name]))
    assert metrics["ctr"]["lift_low"] > 0.3
    assert report["experiment"] == "spring"
    text = gemirec("ab-report", path, "--out", tmp_path / "report.md", cwd=tmp_path).stdout
    assert text == (tmp_path / "report.md").read_text()
    assert "new to the user" not in text
    gemirec("ab-report", tmp_path / "none.sqlite", cwd=tmp_path, code=2)


def test_labels_come_from_files_as_well_and_a_missing_column_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [1, 2], "cluster": [7, 8]}).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,2,5\n")
    labels = read_labels(None, tmp_path / "items.parquet", tmp_path / "log.csv", "cluster")
    assert labels is not None
    assert labels.items.sort("item_id").rows() == [("1", "7"), ("2", "8")]
    assert labels.history.collect().rows() == [("1", "2")]
    assert read_labels(None, None, None) is None
    with pytest.raises(DataError, match="lacks a column"):
        read_labels(None, tmp_path / "items.parquet", None)
