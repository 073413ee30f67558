"""Cells: an interest searches the items of its own cell, and the user's vector the rest of the catalogue.

Cells are groups of items that do not overlap: the codes of a dictionary's first level (GemiRec: a Voronoi partition of
the item vectors, METHODS 1.12) or categories (ULIM). GemiRec's paper uses them to keep the interests apart in the
dictionary; here (ours) they also say which items an interest stands for. Items get one further coordinate for each
cell, ``w`` in their own and 0 elsewhere, and so do the vectors of users::

    interest k                w at its own cell
    user's own vector         w at every cell
    the same, apart           w at every cell that no interest of this user has

An inner product then is ``v.e + w^2`` where a vector may speak for an item and ``v.e`` where it may not. With
w^2 >= 2 the former are always ahead of the latter (normalised vectors), and with ``apart`` every item is scored by
exactly one vector of a user, unless two of its interests share a cell: lists cannot overlap as long as the cells are
not exhausted. With a bonus of ``w^2 + a log p_k`` in place of ``w^2`` the score is ``v.e + w^2 + a log p_k``: the
logarithm of a mixture whose parts do not overlap, ``p(k | user) p(item | k, user)``.

Axes: B batch, K interests, D embedding, M cells, X any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def item_cells(cell_X: Tensor, cells: int, weight: float) -> Tensor:
    """Return the further coordinates ``[..., M]`` of items; ``cell_X`` int64, -1 for none.

    Example:
        >>> item_cells(torch.tensor([1, -1]), 3, 0.5).tolist()
        [[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    return weight * (F.one_hot(cell_X.clamp(min=0), cells) * (cell_X >= 0)[..., None]).float()


def user_cells(
    cell_BK: Tensor, bonus_BK: Tensor, cells: int, weight: float, *, user_first: bool, apart: bool
) -> Tensor:
    """Return the further coordinates ``[B, K, M]`` of users' vectors.

    Args:
        cell_BK: ``[B, K]`` int64 cell of each interest, -1 where there is none.
        bonus_BK: ``[B, K]`` what each vector adds to the score of an item that it may speak for.
        cells: M.
        weight: w, as in :func:`item_cells`; positive.
        user_first: Whether the first of the K is the user's own vector (its entry in ``cell_BK`` is -1).
        apart: Whether that one gives way in the cells of the others.

    Example:
        >>> cell_BK, bonus_BK = torch.tensor([[-1, 2, 0]]), torch.ones(1, 3)
        >>> user_cells(cell_BK, bonus_BK, 3, 1.0, user_first=True, apart=True).tolist()
        [[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    """
    may_BKM = item_cells(cell_BK, cells, 1.0)
    if user_first:
        first_B1M = torch.ones_like(may_BKM[:, :1])
        if apart:
            first_B1M = first_B1M - may_BKM.amax(dim=1, keepdim=True)
        may_BKM = torch.cat([first_B1M, may_BKM[:, 1:]], dim=1)
    return may_BKM * (bonus_BK / weight)[:, :, None]
