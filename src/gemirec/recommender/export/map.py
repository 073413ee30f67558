"""A map of the catalogue: items in two dimensions, neighbours near each other.

Some items, the landmarks, are laid out by t-SNE on the angles between their vectors; the others are placed among the
landmarks that they are nearest to. No randomness: equal vectors on the same machine give an equal map.

Axes: N items, D embedding, P landmarks, J neighbours of a point, X points to be placed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from gemirec.recommender.export.vectors import ROWS, ParquetStream
from gemirec.recommender.projection import pca, tsne

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NEIGHBOURS = 5
"""Landmarks that a point is placed by."""
_BLOCK = 8192
_GOLDEN = 0.7548776662466927, 0.5698402909980532
"""Steps of the R2 sequence, which fills a square evenly."""


class Map(NamedTuple):
    """Where items lie.

    Attributes:
        xy_N2: ``[N, 2]`` float32, about the origin, the farthest coordinate 1 or -1.
        landmark_P: ``[P]`` int64 rows that were laid out themselves, ascending.
    """

    xy_N2: Tensor
    landmark_P: Tensor


@torch.no_grad()
def project(item_ND: Tensor, *, landmarks: int = 2000, steps: int = 350) -> Map:
    """Return a map of items.

    Time is that of t-SNE on the landmarks, and N x P x D for the others; memory is the landmarks' squared, and a block.

    Args:
        item_ND: ``[N, D]`` vectors, most popular first, without padding. Lengths do not count.
        landmarks: Most items that are laid out themselves: half of them the first rows, half evenly from the rest.
        steps: Steps of t-SNE; 0 for principal components.

    Example:
        >>> found = project(torch.eye(4).repeat(8, 1), landmarks=8, steps=50)
        >>> found.xy_N2.shape, found.landmark_P.tolist()
        (torch.Size([32, 2]), [0, 1, 2, 3, 4, 13, 22, 31])
    """
    landmark_P = _choose(len(item_ND), landmarks)
    unit_PD = F.normalize(item_ND[landmark_P].float(), dim=1)
    place_P2 = tsne(unit_PD, steps=steps) if steps else pca(unit_PD)
    xy_N2 = torch.empty(len(item_ND), 2)
    room_P = _room(place_P2)
    for start in range(0, len(item_ND), _BLOCK):
        vector_XD = item_ND[start : start + _BLOCK]
        near_X2, first_X = _placed(vector_XD, unit_PD, place_P2)
        xy_N2[start : start + _BLOCK] = near_X2 + room_P[first_X, None] * _spread(start, len(vector_XD))
    xy_N2[landmark_P] = place_P2
    xy_N2 -= (xy_N2.amax(dim=0) + xy_N2.amin(dim=0)) / 2 if len(xy_N2) else 0
    return Map(xy_N2 / xy_N2.abs().max().clamp(min=1e-12) if len(xy_N2) else xy_N2, landmark_P)


@torch.no_grad()
def place(vector_XD: Tensor, landmark_PD: Tensor, place_P2: Tensor) -> Tensor:
    """Return where vectors belong on a map: ``[X, 2]`` float32, a mean of the places of the nearest landmarks.

    Args:
        vector_XD: ``[X, D]``, for example interests; lengths do not count.
        landmark_PD: ``[P, D]`` vectors of the landmarks, P at least 1.
        place_P2: ``[P, 2]`` their places.

    Example:
        >>> place(torch.tensor([[9.0, 0.0]]), torch.eye(2), torch.tensor([[1.0, 5.0], [7.0, 7.0]])).round()
        tensor([[1., 5.]])
    """
    unit_PD = F.normalize(landmark_PD.float(), dim=1)
    blocks = [_placed(block_XD, unit_PD, place_P2)[0] for block_XD in torch.split(vector_XD, _BLOCK)]
    return torch.cat(blocks) if blocks else vector_XD.new_empty(0, 2)


def write_map(path: Path, items: pl.DataFrame, found: Map, facts: Mapping[str, Any]) -> None:
    """Write ``item_id, x, y, count, landmark``, and ``category`` and ``title`` where the item table has them.

    Args:
        path: The file.
        items: The item table, rows as in the map.
        found: The map.
        facts: For the schema's metadata.
    """
    landmark_N = torch.zeros(items.height, dtype=torch.bool)
    landmark_N[found.landmark_P] = True
    told = [name for name in ("category", "title") if name in items.columns]
    table = items.select("item_id", *told, count=pl.col("train_count").fill_null(0).cast(pl.Int64)).with_columns(
        x=pl.Series(found.xy_N2[:, 0].numpy()),
        y=pl.Series(found.xy_N2[:, 1].numpy()),
        landmark=pl.Series(landmark_N.numpy()),
    )
    with ParquetStream(path, facts) as stream:
        for block in table.select("item_id", "x", "y", *told, "count", "landmark").iter_slices(ROWS):
            stream.write(block.to_arrow())


def _choose(count: int, most: int) -> Tensor:
    """Return the rows of the landmarks: the first half from the top, the others evenly down to the last row."""
    if count <= most:
        return torch.arange(count)
    top = (most + 1) // 2
    rest = torch.linspace(top, count - 1, most - top, dtype=torch.float64).round().long()
    return torch.cat([torch.arange(top), rest])


def _placed(vector_XD: Tensor, unit_PD: Tensor, place_P2: Tensor) -> tuple[Tensor, Tensor]:
    """Return places ``[X, 2]``, and each one's nearest landmark ``[X]``."""
    cosine_XP = F.normalize(vector_XD.float(), dim=1) @ unit_PD.T
    cosine_XJ, row_XJ = cosine_XP.topk(min(NEIGHBOURS, len(unit_PD)), dim=1)
    behind_XJ = cosine_XJ[:, :1] - cosine_XJ
    share_XJ = torch.softmax(-2 * behind_XJ / behind_XJ.mean(dim=1, keepdim=True).clamp(min=1e-6), dim=1)
    return (share_XJ[:, :, None] * place_P2[row_XJ]).sum(dim=1), row_XJ[:, 0]


def _room(place_P2: Tensor) -> Tensor:
    """Return half the distance from each landmark to the nearest other one: ``[P]``."""
    if len(place_P2) < 2:
        return torch.zeros(len(place_P2))
    distance_PP = torch.cdist(place_P2, place_P2, compute_mode="donot_use_mm_for_euclid_dist")
    return distance_PP.fill_diagonal_(torch.inf).amin(dim=1) / 2


def _spread(start: int, count: int) -> Tensor:
    """Return points of the unit disc ``[X, 2]``, so that items with the same neighbours do not hide each other."""
    row_X = torch.arange(start, start + count, dtype=torch.float64)
    radius_X, angle_X = (row_X * _GOLDEN[0] % 1).sqrt(), row_X * _GOLDEN[1] % 1 * 2 * torch.pi
    return torch.stack([radius_X * angle_X.cos(), radius_X * angle_X.sin()], dim=1).float()
