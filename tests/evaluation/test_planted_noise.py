"""Noise at the level of dimensions: known cases, a plain loop, and a whole log whose interests are made to measure."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.data.batches import evaluation_batches
from gemirec.data.prepare import PrepareConfig, prepare
from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.errors import DataError
from gemirec.evaluation.planted import planted_scores, read_truth
from gemirec.evaluation.planted_noise import PlantedSpace, fit_probe, interest_noise, planted_noise, planted_space
from gemirec.models.base import Histories, Interests, LossTerms, ModelConfig, RetrievalModel, TrainBatch

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

ASPECT_P = np.repeat([0, 1, 2], [5, 4, 3])
AXES = len(ASPECT_P)


def some_space(items: int = 300, seed: int = 0) -> PlantedSpace:
    """A space of three aspects with 5, 4 and 3 values, not equally frequent."""
    rng = np.random.default_rng(seed)
    value = [np.minimum(rng.integers(0, n + 1, items), n - 1) for n in (5, 4, 3)]
    return planted_space(np.stack(value, axis=1) + np.array([0, 5, 9]), ASPECT_P)


def turn(axes: int, seed: int = 1) -> np.ndarray:
    """A random rotation."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((axes, axes)))[0]


def with_noise(space: PlantedSpace, own: int, other: int, share: float) -> np.ndarray:
    """An interest in ``own`` with a share of its energy in ``other``, an axis of another aspect."""
    assert space.aspect_P[own] != space.aspect_P[other]
    vector: np.ndarray = np.sqrt(1 - share) * space.direction_PP[own] + np.sqrt(share) * space.direction_PP[other]
    return vector


def noise_of(
    vector_KD: np.ndarray, planted: list[int], item_ND: np.ndarray, space: PlantedSpace, ridge: float = 0.0
) -> Any:
    """The noise of one user's interests."""
    probe = fit_probe(item_ND, space, ridge)
    vector_BKD = torch.from_numpy(vector_KD[None])
    noise, matched = interest_noise(
        vector_BKD, torch.ones(vector_BKD.shape[:2], dtype=torch.bool), np.array([planted]), probe, space
    )
    return noise[0], matched[0]


def test_every_aspect_has_the_same_energy() -> None:
    space = some_space()
    np.testing.assert_allclose(space.vector_NP.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(space.energy(space.vector_NP).mean(axis=0), 1)
    np.testing.assert_allclose((space.direction_PP**2).sum(axis=1), 1)
    # An interest's direction is that of the mean of its own aspect's block over its items.
    for axis in range(AXES):
        mean = space.vector_NP[space.label_NA[:, ASPECT_P[axis]] == axis].mean(axis=0) * (ASPECT_P[axis] == ASPECT_P)
        np.testing.assert_allclose(space.direction_PP[axis], mean / np.linalg.norm(mean), atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4])
def test_a_noise_of_a_known_share_is_found_in_every_turn_length_and_width_of_the_space(share: float) -> None:
    space = some_space()
    planted = np.stack([with_noise(space, 2, 7, share), with_noise(space, 10, 1, share)])
    wide = np.concatenate([turn(AXES), np.zeros((AXES, 8))], axis=1) @ turn(AXES + 8, 2)  # axes that no item has
    for learned in (np.eye(AXES), turn(AXES), 7.0 * turn(AXES, 3), wide):
        noise, matched = noise_of(planted @ learned * [[0.3], [40.0]], [10, 2], space.vector_NP @ learned, space)
        np.testing.assert_allclose(noise, share, atol=1e-9)
        assert matched.tolist() == [2, 10]
        with_ridge, _ = noise_of(planted @ learned, [10, 2], space.vector_NP @ learned, space, ridge=1e-3)
        np.testing.assert_allclose(with_ridge, share, atol=2e-3)


def test_one_item_is_noise_in_all_aspects_but_one() -> None:
    space = some_space()
    shares = [
        noise_of(space.vector_NP[None, item], [int(label)], space.vector_NP, space)[0][0]
        for item in range(60)
        for label in space.label_NA[item]
    ]
    assert np.mean(shares) == pytest.approx(2 / 3)


