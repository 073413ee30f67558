"""Exact top-k by inner product, in tiles, with an order that does not depend on how the work is cut.

Two ideas:

*Block maxima.* A tile of scores is reduced to the maxima of its blocks. The k-th largest block maximum is a lower
bound of the k-th best score, because k blocks hold an item at least that good. Only blocks whose maximum reaches the
bound are opened; later tiles must beat the k-th best found so far, and most of their blocks are never opened.

*Canonical scores.* A matrix product rounds differently from shape to shape, so near-equal items could change places
with the batch size. The product therefore only selects candidates, with a margin that covers its rounding; the
candidates are scored again by multiplications and a pairwise tree of additions in an order fixed by D alone. What is
returned is the exact top-k of these canonical scores: higher score first, then lower position, bit for bit the same
for every batch size, tile size and device.

Axes: Q queries, N items, D embedding, K list length, W items of a tile, P candidates, E excluded pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from gemirec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

MAX_ITEMS = 2**31 - 1
"""Positions live in the lower half of a 64-bit sort key."""
EMPTY = 2**63 - 1
"""The sort key of a place without an item."""
_TILE_SCORES = {"cpu": 2**22, "cuda": 2**28}
"""Scores held at once: on a CPU they should stay near the cache between the product and its reading."""
_TILE_ITEMS = {"cpu": 16_384, "cuda": 2**20}
"""Items of a tile when there are queries enough to fill it; with fewer, a tile is wider."""
_RESCORE = {"cpu": 2**12, "cuda": 2**22}
"""Candidate pairs scored at once."""
_ROUNDED_ROWS = 4096
"""Rows of 8-bit numbers turned into floats at once: few enough to stay in the cache until the product reads them."""


class Rounded(NamedTuple):
    """Item vectors in 8 bits, row by row ``code x scale``: a quarter of the memory to read.

    Attributes:
        code_ND: ``[N, D]`` int8.
        scale_N: ``[N]`` float32.
        error: Largest Euclidean distance of an item from its rounded self.
    """

    code_ND: Tensor
    scale_N: Tensor
    error: float


def exact_topk(
    query_QD: Tensor,
    item_ND: Tensor,
    k: int,
    *,
    exclude_E: Tensor | None = None,
    exclude_offset_Q1: Tensor | None = None,
    item_chunk: int = 65_536,
    max_norm: float | None = None,
    rounded: Rounded | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` rows of ``item_ND`` with the largest inner product with each query.

    Args:
        query_QD: ``[Q, D]`` float32.
        item_ND: ``[N, D]`` float32, finite, on the same device.
        k: List length, at least 1; may exceed ``N``.
        exclude_E: Row numbers that a query must not get, one query after the other; duplicates and numbers outside
            ``[0, N)`` do no harm.
        exclude_offset_Q1: ``[Q + 1]`` int64, start of each query's part of ``exclude_E``.
        item_chunk: Most items scored at once.
        max_norm: Largest Euclidean norm of an item row, if known; computed otherwise.
        rounded: The same items in 8 bits. Candidates are then selected from these, with a margin that also covers their
            error, and ``item_ND`` is read for candidates alone; the result is the same, bit for bit.

    Returns:
        ``([Q, k] int64 positions, [Q, k] float32 canonical scores)``, best first; equal scores by ascending position.
        Where fewer than ``k`` items are available, position -1 and score -inf.

    Raises:
        DataError: A query is not finite, or a score can overflow float32.

    Example:
        >>> position_QK, score_QK = exact_topk(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0], [2, 5], [1, 9]]), 4)
        >>> position_QK.tolist(), score_QK.tolist()
        ([[1, 0, 2, -1]], [[2.0, 1.0, 1.0, -inf]])
    """
    _check(query_QD, item_ND, k)
    queries, items, kind = len(query_QD), len(item_ND), query_QD.device.type
    best_QK = torch.full((queries, k), EMPTY, dtype=torch.int64, device=query_QD.device)
    margin_Q = _margin(query_QD, item_ND, max_norm, rounded)
    held = _TILE_SCORES.get(kind, 2**28)
    width = max(1, min(items, item_chunk, max(_TILE_ITEMS.get(kind, 2**20), held // max(1, queries))))
    rows = max(1, held // width)
    buffer = torch.empty(min(rows, queries) * (width + 64), device=query_QD.device)
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        excluded = _excluded(exclude_E, exclude_offset_Q1, start, stop)
        for first in range(0, items, width):
            tile = _Tile(first, item_ND[first : first + width], rounded)
            _search_tile(query_QD[start:stop], tile, margin_Q[start:stop], best_QK[start:stop], excluded, buffer)
    return decode(best_QK)


def canonical_score(query_PD: Tensor, item_PD: Tensor) -> Tensor:
    """Return the ``[P]`` inner products of paired rows, summed pairwise in an order that depends on D alone.

    The bits of a score do not depend on how many others are computed beside it, nor on the device.

    Example:
        >>> canonical_score(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0]])).item()
        6.0
    """
    return _sum_pairwise(query_PD * item_PD)


def _sum_pairwise(product_PD: Tensor) -> Tensor:
    """Sum each row, head plus tail, half by half; the argument is used up."""
    width = product_PD.shape[1]
    while width > 1:
        half = (width + 1) // 2
        product_PD[:, : width - half] += product_PD[:, half:width]
        width = half
    return product_PD[:, 0] + 0.0  # -0.0 would sort below 0.0


def sort_key(score: Tensor, low: Tensor) -> Tensor:
    """Return int64 keys whose ascending order is: higher ``score`` first, then lower ``low`` (``0 <= low < 2**31``)."""
    bits = score.view(torch.int32)
    descending = ~(bits ^ ((bits >> 31) & 0x7FFF_FFFF))
    return (descending.to(torch.int64) << 32) | low


def sort_rows(key: Tensor) -> Tensor:
    """Sort the last axis of int64 keys; NumPy's vectorised sort is ten times torch's on a CPU."""
    if _on_cpu(key):
        return torch.from_numpy(np.sort(key.numpy(), axis=-1))
    return torch.sort(key, dim=-1).values


def decode(key: Tensor) -> tuple[Tensor, Tensor]:
    """Take keys apart again: ``(low, score)``; an empty key gives ``(-1, -inf)``."""
    low = (key & 0xFFFF_FFFF).to(torch.int64)
    ascending = ~(key >> 32).to(torch.int32)
    score = (ascending ^ ((ascending >> 31) & 0x7FFF_FFFF)).view(torch.float32)
    empty = key == EMPTY
    return low.masked_fill(empty, -1), score.masked_fill(empty, float("-inf"))


def _on_cpu(tensor: Tensor) -> bool:
    """Whether NumPy can work on the tensor's memory."""
    return tensor.device.type == "cpu"


def _check(query_QD: Tensor, item_ND: Tensor, k: int) -> None:
    if k < 1:
        raise ConfigError("a list must hold at least one item", got=f"k = {k}", fix="ask for k of 1 or more")
    if len(item_ND) > MAX_ITEMS:
        raise DataError("too many items for one index", got=len(item_ND), fix=f"search at most {MAX_ITEMS} at a time")
    if query_QD.shape[1:] != item_ND.shape[1:]:
        raise DataError(
            "queries and items have different widths",
            got=f"{tuple(query_QD.shape)} against {tuple(item_ND.shape)}",
            fix="take both from the same model",
        )


def _margin(query_QD: Tensor, item_ND: Tensor, max_norm: float | None, rounded: Rounded | None) -> Tensor:
    """Return ``[Q]`` twice the largest difference between the product's score and the canonical one.

    Either sum of D products lies within ``D u |q| |x|`` of the true value (u = 2^-24), so they differ by at most twice
    that; the bound is used on both sides. TensorFloat-32 products round their inputs too, by 2^-11 each. Rounded items
    move a score by at most ``|q| error``, and their scale is one more factor to round.
    """
    dim, error = query_QD.shape[1] + 2 * (rounded is not None), 0.0 if rounded is None else rounded.error
    if max_norm is None:
        max_norm = largest_norm(item_ND)
    norm_Q = torch.linalg.vector_norm(query_QD, dim=1, dtype=torch.float64)
    largest = float(norm_Q.max()) * max_norm if len(norm_Q) else 0.0
    if not largest < 1e38:
        raise DataError(
            "a query or item vector is not finite, or their product overflows float32",
            got=f"largest query norm {float(norm_Q.max())}, largest item norm {max_norm}",
            fix="look for a training that diverged; lower its learning rate or normalise the vectors",
        )
    reduced = query_QD.is_cuda and torch.get_float32_matmul_precision() != "highest"
    unit = 2 * dim * 2.0**-24 + (2.0**-9 if reduced else 0.0)
    margin_Q: Tensor = norm_Q * ((max_norm + error) * (2.02 * unit) + 2.02 * error)
    return margin_Q.to(torch.float32)


def largest_norm(item_ND: Tensor) -> float:
    """Return the largest Euclidean norm of a row, NaN if any value is NaN; 0 without rows."""
    if len(item_ND) == 0:
        return 0.0
    starts = range(0, len(item_ND), 65_536)
    parts = [torch.linalg.vector_norm(item_ND[i : i + 65_536], dim=1, dtype=torch.float64).max() for i in starts]
    return float(torch.stack(parts).max())


def _excluded(
    exclude_E: Tensor | None, offset_Q1: Tensor | None, start: int, stop: int
) -> tuple[Tensor, Tensor] | None:
    """Return ``(query row counted from start, item position)`` of the excluded pairs of queries [start, stop)."""
    if exclude_E is None or offset_Q1 is None:
        return None
    size = offset_Q1[start + 1 : stop + 1] - offset_Q1[start:stop]
    row_E = torch.repeat_interleave(torch.arange(stop - start, device=exclude_E.device), size)
    return row_E, exclude_E[int(offset_Q1[start]) : int(offset_Q1[stop])]


class _Tile(NamedTuple):
    """Some of the items: the number of the first, their vectors, and all items in 8 bits if there are such."""

    first: int
    vector_WD: Tensor
    rounded: Rounded | None


def _search_tile(
    query_QD: Tensor,
    tile: _Tile,
    margin_Q: Tensor,
    best_QK: Tensor,
    excluded: tuple[Tensor, Tensor] | None,
    buffer: Tensor,
) -> None:
    """Score one tile of items and merge what is good enough into ``best_QK``."""
    first, tile_WD, _ = tile
    block = _block_size(len(tile_WD), best_QK.shape[1])
    score_QW = _product(query_QD, tile, block, buffer)
    if excluded is not None:
        row_E, column_E = excluded[0], excluded[1] - first
        inside_E = (column_E >= 0) & (column_E < len(tile_WD))
        score_QW[row_E[inside_E], column_E[inside_E]] = float("-inf")
    score_QXJ = score_QW.view(len(query_QD), block, -1)  # block j holds the items j, j + J, j + 2 J, ...
    max_QJ = score_QXJ.amax(dim=1)
    # An item of a later tile with the score of the k-th best loses by position: strictly greater is enough.
    kth_Q = decode(best_QK[:, -1])[1]
    bound_Q = kth_Q - margin_Q
    if bool((kth_Q == float("-inf")).any()):
        block_bound_Q = _kth_largest(max_QJ, best_QK.shape[1]) - margin_Q
        bound_Q = torch.maximum(bound_Q, torch.nextafter(block_bound_Q, torch.full_like(bound_Q, float("-inf"))))
    row_P, block_P = torch.nonzero(max_QJ > bound_Q[:, None], as_tuple=True)
    opened_PX = score_QXJ[row_P, :, block_P]
    hit_C, inner_C = torch.nonzero(opened_PX > bound_Q[row_P, None], as_tuple=True)
    row_C, column_C = row_P[hit_C], inner_C * max_QJ.shape[1] + block_P[hit_C]
    _absorb(best_QK, row_C, sort_key(score_pairs(query_QD, tile_WD, row_C, column_C), column_C + first))


def _block_size(width: int, k: int) -> int:
    """Return the items per block, a power of two up to 64: about sqrt(width / k), with blocks enough for a bound."""
    block = 1
    while block < 64 and (2 * block) ** 2 * k <= 2 * width and width // (2 * block) >= 2 * k:
        block *= 2
    return block


def _product(query_QD: Tensor, tile: _Tile, block: int, buffer: Tensor) -> Tensor:
    """Return ``[Q, W']`` scores, W' being W rounded up to whole blocks; the columns behind W are -inf."""
    tile_WD = tile.vector_WD
    queries, width = len(query_QD), len(tile_WD)
    padded = -(-width // block) * block
    score_QW = buffer[: queries * padded].view(queries, padded)
    score_QW[:, width:] = float("-inf")
    if tile.rounded is not None:
        _rounded_product(query_QD, tile, score_QW[:, :width])
        return score_QW
    if _on_cpu(query_QD):  # NumPy's BLAS: up to twice torch's at D = 64 on this size of tile
        np.matmul(query_QD.numpy(), tile_WD.numpy().T, out=score_QW.numpy()[:, :width])
    else:
        with torch.autocast(query_QD.device.type, enabled=False):
            score_QW[:, :width] = query_QD @ tile_WD.T
    return score_QW


def _rounded_product(query_QD: Tensor, tile: _Tile, out_QW: Tensor) -> None:
    """Fill in the scores of a tile's rounded items."""
    assert tile.rounded is not None
    last = tile.first + len(tile.vector_WD)
    code_WD, scale_W = tile.rounded.code_ND[tile.first : last], tile.rounded.scale_N[tile.first : last]
    if not _on_cpu(query_QD):
        with torch.autocast(query_QD.device.type, enabled=False):
            out_QW.copy_(query_QD @ code_WD.to(torch.float32).T)
    else:  # NumPy turns int8 into float32 several times as fast as torch here
        query, code, out = query_QD.numpy(), code_WD.numpy(), out_QW.numpy()
        row_RD = np.empty((min(_ROUNDED_ROWS, len(code)), code.shape[1]), dtype=np.float32)
        for at in range(0, len(code), _ROUNDED_ROWS):
            part_RD = row_RD[: len(code) - at]
            np.copyto(part_RD, code[at : at + _ROUNDED_ROWS])
            np.matmul(query, part_RD.T, out=out[:, at : at + len(part_RD)])
    out_QW *= scale_W


def _kth_largest(value_QJ: Tensor, k: int) -> Tensor:
    """Return the k-th largest value of each row, -inf where a row has fewer."""
    blocks = value_QJ.shape[1]
    if blocks < k:
        return torch.full_like(value_QJ[:, 0], float("-inf"))
    if _on_cpu(value_QJ):
        return torch.from_numpy(np.partition(value_QJ.numpy(), blocks - k, axis=1)[:, blocks - k])
    return torch.topk(value_QJ, k, dim=1, sorted=True).values[:, -1]


def score_pairs(query_QD: Tensor, item_ND: Tensor, row_C: Tensor, column_C: Tensor) -> Tensor:
    """Return the ``[C]`` canonical scores of query ``row_C`` and item ``column_C``, few pairs at a time."""
    step = _RESCORE.get(query_QD.device.type, 2**20)
    parts = []
    for first in range(0, len(row_C), step):
        product_PD = item_ND.index_select(0, column_C[first : first + step])
        product_PD *= query_QD.index_select(0, row_C[first : first + step])
        parts.append(_sum_pairwise(product_PD))
    return torch.cat(parts) if parts else query_QD.new_empty(0)


def _absorb(best_QK: Tensor, row_C: Tensor, key_C: Tensor) -> None:
    """Merge candidate keys, ordered by row, into the sorted lists ``best_QK``, in place."""
    if len(row_C) == 0:
        return
    queries, k = best_QK.shape
    count_Q = torch.bincount(row_C, minlength=queries)
    start_Q = torch.cumsum(count_Q, 0) - count_Q
    place_C = torch.arange(len(row_C), device=row_C.device) - start_Q[row_C]
    pool = torch.full((queries, k + int(count_Q.max())), EMPTY, dtype=torch.int64, device=best_QK.device)
    pool[:, :k] = best_QK
    pool[row_C, k + place_C] = key_C
    best_QK.copy_(sort_rows(pool)[:, :k])
