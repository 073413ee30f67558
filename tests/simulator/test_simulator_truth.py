"""The planted structure holds in the files: every formula of the simulator's docstring that a log can show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.data.simulator.catalogue import cluster_name, super_name

SMALL = SimulatorConfig(
    num_users=3_000, num_items=900, num_super_clusters=6, clusters_per_super=5, interests_min=2, interests_max=4, seed=4
)


@dataclass
class Log:
    """A log with its truth joined: one row per event, one row per user, one row per item."""

    files: SimulatedLog
    events: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame

    @property
    def config(self) -> SimulatorConfig:
        return self.files.config


def mean(values: pl.Series) -> float:
    return float(values.cast(pl.Float64).to_numpy().mean())


def load(files: SimulatedLog) -> Log:
    """Join the log with the truth; ``step`` counts a user's events, ``own`` says that the item fits an interest."""
    assert files.truth_events is not None
    items = pl.read_parquet(files.truth_items).join(pl.read_parquet(files.items), on="item_id")
    users = pl.read_parquet(files.truth_users).join(pl.read_parquet(files.users), on="user_id")
    users = users.with_columns(pl.col("announced_by").cast(pl.String))
    truth = (
        pl.read_parquet(files.truth_events).rename({"cluster": "meant"}).with_columns(pl.col("kind").cast(pl.String))
    )
    events = (
        pl.concat([pl.read_parquet(files.interactions), truth], how="horizontal")
        .with_columns(step=pl.int_range(pl.len()).over("user_id"))
        .join(users, on="user_id", how="left", maintain_order="left")
        .join(items.select("item_id", "cluster", "is_precursor", "announces"), on="item_id", how="left")
        .sort("user_id", "timestamp")
        .with_columns(own=pl.col("interests").list.contains(pl.col("cluster")))
    )
    return Log(files, events, users, items)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return load(simulate(tmp_path_factory.mktemp("truth") / "log", SMALL))


def variant(folder: Path, **fields: float) -> Log:
    values = {name: getattr(SMALL, name) for name in SMALL.__struct_fields__} | {"num_users": 1500} | fields
    return load(simulate(folder / "log", SimulatorConfig(**values)))


def test_an_event_of_an_interest_lies_in_it_and_the_rest_is_noise(log: Log) -> None:
    kinds = log.events.group_by("kind").agg(pl.len(), pl.col("own").mean())
    count = dict(zip(kinds["kind"], kinds["len"], strict=True))
    own = dict(zip(kinds["kind"], kinds["own"], strict=True))
    assert own["interest"] == 1.0
    births = log.events.filter(kind="birth")
    assert (births["cluster"] == births["born_cluster"]).all()
    assert (births["meant"] == births["born_cluster"]).all()
    assert not births["own"].any(), "a born interest is a new one"
    # Precursors and the first event of a birth are spared by noise.
    spared = count["precursor"] + (log.events["step"] == log.events["birth_event"]).sum()
    share = count["noise"] / (log.events.height - spared)
    deviation = np.sqrt(SMALL.noise * (1 - SMALL.noise) / log.events.height)
    assert abs(share - SMALL.noise) < 4 * deviation
    drawn = log.events.filter(kind="noise")["item_id"].n_unique()
    assert drawn > 0.99 * SMALL.num_items, "noise reaches the whole catalogue"


def test_an_interest_is_born_at_its_time_and_never_before(log: Log) -> None:
    born = log.events.filter(pl.col("born_cluster").is_not_null())
    before = born.filter(pl.col("timestamp") < pl.col("birth_time"))
    assert (before["kind"] != "birth").all()
    early = before.filter(pl.col("cluster") == pl.col("born_cluster"))
    assert set(early["kind"]) <= {"noise", "precursor"}, "only chance shows the new cluster before its birth"
    first = born.filter(pl.col("timestamp") == pl.col("birth_time"))
    assert (first["kind"] == "birth").all()
    assert (first["step"] == first["birth_event"]).all()
    assert first.height == log.users["born_cluster"].is_not_null().sum()
    assert (log.events.filter(kind="birth")["born_cluster"].is_not_null()).all()
    share = mean(log.users["born_cluster"].is_not_null())
    assert abs(share - SMALL.birth_share) < 4 * np.sqrt(0.25 / SMALL.num_users)
    life = (first["step"] / first["num_events"]).to_numpy()
    assert SMALL.birth_from <= life.min()
    assert life.max() < 1
    # After the birth, the new interest takes birth_weight of what is not noise.
    after = born.filter((pl.col("step") > pl.col("birth_event")) & (pl.col("kind") != "noise"))
    assert abs(mean(after["kind"] == "birth") - SMALL.birth_weight) < 0.05


