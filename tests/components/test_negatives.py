"""Samplers: the distribution that is drawn from, and the log q that goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.losses import LossConfig
from gemirec.components.negatives import (
    InBatch,
    LogUniform,
    Mixed,
    Popularity,
    Proposal,
    Sampled,
    Uniform,
    make_sampler,
)

COUNT = np.array([0, 3, 50, 0, 12, 7, 1, 50, 20, 5, 9])
N = len(COUNT) - 1


def proposal(kind: str, alpha: float = 0.75) -> Proposal:
    count = torch.from_numpy(COUNT)
    if kind == "uniform":
        return Uniform(N)
    return LogUniform(count) if kind == "log_uniform" else Popularity(count, alpha)


def expected_probability(kind: str, alpha: float = 0.75) -> Any:
    if kind == "uniform":
        return np.full(N, 1 / N)
    if kind == "log_uniform":
        order = np.argsort(-COUNT[1:], kind="stable")
        out = np.empty(N)
        for rank, item in enumerate(order):  # TensorFlow: class c has (log(c + 2) - log(c + 1)) / log(range + 1)
            out[item] = (np.log(rank + 2) - np.log(rank + 1)) / np.log(N + 1)
        return out
    mass = np.maximum(COUNT[1:], 1) ** alpha
    return mass / mass.sum()


@pytest.mark.parametrize(
    ("kind", "alpha"), [("uniform", 0.0), ("log_uniform", 0.0), ("popularity", 0.75), ("popularity", 1.0)]
)
def test_draws_follow_the_distribution(kind: str, alpha: float) -> None:
    """Chi-square of 50,000 draws with a fixed seed: 9 degrees of freedom, 99.9 % quantile 27.9."""
    draws = 50_000
    ids = proposal(kind, alpha).draw(draws, torch.Generator().manual_seed(5)).numpy()
    probability = expected_probability(kind, alpha)
    assert ids.min() >= 1
    assert ids.max() <= N
    found = np.bincount(ids, minlength=N + 1)[1:]
    chi_square = ((found - draws * probability) ** 2 / (draws * probability)).sum()
    assert chi_square < 27.9


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "popularity"])
def test_log_prob_is_the_log_of_the_distribution(kind: str) -> None:
    got = proposal(kind).log_prob(torch.arange(1, N + 1)).exp().numpy()
    np.testing.assert_allclose(got, expected_probability(kind), rtol=1e-5)
    assert got.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "popularity"])
def test_log_q_is_the_log_of_the_mean_count(kind: str) -> None:
    """``exp(log_q)`` against how often an item is really among the candidates, over 3,000 batches."""
    target = torch.arange(1, N + 1)
    for unique in (False, True):
        sampler = Sampled(proposal(kind), 4, unique)
        generator = torch.Generator().manual_seed(1)
        count, predicted = np.zeros(N + 1), np.zeros(N)
        for _ in range(3000):
            drawn = sampler.sample(target, generator)
            assert len(drawn.id_S) == 4
            if unique:
                assert len(set(drawn.id_S.tolist())) == 4
            count += np.bincount(drawn.id_S.numpy(), minlength=N + 1)
            predicted += drawn.log_q_target_B.exp().numpy()
            torch.testing.assert_close(drawn.log_q_S, drawn.log_q_target_B[drawn.id_S - 1])
        # five standard errors; TensorFlow's 1 - (1 - q)^tries is itself an approximation, good to some percent
        room = 5 * np.sqrt(predicted) + (0.08 * predicted if unique else 0)
        assert (np.abs(predicted - count[1:]) < room).all()


def test_unique_draws_are_cut_to_the_catalogue_and_give_up_in_time() -> None:
    everything = Sampled(Uniform(N), 500, unique=True).sample(torch.tensor([1]), torch.Generator().manual_seed(0))
    assert sorted(everything.id_S.tolist()) == list(range(1, N + 1))
    assert everything.log_q_S.exp().tolist() == pytest.approx([1] * N, abs=0.2)
    skewed = Popularity(torch.tensor([0, 10**9, 1, 1, 1]), 1.0)
    found = Sampled(skewed, 4, unique=True).sample(torch.tensor([1]), torch.Generator().manual_seed(0))
    assert found.id_S.tolist() == [1]
    assert found.log_q_S.isfinite().all()


def test_tensorflow_rule_for_unique_candidates() -> None:
    sampler = Sampled(Uniform(N), 3, unique=True)
    tries = 7
    got = sampler.log_count(torch.tensor([2]), tries).item()
    assert got == pytest.approx(np.log(-np.expm1(tries * np.log1p(-1 / N))), rel=1e-5)


def test_in_batch_gives_the_targets_with_their_share_of_events() -> None:
    target = torch.tensor([2, 4, 2])
    drawn = InBatch(Popularity(torch.from_numpy(COUNT), 1.0)).sample(target)
    assert drawn.id_S.tolist() == [2, 4, 2]
    share = np.maximum(COUNT, 1) / np.maximum(COUNT[1:], 1).sum()
    np.testing.assert_allclose(drawn.log_q_S.exp(), 3 * share[[2, 4, 2]], rtol=1e-5)
    assert torch.equal(drawn.log_q_S, drawn.log_q_target_B)


def test_mixed_adds_expected_counts() -> None:
    target = torch.tensor([2, 4, 2])
    sampler = Mixed(Popularity(torch.from_numpy(COUNT), 1.0), Sampled(Uniform(N), 5, False))
    drawn = sampler.sample(target, torch.Generator().manual_seed(0))
    assert drawn.id_S[:3].tolist() == [2, 4, 2]
    assert len(drawn.id_S) == 8
    share = np.maximum(COUNT, 1) / np.maximum(COUNT[1:], 1).sum()
    np.testing.assert_allclose(drawn.log_q_S.exp(), 3 * share[drawn.id_S] + 5 / N, rtol=1e-5)
    torch.testing.assert_close(drawn.log_q_target_B, drawn.log_q_S[:3])


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "popularity", "in_batch", "mixed"])
@pytest.mark.parametrize("unique", [False, True])
def test_same_generator_same_candidates(kind: Any, unique: bool) -> None:
    sampler = make_sampler(LossConfig(negatives=kind, num_negatives=6, unique=unique), COUNT)
    target = torch.tensor([1, 2, 3])
    first, again, other = (sampler.sample(target, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if kind != "in_batch":
        assert not torch.equal(first.id_S, other.id_S)
    state = torch.get_rng_state()
    sampler.sample(target, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state()), "a given generator is the only source"


def test_a_million_items_are_drawn_from_without_walking_them() -> None:
    """The cumulative table is built once; a draw leaves it untouched and reaches both ends of the catalogue."""
    count = np.r_[0, np.ones(1_000_000, dtype=np.int64)]
    sampler = Popularity(torch.from_numpy(count), 1.0)
    ids = sampler.draw(100_000, torch.Generator().manual_seed(0))
    assert ids.min() < 100
    assert ids.max() > 999_900
    assert ids.double().mean().item() == pytest.approx(500_000, rel=0.01)
