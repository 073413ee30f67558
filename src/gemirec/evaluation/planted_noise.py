"""Noise of interests at the level of dimensions: what they hold of aspects that they should not care about.

For a simulated log with aspects (:mod:`gemirec.data.simulator`), where a planted interest cares about one aspect. The
planted space has one axis for each possible interest p, a cluster or a value of an aspect. An item's planted vector is,
in the block of aspect a, ``z_ia = (onehot - mean) / size_a``: the mean is over the items, and ``size_a`` makes the mean
of ``|z_ia|^2`` one, so that each aspect has as much energy as any other. A learned space is turned against the planted
one, so a linear probe translates: ridge regression without intercept, in closed form::

    W = (X^T X + ridge tr(X^T X) / D I)^-1 X^T Z           X the learned item vectors, Z the planted ones
    noise of an interest h matched with p  =  1 - |(W^T h)_a(p)|^2 / |W^T h|^2

It is 0 for an interest that holds its own aspect alone, and neither its length nor a turn of the learned space matters.
One item alone has A / (1 + A), A aspects beside the cluster, on average over what it could stand for. Interests and
planted interests are matched one to one so that the sum of their cosines in the planted space is the largest; what has
no partner is left out.

==============================  =======================================================================================
``interest_noise``              mean over the matched interests; also apart for those matched with clusters
                                (``interest_noise_clusters``) and with values of aspects (``interest_noise_aspects``)
``interest_noise_of_means``     the same for the mean of *all* items of each planted interest in place of what the
                                model serves: what many clicks cannot average out, and the error of the probe
``noise_matched``               matched interests, as a share of the served ones
``probe_r2``                    share of Z's energy that the probe explains of items it was not fitted on (leave one
                                out, in closed form), mean over aspects; ``probe_r2_clusters``, ``probe_r2_aspects``
==============================  =======================================================================================

A probe with a low ``probe_r2`` cannot tell the aspects apart: do not read the noise then. What an interest holds
outside the space of the items counts as noise, too, as far as the probe translates it into aspects.

Axes: B users of a block, K interests, J planted interests of a user, D embedding, N items (no padding row), A all
aspects, the clusters first, P possible interests, the axes of the planted space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemirec.data.batches import evaluation_batches
from gemirec.errors import DataError
from gemirec.evaluation.assignment import assign
from gemirec.evaluation.planted import NONE, read_truth
from gemirec.evaluation.ranking import catalogue, serving
from gemirec.models.base import Histories

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    import torch
    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset
    from gemirec.data.simulator import SimulatedLog
    from gemirec.models.base import Interests, RetrievalModel

RIDGE = 1e-3
"""Strength of the ridge, as a share of the mean energy of a learned axis."""


@dataclass(frozen=True)
class PlantedSpace:
    """The planted vectors of items and interests.

    Attributes:
        vector_NP: ``[N, P]`` float64 planted vector of each item.
        direction_PP: ``[P, P]`` float64, row p is the planted direction of interest p, length 1, zero off its aspect.
        aspect_P: ``[P]`` int64 aspect of each axis, ascending from 0 without a gap.
        label_NA: ``[N, A]`` int64 interests that each item fits, one in each aspect.
    """

    vector_NP: NDArray[np.float64]
    direction_PP: NDArray[np.float64]
    aspect_P: NDArray[np.int64]
    label_NA: NDArray[np.int64]

    def energy(self, vector_XP: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the squared lengths ``[..., A]`` of the blocks of ``vector_XP`` ``[..., P]``."""
        starts_A = np.searchsorted(self.aspect_P, np.arange(self.aspect_P[-1] + 1))
        energy_XA: NDArray[np.float64] = np.add.reduceat(vector_XP**2, starts_A, axis=-1)
        return energy_XA


@dataclass(frozen=True)
class Probe:
    """A linear map from a learned space to the planted one.

    Attributes:
        weight_DP: ``[D, P]`` float64.
        r2_A: ``[A]`` float64 share of each aspect's energy that is explained, each item left out in turn.
    """

    weight_DP: NDArray[np.float64]
    r2_A: NDArray[np.float64]