def test_precursors_stand_right_before_the_birth_and_announce_it(log: Log) -> None:
    precursors = log.events.filter(kind="precursor")
    assert (precursors["announces"] == precursors["born_cluster"]).all()
    assert (precursors["announced_by"] == "precursor").all()
    ahead = precursors["birth_event"] - precursors["step"]
    assert ahead.min() == 1
    assert ahead.max() == SMALL.precursor_events
    announced = log.users.filter(announced_by="precursor")
    assert precursors["user_id"].n_unique() == announced.height
    assert (log.items.filter("is_precursor")["popularity"] == 0).all()
    ordinary = log.events.filter(pl.col("kind").is_in(["interest", "birth"]))
    assert not ordinary["is_precursor"].any()


def test_a_precursor_in_the_log_predicts_the_birth_far_better_than_chance(log: Log) -> None:
    # What a model sees: an item, not its kind. Does the announced cluster follow within the next three events?
    chance = (1 / SMALL.num_clusters) * 3
    events = log.events.with_columns(
        follows=pl.any_horizontal(pl.col("cluster").shift(-j).over("user_id") == pl.col("announces") for j in (1, 2, 3))
    )
    rate = mean(events.filter(pl.col("is_precursor") & pl.col("follows").is_not_null())["follows"])
    assert rate > 4 * chance
    assert rate > 0.6


def test_the_hint_predicts_births_and_says_little_otherwise(log: Log) -> None:
    names = [cluster_name(SMALL, c) for c in range(SMALL.num_clusters)]
    users = log.users.with_columns(born=pl.col("born_cluster").replace_strict(dict(enumerate(names)), default=None))
    by_feature = users.filter(announced_by="feature")
    assert by_feature.height > 400
    assert abs(mean(by_feature["hint"] == by_feature["born"]) - (1 - SMALL.feature_noise)) < 0.04
    others = users.filter((pl.col("announced_by") != "feature").fill_null(value=True))
    assert abs(mean(others["hint"] == "none") - (1 - SMALL.feature_noise)) < 0.03
    # As a model would use it: of the users with a hint, how many are given that very birth?
    hinted = users.filter(pl.col("hint") != "none")
    assert mean((hinted["hint"] == hinted["born"]).fill_null(value=False)) > 10 / SMALL.num_clusters
    shares = dict(users.drop_nulls("announced_by")["announced_by"].value_counts(normalize=True).iter_rows())
    assert abs(shares["feature"] - SMALL.announced_by_feature) < 0.05
    assert abs(shares["precursor"] - SMALL.announced_by_precursor) < 0.05


