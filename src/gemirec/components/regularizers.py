"""Regularisers: what a model adds to its loss so that interests differ, agree with themselves, or spread.

Each returns one float32 scalar, the mean over the batch unless it says otherwise, so that a weight means the same at
every batch size. Padding and missing interests take no part unless it says otherwise. What each does to recall is
another matter: too strong a separation costs accuracy (survey, arXiv 2506.15284, section 3.4).

Axes: B batch, L history length, K interests, D embedding, P pairs of items, S negatives, X parameters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["masked", "counted"]
Reduction = Literal["mean", "sum"]
_NEVER = -1e30


def cosine_penalty(interest_BKD: Tensor, mask_BK: Tensor | None = None, weight_B: Tensor | None = None) -> Tensor:
    """Return ``(1/K^2) sum_ij cos(h_i, h_j)`` (survey, section 3.4), K the number of a row's interests.

    The sum holds the K pairs of an interest with itself, as printed: K equal interests give 1, K orthogonal ones 1/K,
    and one alone gives 1 without gradient. It is the squared length of the mean of the directions, never negative.

    Args:
        interest_BKD: ``[B, K, D]`` interests of any length.
        mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
        weight_B: ``[B]`` weights of the rows in the mean; ``None`` for equal ones.

    Example:
        >>> cosine_penalty(torch.eye(4)[None])
        tensor(0.2500)
    """
    direction_BKD, exists_BK = _directions(interest_BKD, mask_BK)
    return weighted_mean(direction_BKD.sum(1).square().sum(1) / _count(exists_BK).square(), weight_B)


def orthogonality_penalty(
    interest_BKD: Tensor, mask_BK: Tensor | None = None, weight_B: Tensor | None = None
) -> Tensor:
    """Return ``||H H^T - I||_F^2`` of the interests' directions: twice the sum of their squared cosines over pairs.

    Unlike :func:`cosine_penalty` it is smallest, at 0, for orthogonal interests and not for opposite ones. A zero
    vector has no direction and counts 1, without gradient.

    Args:
        interest_BKD: ``[B, K, D]`` interests of any length.
        mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
        weight_B: ``[B]`` weights of the rows in the mean; ``None`` for equal ones.

    Example:
        >>> orthogonality_penalty(torch.ones(1, 3, 2))  # 6 ordered pairs of cosine 1
        tensor(6.0000)
    """
    direction_BKD, exists_BK = _directions(interest_BKD, mask_BK)
    with torch.autocast(direction_BKD.device.type, enabled=False):
        gram_BKK = direction_BKD @ direction_BKD.transpose(1, 2)
    return weighted_mean((gram_BKK - torch.diag_embed(exists_BK.float())).square().sum((1, 2)), weight_B)


def interest_contrast(
    view_BKD: Tensor,
    other_BKD: Tensor,
    temperature: float,
    mask_BK: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE between two views of the interests (survey, section 3.4): same interest near, others far.

    For interest k of a row, ``-log( e^{cos(v_k, o_k)/tau} / sum_j e^{cos(v_k, o_j)/tau} )``, j over the row's
    interests; the mean over a row's interests, then over rows. The negatives are taken in the other view, too, so that
    one product gives all. One interest alone gives 0.

    Args:
        view_BKD: ``[B, K, D]`` interests.
        other_BKD: ``[B, K, D]`` the same under another dropout, noise or cut of the history.
        temperature: tau.
        mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
        weight_B: ``[B]`` weights of the rows in the mean; ``None`` for equal ones.

    Example:
        >>> interest_contrast(torch.ones(1, 2, 3), torch.ones(1, 2, 3), temperature=0.1)  # log 2
        tensor(0.6931)
    """
    direction_BKD, exists_BK = _directions(view_BKD, mask_BK)
    other_BKD, _ = _directions(other_BKD, mask_BK)
    with torch.autocast(direction_BKD.device.type, enabled=False):
        logit_BKK = direction_BKD @ other_BKD.transpose(1, 2) / temperature
    log_prob_BKK = torch.log_softmax(logit_BKK.masked_fill(~exists_BK[:, None], _NEVER), dim=2)
    loss_BK = -log_prob_BKK.diagonal(dim1=1, dim2=2).masked_fill(~exists_BK, 0.0)
    return weighted_mean(loss_BK.sum(1) / _count(exists_BK), weight_B)


