"""k-means with k-means++ seeding: the same centres for the same points and generator, on any number of threads.

Distances are sums of squared differences, never the expanded ``|x|^2 - 2 x.c + |c|^2``: equal points are at distance 0
exactly, equal centres tie exactly, and a distance does not depend on how many others are computed beside it.

Axes: N points, M clusters, K categories, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_DISTANCES = 2**24
"""Distances held at once."""
_BLOCK_POINTS = 2**20
"""Points whose float64 copies are held at once."""


def nearest(point_ND: Tensor, centre_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ``[N]`` int64 nearest centre of each point, the lowest on a tie, and its ``[N]`` Euclidean distance.

    Computed in float32, in blocks of points; no gradient flows.

    Args:
        point_ND: ``[N, D]`` points.
        centre_MD: ``[M, D]`` centres, M at least 1.

    Example:
        >>> index_N, distance_N = nearest(torch.tensor([[0.0], [3.0], [5.0]]), torch.tensor([[1.0], [5.0], [5.0]]))
        >>> index_N.tolist(), distance_N.tolist()
        ([0, 0, 1], [1.0, 2.0, 0.0])
    """
    centre_MD = centre_MD.detach().float()
    rows = max(1, _BLOCK_DISTANCES // len(centre_MD))
    blocks = [_nearest(block, centre_MD) for block in torch.split(point_ND.detach(), rows)]
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([index for index, _ in blocks]), torch.cat([distance for _, distance in blocks])


def _nearest(point_ND: Tensor, centre_MD: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`nearest` of one block."""
    distance_NM = torch.cdist(point_ND.float(), centre_MD, compute_mode="donot_use_mm_for_euclid_dist")
    best = distance_NM.min(dim=1)
    return best.indices, best.values


def cluster_sums(point_ND: Tensor, label_N: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Return the ``[M, D]`` float64 sums and ``[M]`` int64 counts of the points of each label.

    Points are sorted by label and summed in their order, so that a GPU gives the same bits every time; scattered
    additions would not.

    Args:
        point_ND: ``[N, D]`` points.
        label_N: ``[N]`` int64 labels in ``[0, M)``.
        num_clusters: M.

    Example:
        >>> total_MD, count_M = cluster_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2, 0, 2]), 3)
        >>> total_MD[:, 0].tolist(), count_M.tolist()
        ([2.0, 0.0, 5.0], [1, 0, 2])
    """
    order_N = label_N.argsort(stable=True)
    count_M = torch.bincount(label_N, minlength=num_clusters)
    total_MD = torch.segment_reduce(point_ND[order_N].double(), "sum", lengths=count_M, axis=0, initial=0)
    return total_MD, count_M


def kmeans(
    point_ND: Tensor, num_clusters: int, *, iterations: int = 25, generator: torch.Generator | None = None
) -> Tensor:
    """Return ``[M, D]`` float32 centres: k-means++ seeding (Arthur & Vassilvitskii 2007), then Lloyd's iterations.

    A cluster that loses its last point starts again at the point farthest from its centre. With fewer distinct points
    than clusters some centres coincide; every centre is finite and lies among the points.

    Args:
        point_ND: ``[N, D]`` finite points, N at least 1, on any device.
        num_clusters: M, at least 1.
        iterations: Most Lloyd iterations; fewer when no point changes its cluster.
        generator: Source of the draws, on the CPU; torch's global one if ``None``.

    Example:
        >>> point_ND = torch.tensor([[0.0], [0.2], [9.0], [9.2]])
        >>> kmeans(point_ND, 2, generator=torch.Generator().manual_seed(0)).sort(0).values.flatten()
        tensor([0.1000, 9.1000])
    """
    point_ND = point_ND.detach().float()
    centre_MD = seed_centres(point_ND, num_clusters, generator)
    before_N: Tensor | None = None
    for _ in range(iterations):
        label_N, distance_N = nearest(point_ND, centre_MD)
        if before_N is not None and torch.equal(label_N, before_N):
            break
        before_N = label_N
        total_MD, count_M = cluster_sums(point_ND, label_N, num_clusters)
        centre_MD = (total_MD / count_M.clamp_min(1)[:, None]).float()
        empty = (count_M == 0).nonzero()[:, 0]
        if len(empty):
            farthest_N = distance_N.argsort(descending=True, stable=True)
            centre_MD[empty] = point_ND[farthest_N[torch.arange(len(empty), device=empty.device) % len(point_ND)]]
    return centre_MD


def sample_rows(point_ND: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Return ``most`` distinct rows drawn at random, or all rows where there are no more or ``most`` is 0."""
    if not most or len(point_ND) <= most:
        return point_ND
    row = torch.randperm(len(point_ND), generator=generator)[:most]
    return point_ND[row.to(point_ND.device)]


def seed_centres(point_ND: Tensor, num_clusters: int, generator: torch.Generator | None = None) -> Tensor:
    """Return ``[M, D]`` k-means++ seeds, each one of the points.

    The first is drawn uniformly, each other one in proportion to its squared distance from the nearest seed so far.
    A draw is the argmin of exponential noise over weight, which needs no running sum (a GPU's is not reproducible).

    Example:
        >>> seed_centres(torch.tensor([[1.0], [1.0], [5.0]]), 2).sort(0).values.flatten()
        tensor([1., 5.])
    """
    noise_N = torch.empty(len(point_ND))
    weight_N = torch.ones(len(point_ND), device=point_ND.device)
    seeds = []
    for number in range(num_clusters):
        noise_N.exponential_(generator=generator).clamp_min_(torch.finfo(torch.float32).tiny)
        seeds.append(point_ND[(noise_N.to(weight_N.device) / weight_N).argmin()])
        square_N = (point_ND - seeds[-1]).square().sum(dim=1)
        weight_N = square_N if number == 0 else torch.minimum(weight_N, square_N)
    return torch.stack(seeds)


def category_centres(point_ND: Tensor, category_N: Tensor, most: int) -> Tensor:
    """Return the ``[at most M, D]`` float32 means of the points of the most frequent categories, most frequent first.

    Args:
        point_ND: ``[N, D]`` points.
        category_N: ``[N]`` category of each point, 0 if unknown; unknown is no category.
        most: M; of equally frequent categories the lower one comes first.

    Example:
        >>> category_centres(torch.tensor([[9.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 2, 2, 1]), most=5)
        tensor([[2.],
                [7.]])
    """
    category_N = category_N.to(point_ND.device, torch.int64)
    count_K = torch.bincount(category_N)
    count_K[:1] = 0
    kept_M = count_K.argsort(descending=True, stable=True)[:most]
    kept_M = kept_M[count_K[kept_M] > 0]
    rank_K = torch.full_like(count_K, len(kept_M))  # the last rank gathers what is not kept
    rank_K[kept_M] = torch.arange(len(kept_M), device=kept_M.device)
    total = torch.zeros(len(kept_M) + 1, point_ND.shape[1], dtype=torch.float64, device=point_ND.device)
    for block_ND, block_N in zip(
        torch.split(point_ND, _BLOCK_POINTS), torch.split(category_N, _BLOCK_POINTS), strict=True
    ):
        total += cluster_sums(block_ND, rank_K[block_N], len(total))[0]
    return (total[:-1] / count_K[kept_M][:, None]).float()


def extend_centres(
    centre_MD: Tensor,
    point_ND: Tensor,
    num_clusters: int,
    *,
    iterations: int = 25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``[num_clusters, D]``: the given centres, unmoved, and as many as are missing by :func:`kmeans`.

    The missing ones are found among the half of the points that lie farthest from every given centre.

    Example:
        >>> extend_centres(torch.zeros(1, 1), torch.tensor([[0.1], [0.0], [5.0], [7.0]]), 2)
        tensor([[0.],
                [6.]])
    """
    missing = num_clusters - len(centre_MD)
    if missing <= 0:
        return centre_MD
    if len(centre_MD):
        farthest_N = nearest(point_ND, centre_MD)[1].argsort(descending=True, stable=True)
        point_ND = point_ND[farthest_N[: max(missing, len(point_ND) // 2)]]
    found_MD = kmeans(point_ND, missing, iterations=iterations, generator=generator)
    return torch.cat([centre_MD, found_MD])