def test_user_features_follow_the_interests_and_the_region_does_not(log: Log) -> None:
    main = [i[int(np.argmax(w))] for i, w in log.users.select("interests", "weights").iter_rows()]
    segment = [super_name(c // SMALL.clusters_per_super) for c in main]
    agree = np.mean([a == b for a, b in zip(segment, log.users["segment"], strict=True)])
    expected = 1 - SMALL.feature_noise * (1 - 1 / SMALL.num_super_clusters)
    assert abs(agree - expected) < 0.03
    counted = log.users.select("region", "announced_by").with_columns(main=pl.Series(segment))
    assert mutual_information(counted["region"], counted["main"]) < 0.02
    assert mutual_information(counted["main"], log.users["segment"]) > 0.6
    activity = np.corrcoef(np.log(log.users["num_events"].to_numpy()), log.users["activity"].to_numpy())[0, 1]
    assert activity > 0.95
    centre = np.stack([np.mean(log.items.filter(cluster=c)["vector"].to_numpy(), axis=0) for c in range(30)])
    taste = [float(np.dot(w, centre[i, 0])) for i, w in log.users.select("interests", "weights").iter_rows()]
    assert np.corrcoef(taste, log.users["taste_x"].to_numpy())[0, 1] > 0.9


def mutual_information(left: pl.Series, right: pl.Series) -> float:
    """Return the mutual information over the smaller entropy: 0 independent, 1 a function."""
    codes = [np.unique(side.to_numpy(), return_inverse=True)[1] for side in (left, right)]
    joint = np.zeros((codes[0].max() + 1, codes[1].max() + 1))
    np.add.at(joint, tuple(codes), 1 / len(left))
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    filled = joint > 0
    gain = float((joint[filled] * np.log((joint / np.outer(rows, columns))[filled])).sum())
    return gain / min(float(-(m * np.log(m)).sum()) for m in (rows, columns))


def test_categories_follow_clusters_up_to_the_stated_noise(log: Log, tmp_path: Path) -> None:
    parents = log.items.select(pl.col("subcategory").str.split("/").list.first())["subcategory"]
    assert (parents == log.items["category"]).all(), "subcategories nest in categories"
    assert log.items["subcategory"].n_unique() == SMALL.num_clusters
    right = np.mean([s == cluster_name(SMALL, c) for c, s in log.items.select("cluster", "subcategory").iter_rows()])
    assert abs(right - (1 - SMALL.category_noise)) < 0.03
    noisy = mutual_information(log.items["cluster"].cast(pl.String), log.items["category"])
    assert 0.75 < noisy < 0.999
    clean = variant(tmp_path, num_users=10, category_noise=0.0)
    assert mutual_information(clean.items["cluster"].cast(pl.String), clean.items["category"]) == pytest.approx(1)


def test_item_vectors_lie_around_their_clusters_and_clusters_around_their_parents(log: Log) -> None:
    vector = log.items["vector"].to_numpy()
    cluster, parent = log.items["cluster"].to_numpy(), log.items["super_cluster"].to_numpy()
    centre = np.stack([vector[cluster == c].mean(axis=0) for c in range(SMALL.num_clusters)])
    parent_of = np.array([parent[cluster == c][0] for c in range(SMALL.num_clusters)])
    within = np.sqrt(np.mean((vector - centre[cluster]) ** 2))
    assert within == pytest.approx(SMALL.item_spread, rel=0.05)
    middle = np.stack([centre[parent_of == g].mean(axis=0) for g in range(SMALL.num_super_clusters)])
    # The mean of five clusters takes a fifth of their variance with it.
    spread = np.sqrt(np.mean((centre - middle[parent_of]) ** 2) * 5 / 4)
    assert spread == pytest.approx(SMALL.cluster_spread, rel=0.1)


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.2])
def test_popularity_within_a_cluster_is_zipf(tmp_path: Path, skew: float) -> None:
    made = variant(tmp_path, item_skew=skew, choices=1)
    chosen = made.events.filter(kind="interest").group_by("item_id").len()
    items = made.items.filter(~pl.col("is_precursor")).join(chosen, on="item_id", how="left").fill_null(0)
    items = items.sort("cluster", "popularity", descending=[False, True])
    rank = items.select(pl.int_range(1, pl.len() + 1).over("cluster"))["literal"].to_numpy()
    by_rank = np.bincount(rank, weights=items["len"].to_numpy())[1:21]
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(by_rank), 1)[0]
    if skew:
        assert slope == pytest.approx(-skew, abs=0.06)
    sums = items.group_by("cluster").agg(pl.col("popularity").sum())["popularity"].to_numpy()
    np.testing.assert_allclose(sums, 1)
    expected = items.select(pl.col("popularity") * pl.col("len").sum().over("cluster")).to_series().to_numpy()
    statistic = ((items["len"].to_numpy() - expected) ** 2 / expected).sum()
    freedom = items.height - SMALL.num_clusters
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom), "every item is drawn by its popularity in its cluster"
    if skew == 0:
        assert items["popularity"].n_unique() <= 2, "uniform but for clusters that differ by one item"


def test_clusters_are_interests_by_zipf_and_never_twice_of_one_user(tmp_path: Path) -> None:
    made = variant(tmp_path, num_users=4000, cluster_skew=1.0, interests_min=1, interests_max=1)
    counts = made.users.explode("interests")["interests"].value_counts(sort=True)["count"].to_numpy()
    chance = np.arange(1, SMALL.num_clusters + 1) ** -1.0
    expected = 4000 * chance / chance.sum()
    np.testing.assert_allclose(counts[:8], expected[:8], rtol=0.2)
    several = variant(tmp_path / "several", cluster_skew=1.0)
    lengths = several.users["interests"].list.len()
    assert (several.users["interests"].list.n_unique() == lengths).all()
    assert set(lengths) == {2, 3, 4}
    born = several.users.drop_nulls("born_cluster")
    assert not born.select(pl.col("interests").list.contains(pl.col("born_cluster"))).to_series().any()
    np.testing.assert_allclose(several.users["weights"].list.sum().to_numpy(), 1, rtol=1e-5)


