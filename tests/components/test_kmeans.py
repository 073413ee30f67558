"""k-means against plain NumPy: assignment, seeding, Lloyd's fixed point, and points that are too few or too alike."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemirec.components import kmeans as module
from gemirec.components.kmeans import category_centres, cluster_sums, extend_centres, kmeans, nearest, seed_centres


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inertia(points: Any, centres: Any) -> float:
    return float(((points[:, None] - centres[None]) ** 2).sum(2).min(1).sum())


@given(seed=st.integers(0, 999), points=st.integers(0, 30), centres=st.integers(1, 9), block=st.integers(1, 40))
def test_nearest_equals_numpy_whatever_the_block(seed: int, points: int, centres: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    x, c = rng.integers(-3, 4, (points, 2)), rng.integers(-3, 4, (centres, 2))  # whole numbers: many exact ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_DISTANCES", block)
        index, distance = nearest(torch.tensor(x, dtype=torch.float32), torch.tensor(c, dtype=torch.float32))
    square = ((x[:, None] - c[None]) ** 2).sum(2)
    np.testing.assert_array_equal(index.numpy(), square.argmin(1))  # argmin: the lowest on a tie
    np.testing.assert_allclose(distance.numpy(), np.sqrt(square.min(1)), rtol=1e-6)


def test_equal_points_are_at_distance_zero_however_far_from_the_origin() -> None:
    point = torch.full((1, 16), 1e4) + torch.rand(1, 16, generator=generator())
    index, distance = nearest(point, torch.cat([point + 0.01, point, point]))
    assert index.tolist() == [1]
    assert distance.tolist() == [0.0]


@given(seed=st.integers(0, 999), points=st.integers(1, 40), clusters=st.integers(1, 6))
def test_cluster_sums_equal_numpy(seed: int, points: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    x, label = rng.normal(size=(points, 3)).astype(np.float32), rng.integers(0, clusters, points)
    total, count = cluster_sums(torch.from_numpy(x), torch.from_numpy(label), clusters)
    for m in range(clusters):
        np.testing.assert_allclose(total[m].numpy(), x[label == m].astype(np.float64).sum(0), atol=1e-12)
        assert int(count[m]) == (label == m).sum()


def test_seeds_are_drawn_in_proportion_to_the_squared_distance() -> None:
    """From the point 0, the points 1 and 3 are at squared distances 1 and 9; likewise from the others."""
    points, source = torch.tensor([[0.0], [1.0], [3.0]]), generator()
    pairs = np.zeros((3, 3))
    tries = 6000
    for _ in range(tries):
        first, second = (int((points == seed).nonzero()[0, 0]) for seed in seed_centres(points, 2, source)[:, 0])
        pairs[first, second] += 1
    want = np.array([[0, 1 / 10, 9 / 10], [1 / 5, 0, 4 / 5], [9 / 13, 4 / 13, 0]]) / 3
    np.testing.assert_allclose(pairs / tries, want, atol=0.025)  # four standard deviations


@settings(max_examples=40)
@given(seed=st.integers(0, 999), points=st.integers(8, 60), clusters=st.integers(1, 8))
def test_converged_centres_are_the_means_of_their_points(seed: int, points: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(points, 2)).astype(np.float32)
    got = kmeans(torch.from_numpy(x), clusters, iterations=200, generator=generator(seed)).numpy()
    label = ((x[:, None] - got[None]) ** 2).sum(2).argmin(1)
    assert set(label) == set(range(clusters))  # distinct points: no cluster is empty
    for m in range(clusters):
        np.testing.assert_allclose(got[m], x[label == m].mean(0), atol=1e-5)


def test_more_iterations_never_worsen_the_fit() -> None:
    x = torch.randn(400, 4, generator=generator(3))
    fits = [inertia(x.numpy(), kmeans(x, 12, iterations=n, generator=generator(1)).numpy()) for n in range(8)]
    assert all(after <= before + 1e-3 for before, after in itertools.pairwise(fits))
    assert fits[-1] < 0.9 * fits[0]


def test_planted_clusters_are_found_and_the_generator_decides_everything() -> None:
    planted = 100 * torch.eye(6)
    x = (planted[:, None] + torch.randn(6, 50, 6, generator=generator())).flatten(0, 1)
    got = kmeans(x, 6, generator=generator(5))
    assert torch.equal(got, kmeans(x, 6, generator=generator(5)))
    torch.testing.assert_close(got[got.argmax(0)], x.view(6, 50, 6).mean(1), rtol=1e-5, atol=1e-4)


def test_an_empty_cluster_starts_again_at_the_farthest_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds on one point leave a cluster empty at once; the outlier at 50 must get it."""
    monkeypatch.setattr(module, "seed_centres", lambda *_: torch.tensor([[0.0], [0.0]]))
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0]])
    assert kmeans(x, 2).flatten().tolist() == [1.0, 50.0]


@given(distinct=st.integers(1, 3), copies=st.integers(1, 4), clusters=st.integers(1, 8), iterations=st.integers(0, 9))
def test_fewer_distinct_points_than_clusters(distinct: int, copies: int, clusters: int, iterations: int) -> None:
    x = torch.arange(1.0, distinct + 1).repeat(copies)[:, None]
    got = kmeans(x, clusters, iterations=iterations, generator=generator(distinct))
    assert got.shape == (clusters, 1)
    assert torch.isfinite(got).all()
    assert float(got.min()) >= 1
    assert float(got.max()) <= distinct
    if clusters >= distinct:
        assert set(got.flatten().tolist()) == set(x.flatten().tolist())


def numpy_category_means(x: Any, category: Any, most: int) -> Any:
    known = sorted(set(category[category > 0].tolist()), key=lambda k: (-(category == k).sum(), k))[:most]
    return np.array([x[category == k].mean(0) for k in known]).reshape(len(known), x.shape[1])


@given(seed=st.integers(0, 999), points=st.integers(1, 40), categories=st.integers(0, 8), most=st.integers(1, 10))
def test_category_centres_equal_numpy(seed: int, points: int, categories: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    x, category = rng.normal(size=(points, 2)), rng.integers(0, categories + 1, points).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_POINTS", 7)
        got = category_centres(torch.from_numpy(x), torch.from_numpy(category), most)
    np.testing.assert_allclose(got.numpy(), numpy_category_means(x, category, most), rtol=1e-5, atol=1e-6)


def test_missing_centres_are_found_among_the_farther_half() -> None:
    """Half of the points crowd at the given centre; the other half forms two clusters, which are found exactly."""
    crowd = 0.1 * torch.randn(40, 2, generator=generator())
    far = torch.tensor([[30.0, 0.0], [0.0, 30.0]]).repeat(20, 1)
    given_MD = torch.zeros(1, 2)
    got: Tensor = extend_centres(given_MD, torch.cat([crowd, far]), 3, generator=generator())
    assert torch.equal(got[:1], given_MD)
    assert sorted(got[1:].tolist()) == [[0.0, 30.0], [30.0, 0.0]]
    assert torch.equal(extend_centres(got, crowd, 3), got)
