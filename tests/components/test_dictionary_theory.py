"""What the dictionary guarantees, and what it does not (METHODS 1.12), as proofs by computation.

GemiRec (arXiv 2510.14626) states that its dictionary is a Voronoi partition with separated interests (Proposition 1,
Corollary 1) and that soft penalties give no bound on separation that holds for all data (Proposition 3). The
derivations are ours, and so are the limits shown beside them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.components.codes import all_codes, separation
from gemirec.components.quantizer import QuantizerConfig, ResidualQuantizer

Sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def dictionary(sizes: tuple[int, ...], width: int = 2, seed: int = 0) -> ResidualQuantizer:
    """Codes drawn from a normal distribution, in the space of the items; float64, so that equalities are sharp."""
    module = ResidualQuantizer(QuantizerConfig(sizes=sizes, code_dim=width, encoder="identity"), width).double()
    with torch.no_grad():
        for level, book in enumerate(module.codebooks):
            book.normal_(generator=torch.Generator().manual_seed(100 * seed + level))
    return module


def fixed(sizes_and_codes: list[list[float]]) -> ResidualQuantizer:
    """A dictionary of codes on a line."""
    module = dictionary(tuple(map(len, sizes_and_codes)), width=1)
    with torch.no_grad():
        for book, codes in zip(module.codebooks, sizes_and_codes, strict=True):
            book.copy_(torch.tensor(codes)[:, None])
    return module


@settings(max_examples=40)
@given(sizes=Sizes, seed=st.integers(0, 99))
def test_distances_of_interests(sizes: tuple[int, ...], seed: int) -> None:
    """The identity, the lower bound by differing levels, and the minimum over all pairs."""
    module = dictionary(sizes, seed=seed)
    code = all_codes(sizes).numpy()
    embedding = module.embed(all_codes(sizes)).detach().numpy()
    books = [book.detach().numpy() for book in module.codebooks]
    delta = np.array(separation(module.codebooks))
    square = ((embedding[:, None] - embedding[None]) ** 2).sum(2)
    by_level = np.stack(
        [((book[code[:, c]][:, None] - book[code[:, c]][None]) ** 2).sum(2) for c, book in enumerate(books)]
    )
    np.testing.assert_allclose(square, by_level.sum(0), atol=1e-12)  # |e_m - e_n|^2 = sum_c |e^c_m - e^c_n|^2
    differs = code[:, None] != code[None]
    bound = np.where(differs, delta**2, 0).sum(2)
    assert (square >= bound - 1e-12).all()  # >= sum over differing levels of delta_c^2
    pairs = square[~np.eye(len(code), dtype=bool)]
    assert math.sqrt(min(pairs, default=math.inf)) == pytest.approx(delta.min())  # the least is min_c delta_c


def test_interests_that_differ_at_the_last_level_only_are_as_near_as_its_codes() -> None:
    """Two interests of one branch are "different" by delta of the finest level alone, which shrinks with depth."""
    module = fixed([[0.0, 100.0], [-10.0, 10.0], [0.0, 0.01]])
    a, b = module.embed(torch.tensor([[1, 1, 0], [1, 1, 1]])).detach()
    assert float((a - b).norm()) == pytest.approx(0.01)
    assert min(separation(module.codebooks)) == pytest.approx(0.01)


@settings(max_examples=40)
@given(sizes=Sizes, seed=st.integers(0, 99))
def test_each_level_is_a_voronoi_partition_of_its_residuals(sizes: tuple[int, ...], seed: int) -> None:
    module = dictionary(sizes, seed=seed)
    point_ND = 2 * torch.randn(60, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    code = module.assign(point_ND).numpy()
    residual = point_ND.numpy()
    for level, parameter in enumerate(module.codebooks):
        book = parameter.detach().numpy()
        square = ((residual[:, None] - book[None]) ** 2).sum(2)
        chosen = np.take_along_axis(square, code[:, level, None], axis=1)
        assert (chosen <= square + 1e-5).all()  # no code of the level is nearer (float32 decides)
        residual = residual - book[code[:, level]]


@settings(max_examples=40)
@given(sizes=Sizes, seed=st.integers(0, 99))
def test_the_interest_is_the_nearest_to_the_items_own_residuals(sizes: tuple[int, ...], seed: int) -> None:
    """The sense in which Proposition 1 holds: among all tuples, ``e_m`` is nearest to ``concat(r_1, ..., r_C)``."""
    module = dictionary(sizes, seed=seed)
    point_ND = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    quantized = module(point_ND)
    residual = quantized.residual_BCW.flatten(1).double().numpy()
    every = module.embed(all_codes(sizes)).detach().numpy()
    own = ((residual - quantized.embedding_BE.detach().numpy()) ** 2).sum(1)
    best = ((residual[:, None] - every[None]) ** 2).sum(2).min(1)
    np.testing.assert_allclose(own, best, atol=1e-5)


LINE = [[0.0, 10.0], [-1.0, 1.0]]
POINTS = [-1.0, 1.0, 9.0, 11.0]
EIGHTHS = st.integers(-1000, 1000).map(lambda n: n / 8)  # squares and sums of these are exact


@given(
    slope=st.tuples(*[EIGHTHS] * 2),
    shift=st.tuples(*[EIGHTHS] * 2),
)
def test_no_placing_of_the_latent_space_makes_it_voronoi_of_the_product(
    slope: tuple[float, float], shift: tuple[float, float]
) -> None:
    """Codes {0, 10} and {-1, 1}: the points -1, 1, 9, 11 get the level-2 codes 0, 1, 0, 1, as level 2's boundary
    moves with the code of level 1. In a Voronoi partition of the four concatenated codes, with a point z placed at
    ``(a_1 z + b_1, a_2 z + b_2)``, level 2 has one boundary for all z, so its codes change at most once along the line.
    """
    greedy = fixed(LINE).assign(torch.tensor(POINTS)[:, None]).tolist()
    assert greedy == [[0, 0], [0, 1], [1, 0], [1, 1]]
    tuples = list(itertools.product(range(2), repeat=2))
    embedding = np.array([[LINE[0][i], LINE[1][j]] for i, j in tuples])
    placed = np.array(POINTS)[:, None] * np.array(slope) + np.array(shift)
    voronoi = [list(tuples[m]) for m in ((placed[:, None] - embedding[None]) ** 2).sum(2).argmin(1)]
    assert voronoi != greedy


def test_the_greedy_sum_is_not_the_nearest_sum() -> None:
    """Codes {0, 1} and {0, 0.6}: 0.6 takes 1 first and stays 0.4 away, while 0 + 0.6 is exact."""
    module = fixed([[0.0, 1.0], [0.0, 0.6]])
    assert module.assign(torch.tensor([[0.6]])).tolist() == [[1, 0]]
    sums = {
        code: sum(book[m].item() for book, m in zip(module.codebooks, code, strict=True))
        for code in itertools.product(range(2), repeat=2)
    }
    assert min(sums, key=lambda code: abs(sums[code] - 0.6)) == (0, 1)


def test_the_separation_of_a_dictionary_follows_its_data() -> None:
    """The limit of Corollary 1: nothing keeps delta from 0. Two near items give codes that are as near."""
    for gap in (1.0, 1e-2, 1e-4):
        module = ResidualQuantizer(QuantizerConfig(sizes=(2,), code_dim=1, encoder="identity"), 1)
        module.initialise(torch.tensor([[0.0], [gap]]), generator=torch.Generator().manual_seed(0))
        assert separation(module.codebooks)[0] == pytest.approx(gap, rel=1e-5)


ITEMS = 4096
PENALTIES: dict[str, tuple[Callable[[Any], Any], float]] = {
    # name: (penalty of the cosine of two interests, its largest minus its smallest value)
    "cosine": (lambda cosine: cosine, 2.0),
    "squared cosine": (np.square, 1.0),
    "contrastive": (lambda cosine: np.log1p(np.exp((cosine - 1) / 0.1)), math.log(2)),
}


def log_sum_exp(angle: Any, norm: float) -> Any:
    """Softmax denominators of unit interests over ``ITEMS`` items of one norm, evenly spaced on a circle."""
    item = 2 * np.pi * np.arange(ITEMS) / ITEMS
    score = norm * (np.cos(angle[:, None] - item) - 1)
    return norm + np.log(np.exp(score).sum(1))


def optimum(norm: float, weight: float, penalty: Callable[[Any], Any]) -> float:
    """Return the distance of the two unit interests at the global minimum of retrieval loss + weight x penalty.

    The data: a user's first interest is trained with item 0 and the second with item 1, its neighbour; full softmax
    over all items; searched on a grid over the whole torus, then on a fine one around the best cell.
    """
    target = 2 * np.pi * np.arange(2) / ITEMS

    def search(angles: tuple[Any, Any]) -> tuple[float, float]:
        retrieval = [log_sum_exp(a, norm) - norm * np.cos(a - t) for a, t in zip(angles, target, strict=True)]
        cosine = np.cos(angles[0][:, None] - angles[1][None])
        loss = (retrieval[0][:, None] + retrieval[1][None]) / 2 + weight * penalty(cosine)
        i, j = np.unravel_index(loss.argmin(), loss.shape)
        return angles[0][i], angles[1][j]

    step = 2 * np.pi / 256
    coarse = step * np.arange(256)
    best = search((coarse, coarse))
    for _ in range(3):
        first, second = (np.linspace(angle - 2 * step, angle + 2 * step, 65) for angle in best)
        best, step = search((first, second)), step / 16
    return float(2 * abs(np.sin((best[0] - best[1]) / 2)))


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize(("weight", "epsilon"), [(0.1, 0.03), (1.0, 0.03), (10.0, 0.1), (100.0, 0.3)])
def test_a_soft_penalty_of_any_weight_bounds_nothing(name: str, weight: float, epsilon: float) -> None:
    """Proposition 3: for every weight and epsilon there are data whose penalised optimum is nearer than epsilon.

    A penalty with range D can move the optimum only where retrieval pays less than ``weight D`` for it. With items of
    norm s on a dense circle the softmax denominator is constant and retrieval pays ``s |u_k - t_k|^2 / 4`` per
    interest, so ``|u_1 - u_2| <= |t_1 - t_2| + sqrt(8 weight D / s)``: large enough a norm beats any weight. The same
    penalty on items of small norm pushes the interests apart: what it achieves is the data's choice.
    """
    penalty, span = PENALTIES[name]
    norm = 32 * weight * span / epsilon**2
    assert 2 * np.pi / ITEMS < epsilon / 2
    assert optimum(norm, weight, penalty) < epsilon
    assert optimum(1e-3 * weight, weight, penalty) > 1
