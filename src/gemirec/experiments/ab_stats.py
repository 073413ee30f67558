r"""Statistics of an online experiment whose units are users.

A rate such as clicks per shown item is a ratio of two sums, and a user's shown items are not independent of each other:
a user who clicks, clicks often. So every metric is taken as :math:`\bar x / \bar y` over users, and its variance by the
delta method over users (Deng, Knoblich, Lu: Applying the delta method in metric analytics, KDD 2018, equation 4):

.. math:: Var(\bar x / \bar y) \approx \frac{1}{n \bar y^2} Var(x - \frac{\bar x}{\bar y} y)

The lift's interval is taken on the logarithm of the ratio of the variants, whose distribution is nearer to normal.

Axes: U users.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Rate(NamedTuple):
    """A ratio of two means over users.

    Attributes:
        value: The ratio.
        variance: Of the ratio.
        users: How many users have some of the numerator.
    """

    value: float
    variance: float
    users: int


class Lift(NamedTuple):
    """How much more B has than A.

    Attributes:
        difference: B less A.
        low: Lower end of its interval.
        high: Upper end.
        lift: ``B / A - 1``; ``None`` where A or B has nothing.
        lift_low: Lower end of its interval.
        lift_high: Upper end.
        p_value: Two-sided, of no difference.
    """

    difference: float
    low: float
    high: float
    lift: float | None
    lift_low: float | None
    lift_high: float | None
    p_value: float


def rate(x_U: NDArray[np.float64], y_U: NDArray[np.float64]) -> Rate:
    """Return ``mean(x) / mean(y)`` over users with its variance; at least two users and a positive ``y`` are needed.

    Args:
        x_U: ``[U]`` numerator of each user.
        y_U: ``[U]`` denominator of each user; ones for a mean per user.

    Example:
        >>> rate(np.array([1.0, 0.0, 2.0]), np.array([10.0, 10.0, 10.0])).value
        0.1
    """
    users, mean_y = len(x_U), float(y_U.mean())
    value = float(x_U.mean()) / mean_y
    variance = float(np.var(x_U - value * y_U, ddof=1)) / (users * mean_y**2)
    return Rate(value, variance, int((x_U > 0).sum()))


def lift(a: Rate, b: Rate, confidence: float = 0.95) -> Lift:
    """Return what B has over A.

    Example:
        >>> found = lift(Rate(0.10, 1e-6, 99), Rate(0.11, 1e-6, 99))
        >>> round(found.lift, 3), round(found.lift_low, 3), round(found.lift_high, 3)
        (0.1, 0.071, 0.13)
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    difference, spread = b.value - a.value, math.sqrt(a.variance + b.variance)
    p_value = math.erfc(abs(difference) / spread / math.sqrt(2)) if spread else float(difference == 0)
    ends = (difference - z * spread, difference + z * spread)
    if a.value <= 0 or b.value <= 0:
        return Lift(difference, *ends, None, None, None, p_value)
    ratio = b.value / a.value
    width = z * math.sqrt(a.variance / a.value**2 + b.variance / b.value**2)
    return Lift(difference, *ends, ratio - 1, ratio * math.exp(-width) - 1, ratio * math.exp(width) - 1, p_value)


def ratio_mismatch(users_a: int, users_b: int, share: float) -> float:
    """Return how likely a split as uneven as this one is, if B was to have ``share`` of the users.

    A tiny value says that the split, or the logging, is broken, and that no other number of the experiment means what
    it seems to mean.

    Reference:
        Fabijan et al.: Diagnosing sample ratio mismatch in online controlled experiments, KDD 2019; chi-squared with
        one degree of freedom.

    Example:
        >>> ratio_mismatch(500, 500, 0.5), ratio_mismatch(5000, 5500, 0.5) < 1e-5
        (1.0, True)
    """
    total = users_a + users_b
    chi = (users_b - total * share) ** 2 / (total * share * (1 - share))
    return math.erfc(math.sqrt(chi / 2))
