"""Aspects of items: off they change nothing; on, an interest's items agree on what it cares about, else as stated."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate

OFF: dict[str, Any] = {
    "num_users": 300,
    "num_items": 400,
    "num_super_clusters": 4,
    "clusters_per_super": 3,
    "interests_min": 2,
    "interests_max": 4,
    "mean_events": 12.0,
}
ON: dict[str, Any] = OFF | {"num_users": 2000, "num_items": 800, "aspects": 3, "aspect_values": 6, "aspect_lean": 0.4}
CLUSTERS = 12


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SimulatedLog:
    return simulate(tmp_path_factory.mktemp("aspects") / "log", SimulatorConfig(**ON))


def fits(log: SimulatedLog) -> np.ndarray:
    """Return ``[N, 1 + A]``: the interests that each item fits, by item id."""
    items = pl.read_parquet(log.truth_items)
    assert items["item_id"].to_list() == list(range(log.config.num_items))
    first = log.config.num_clusters + np.arange(log.config.aspects) * log.config.aspect_values
    return np.concatenate([items["cluster"].to_numpy()[:, None], items["aspect_values"].to_numpy() + first], axis=1)


def events(log: SimulatedLog, kind: str = "interest") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user, item and interest of the events of a kind."""
    assert log.truth_events is not None
    truth = pl.read_parquet(log.truth_events)
    table = pl.concat([pl.read_parquet(log.interactions), truth], how="horizontal")
    table = table.filter(pl.col("kind").cast(pl.String) == kind)
    return tuple(table[name].to_numpy() for name in ("user_id", "item_id", "cluster"))  # type: ignore[return-value]


def test_without_aspects_the_log_is_what_it_was_before_there_were_any(tmp_path: Path) -> None:
    made = simulate(tmp_path / "log", SimulatorConfig(**OFF))
    table = pl.read_parquet(made.interactions)
    found = {name: zlib.crc32(table[name].to_numpy().astype(np.int64).tobytes()) for name in table.columns}
    assert found == {"user_id": 3833270391, "item_id": 1831416812, "timestamp": 381447784}
    assert "aspect_values" not in pl.read_parquet_schema(made.truth_items)
    idle = simulate(tmp_path / "idle", SimulatorConfig(**OFF, aspect_values=3, aspect_share=0.9, aspect_lean=0.0))
    for file in made.path.glob("*.parquet"):
        assert file.read_bytes() == (idle.path / file.name).read_bytes(), file.name


def test_aspects_leave_the_catalogue_as_it_was_and_a_seed_gives_one_log(log: SimulatedLog, tmp_path: Path) -> None:
    without = simulate(tmp_path / "without", SimulatorConfig(**(ON | {"aspects": 0})))
    assert log.items.read_bytes() == without.items.read_bytes()
    truth = pl.read_parquet(log.truth_items).drop("aspect_values")
    assert truth.equals(pl.read_parquet(without.truth_items))
    again = simulate(tmp_path / "again", SimulatorConfig(**ON))
    for file in log.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes(), file.name
    other = simulate(tmp_path / "other", SimulatorConfig(**(ON | {"seed": 2})))
    assert not np.array_equal(fits(log), fits(other))


def test_interests_are_clusters_and_values_as_asked_and_births_are_clusters(log: SimulatedLog) -> None:
    users = pl.read_parquet(log.truth_users)
    interest = users["interests"].explode().to_numpy()
    assert interest.max() < log.config.num_interests == CLUSTERS + 18
    # Without replacement the more frequent side, a cluster, is taken a little less than its chance.
    assert np.mean(interest >= CLUSTERS) == pytest.approx(log.config.aspect_share, abs=0.04)
    of_value = np.bincount(interest[interest >= CLUSTERS] - CLUSTERS)
    assert len(of_value) == 18
    assert of_value.min() > 0.7 * of_value.mean()
    assert (users["interests"].list.n_unique() == users["interests"].list.len()).all()
    assert users["born_cluster"].drop_nulls().max() < CLUSTERS  # type: ignore[operator]


def test_clicks_of_an_interest_agree_on_its_aspect_and_on_others_as_stated(log: SimulatedLog) -> None:
    user, item, interest = events(log)
    fit, values, lean = fits(log), log.config.aspect_values, log.config.aspect_lean
    assert (fit[item] == interest[:, None]).any(axis=1).all(), "every click has what its interest cares about"
    order = np.lexsort([item, interest, user])
    first, second = order[:-1], order[1:]
    pair = (user[first] == user[second]) & (interest[first] == interest[second]) & (item[first] != item[second])
    first, second = first[pair], second[pair]
    agree = fit[item[first]] == fit[item[second]]
    own = np.where(interest[first] < CLUSTERS, 0, 1 + (interest[first] - CLUSTERS) // values)
    assert agree[np.arange(len(own)), own].all()
    # Two items of a cluster both lean (lean^2) or agree by chance.
    assert agree[own == 0, 1:].mean() == pytest.approx(lean**2 + (1 - lean**2) / values, abs=0.05)
    for aspect in (1, 2, 3):
        # Of a value, other values agree by chance alone; clusters that lean to the value a little more.
        others = [a for a in (1, 2, 3) if a != aspect]
        assert agree[own == aspect][:, others].mean() == pytest.approx(1 / values, abs=0.08)
        assert agree[own == aspect, 0].mean() < 0.3


@pytest.mark.parametrize("lean", [0.0, 0.7, 1.0])
def test_the_lean_is_the_share_of_items_with_their_cluster_s_own_value(tmp_path: Path, lean: float) -> None:
    made = simulate(
        tmp_path / "log", SimulatorConfig(**(ON | {"num_users": 20, "num_items": 4000, "aspect_lean": lean}))
    )
    label = fits(made)
    for aspect in (1, 2, 3):
        table = np.zeros((CLUSTERS, made.config.num_interests))
        np.add.at(table, (label[:, 0], label[:, aspect]), 1.0)
        most = table.max(axis=1).sum() / len(label)
        expected = lean + (1 - lean) / 6
        assert most == pytest.approx(expected, abs=0.05 if lean == 0 else 0.03)  # the largest of six is above its mean
        owners = np.bincount(table.argmax(axis=1), minlength=30)
        if lean:
            assert owners.max() == owners[owners > 0].min() == 2, "own values are dealt in turn"


def test_items_of_a_value_are_drawn_by_the_zipf_law(tmp_path: Path) -> None:
    made = simulate(
        tmp_path / "log",
        SimulatorConfig(**(ON | {"num_users": 4000, "num_items": 300, "choices": 1, "item_skew": 0.8})),
    )
    _, item, interest = events(made)
    curve = np.zeros(30)
    for value in range(CLUSTERS, made.config.num_interests):
        count = np.sort(np.bincount(item[interest == value], minlength=300))[::-1]
        curve += count[:30]
    assert np.polyfit(np.log(np.arange(1, 31)), np.log(curve), 1)[0] == pytest.approx(-0.8, abs=0.08)
