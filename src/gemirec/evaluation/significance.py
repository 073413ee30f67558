"""Bootstrap over users: intervals of one result, paired differences of two.

Axes: U users, M metrics, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAWS = 2**22
"""Draws held at once."""


@dataclass(frozen=True)
class Difference:
    """A paired difference of means, first minus second.

    Attributes:
        first: Mean of the first.
        second: Mean of the second.
        difference: ``first - second``.
        low: Lower end of the percentile interval of the difference.
        high: Upper end.
        p_value: Two-sided: twice the share of resamples on the other side of zero, one added to each count.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_means(value_UM: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return ``[R, M]`` means over users drawn with replacement; NaN entries are left out of a metric's mean.

    All metrics share the draws of a resample. Memory is bounded: users times a few resamples at once.

    Args:
        value_UM: ``[U, M]`` metrics per user.
        resamples: R.
        seed: Equal seeds and U give equal draws, so that two results over the same users are paired.

    Example:
        >>> bootstrap_means(np.ones((3, 1)), 2, seed=0).tolist()
        [[1.0], [1.0]]
    """
    users = len(value_UM)
    rng = np.random.default_rng([seed, 0xB007])
    known_UM = np.isfinite(value_UM)
    partial_M = ~known_UM.all(axis=0)
    filled_UM = np.where(known_UM, value_UM, 0.0)
    out_RM = np.empty((resamples, value_UM.shape[1]))
    step = max(1, _DRAWS // max(1, users))
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        draw_RU = rng.integers(users, size=(rows, users)) + np.arange(rows)[:, None] * users
        count_RU = np.bincount(draw_RU.ravel(), minlength=rows * users).reshape(rows, users).astype(np.float64)
        sum_RM = count_RU @ filled_UM
        size_RM = np.full(sum_RM.shape, float(users))
        size_RM[:, partial_M] = count_RU @ known_UM[:, partial_M].astype(np.float64)
        empty_RM = size_RM == 0
        out_RM[first : first + rows] = np.where(empty_RM, np.nan, sum_RM / np.where(empty_RM, 1.0, size_RM))
    return out_RM


def intervals(value_UM: NDArray[np.float64], resamples: int, confidence: float, seed: int) -> NDArray[np.float64]:
    """Return ``[M, 2]`` percentile intervals of the means over users.

    Example:
        >>> intervals(np.array([[0.0], [1.0]]), 200, 0.95, seed=0).tolist()
        [[0.0, 1.0]]
    """
    check_confidence(confidence)
    tail = (1.0 - confidence) / 2
    ends_2M = np.nanquantile(bootstrap_means(value_UM, resamples, seed), [tail, 1 - tail], axis=0)
    return np.ascontiguousarray(ends_2M.T)


def paired(
    first_U: NDArray[np.float64],
    second_U: NDArray[np.float64],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 1,
) -> Difference:
    """Return the paired bootstrap of ``mean(first_U) - mean(second_U)`` over users that both have a value for.

    Args:
        first_U: ``[U]`` a metric per user; NaN where it does not exist.
        second_U: ``[U]`` the same metric of the same users under the other model.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval.
        seed: Seed of the resamples.

    Raises:
        ConfigError: The users differ in number, none has a value, or an argument is out of range.

    Example:
        >>> paired(np.array([1.0, 0.5, 1.0]), np.array([0.5, 0.0, 0.5]), resamples=10).difference
        0.5
    """
    columns = (first_U[:, None], second_U[:, None])
    found = paired_columns(*columns, resamples=resamples, confidence=confidence, seed=seed)[0]
    if found is None:
        raise ConfigError("no user has a value for this metric", got="0 users", fix="compare another metric")
    return found


def paired_columns(
    first_UM: NDArray[np.float64],
    second_UM: NDArray[np.float64],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 1,
) -> list[Difference | None]:
    """Return :func:`paired` of every column; all columns share the draws. ``None`` where no user has both values.

    Args:
        first_UM: ``[U, M]`` metrics per user; NaN where one does not exist.
        second_UM: ``[U, M]`` the same metrics of the same users under the other model.
        resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the resamples.

    Raises:
        ConfigError: The users differ in number, or an argument is out of range.
    """
    check_confidence(confidence)
    if len(first_UM) != len(second_UM) or resamples < 1:
        raise ConfigError(
            "a paired comparison needs the same users twice and a resample",
            got=f"{len(first_UM)} and {len(second_UM)} users, {resamples} resamples",
            fix="evaluate both models on the same dataset, split and users",
        )
    if not first_UM.size:
        return [None] * first_UM.shape[1]
    gap_UM = first_UM - second_UM
    both_UM = np.isfinite(gap_UM)
    mean_RM = bootstrap_means(np.where(both_UM, gap_UM, np.nan), resamples, seed)
    tail = (1.0 - confidence) / 2
    out: list[Difference | None] = []
    for m, both_U in enumerate(both_UM.T):
        if not both_U.any():
            out.append(None)
            continue
        mean_R = mean_RM[np.isfinite(mean_RM[:, m]), m]
        low, high = np.quantile(mean_R, [tail, 1 - tail])
        beyond = min(int((mean_R <= 0).sum()), int((mean_R >= 0).sum()))
        first, second = float(first_UM[both_U, m].mean()), float(second_UM[both_U, m].mean())
        p_value = min(1.0, 2.0 * (beyond + 1) / (len(mean_R) + 1))
        out.append(Difference(first, second, float(gap_UM[both_U, m].mean()), float(low), float(high), p_value))
    return out


def check_confidence(confidence: float) -> None:
    """Raise if ``confidence`` is not between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ConfigError("confidence must lie between 0 and 1", got=confidence, fix="give 0.95, for example")