def test_the_probe_and_the_matching_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    space, ridge = some_space(40), 0.05
    item = rng.standard_normal((40, 7)) + space.vector_NP @ rng.standard_normal((AXES, 7))
    penalty = np.sqrt(ridge * (item**2).sum() / 7) * np.eye(7)

    def ridge_fit(rows: np.ndarray) -> np.ndarray:
        left, right = (
            np.concatenate([item[rows], penalty]),
            np.concatenate([space.vector_NP[rows], np.zeros((7, AXES))]),
        )
        return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0])

    probe = fit_probe(item, space, ridge)
    np.testing.assert_allclose(probe.weight_DP, ridge_fit(np.arange(40)), atol=1e-9)
    missed = np.stack([space.vector_NP[i] - item[i] @ ridge_fit(np.delete(np.arange(40), i)) for i in range(40)])
    for aspect in range(3):
        axes = aspect == ASPECT_P
        expected = 1 - (missed[:, axes] ** 2).sum() / (space.vector_NP[:, axes] ** 2).sum()
        assert probe.r2_A[aspect] == pytest.approx(expected)

    interest = torch.from_numpy(rng.standard_normal((30, 3, 7)))
    mask = torch.from_numpy(rng.random((30, 3)) < 0.8)
    planted = np.stack([rng.permutation(AXES)[:4] for _ in range(30)])
    planted[rng.random((30, 4)) < 0.3] = -1
    noise, matched = interest_noise(interest, mask, planted, probe, space)
    for user in range(30):
        there = [k for k in range(3) if mask[user, k]]
        vector = {k: interest[user, k].numpy() @ probe.weight_DP for k in there}

        def cosine(k: int, axis: int, vector: dict[int, np.ndarray] = vector) -> float:
            return float(vector[k] @ space.direction_PP[axis] / np.linalg.norm(vector[k]))

        slots = [*planted[user][planted[user] >= 0].tolist(), *[-1] * len(there)]
        options = [
            {k: axis for k, axis in zip(there, order, strict=True) if axis >= 0 and cosine(k, axis) > 0}
            for order in itertools.permutations(slots, len(there))
        ]
        best = max(options, key=lambda pairs: sum(cosine(k, axis) for k, axis in pairs.items()))
        for k in range(3):
            assert matched[user, k] == best.get(k, -1)
            if k in best:
                own = (vector[k][ASPECT_P[best[k]] == ASPECT_P] ** 2).sum()
                assert noise[user, k] == pytest.approx(1 - own / (vector[k] ** 2).sum())
            else:
                assert np.isnan(noise[user, k])


def test_a_space_that_says_nothing_of_an_aspect_is_told_by_the_probe() -> None:
    space = some_space(600)
    blind = space.vector_NP.copy()
    blind[:, ASPECT_P == 1] = np.random.default_rng(0).standard_normal((600, 4))
    r2 = fit_probe(blind @ turn(AXES), space).r2_A
    assert r2[[0, 2]].min() > 0.99
    assert r2[1] < 0.02


