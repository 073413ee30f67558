"""Planted scores: the matching against all permutations, the scores against a plain loop, and whole logs."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.data.batches import evaluation_batches
from gemirec.data.options import Columns
from gemirec.data.prepare import PrepareConfig, prepare
from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.errors import ConfigError, DataError
from gemirec.evaluation.assignment import assign
from gemirec.evaluation.planted import planted_scores, read_truth, score_lists
from gemirec.models.base import Histories, Interests, LossTerms, ModelConfig, RetrievalModel, TrainBatch
from support import write_planted_dataset

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 3), (4, 2), (2, 5), (5, 4), (4, 6)])
def test_matching_equals_all_permutations(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows * 10 + columns)
    weight = rng.integers(0, 5, (40, rows, columns)) / 4.0  # ties are common
    matched = assign(weight)
    assert (matched.sum(axis=1) <= 1).all()
    assert (matched.sum(axis=2) <= 1).all()
    assert (weight[matched] > 0).all()
    side = max(rows, columns)
    for table, found in zip(weight, matched, strict=True):
        square = np.zeros((side, side))
        square[:rows, :columns] = table
        best = max(square[range(side), list(order)].sum() for order in itertools.permutations(range(side)))
        assert table[found].sum() == best


def test_a_matching_that_is_too_large_is_refused() -> None:
    assert assign(np.ones((2, 12, 30))).sum() == 24
    with pytest.raises(ConfigError, match="too many rows and columns"):
        assign(np.ones((1, 13, 13)))


def test_scores_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    users, interests, places, slots = 60, 3, 4, 3
    cluster = np.concatenate([[-1], rng.integers(0, 5, 30)])
    lists = np.stack([rng.permutation(30)[: interests * places] + 1 for _ in range(users)])
    lists = lists.reshape(users, interests, places)
    lists[rng.random((users, interests)) < 0.2] = -1  # absent interests
    lists[rng.random(users) < 0.3, :, -1] = -1
    merged = lists.reshape(users, -1)[:, ::2]
    planted = np.stack([rng.permutation(5)[:slots] for _ in range(users)])
    planted[rng.random((users, slots)) < 0.3] = -1
    born = rng.integers(-1, 5, users)
    found = score_lists(lists, merged, planted, born, cluster)
    for user in range(users):
        real = [[cluster[item] for item in one if item > 0] for one in lists[user]]
        clusters = [c for c in planted[user] if c >= 0]
        share = [[one.count(c) / max(len(one), 1) for c in clusters] for one in real]
        options = [
            sorted((share[k][j] for j, k in enumerate(order) if k < interests), reverse=True)
            for order in itertools.permutations(range(interests + slots), len(clusters))
        ]
        most = max(sum(option) for option in options)
        best = {sum(value >= 0.5 for value in option) for option in options if abs(sum(option) - most) < 1e-12}
        expected = most / len(clusters) if clusters else math.nan
        assert found["match"][user] == pytest.approx(expected, nan_ok=True)
        if clusters:
            assert round(found["recovered"][user] * len(clusters)) in best
        if born[user] >= 0:
            assert found["found"][user] == any(one.count(born[user]) >= 0.5 * len(one) for one in real if one)
            assert found["in_list"][user] == (born[user] in {cluster[item] for item in merged[user] if item > 0})
        else:
            assert np.isnan(found["found"][user])
            assert np.isnan(found["in_list"][user])


def test_the_worked_example_is_that_of_the_docs() -> None:
    """Twenty items of cluster 7, of 8, of 9; lists of 20 that lie in 7 and 8 by .75 and .25, .6 and .4."""
    cluster = np.array([-1] + [7] * 20 + [8] * 20 + [9] * 20)
    lists = np.array([[*range(1, 16), *range(21, 26)], [*range(1, 13), *range(21, 29)]])[None]
    merged = np.arange(1, 42)[None]  # the last one is of cluster 9
    found = score_lists(lists, merged, np.array([[7, 8, 5]]), np.array([9]), cluster)
    said = dict(re.findall(r"^\| `(\w+(?:@50)?)` \| ([\d.]+) \|", DOCS.read_text(), flags=re.MULTILINE))
    names = ("planted_match", "planted_recovered", "births_found", "births_in_list@50")
    assert {name: said[name] for name in names} == {
        name: f"{value[0]:.4f}" for name, value in zip(names, found.values(), strict=True)
    }


TINY = SimulatorConfig(
    num_users=400,
    num_items=400,
    num_super_clusters=4,
    clusters_per_super=3,
    interests_min=2,
    interests_max=4,
    mean_events=16.0,
    birth_share=0.8,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SimulatedLog:
    return simulate(tmp_path_factory.mktemp("log") / "log", TINY)


@pytest.fixture(scope="module")
def dataset(log: SimulatedLog, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("data") / "data"
    return prepare(log.interactions, out, items=log.items, config=PrepareConfig(filter="none"))


class Seer(RetrievalModel):
    """An interest for each of a user's clusters, given as ``[U, J]`` by the user's row in the split; -1 is absent."""

    def __init__(self, dataset: Dataset, cluster_N: np.ndarray, cluster_UJ: np.ndarray, split: str = "test") -> None:
        super().__init__(ModelConfig(dim=12, max_length=10), dataset.spec())
        one_hot_NC = torch.from_numpy(np.eye(13, dtype=np.float32)[cluster_N])[:, :12]
        self.item_ND = torch.nn.Parameter(one_hot_NC)
        self.known: dict[tuple[int, ...], list[int]] = {}
        windows = evaluation_batches(dataset, split, batch_size=1, max_length=10)  # type: ignore[arg-type]
        for row, window in enumerate(windows):
            self.known[tuple(window.item_BL[0].tolist())] = cluster_UJ[row].tolist()

    def item_vectors(self, item_ids: torch.Tensor | None = None) -> torch.Tensor:
        return self.item_ND if item_ids is None else self.item_ND[item_ids]

    def interests(self, histories: Histories) -> Interests:
        cluster_BJ = torch.tensor([self.known[tuple(row)] for row in histories.item_BL.tolist()])
        return Interests(torch.eye(13)[cluster_BJ][:, :, :12], cluster_BJ >= 0)

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        raise AssertionError("scoring does not train")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_truth_is_that_of_the_events(log: SimulatedLog, dataset: Dataset, split: str) -> None:
    """Whether a birth is in the history, found again in the table of events, by time."""
    users = dataset.users_in(split)  # type: ignore[arg-type]
    truth = read_truth(dataset, log, users, split)  # type: ignore[arg-type]
    planted = pl.read_parquet(log.truth_users).with_columns(pl.col("announced_by").cast(pl.String))
    by_user = {row["user_id"]: row for row in planted.iter_rows(named=True)}
    births = 0
    for row, window in enumerate(evaluation_batches(dataset, split, batch_size=1, max_length=10)):  # type: ignore[arg-type]
        told = by_user[int(dataset.users["user_id"][int(users[row])])]
        seen_birth = told["born_cluster"] is not None and told["birth_event"] < len(window.seen_E)
        expected = set(told["interests"]) | ({told["born_cluster"]} if seen_birth else set())
        assert {c for c in truth.planted_UJ[row].tolist() if c >= 0} == expected
        new = told["born_cluster"] is not None and not seen_birth
        assert truth.born_U[row] == (told["born_cluster"] if new else -1)
        if new:
            births += 1
            assert truth.announced_U[row] == told["announced_by"]
    assert births > 3


def test_a_seer_finds_everything_and_blocks_change_nothing(log: SimulatedLog, dataset: Dataset) -> None:
    truth = read_truth(dataset, log, dataset.users_in("test"), "test")
    slots = np.concatenate([truth.planted_UJ, truth.born_U[:, None]], axis=1)
    found = planted_scores(Seer(dataset, truth.cluster_N, slots), dataset, log)
    for name in ("planted_match", "planted_recovered", "births_found", "births_in_list@50", "births_found_feature"):
        assert found[name] == 1.0, name
    assert found["planted_users"] == len(truth.born_U)
    counts = [found[f"births_users_{kind}"] for kind in ("feature", "precursor", "none")]
    assert found["births_users"] == sum(counts) > 0
    blind = planted_scores(Seer(dataset, truth.cluster_N, truth.planted_UJ), dataset, log, batch_size=7)
    assert blind["planted_recovered"] == 1.0
    assert blind["births_found"] == 0.0
    single = np.where(np.arange(slots.shape[1]) == 0, slots, -1)
    one = planted_scores(Seer(dataset, truth.cluster_N, single), dataset, log)
    sizes = (truth.planted_UJ >= 0).sum(axis=1)
    assert one["planted_recovered"] == one["planted_match"] == pytest.approx((1 / sizes).mean())
    assert one == planted_scores(Seer(dataset, truth.cluster_N, single), dataset, log, batch_size=3)


def test_a_log_without_births_has_no_score_for_them(tmp_path: Path) -> None:
    config = {name: getattr(TINY, name) for name in TINY.__struct_fields__} | {"birth_share": 0.0, "num_users": 200}
    log = simulate(tmp_path / "log", SimulatorConfig(**config))
    dataset = prepare(log.interactions, tmp_path / "data", items=log.items)
    truth = read_truth(dataset, log, dataset.users_in("test"), "test")
    found = planted_scores(Seer(dataset, truth.cluster_N, truth.planted_UJ), dataset, log)
    assert {name for name in found if found[name] != 0} == {"planted_users", "planted_match", "planted_recovered"}


def test_another_log_is_refused(log: SimulatedLog, dataset: Dataset, tmp_path: Path) -> None:
    stranger = write_planted_dataset(tmp_path / "data", num_users=60, num_items=40)
    with pytest.raises(DataError, match="ids that the simulated log has not"):
        read_truth(stranger, log, stranger.users_in("test"), "test")
    config = PrepareConfig(columns=Columns(timestamp=None))
    ordered = prepare(log.interactions, tmp_path / "ordered", items=log.items, config=config)
    with pytest.raises(DataError, match="times are not those"):
        read_truth(ordered, log, ordered.users_in("test"), "test")
