"""The bootstrap against its known limits: the standard error, exact cases, pairing, missing values."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from gemirec.errors import ConfigError
from gemirec.evaluation import significance
from gemirec.evaluation.significance import bootstrap_means, intervals, paired, paired_columns


def test_spread_is_the_standard_error() -> None:
    value_UM = np.random.default_rng(0).normal([0.0, 5.0], [1.0, 3.0], (500, 2))
    mean_RM = bootstrap_means(value_UM, 4000, seed=1)
    np.testing.assert_allclose(mean_RM.mean(0), value_UM.mean(0), atol=0.02)
    np.testing.assert_allclose(mean_RM.std(0), value_UM.std(0) / np.sqrt(500), rtol=0.05)


def test_interval_is_the_normal_one_for_many_users() -> None:
    value_UM = np.random.default_rng(2).exponential(size=(3000, 1))
    low, high = intervals(value_UM, 4000, 0.95, seed=1)[0]
    half = 1.96 * value_UM.std() / np.sqrt(3000)
    assert low == pytest.approx(value_UM.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(value_UM.mean() + half, abs=0.1 * half)


def test_missing_values_are_left_out_of_the_mean() -> None:
    value_UM = np.column_stack([np.full(60, 2.0), np.full(60, 2.0)])
    value_UM[:20, 1] = np.nan
    assert (bootstrap_means(value_UM, 50, seed=3) == 2.0).all()
    only_one = np.full((200, 1), np.nan)
    only_one[7] = 4.0
    mean_R = bootstrap_means(only_one, 50, seed=3)[:, 0]
    assert set(mean_R[np.isfinite(mean_R)]) == {4.0}
    assert np.isnan(mean_R).any()  # a resample without that user has no mean


def test_equal_seeds_give_equal_draws_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    value_UM = np.random.default_rng(4).normal(size=(90, 3))
    whole = bootstrap_means(value_UM, 40, seed=5)
    assert (bootstrap_means(value_UM, 40, seed=5) == whole).all()
    assert (bootstrap_means(value_UM, 40, seed=6) != whole).any()
    monkeypatch.setattr(significance, "_DRAWS", 100)  # one resample at a time
    np.testing.assert_allclose(bootstrap_means(value_UM, 40, seed=5), whole, rtol=1e-12)


def test_pairing_sees_a_difference_that_intervals_of_means_do_not() -> None:
    rng = np.random.default_rng(7)
    first_U = rng.normal(0.0, 1.0, 400)
    second_U = first_U - 0.02 + rng.normal(0.0, 0.05, 400)
    found = paired(first_U, second_U, resamples=2000)
    assert found.difference == pytest.approx((first_U - second_U).mean())
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.01
    ends = intervals(np.column_stack([first_U, second_U]), 2000, 0.95, seed=1)
    assert ends[0, 0] < ends[1, 1]  # the intervals overlap


def test_no_difference_is_not_significant() -> None:
    same_U = np.random.default_rng(8).normal(size=100)
    found = paired(same_U, same_U)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    noise = [paired(*np.random.default_rng(seed).normal(size=(2, 80)), resamples=300).p_value for seed in range(60)]
    assert 0.2 < np.mean(noise) < 0.8
    assert np.mean(np.array(noise) < 0.05) < 0.2


def test_only_users_with_both_values_count() -> None:
    found = paired(np.array([1.0, np.nan, 3.0, 5.0]), np.array([0.0, 2.0, np.nan, 1.0]), resamples=20)
    assert (found.first, found.second, found.difference) == (3.0, 0.5, 2.5)


def test_columns_together_are_columns_alone() -> None:
    rng = np.random.default_rng(4)
    first_UM, second_UM = rng.normal(size=(2, 300, 3))
    first_UM[:100, 1] = np.nan
    second_UM[:, 2] = np.nan
    found = paired_columns(first_UM, second_UM, resamples=50)
    assert found[2] is None
    for m in (0, 1):
        alone, together = paired(first_UM[:, m], second_UM[:, m], resamples=50), found[m]
        assert together is not None
        assert astuple(together) == pytest.approx(astuple(alone))
    assert paired_columns(np.empty((0, 2)), np.empty((0, 2))) == [None, None]


def test_bad_arguments_are_refused() -> None:
    for first, second in ((np.ones(3), np.ones(4)), (np.full(2, np.nan), np.ones(2))):
        with pytest.raises(ConfigError):
            paired(first, second)
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match="confidence"):
            intervals(np.ones((3, 1)), 10, confidence, seed=0)