def planted_space(label_NA: NDArray[np.int64], aspect_P: NDArray[np.int64]) -> PlantedSpace:
    """Return the planted space of items.

    Args:
        label_NA: ``[N, A]`` axis that each item fits, one in each aspect.
        aspect_P: ``[P]`` aspect of each axis, ascending from 0 without a gap.

    Example:
        >>> space = planted_space(np.array([[0, 2], [1, 2], [0, 3], [1, 3]]), np.array([0, 0, 1, 1]))
        >>> (2**0.5 * space.vector_NP[0]).round(3).tolist()
        [1.0, -1.0, 1.0, -1.0]
        >>> (2**0.5 * space.direction_PP[1]).round(3).tolist()
        [-1.0, 1.0, 0.0, 0.0]
    """
    items, axes = len(label_NA), len(aspect_P)
    mean_P = np.bincount(label_NA.ravel(), minlength=axes) / items
    size_A = np.sqrt(1.0 - np.bincount(aspect_P, weights=mean_P**2))
    onehot_NP = np.zeros((items, axes))
    np.put_along_axis(onehot_NP, label_NA, 1.0, axis=1)
    inside_PP = aspect_P[:, None] == aspect_P
    direction_PP = np.eye(axes) - inside_PP * mean_P
    # An aspect in which all items are alike has no energy; its axes are zero.
    scale_P = 1.0 / np.where(size_A > 0, size_A, np.inf)[aspect_P]
    length_P1 = np.linalg.norm(direction_PP, axis=1, keepdims=True)
    return PlantedSpace(
        vector_NP=(onehot_NP - mean_P) * scale_P,
        direction_PP=direction_PP / np.where(length_P1 > 0, length_P1, np.inf),
        aspect_P=aspect_P,
        label_NA=label_NA,
    )


def fit_probe(item_ND: NDArray[np.floating], space: PlantedSpace, ridge: float = RIDGE) -> Probe:
    """Fit the probe of the module's formula.

    Args:
        item_ND: ``[N, D]`` learned vectors of the items of ``space``.
        space: What they are translated to.
        ridge: Strength, 0 or more, as a share of the mean energy of a learned axis.

    Example:
        >>> space = planted_space(np.array([[0, 2], [1, 2], [0, 3], [1, 3]] * 5), np.array([0, 0, 1, 1]))
        >>> fit_probe(space.vector_NP[:, [2, 0]], space).r2_A.round(3).tolist()
        [1.0, 1.0]
    """
    item_ND = item_ND.astype(np.float64)
    gram_DD = item_ND.T @ item_ND
    penalty_DD = ridge * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
    solved_DN = np.linalg.pinv(gram_DD + penalty_DD, hermitian=True) @ item_ND.T
    weight_DP = solved_DN @ space.vector_NP
    # Without item i the residual is that with it over 1 - leverage.
    kept_N = 1.0 - np.einsum("nd,dn->n", item_ND, solved_DN)
    residual_NP = (space.vector_NP - item_ND @ weight_DP) / np.maximum(kept_N, 1e-9)[:, None]
    planted_A = space.energy(space.vector_NP).sum(axis=0)
    r2_A = 1.0 - space.energy(residual_NP).sum(axis=0) / np.where(planted_A > 0, planted_A, np.nan)
    return Probe(weight_DP, r2_A)