TINY = SimulatorConfig(
    num_users=400,
    num_items=400,
    num_super_clusters=2,
    clusters_per_super=3,
    interests_min=2,
    interests_max=3,
    mean_events=16.0,
    aspects=2,
    aspect_values=4,
    aspect_lean=0.0,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SimulatedLog:
    return simulate(tmp_path_factory.mktemp("log") / "log", TINY)


@pytest.fixture(scope="module")
def dataset(log: SimulatedLog, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("data") / "data"
    return prepare(log.interactions, out, items=log.items, config=PrepareConfig(filter="none"))


class Seer(RetrievalModel):
    """Planted item vectors, turned; a user's planted interests, each with a share of noise in an aspect of others."""

    def __init__(self, dataset: Dataset, log: SimulatedLog, share: float) -> None:
        super().__init__(ModelConfig(dim=14, max_length=10), dataset.spec())
        truth = read_truth(dataset, log, dataset.users_in("test"), "test")
        space = planted_space(truth.label_NA[1:], np.repeat([0, 1, 2], [6, 4, 4]))
        self.learned = turn(14)
        item = np.concatenate([np.zeros((1, 14)), space.vector_NP]) @ self.learned
        self.item_ND = torch.nn.Parameter(torch.from_numpy(item).float())
        other = [6, 7, 8, 9, 10, 11, *range(4), *range(4)]  # of each axis, one of another aspect
        mixed = np.stack([with_noise(space, axis, other[axis], share) for axis in range(14)])
        self.mixed_PD = torch.from_numpy(mixed @ self.learned).float()
        self.known: dict[tuple[int, ...], list[int]] = {}
        for row, window in enumerate(evaluation_batches(dataset, "test", batch_size=1, max_length=10)):
            self.known[tuple(window.item_BL[0].tolist())] = truth.planted_UJ[row].tolist()

    def item_vectors(self, item_ids: torch.Tensor | None = None) -> torch.Tensor:
        return self.item_ND if item_ids is None else self.item_ND[item_ids]

    def interests(self, histories: Histories) -> Interests:
        axis_BJ = torch.tensor([self.known[tuple(row)] for row in histories.item_BL.tolist()])
        return Interests(self.mixed_PD[axis_BJ], axis_BJ >= 0)

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        raise AssertionError("scoring does not train")


def test_a_whole_log_measures_what_was_put_in(log: SimulatedLog, dataset: Dataset) -> None:
    pure = Seer(dataset, log, 0.0)
    clean, noisy = planted_noise(pure, dataset, log), planted_noise(Seer(dataset, log, 0.3), dataset, log)
    for end in ("", "_clusters", "_aspects"):
        assert clean[f"probe_r2{end}"] > 0.99
        assert clean[f"interest_noise{end}"] == pytest.approx(0, abs=1e-3)
        assert noisy[f"interest_noise{end}"] == pytest.approx(0.3, abs=0.01)
    assert clean["noise_matched"] == 1.0
    assert clean["interest_noise_of_means"] < 0.05, "without a lean, the mean of many items is clean"
    assert noisy["interest_noise_of_means"] == clean["interest_noise_of_means"], "it does not ask the model's interests"
    other = planted_noise(pure, dataset, log, read=Seer(dataset, log, 0.3).interests, batch_size=7)
    assert other["interest_noise"] == pytest.approx(noisy["interest_noise"])
    assert planted_scores(pure, dataset, log)["planted_recovered"] > 0.95, "values of aspects are recovered, too"


def test_fewer_clicks_leave_more_noise(log: SimulatedLog, dataset: Dataset) -> None:
    """The mean of a user's last m items: one item holds all aspects alike, more items of one interest fewer."""
    seer = Seer(dataset, log, 0.0)

    def mean_of(items: int) -> float:
        def read(histories: Histories) -> Interests:
            newest_BL = histories.item_BL.flip(1)
            kept_BL = (newest_BL > 0) & ((newest_BL > 0).cumsum(dim=1) <= items)
            vector_BLD = seer.item_vectors(newest_BL) * kept_BL[:, :, None]
            return Interests(vector_BLD.sum(dim=1, keepdim=True), torch.ones(len(newest_BL), 1, dtype=torch.bool))

        return planted_noise(seer, dataset, log, read=read)["interest_noise"]

    # Two further aspects: one item is 2/3 noise, a little less for the best matching of its planted interests.
    assert mean_of(1) == pytest.approx(2 / 3, abs=0.05)
    assert mean_of(6) < mean_of(1) - 0.05


def test_a_log_without_aspects_is_refused(dataset: Dataset, log: SimulatedLog, tmp_path: Path) -> None:
    config = {name: getattr(TINY, name) for name in TINY.__struct_fields__} | {"aspects": 0, "num_users": 20}
    plain = simulate(tmp_path / "log", SimulatorConfig(**config))
    with pytest.raises(DataError, match="no aspects"):
        planted_noise(Seer(dataset, log, 0.0), dataset, plain)


def cooccurrence_vectors(log: SimulatedLog, width: int) -> np.ndarray:
    """Item vectors from the log alone: the leading eigenvectors of the positive pointwise mutual information."""
    table = pl.read_parquet(log.interactions)
    seen = np.zeros((log.config.num_items, log.config.num_users))
    seen[table["item_id"].to_numpy(), table["user_id"].to_numpy()] = 1.0
    both = seen @ seen.T
    np.fill_diagonal(both, 0.0)
    expected = np.outer(both.sum(axis=1), both.sum(axis=0)) / both.sum()
    value, vector = np.linalg.eigh(np.log(np.maximum(both / expected, 1.0)))
    return np.asarray((vector * np.sqrt(np.maximum(value, 0)))[:, -width:])


def test_vectors_of_cooccurrence_take_up_the_aspects_if_some_interests_care_about_them(tmp_path: Path) -> None:
    def measure(share: float) -> tuple[np.ndarray, list[float]]:
        size = {"num_users": 2000, "num_items": 400, "mean_events": 30.0, "aspect_share": share}
        config = {name: getattr(TINY, name) for name in TINY.__struct_fields__} | size
        log = simulate(tmp_path / str(share), SimulatorConfig(**config))
        assert log.truth_events is not None
        truth = pl.read_parquet(log.truth_items)
        label = np.column_stack([truth["cluster"], truth["aspect_values"].to_numpy() + np.array([6, 10])])
        space, item = planted_space(label, np.repeat([0, 1, 2], [6, 4, 4])), cooccurrence_vectors(log, 24)
        clicks = pl.concat([pl.read_parquet(log.interactions), pl.read_parquet(log.truth_events)], how="horizontal")
        clicks = clicks.filter(pl.col("kind").cast(pl.String) == "interest")
        lists = clicks.group_by("user_id", "cluster").agg("item_id", n=pl.len()).filter(pl.col("n") >= 6)
        clicked, planted = np.array(lists["item_id"].list.head(6).to_list()), lists["cluster"].to_numpy()[:, None]
        probe, one = fit_probe(item, space), torch.ones(len(clicked), 1, dtype=torch.bool)
        means = [torch.from_numpy(item[clicked[:, :m]].mean(axis=1, keepdims=True)) for m in (1, 3, 6)]
        noise = [float(np.nanmean(interest_noise(mean, one, planted, probe, space)[0])) for mean in means]
        return probe.r2_A, noise

    r2, noise = measure(0.5)
    assert r2.min() > 0.4
    assert noise[0] > 1.3 * noise[1] > 1.3**2 * noise[2], "whole items bring noise, and more clicks average it out"
    unlearnt, _ = measure(0.0)
    assert unlearnt[0] > 0.4
    assert unlearnt[1:].max() < 0.1, "an aspect that nobody cares about is not in the log"
