"""Matching against brute force over all permutations, and the positive sets against a plain reading of windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemirec.components.matching import greedy_matching, optimal_matching, positive_set


def draw(seed: int, rows: int, interests: int, positives: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    score_BKJ = torch.from_numpy(rng.normal(size=(rows, interests, positives)))
    return score_BKJ, torch.from_numpy(rng.random((rows, positives)) < 0.8)


def total(score_KJ: torch.Tensor, chosen_J: torch.Tensor) -> float:
    return sum(score_KJ[k, j].item() for j, k in enumerate(chosen_J.tolist()) if k >= 0)


def check_one_to_one(chosen_BJ: torch.Tensor, mask_BJ: torch.Tensor, interests: int) -> None:
    assert torch.equal(chosen_BJ >= 0, mask_BJ)
    for row in chosen_BJ.tolist():
        used = [k for k in row if k >= 0]
        assert len(set(used)) == len(used)
        assert all(k < interests for k in used)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_optimal_matching_equals_brute_force(seed: int, interests: int, positives: int) -> None:
    positives = min(positives, interests)
    score_BKJ, mask_BJ = draw(seed, 3, interests, positives)
    chosen_BJ = optimal_matching(score_BKJ, mask_BJ)
    check_one_to_one(chosen_BJ, mask_BJ, interests)
    for score_KJ, mask_J, chosen_J in zip(score_BKJ, mask_BJ, chosen_BJ, strict=True):
        real = torch.nonzero(mask_J)[:, 0].tolist()
        best = max(
            sum(score_KJ[k, j].item() for k, j in zip(order, real, strict=True))
            for order in itertools.permutations(range(interests), len(real))
        )
        assert total(score_KJ, chosen_J) == pytest.approx(best)


def test_eight_interests_at_once() -> None:
    """The largest published K: each row the best of 8! orders."""
    score_BKJ, _ = draw(0, 4, 8, 8)
    chosen_BJ = optimal_matching(score_BKJ, torch.ones(4, 8, dtype=torch.bool))
    order_X8 = np.array(list(itertools.permutations(range(8))))
    for score_KJ, chosen_J in zip(score_BKJ, chosen_BJ, strict=True):
        best = score_KJ.numpy()[order_X8, np.arange(8)].sum(1).max()
        assert total(score_KJ, chosen_J) == pytest.approx(best)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_greedy_matching_takes_the_best_free_pair(seed: int, interests: int, positives: int) -> None:
    positives = min(positives, interests)
    score_BKJ, mask_BJ = draw(seed, 3, interests, positives)
    chosen_BJ = greedy_matching(score_BKJ, mask_BJ)
    check_one_to_one(chosen_BJ, mask_BJ, interests)
    for score_KJ, mask_J, chosen_J in zip(score_BKJ, mask_BJ, chosen_BJ, strict=True):
        pairs = [(score_KJ[k, j].item(), k, j) for k in range(interests) for j in range(positives) if mask_J[j]]
        expected: dict[int, int] = {}
        for _, k, j in sorted(pairs, reverse=True):
            if j not in expected and k not in expected.values():
                expected[j] = k
        assert [expected.get(j, -1) for j in range(positives)] == chosen_J.tolist()


@given(
    st.lists(st.integers(1, 4), max_size=7), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
def test_positive_set(events: list[int], target: int, most: int, share: float) -> None:
    window_BL = torch.tensor([events + [0] * (9 - len(events))])
    history_BL, positive_BJ, mask_BJ = positive_set(
        window_BL, torch.tensor([len(events)]), torch.tensor([target]), most, share
    )
    held = min(most - 1, int(share * len(events)))
    left = events[: len(events) - held]
    assert history_BL.tolist() == [left + [0] * (9 - len(left))]
    expected: list[int] = []
    for item in [target, *reversed(events[len(left) :])]:
        if item not in expected:
            expected.append(item)
    assert positive_BJ[mask_BJ].tolist() == expected
    assert mask_BJ[0, 0]
