"""The generator's scores against plain loops; calibration of predictors whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.errors import DataError
from gemirec.evaluation.generator import FLOOR, HITS, GeneratorScores, calibration, seen_interests, true_ranks


def predictions(users: int, interests: int, seed: int, *, ties: bool = False) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, true interests and seen interests of some users."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 4, (users, interests)).astype(float) if ties else rng.exponential(size=(users, interests))
    logp = np.log(weight / weight.sum(axis=1, keepdims=True))
    seen = rng.random((users, interests)) < 0.3
    return torch.tensor(logp), torch.from_numpy(rng.integers(interests, size=users)), torch.from_numpy(seen)


def sorted_ranks(logp: torch.Tensor, true: torch.Tensor) -> list[int]:
    """Rank of the true interest by sorting a list, equal ones by index."""
    out = []
    for row, own in zip(logp.tolist(), true.tolist(), strict=True):
        order = [m for _, m in sorted((-value, m) for m, value in enumerate(row))]
        out.append(order.index(own))
    return out


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_those_of_a_sorted_list(ties: bool) -> None:
    logp, true, _ = predictions(60, 25, 1, ties=ties)
    assert true_ranks(logp, true).tolist() == sorted_ranks(logp, true)


@given(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_seen_interests_are_those_of_the_events(rows: list[list[int]]) -> None:
    offset = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    flat = torch.tensor([m for row in rows for m in row], dtype=torch.int64)
    assert seen_interests(flat, offset, 7).tolist() == [[m in row for m in range(7)] for row in rows]


def test_hit_rates_and_log_loss_are_those_of_a_loop_whatever_the_blocks() -> None:
    logp, true, seen = predictions(90, 30, 2)
    logp[3, true[3]] = -math.inf  # a count of zero
    scores = GeneratorScores()
    for rows in (slice(0, 50), slice(50, 51), slice(51, 90)):
        scores.add(logp[rows], true[rows], seen[rows])
    ranks = sorted_ranks(logp, true)
    own_seen = [bool(seen[b, true[b]]) for b in range(90)]
    for row, wanted in zip(scores.rows(), (None, True, False), strict=True):
        members = [b for b in range(90) if wanted is None or own_seen[b] is wanted]
        assert row["users"] == len(members)
        for k in HITS:
            assert row[f"hit@{k}"] == pytest.approx(sum(ranks[b] < k for b in members) / len(members))
        loss = [-max(float(logp[b, true[b]]), math.log(FLOOR)) for b in members]
        assert row["log loss"] == pytest.approx(sum(loss) / len(members))
    mass = scores.new_mass()
    assert mass["predicted"] == pytest.approx(float((logp.exp() * ~seen).sum() / 90), abs=1e-5)
    assert mass["found"] == pytest.approx(own_seen.count(False) / 90, abs=1e-5)


def test_a_group_without_users_has_no_rates() -> None:
    logp, true, seen = predictions(8, 5, 3)
    scores = GeneratorScores()
    scores.add(logp, true, torch.ones_like(seen))
    assert scores.rows()[2] == {
        "next interest": "new",
        "users": 0,
        **{f"hit@{k}": None for k in HITS},
        "log loss": None,
    }
    assert scores.calibrations()["new"].error is None


def test_calibration_pairs_are_a_user_and_one_of_its_most_probable_interests() -> None:
    logp, true, seen = predictions(40, 30, 4)
    scores = GeneratorScores()
    scores.add(logp, true, seen)
    pairs = []
    for b, row in enumerate(logp.tolist()):
        best = np.argsort(-np.array(row), kind="stable")[: HITS[-1]]
        pairs += [(math.exp(row[m]), bool(m == int(true[b])), bool(seen[b, m])) for m in best]
    found = scores.calibrations()
    for group, wanted in (("seen", True), ("new", False)):
        mine = [(p, hit) for p, hit, was_seen in pairs if was_seen is wanted]
        direct = calibration(np.array([p for p, _ in mine]), np.array([hit for _, hit in mine]))
        assert found[group].error == pytest.approx(direct.error)
        assert sum(row["pairs"] for row in found[group].bins) == len(mine)
    assert sum(row["pairs"] for row in found["top 1"].bins) == 40


def test_the_error_is_that_of_equal_slices_of_the_sorted_pairs() -> None:
    rng = np.random.default_rng(5)
    prob = rng.random(1000)
    hit = rng.random(1000) < prob**2
    order = np.argsort(prob)
    wanted = sum(len(part) / 1000 * abs(prob[part].mean() - hit[part].mean()) for part in np.array_split(order, 10))
    found = calibration(prob, hit, bins=10)
    assert found.error == pytest.approx(wanted)
    assert [row["pairs"] for row in found.bins] == [100] * 10
    assert found.bins[0]["predicted"] < found.bins[-1]["predicted"]


def test_a_calibrated_predictor_has_no_error_and_an_overconfident_one_has() -> None:
    rng = np.random.default_rng(6)
    prob = rng.random(50_000)
    hit = rng.random(50_000) < prob
    honest = calibration(prob, hit).error
    sharper = prob**3 / (prob**3 + (1 - prob) ** 3)  # the same order, surer of itself
    boastful = calibration(sharper, hit).error
    assert honest is not None
    assert boastful is not None
    assert honest < 0.01
    assert boastful > 0.1


def test_equal_probabilities_share_a_bin_whatever_their_order() -> None:
    hit = np.arange(100) % 4 == 0
    for order in (np.arange(100), np.argsort(hit, kind="stable")):
        found = calibration(np.full(100, 0.25), hit[order])
        assert found.error == pytest.approx(0.0)
        assert len(found.bins) == 1


def test_wrong_input_is_refused() -> None:
    with pytest.raises(DataError, match="a probability and an outcome"):
        calibration(np.array([1.2]), np.array([True]))
    with pytest.raises(DataError, match="a probability and an outcome"):
        calibration(np.array([0.2, 0.3]), np.array([True]))
    with pytest.raises(DataError, match="asked about nobody"):
        GeneratorScores().rows()