def routing_covariance(
    weight_BKL: Tensor,
    mask_BL: Tensor,
    dim: int,
    padding: Padding = "masked",
    reduce: Reduction = "mean",
    mask_BK: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Return REMI's routing regularisation ``||diag(Cov)||_2^2`` (Xie et al., RecSys 2023, arXiv 2302.14532).

    ``Ac = A - mean_l A``, ``Cov = Ac Ac^T / d``: each interest's variance over the history, squared and summed over
    interests. It is 0 for uniform weights and keeps an interest from living on a single item (routing collapse).

    The release counts padding columns in the mean over l and as columns of ``Ac`` (``padding="counted"``), so that even
    uniform weights pay on a short history, and sums over the batch (``reduce="sum"``), so that the same weight is
    stronger in a larger batch. The paper's formula knows no padding.

    Args:
        weight_BKL: ``[B, K, L]`` attention or coupling weights, zero at padding.
        mask_BL: ``[B, L]`` bool, true at real items.
        dim: d of the formula: the width of the item vectors.
        padding: ``masked`` leaves padding out; ``counted`` is the release.
        reduce: ``mean`` over the batch, or ``sum`` as in the release.
        mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
        weight_B: ``[B]`` weights of the rows in the mean; ``None`` for equal ones.

    Example:
        >>> peaked = torch.tensor([[[1.0, 0.0]]])  # variance 1/4 + 1/4
        >>> routing_covariance(peaked, torch.tensor([[True, True]]), dim=1)
        tensor(0.2500)
    """
    weight_BKL = weight_BKL.float()
    if padding == "counted":
        centred_BKL = weight_BKL - weight_BKL.mean(dim=2, keepdim=True)
    else:
        weight_BKL = weight_BKL.masked_fill(~mask_BL[:, None], 0.0)
        mean_BK1 = weight_BKL.sum(dim=2, keepdim=True) / mask_BL.sum(dim=1).clamp(min=1)[:, None, None]
        centred_BKL = (weight_BKL - mean_BK1).masked_fill(~mask_BL[:, None], 0.0)
    penalty_BK = (centred_BKL.square().sum(dim=2) / dim).square()
    if mask_BK is not None:
        penalty_BK = penalty_BK.masked_fill(~mask_BK, 0.0)
    penalty_B = penalty_BK.sum(dim=1)
    if reduce == "sum":
        return penalty_B.sum() if weight_B is None else (penalty_B * weight_B).sum()
    return weighted_mean(penalty_B, weight_B)


def elementwise_penalty(weight_KX: Tensor) -> Tensor:
    """Return ``(1/K^2) sum_ij || W_i * W_j ||``, the survey's penalty on the parameters of K interests (section 3.4).

    ``*`` is the product by element: small where no two interests use the same parameter. The sum holds i = j, as
    printed, so it also shrinks the parameters.

    Args:
        weight_KX: ``[K, X...]`` the parameters of each interest.

    Example:
        >>> elementwise_penalty(torch.eye(2))  # only the two pairs of an interest with itself
        tensor(0.5000)
    """
    flat_KX = weight_KX.float().flatten(1)
    norm_KK: Tensor = torch.linalg.vector_norm(flat_KX[:, None] * flat_KX[None], dim=2)
    return norm_KK.mean()


def partition_contrast(
    vector_PD: Tensor,
    positive_PD: Tensor,
    negative_SD: Tensor,
    temperature: float = 1.0,
    weight_P: Tensor | None = None,
) -> Tensor:
    """Return DisMIR's ``-log( e^{w_i.w_j} / (e^{w_i.w_j} + sum_s e^{w_i.w_s}) )``, the mean over pairs (i, j).

    Items bought together are drawn into the same part, items by chance into others (Du et al., KDD 2024, DOI
    10.1145/3637528.3671800; there is no official code, this is the form of its ports). An item's vector is its weight
    in each of D overlapping parts.

    Args:
        vector_PD: ``[P, D]`` vectors of items i.
        positive_PD: ``[P, D]`` vectors of items j that co-occur with them.
        negative_SD: ``[S, D]`` vectors of random items, shared by the pairs.
        temperature: Divides the inner products; the ports take 1.
        weight_P: ``[P]`` bool or float weights of the pairs in the mean; ``None`` for equal ones. 0 if all are 0.

    Example:
        >>> one = torch.ones(1, 2)
        >>> partition_contrast(one, one, one)  # positive and one negative are alike: log 2
        tensor(0.6931)
    """
    with torch.autocast(vector_PD.device.type, enabled=False):
        vector_PD, positive_PD, negative_SD = vector_PD.float(), positive_PD.float(), negative_SD.float()
        positive_P1 = (vector_PD * positive_PD).sum(dim=1, keepdim=True)
        logit_PE = torch.cat([positive_P1, vector_PD @ negative_SD.T], dim=1) / temperature
    first_P = torch.zeros(len(logit_PE), dtype=torch.int64, device=logit_PE.device)
    loss_P = F.cross_entropy(logit_PE, first_P, reduction="none")
    if weight_P is None:
        return loss_P.mean()
    return (loss_P * weight_P).sum() / weight_P.float().sum().clamp(min=1e-12)


def weighted_mean(value_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Return ``sum_b w_b x_b / sum_b w_b``, a scalar; the plain mean without weights.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))
        tensor(2.)
    """
    if weight_B is None:
        return value_B.mean()
    return (value_B * weight_B).sum() / weight_B.sum()


def _directions(interest_BKD: Tensor, mask_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return unit vectors, zero at missing interests, and the mask ``[B, K]``."""
    if mask_BK is None:
        mask_BK = torch.ones(interest_BKD.shape[:2], dtype=torch.bool, device=interest_BKD.device)
    present_BKD = interest_BKD.float().masked_fill(~mask_BK[:, :, None], 0.0)
    return F.normalize(present_BKD, dim=2), mask_BK


def _count(exists_BK: Tensor) -> Tensor:
    """Return the number of interests of each row ``[B]``, at least 1."""
    return exists_BK.sum(dim=1).clamp(min=1)
