"""How many interests a user has: rules beyond a fixed K (an open question of the survey, arXiv 2506.15284).

``log`` is MIND's: it knows the history's length alone, and is applied before the extraction. The others look at what
was extracted and switch interests off afterwards. None has a gradient, and every user keeps at least one interest.

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.capsule import adaptive_mask
from gemirec.config import Config


class AdaptiveConfig(Config, frozen=True, kw_only=True):
    """The rule that gives a user fewer than K interests."""

    kind: Literal["none", "log", "mass", "silhouette", "density"] = "none"
    """``log``: by the history's length (MIND). ``mass``: those that hold most of the history. ``silhouette``: as many
    as part the history best. ``density``: as many as the history has dense groups."""
    mass: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Of ``mass``: share of the history that the interests kept must hold together."""
    min_silhouette: Annotated[float, Meta(ge=-1, le=1)] = 0.05
    """Of ``silhouette``: below this the history is not parted at all and one interest stays."""
    radius: Annotated[float, Meta(gt=0)] = 0.4
    """Of ``density``: largest cosine distance (1 - cos) between neighbours."""
    min_points: Annotated[int, Meta(ge=1)] = 2
    """Of ``density``: neighbours, itself counted, that make an item a core of a group."""


def existing_before(config: AdaptiveConfig, mask_BL: Tensor, num_interests: int) -> Tensor | None:
    """Return the interests ``[B, K]`` that exist by a rule of the length alone; ``None`` if the rule is another."""
    return adaptive_mask(mask_BL.sum(dim=1), num_interests) if config.kind == "log" else None


@torch.no_grad()
def existing_after(
    config: AdaptiveConfig, interest_BKD: Tensor, weight_BKL: Tensor | None, item_BLD: Tensor, mask_BL: Tensor
) -> Tensor | None:
    """Return the interests ``[B, K]`` that a rule keeps of those extracted; ``None`` if the rule is another.

    Args:
        config: Which rule.
        interest_BKD: ``[B, K, D]`` interests.
        weight_BKL: ``[B, K, L]`` weights that formed them; needed by ``mass`` alone.
        item_BLD: ``[B, L, D]`` item vectors, zero at padding.
        mask_BL: ``[B, L]`` bool, true at real items.
    """
    if config.kind in ("none", "log") or interest_BKD.shape[1] == 1:
        return None
    interest_BKD, item_BLD = interest_BKD.float(), item_BLD.float()
    with torch.autocast(item_BLD.device.type, enabled=False):
        if config.kind == "mass":
            assert weight_BKL is not None
            return largest_mass(weight_BKL, mask_BL, config.mass)
        order_BK = spread_order(interest_BKD, item_BLD, mask_BL)
        if config.kind == "silhouette":
            count_B = best_silhouette(interest_BKD, order_BK, item_BLD, mask_BL, config.min_silhouette)
        else:
            count_B = dense_groups(item_BLD, mask_BL, config.radius, config.min_points)
    place_BK = torch.empty_like(order_BK).scatter_(
        1, order_BK, torch.arange(order_BK.shape[1], device=order_BK.device).expand_as(order_BK).contiguous()
    )
    return place_BK < count_B.clamp(min=1)[:, None]


def largest_mass(weight_BKL: Tensor, mask_BL: Tensor, mass: float) -> Tensor:
    """Return ``[B, K]``: the fewest interests that hold ``mass`` of the history together, the largest first.

    An item belongs to the interests in proportion to its weights in them, ``w_kl / sum_k w_kl``; an interest's mass is
    the mean of these shares over the history. Equal interests share equally, so this rule does not see them.

    Example:
        >>> weight = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
        >>> largest_mass(weight, torch.ones(1, 3, dtype=torch.bool), 0.9)
        tensor([[ True,  True, False]])
    """
    weight_BKL = weight_BKL.float()
    share_BKL = weight_BKL / weight_BKL.sum(dim=1, keepdim=True).clamp(min=1e-20)
    share_BK = (share_BKL * mask_BL[:, None]).sum(dim=2) / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
    sorted_BK, order_BK = share_BK.sort(dim=1, descending=True, stable=True)
    needed_BK = sorted_BK.cumsum(dim=1) - sorted_BK < mass - 1e-6  # what the larger ones hold does not suffice
    return torch.empty_like(needed_BK).scatter_(1, order_BK, needed_BK)