def interest_noise(
    interest_BKD: torch.Tensor, mask_BK: torch.Tensor, planted_BJ: NDArray[np.int64], probe: Probe, space: PlantedSpace
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the noise of each interest, for interests of any source: coarse and refined ones, for example.

    Args:
        interest_BKD: ``[B, K, D]`` interests in the space of the learned item vectors.
        mask_BK: ``[B, K]`` bool, true where there is one.
        planted_BJ: ``[B, J]`` axes of the users' planted interests, ``NONE`` for empty slots.
        probe: From :func:`fit_probe`.
        space: What the probe translates to.

    Returns:
        ``[B, K]`` float64 noise, from 0 to 1, NaN without a partner, and ``[B, K]`` int64 planted interest that each is
        matched with, ``NONE`` without.

    Raises:
        ConfigError: Interests and planted ones are too many to match (above 12 each).

    Example:
        >>> space = planted_space(np.array([[0, 2], [1, 2], [0, 3], [1, 3]] * 5), np.array([0, 0, 1, 1]))
        >>> probe = fit_probe(space.vector_NP[:, [0, 2]], space)
        >>> import torch
        >>> found = interest_noise(torch.tensor([[[3.0, 1.0]]]), torch.ones(1, 1).bool(), np.array([[0]]), probe, space)
        >>> [value.round(3).tolist() for value in found]
        [[[0.1]], [[0]]]
    """
    interest = interest_BKD.detach().cpu().numpy().astype(np.float64)
    exists_BK = mask_BK.cpu().numpy() & np.isfinite(interest).all(axis=2)
    translated_BKP = np.where(exists_BK[:, :, None], interest, 0.0) @ probe.weight_DP
    energy_BKA = space.energy(translated_BKP)
    total_BK = energy_BKA.sum(axis=2)
    exists_BK &= total_BK > 0
    length_BK1 = np.sqrt(np.where(exists_BK, total_BK, 1.0))[:, :, None]
    direction_BJP = space.direction_PP[np.maximum(planted_BJ, 0)]
    cosine_BKJ = np.einsum("bkp,bjp->bkj", translated_BKP / length_BK1, direction_BJP)
    pair_BKJ = assign(np.where(exists_BK[:, :, None] & (planted_BJ != NONE)[:, None], cosine_BKJ, 0.0))
    matched_BK = np.where(pair_BKJ, planted_BJ[:, None, :], NONE).max(axis=2)
    aspect_BK = space.aspect_P[np.maximum(matched_BK, 0)]
    own_BK = np.take_along_axis(energy_BKA, aspect_BK[:, :, None], axis=2)[:, :, 0]
    return np.where(matched_BK != NONE, 1.0 - own_BK / length_BK1[:, :, 0] ** 2, np.nan), matched_BK


def planted_noise(
    model: RetrievalModel,
    dataset: Dataset,
    log: SimulatedLog,
    split: Literal["valid", "test"] = "test",
    *,
    read: Callable[[Histories], Interests] | None = None,
    ridge: float = RIDGE,
    batch_size: int = 512,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Return the scores of the module's table for the held-out users of a split.

    Planted interests of a user are those that its history can show, as in
    :func:`~gemirec.evaluation.planted.planted_scores`.

    Args:
        model: The model. It is put into ``eval`` mode, and back afterwards.
        dataset: The log, prepared with its own ids and timestamps.
        log: The simulated log with its truth; it must have aspects.
        split: Which held-out part; the histories end where it begins.
        read: What gives the interests; ``None`` takes ``model.interests``. For the coarse interests of a DMI:
            ``lambda histories: model.coarse(histories).found``.
        ridge: Strength of the probe's ridge.
        batch_size: Users per block.
        device: Where to compute; ``None`` leaves the model where it is.

    Raises:
        DataError: The log has no aspects, the split is empty, the catalogues differ, or the dataset was not prepared
            from this log.
        ConfigError: Interests and planted ones are too many to match (above 12 each).
    """
    config, users_U = log.config, dataset.users_in(split)
    if not config.aspects:
        raise DataError("the simulated log has no aspects", got=str(log.path), fix="simulate with --set aspects=3")
    if len(users_U) == 0:
        raise DataError(f"the {split} split is empty", got=str(dataset.path), fix="prepare with another split")
    truth = read_truth(dataset, log, users_U, split)
    aspect_P = np.repeat(np.arange(1 + config.aspects), [config.num_clusters] + [config.aspect_values] * config.aspects)
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64], int]] = []
    with serving(model, device) as place:
        # What no event was trained on has the vector it began with.
        trained_N = np.flatnonzero(np.asarray(dataset.spec().train_count_N)[1:] > 0) + 1
        item_ND = catalogue(model, dataset).cpu().numpy()[trained_N]
        space = planted_space(truth.label_NA[trained_N], aspect_P)
        probe, first = fit_probe(item_ND, space, ridge), 0
        windows_of = evaluation_batches(dataset, split, batch_size=batch_size, max_length=model.max_length)
        for windows in windows_of:
            histories = Histories(windows.item_BL, windows.user_categorical_BF, windows.user_numeric_BG).to(place)
            found = (read or model.interests)(histories)
            rows = slice(first, first := first + len(windows.user_B))
            noise = interest_noise(found.vector_BKD, found.mask_BK, truth.planted_UJ[rows], probe, space)
            parts.append((*noise, int(found.mask_BK.sum())))
    noise_X = np.concatenate([noise_BK[matched_BK != NONE] for noise_BK, matched_BK, _ in parts])
    matched_X = np.concatenate([matched_BK[matched_BK != NONE] for _, matched_BK, _ in parts])
    out = _by_kind("interest_noise", noise_X, matched_X < config.num_clusters)
    out["interest_noise_of_means"] = _of_means(item_ND, truth.planted_UJ, probe, space)
    out["noise_matched"] = len(noise_X) / max(sum(part[2] for part in parts), 1)
    return out | _by_kind("probe_r2", probe.r2_A, np.arange(len(probe.r2_A)) == 0)


def _by_kind(name: str, value_X: NDArray[np.float64], of_cluster_X: NDArray[np.bool_]) -> dict[str, float]:
    """Return the means of all, of clusters and of values; a mean over nothing is left out."""
    known_X = np.isfinite(value_X)
    kinds = {"": known_X, "_clusters": known_X & of_cluster_X, "_aspects": known_X & ~of_cluster_X}
    return {f"{name}{end}": float(np.mean(value_X[chosen_X])) for end, chosen_X in kinds.items() if chosen_X.any()}


def _of_means(item_ND: NDArray[np.floating], planted_UJ: NDArray[np.int64], probe: Probe, space: PlantedSpace) -> float:
    """Return the mean noise of the means of all items of the users' planted interests."""
    sum_PD = np.zeros((len(space.aspect_P), item_ND.shape[1]))
    np.add.at(sum_PD, space.label_NA, item_ND[:, None])
    energy_PA = space.energy(sum_PD @ probe.weight_DP)
    own_P = np.take_along_axis(energy_PA, space.aspect_P[:, None], axis=1)[:, 0]
    noise_P = 1.0 - own_P / np.maximum(energy_PA.sum(axis=1), np.finfo(np.float64).tiny)
    return float(noise_P[planted_UJ[planted_UJ != NONE]].mean())
