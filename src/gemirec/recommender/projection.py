"""From many dimensions to two: principal components, and t-SNE for the look of a map.

Axes: N points, D their width, A principal axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EXAGGERATION = 12.0
EARLY = 100
"""Steps with exaggerated attraction and little momentum."""


def principal_axes(vector_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean ``[D]`` and the first two principal axes ``[A, D]`` float64, A the lesser of 2, N and D.

    Each axis points where its largest loading is positive, so that equal vectors give equal axes.

    Args:
        vector_ND: ``[N, D]``, N at least 1.
    """
    double_ND = vector_ND.detach().double()
    mean_D = double_ND.mean(dim=0)
    _, _, axis_AD = torch.linalg.svd(double_ND - mean_D, full_matrices=False)
    axis_AD = axis_AD[:2]
    return mean_D, axis_AD * axis_AD.gather(1, axis_AD.abs().argmax(dim=1, keepdim=True)).sign()


def pca(vector_ND: Tensor) -> Tensor:
    """Return the first two principal components ``[N, 2]`` float32; their signs are those of :func:`principal_axes`.

    Args:
        vector_ND: ``[N, D]``, N at least 1.

    Example:
        >>> pca(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])).tolist()
        [[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]
    """
    mean_D, axis_AD = principal_axes(vector_ND)
    xy_NA = (vector_ND.detach().double() - mean_D) @ axis_AD.T
    return (F.pad(xy_NA, (0, 2 - xy_NA.shape[1])) + 0.0).float()


def tsne(vector_ND: Tensor, *, guests: int = 0, perplexity: float = 30.0, steps: int = 350) -> Tensor:
    """Return a t-SNE embedding ``[N, 2]`` float32: neighbours stay neighbours, far distances mean little.

    van der Maaten and Hinton, JMLR 2008, exact (memory and time per step grow with N squared), from the principal
    components, with the rate, gains and exaggeration that implementations share. No randomness: equal input on the
    same machine gives equal output.

    Args:
        vector_ND: ``[N, D]``; squared Euclidean distances count.
        guests: The last so many points attract no other guest: each lies where it belongs among the rest, and guests
            that resemble each other most of all do not gather apart.
        perplexity: Neighbours that a point attends to; at most (N - 1) / 3 is used.
        steps: Steps of gradient descent.

    Example:
        >>> tsne(torch.eye(12).repeat(2, 1), steps=50).shape
        torch.Size([24, 2])
    """
    start_N2 = pca(vector_ND)
    count = len(start_N2)
    if count < 4:
        return start_N2
    affinity_NN = _affinities(vector_ND.detach().float(), guests, min(perplexity, (count - 1) / 3))
    place_N2 = start_N2 / start_N2[:, 0].std().clamp(min=1e-12) * 1e-4
    rate = max(count / EXAGGERATION / 4, 50.0)
    move_N2, gain_N2 = torch.zeros_like(place_N2), torch.ones_like(place_N2)
    for step in range(steps):
        early = step < EARLY
        slope_N2 = _slope(affinity_NN, place_N2, EXAGGERATION if early else 1.0)
        agrees_N2 = slope_N2 * move_N2 < 0  # the last move went down this slope
        gain_N2 = torch.where(agrees_N2, gain_N2 + 0.2, gain_N2 * 0.8).clamp_(min=0.01)
        move_N2 = (0.5 if early else 0.8) * move_N2 - rate * gain_N2 * slope_N2
        place_N2 = place_N2 + move_N2
    return place_N2 - place_N2.mean(dim=0)


def _affinities(vector_ND: Tensor, guests: int, perplexity: float) -> Tensor:
    """Return the symmetric affinities ``[N, N]``, which sum to 1; each row's width is found by bisection."""
    square_NN = torch.cdist(vector_ND, vector_ND).square_()
    square_NN.fill_diagonal_(torch.inf)
    hosts = len(square_NN) - guests
    square_NN[hosts:, hosts:] = torch.inf
    square_NN -= square_NN.min(dim=1, keepdim=True).values
    scale = square_NN[square_NN.isfinite()].mean().clamp(min=1e-12)
    square_NN /= scale
    low_N1 = square_NN.new_full((len(square_NN), 1), -12.0)
    high_N1 = -low_N1
    wanted = torch.tensor(perplexity).log()
    for _ in range(28):
        middle_N1 = (low_N1 + high_N1) / 2
        chance_NN = torch.softmax(-middle_N1.exp() * square_NN, dim=1)
        wide_N1 = torch.special.entr(chance_NN).sum(dim=1, keepdim=True) > wanted
        low_N1, high_N1 = torch.where(wide_N1, middle_N1, low_N1), torch.where(wide_N1, high_N1, middle_N1)
    return (chance_NN + chance_NN.T) / (2 * len(chance_NN))


def _slope(affinity_NN: Tensor, place_N2: Tensor, exaggeration: float) -> Tensor:
    """Return the gradient ``[N, 2]`` of the divergence of the map's affinities from those of the vectors."""
    norm_N1 = place_N2.square().sum(dim=1, keepdim=True)
    near_NN = torch.addmm(norm_N1 + 1, place_N2, place_N2.T, alpha=-2).add_(norm_N1.T).clamp_(min=1).reciprocal_()
    near_NN.fill_diagonal_(0)
    weight_NN = torch.add(exaggeration * affinity_NN, near_NN, alpha=-1 / float(near_NN.sum())).mul_(near_NN)
    return 4 * (weight_NN.sum(dim=1, keepdim=True) * place_N2 - weight_NN @ place_N2)
