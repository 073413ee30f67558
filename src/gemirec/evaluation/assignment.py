"""One-to-one assignment of the largest total weight, exact, for many small tables at once.

Axes: B tables, R rows (the longer side), S columns (the shorter side), K rows and J columns as given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SHORT_SIDE = 12
"""Work and memory grow with 2 to the power of the shorter side."""


def assign(weight_BKJ: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which row goes with which column, at most once each, so that the sum of weights is the largest.

    What the Hungarian method finds for one table, by dynamic programming over subsets of the shorter side, vectorised
    over the tables: ``best(rows so far, subset)`` is the largest sum that uses no column outside the subset.

    Args:
        weight_BKJ: ``[B, K, J]`` weights, finite; a pair with a weight of 0 or less is never made.

    Returns:
        ``[B, K, J]`` bool, at most one true in a row and in a column.

    Raises:
        ConfigError: Rows and columns are both more than :data:`MAX_SHORT_SIDE`.

    Example:
        >>> assign(np.array([[[0.9, 0.8], [0.7, 0.1]]])).astype(int).tolist()
        [[[0, 1], [1, 0]]]
    """
    if weight_BKJ.shape[1] < weight_BKJ.shape[2]:
        return np.ascontiguousarray(assign(weight_BKJ.transpose(0, 2, 1)).transpose(0, 2, 1))
    tables, rows, columns = weight_BKJ.shape
    if columns > MAX_SHORT_SIDE:
        raise ConfigError(
            "too many rows and columns to match one to one",
            got=f"{rows} x {columns}",
            fix=f"give {MAX_SHORT_SIDE} or fewer of one of them",
        )
    subset_M = np.arange(2**columns)
    best_BM = np.zeros((tables, len(subset_M)))
    choice_RBM = np.full((rows, *best_BM.shape), -1, dtype=np.int8)
    for row in range(rows):
        before_BM = best_BM.copy()
        for column in range(columns):
            having_X = subset_M[(subset_M >> column) & 1 == 1]
            sum_BX = before_BM[:, having_X ^ (1 << column)] + weight_BKJ[:, row, column, None]
            better_BX = sum_BX > best_BM[:, having_X]
            best_BM[:, having_X] = np.where(better_BX, sum_BX, best_BM[:, having_X])
            choice_RBM[row][:, having_X] = np.where(better_BX, np.int8(column), choice_RBM[row][:, having_X])
    matched_BKJ = np.zeros(weight_BKJ.shape, dtype=np.bool_)
    table_B, left_B = np.arange(tables), np.full(tables, 2**columns - 1)
    for row in reversed(range(rows)):
        column_B = choice_RBM[row, table_B, left_B]
        taken_B = column_B >= 0
        matched_BKJ[table_B[taken_B], row, column_B[taken_B]] = True
        left_B[taken_B] ^= 1 << column_B[taken_B].astype(np.int64)
    return matched_BKJ
