"""How good a generator of future interests is: does it rank the true one high, and do its probabilities come true?

The true interest of a user is that of the next item. Hit rate and log loss are means over users, apart for those whose
true interest is one of the history's ("seen") and those where it is not ("new").

Calibration cannot be split by what came true: whoever knows the outcome finds every probability wrong. It is split by
what was predicted, over pairs of a user and one of its most probable interests: pairs whose interest is in the history,
and pairs whose interest is not. The expected calibration error is (Guo et al., ICML 2017; here with bins of equally
many pairs)::

    ECE = sum over bins b of n_b / n * | mean p in b - share of b that came true |

Axes: B users of a block, U users in all, M interests, T interests kept of a user, X pairs, E events of all users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemirec.components.selection import ordered_top_k
from gemirec.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HITS = (1, 5, 10, 20)
"""List lengths of the hit rate; the longest is also how many of a user's interests calibration looks at."""
BINS = 15
"""Bins of the calibration."""
FLOOR = 1e-9
"""Least probability in the log loss: a table of counts gives 0 to what it never saw."""
GROUPS = ("all", "seen", "new")


def true_ranks(logp_BM: Tensor, interest_B: Tensor) -> Tensor:
    """Return the ``[B]`` int64 rank, from 0, of one interest per user; equal ones rank by ascending index.

    Args:
        logp_BM: ``[B, M]`` log-probabilities, not NaN.
        interest_B: ``[B]`` int64 the interest that is looked for.

    Example:
        >>> true_ranks(torch.tensor([[0.2, 0.5, 0.2], [0.2, 0.5, 0.2]]), torch.tensor([0, 2])).tolist()
        [1, 2]
    """
    own_B1 = logp_BM.gather(1, interest_B[:, None])
    before_BM = torch.arange(logp_BM.shape[1], device=logp_BM.device) < interest_B[:, None]
    rank_B: Tensor = ((logp_BM > own_B1) | ((logp_BM == own_B1) & before_BM)).sum(dim=1)
    return rank_B