def drift_gain(made: Log) -> float:
    """Return by how much the interest that rises most gains from the first half of life to the second."""
    rising = [i[int(np.argmax(d))] for i, d in made.users.select("interests", "drift").iter_rows()]
    events = made.events.join(made.users.select("user_id", rising=pl.Series(rising)), on="user_id").filter(
        kind="interest"
    )
    hit = (events["meant"] == events["rising"]).to_numpy()
    late = (events["step"] >= events["num_events"] / 2).to_numpy()
    return float(hit[late].mean() - hit[~late].mean())


def test_weights_drift_as_far_as_asked(tmp_path: Path) -> None:
    still = variant(tmp_path / "0", drift=0.0, birth_share=0.0)
    moving = variant(tmp_path / "2", drift=2.0, birth_share=0.0)
    assert abs(drift_gain(still)) < 0.02
    assert drift_gain(moving) > 0.15
    assert np.std(np.concatenate(moving.users["drift"].to_list())) == pytest.approx(2, rel=0.05)
    # Without drift the weights themselves are the shares.
    events = still.events.filter(kind="interest")
    first = events.filter(pl.col("meant") == pl.col("interests").list.first()).height / events.height
    weighted = (still.users["weights"].list.first() * still.users["num_events"]).sum() / still.events.height
    assert first == pytest.approx(weighted, abs=0.015)


def test_sessions_stick_to_an_interest(tmp_path: Path) -> None:
    def same(stickiness: float) -> float:
        made = variant(tmp_path / str(stickiness), stickiness=stickiness, noise=0.0, birth_share=0.0, drift=0.0)
        pairs = made.events.with_columns(last=pl.col("meant").shift(1).over("user_id")).drop_nulls("last")
        return float((pairs["meant"] == pairs["last"]).to_numpy().mean())

    free = same(0.0)
    assert same(0.6) == pytest.approx(0.6 + 0.4 * free, abs=0.02)


def test_taste_makes_the_items_of_a_user_alike_within_a_cluster(tmp_path: Path) -> None:
    def likeness(affinity: float) -> float:
        made = variant(tmp_path / str(affinity), affinity=affinity, choices=8, item_skew=0.0, item_spread=1.0)
        vector = made.items.sort("item_id")["vector"].to_numpy()
        cluster = made.items.sort("item_id")["cluster"].to_numpy()
        centre = np.stack([vector[cluster == c].mean(axis=0) for c in range(SMALL.num_clusters)])
        unit = vector - centre[cluster]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        pairs = made.events.filter(kind="interest").with_columns(
            last=pl.col("item_id").shift(1).over("user_id", "meant")
        )
        pairs = pairs.drop_nulls("last").filter(pl.col("item_id") != pl.col("last"))
        return float(np.mean(np.sum(unit[pairs["item_id"].to_numpy()] * unit[pairs["last"].to_numpy()], axis=1)))

    none = likeness(0.0)
    # Two different items of a cluster of about 28 are a little unlike: their offsets sum up to nothing.
    assert abs(none + 1 / 27) < 0.03
    assert likeness(3.0) > none + 0.06


def test_activity_is_log_normal_and_times_increase_within_the_horizon(log: Log) -> None:
    size = log.users["num_events"].to_numpy()
    assert size.mean() == pytest.approx(SMALL.mean_events, rel=0.05)
    assert np.log(size).std() == pytest.approx(SMALL.activity_skew, rel=0.1)
    assert (size >= SMALL.min_events).all()
    assert (log.events.group_by("user_id", maintain_order=True).len()["len"].to_numpy() == size).all()
    time = log.events["timestamp"].to_numpy()
    assert SMALL.start <= time.min() <= time.max() < SMALL.start + SMALL.horizon
    gap = np.diff(time)[np.diff(log.events["user_id"].to_numpy()) == 0]
    assert gap.min() >= 1
    # Sessions: a stuck event follows in minutes, a fresh one in days.
    assert np.quantile(gap, 0.25) < np.quantile(gap, 0.75) / 20