def spread_order(interest_BKD: Tensor, item_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the interests ``[B, K]`` from the most wanted: each next one is the farthest from those before it.

    The first is the one nearest to most items of the history; near is by cosine, ties go to the lower number.
    """
    direction_BKD = F.normalize(interest_BKD, dim=2)
    near_BKL = direction_BKD @ F.normalize(item_BLD, dim=2).transpose(1, 2)
    owner_BL = near_BKL.argmax(dim=1)
    count_BK = (F.one_hot(owner_BL, interest_BKD.shape[1]) * mask_BL[:, :, None]).sum(dim=1)
    alike_BKK = direction_BKD @ direction_BKD.transpose(1, 2)
    taken_B1 = count_BK.argmax(dim=1, keepdim=True)
    order = [taken_B1]
    closest_BK = torch.full_like(near_BKL[:, :, 0], -2.0)
    for _ in range(interest_BKD.shape[1] - 1):
        own_BK = alike_BKK.gather(1, taken_B1[:, :, None].expand(-1, 1, alike_BKK.shape[2]))[:, 0]
        closest_BK = torch.maximum(closest_BK, own_BK).scatter(1, taken_B1, 3.0)  # never again
        taken_B1 = closest_BK.argmin(dim=1, keepdim=True)
        order.append(taken_B1)
    return torch.cat(order, dim=1)


def best_silhouette(interest_BKD: Tensor, order_BK: Tensor, item_BLD: Tensor, mask_BL: Tensor, least: float) -> Tensor:
    """Return the number of interests ``[B]`` whose partition of the history has the best mean silhouette.

    For each k from 2 the items go to the nearest of the first k interests; an item's silhouette is
    ``(b - a) / max(a, b)``, a the mean cosine distance to the other items of its part, b the least mean distance to
    another part; 0 in a part of its own or without another part (Rousseeuw, 1987). Below ``least`` the answer is 1.
    """
    item_BLD = F.normalize(item_BLD, dim=2)
    distance_BLL = 1 - item_BLD @ item_BLD.transpose(1, 2)
    ordered_BKD = F.normalize(interest_BKD, dim=2).gather(1, order_BK[:, :, None].expand_as(interest_BKD))
    near_BLK = item_BLD @ ordered_BKD.transpose(1, 2)
    length_B = mask_BL.sum(dim=1).clamp(min=1)
    scores = []
    for k in range(2, interest_BKD.shape[1] + 1):
        owner_BL1 = near_BLK[:, :, :k].argmax(dim=2, keepdim=True)
        part_BLK = torch.zeros_like(near_BLK[:, :, :k]).scatter_(2, owner_BL1, 1.0) * mask_BL[:, :, None]
        size_B1K = part_BLK.sum(dim=1, keepdim=True)
        total_BLK = distance_BLL @ part_BLK
        own_size_BL = size_B1K.expand_as(total_BLK).gather(2, owner_BL1)[:, :, 0]
        a_BL = total_BLK.gather(2, owner_BL1)[:, :, 0] / (own_size_BL - 1).clamp(min=1)
        mean_BLK = (total_BLK / size_B1K.clamp(min=1)).masked_fill(size_B1K == 0, float("inf"))
        b_BL = mean_BLK.scatter(2, owner_BL1, float("inf")).amin(dim=2)
        value_BL = (b_BL - a_BL) / torch.maximum(a_BL, b_BL).clamp(min=1e-9)
        counts_BL = mask_BL & (own_size_BL > 1) & b_BL.isfinite()
        scores.append(torch.where(counts_BL, value_BL, 0.0).sum(dim=1) / length_B)
    score_BX, best_B = torch.stack(scores, dim=1).max(dim=1)
    return torch.where(score_BX >= least, best_B + 2, 1)


def dense_groups(item_BLD: Tensor, mask_BL: Tensor, radius: float, min_points: int) -> Tensor:
    """Return DBSCAN's number of clusters ``[B]`` of each history, by cosine distance (Ester et al., 1996).

    An item with ``min_points`` items within ``radius``, itself counted, is a core; cores within ``radius`` of one
    another are of one cluster, and so on from core to core. Items that are no cores start no cluster.

    Example:
        >>> item = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, -1]]])  # two pairs and a loner
        >>> dense_groups(item, torch.ones(1, 5, dtype=torch.bool), radius=0.2, min_points=2)
        tensor([2])
    """
    item_BLD = F.normalize(item_BLD, dim=2)
    near_BLL = (1 - item_BLD @ item_BLD.transpose(1, 2) <= radius) & mask_BL[:, :, None] & mask_BL[:, None]
    core_BL = (near_BLL.sum(dim=2) >= min_points) & mask_BL
    reach_BLL = near_BLL & core_BL[:, :, None] & core_BL[:, None]
    steps = 1
    while steps < mask_BL.shape[1]:  # paths of twice the length
        reach_BLL = (reach_BLL.float() @ reach_BLL.float()) > 0
        steps *= 2
    led_BL = torch.tril(reach_BLL, diagonal=-1).any(dim=2)  # an earlier core of the same cluster
    return (core_BL & ~led_BL).sum(dim=1)