def seen_interests(interest_E: Tensor, offset_B1: Tensor, num_interests: int) -> Tensor:
    """Return ``[B, M]`` bool: which interests occur among each user's events.

    Args:
        interest_E: ``[E]`` int64 interests of the events, one user after the other.
        offset_B1: ``[B + 1]`` int64 where each user's events start.
        num_interests: M.

    Example:
        >>> seen_interests(torch.tensor([2, 2, 0]), torch.tensor([0, 2, 3]), 3).int().tolist()
        [[0, 0, 1], [1, 0, 0]]
    """
    users = len(offset_B1) - 1
    row_E = torch.repeat_interleave(torch.arange(users, device=interest_E.device), offset_B1.diff())
    seen_BM = torch.zeros(users, num_interests, dtype=torch.bool, device=interest_E.device)
    seen_BM[row_E, interest_E] = True
    return seen_BM


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities come true.

    Attributes:
        error: The expected calibration error, 0 to 1; ``None`` without pairs.
        bins: Per bin, by rising probability: ``pairs``, ``predicted`` (mean probability), ``found`` (share that came
            true).
    """

    error: float | None
    bins: list[dict[str, Any]]


def calibration(prob_X: NDArray[np.floating[Any]], hit_X: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Return the expected calibration error in bins of equally many pairs; equal probabilities share a bin.

    Args:
        prob_X: ``[X]`` predicted probabilities.
        hit_X: ``[X]`` what came true.
        bins: Most bins.

    Raises:
        DataError: A probability outside 0 to 1, or arrays of different lengths.

    Example:
        >>> calibration(np.array([0.5, 0.5, 1.0, 1.0]), np.array([True, False, True, False]), bins=2).error
        0.25
    """
    if len(prob_X) != len(hit_X) or not bool(((prob_X >= 0) & (prob_X <= 1 + 1e-6)).all()):
        raise DataError(
            "calibration needs a probability and an outcome per pair",
            got=f"{len(prob_X)} probabilities, {len(hit_X)} outcomes",
            fix="give numbers from 0 to 1, as many as outcomes",
        )
    if len(prob_X) == 0:
        return Calibration(None, [])
    prob_X = prob_X.astype(np.float64)
    inner = np.sort(prob_X)[np.arange(1, bins) * len(prob_X) // bins]  # first probability of the 2nd, 3rd, ... bin
    bin_X = np.searchsorted(np.unique(inner), prob_X, side="right")
    size = np.bincount(bin_X)
    kept = size > 0
    predicted = np.bincount(bin_X, prob_X)[kept] / size[kept]
    found = np.bincount(bin_X, hit_X)[kept] / size[kept]
    error = float((size[kept] * np.abs(predicted - found)).sum() / len(prob_X))
    table = zip(size[kept].tolist(), predicted.tolist(), found.tolist(), strict=True)
    return Calibration(error, [{"pairs": n, "predicted": p, "found": f} for n, p, f in table])


class GeneratorScores:
    """Gathers the predictions of one generator, block by block; holds a few numbers per user.

    Example:
        >>> scores = GeneratorScores()
        >>> logp_BM = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log()
        >>> seen_BM = torch.tensor([[True, False, False], [True, False, False]])
        >>> scores.add(logp_BM, torch.tensor([0, 1]), seen_BM)
        >>> [(row["next interest"], row["users"], row["hit@1"]) for row in scores.rows()]
        [('all', 2, 0.5), ('seen', 1, 1.0), ('new', 1, 0.0)]
        >>> scores.new_mass()
        {'predicted': 0.3, 'found': 0.5}
    """

    def __init__(self) -> None:
        self._blocks: dict[str, list[NDArray[Any]]] = {}

    def add(self, logp_BM: Tensor, interest_B: Tensor, seen_BM: Tensor) -> None:
        """Measure one block.

        Args:
            logp_BM: ``[B, M]`` predicted log-probabilities.
            interest_B: ``[B]`` int64 the true interests.
            seen_BM: ``[B, M]`` bool, the interests of each user's history.
        """
        prob_BM = logp_BM.double().exp()
        logp_BT, index_BT = ordered_top_k(logp_BM, HITS[-1])
        found = {
            "rank": true_ranks(logp_BM, interest_B),
            "logp": logp_BM.gather(1, interest_B[:, None])[:, 0].double().clamp(min=math.log(FLOOR)),
            "seen": seen_BM.gather(1, interest_B[:, None])[:, 0],
            "new_mass": (prob_BM * ~seen_BM).sum(dim=1),
            "top_prob": logp_BT.exp(),
            "top_hit": index_BT == interest_B[:, None],
            "top_seen": seen_BM.gather(1, index_BT),
        }
        for name, value in found.items():
            self._blocks.setdefault(name, []).append(value.detach().cpu().numpy())

    def rows(self) -> list[dict[str, Any]]:
        """Return hit rates and log loss for all users and for each group of true interests; ``None`` without users."""
        seen_U, rank_U, logp_U = self._column("seen"), self._column("rank"), self._column("logp")
        out = []
        for group, mask_U in zip(GROUPS, (np.ones_like(seen_U), seen_U, ~seen_U), strict=True):
            count = int(mask_U.sum())
            row: dict[str, Any] = {"next interest": group, "users": count}
            for k in HITS:
                row[f"hit@{k}"] = float((rank_U[mask_U] < k).mean()) if count else None
            row["log loss"] = float(-logp_U[mask_U].mean()) if count else None
            out.append(row)
        return out

    def calibrations(self) -> dict[str, Calibration]:
        """Return the calibration of each user's most probable interest (``top 1``), and of pairs ``seen`` and ``new``.

        Pairs are a user and one of its 20 most probable interests.
        """
        prob_UT, hit_UT, seen_UT = self._column("top_prob"), self._column("top_hit"), self._column("top_seen")
        return {
            "top 1": calibration(prob_UT[:, 0], hit_UT[:, 0]),
            "seen": calibration(prob_UT[seen_UT], hit_UT[seen_UT]),
            "new": calibration(prob_UT[~seen_UT], hit_UT[~seen_UT]),
        }

    def new_mass(self) -> dict[str, float]:
        """Return the mean probability that the next interest is new, and how often it was."""
        predicted, found = float(self._column("new_mass").mean()), float((~self._column("seen")).mean())
        return {"predicted": round(predicted, 6), "found": round(found, 6)}

    def _column(self, name: str) -> NDArray[Any]:
        """Return one value for all users.

        Raises:
            DataError: Nothing was added.
        """
        if not self._blocks:
            raise DataError(
                "the generator was asked about nobody",
                got="0 users with a history and a held-out event",
                fix="take another split or more users",
            )
        return np.concatenate(self._blocks[name])
