"""Every regulariser against plain NumPy, and one contract for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemirec.components.regularizers import (
    cosine_penalty,
    elementwise_penalty,
    interest_contrast,
    orthogonality_penalty,
    partition_contrast,
    routing_covariance,
)
from support_numpy import Array, unit

B, K, L, D = 5, 4, 7, 6


@dataclass(frozen=True)
class Case:
    """A regulariser as a function of ``[B, K, X]`` values, ``[B, K]`` interests and ``[B, L]`` positions that exist,
    and of ``[B]`` weights.

    ``numpy`` gives one row's value from the values of the interests that exist.
    """

    torch: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    numpy: Callable[[Array, NDArray[np.bool_]], float]
    width: int = D
    routing: bool = False
    alone: float = 0.0
    """Its value for a single interest, where that does not depend on the interest."""


def cosine(h_KD: Array, _: Any) -> float:
    return float(np.mean([[a @ b for b in unit(h_KD)] for a in unit(h_KD)]))


def orthogonality(h_KD: Array, _: Any) -> float:
    return float(np.linalg.norm(unit(h_KD) @ unit(h_KD).T - np.eye(len(h_KD))) ** 2)


def second_view(h: Any) -> Any:
    return h[..., ::-1] ** 3 if isinstance(h, np.ndarray) else h.flip(-1) ** 3


def contrast(h_KD: Array, _: Any) -> float:
    out = []
    for k, own in enumerate(unit(h_KD)):
        e = np.exp([own @ other / 0.5 for other in unit(second_view(h_KD))])
        out.append(-np.log(e[k] / e.sum()))
    return float(np.mean(out))


def masked_covariance(a_KL: Array, mask_L: NDArray[np.bool_]) -> float:
    real = a_KL[:, mask_L]
    centred = real - real.mean(1, keepdims=True)
    return float(np.linalg.norm(np.diag(centred @ centred.T / D)) ** 2)


def counted_covariance(a_KL: Array, mask_L: NDArray[np.bool_]) -> float:
    a_KL = a_KL * mask_L
    centred = a_KL - a_KL.mean(1, keepdims=True)
    return float(np.linalg.norm(np.diag(centred @ centred.T / D)) ** 2)


CASES = {
    "cosine": Case(lambda h, mask, _, w: cosine_penalty(h, mask, w), cosine, alone=1.0),
    "orthogonality": Case(lambda h, mask, _, w: orthogonality_penalty(h, mask, w), orthogonality),
    "contrast": Case(lambda h, mask, _, w: interest_contrast(h, second_view(h), 0.5, mask, w), contrast),
    "covariance": Case(
        lambda a, mask, real, w: routing_covariance(a, real, D, mask_BK=mask, weight_B=w),
        masked_covariance,
        width=L,
        routing=True,
    ),
    "covariance as released": Case(
        lambda a, mask, real, w: routing_covariance(a * real[:, None], real, D, "counted", mask_BK=mask, weight_B=w),
        counted_covariance,
        width=L,
        routing=True,
    ),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def example(case: Case, seed: int = 0) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    value = rng.random((B, K, case.width)) if case.routing else rng.normal(size=(B, K, case.width))
    exists = rng.random((B, K)) < 0.6
    exists[:, 0] = True
    real = np.arange(L) < rng.integers(1, L + 1, B)[:, None]
    return value, exists, real


def run(
    case: Case, value: Array, exists: NDArray[np.bool_], real: NDArray[np.bool_], weight: Tensor | None = None
) -> Tensor:
    return case.torch(torch.from_numpy(value).float(), torch.from_numpy(exists), torch.from_numpy(real), weight)


@EVERY
def test_rows_count_by_their_weights(case: Case) -> None:
    value, exists, real = example(case)
    weight = torch.tensor([3.0, 0.0, 1.0, 0.0, 0.0])
    by_hand = (3 * case.numpy(value[0][exists[0]], real[0]) + case.numpy(value[2][exists[2]], real[2])) / 4
    assert run(case, value, exists, real, weight).item() == pytest.approx(by_hand, rel=1e-4)


@EVERY
def test_it_equals_its_formula_row_by_row(case: Case) -> None:
    value, exists, real = example(case)
    by_hand = np.mean([case.numpy(value[b][exists[b]], real[b]) for b in range(B)])
    got = run(case, value, exists, real)
    assert got.dtype == torch.float32
    assert got.shape == ()
    assert got.item() == pytest.approx(by_hand, rel=1e-4)
    everywhere = np.ones_like(exists)
    by_hand = np.mean([case.numpy(value[b], real[b]) for b in range(B)])
    assert run(case, value, everywhere, real).item() == pytest.approx(by_hand, rel=1e-4)


@EVERY
def test_missing_interests_and_padding_change_nothing(case: Case) -> None:
    value, exists, real = example(case)
    before = run(case, value, exists, real)
    other = value + np.where(exists, 0.0, 7.0)[:, :, None]
    if case.routing:
        other = np.where(real[:, None], other, 5.0)  # weights at padding are not read
    assert torch.equal(run(case, other, exists, real), before)


@EVERY
def test_the_batch_is_averaged_and_its_order_does_not_matter(case: Case) -> None:
    value, exists, real = example(case)
    before = run(case, value, exists, real).item()
    again = np.concatenate([np.arange(B)[::-1], np.arange(B)])
    assert run(case, value[again], exists[again], real[again]).item() == pytest.approx(before, rel=1e-5)


@EVERY
def test_it_is_never_negative_and_defined_for_one_interest(case: Case) -> None:
    for seed in range(20):
        value, exists, real = example(case, seed)
        assert run(case, value, exists, real).item() >= -1e-6
        single = run(case, value[:, :1], exists[:, :1], real).item()
        if case.routing:
            assert single == pytest.approx(np.mean([case.numpy(value[b, :1], real[b]) for b in range(B)]), rel=1e-4)
        else:
            assert single == pytest.approx(case.alone, abs=1e-5)


@EVERY
def test_gradient_reaches_what_exists_and_nothing_else(case: Case) -> None:
    value, exists, real = example(case, 3)
    exists[0] = True
    leaf = torch.from_numpy(value).float().requires_grad_()
    case.torch(leaf, torch.from_numpy(exists), torch.from_numpy(real), None).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[0].abs().sum(-1) > 0).all()
    assert (leaf.grad[~torch.from_numpy(exists)] == 0).all()


@EVERY
def test_nothing_at_all_is_finite(case: Case) -> None:
    """Zero vectors, no real item, an empty history's row: value and gradient are numbers."""
    leaf = torch.zeros(2, K, case.width, requires_grad=True)
    got = case.torch(leaf, torch.ones(2, K, dtype=torch.bool), torch.zeros(2, L, dtype=torch.bool), None)
    got.backward()  # type: ignore[no-untyped-call]
    assert got.isfinite()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@EVERY
def test_it_is_computed_in_float32_under_autocast(case: Case) -> None:
    value, exists, real = example(case)
    exact = run(case, value, exists, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(case, value, exists, real), exact)


def test_separated_interests_cost_least() -> None:
    apart, together = torch.eye(K)[None], torch.ones(1, K, K)
    assert orthogonality_penalty(apart).item() == pytest.approx(0, abs=1e-6)
    assert orthogonality_penalty(together).item() == pytest.approx(K * (K - 1), rel=1e-5)
    assert cosine_penalty(apart).item() == pytest.approx(1 / K)
    assert cosine_penalty(together).item() == pytest.approx(1)
    assert interest_contrast(apart, apart, 0.05).item() < interest_contrast(together, together, 0.05).item() - 1


def test_uniform_routing_is_free_only_where_padding_is_masked() -> None:
    real = torch.arange(L) < 3
    uniform = (real / 3.0).expand(1, K, L)
    assert routing_covariance(uniform, real[None], D).item() == pytest.approx(0, abs=1e-12)
    assert routing_covariance(uniform, real[None], D, "counted").item() > 1e-6


def test_the_sum_over_the_batch_is_the_mean_times_its_size() -> None:
    value, _, real = example(CASES["covariance"])
    weight, mask = torch.from_numpy(value).float(), torch.from_numpy(real)
    mean, total = routing_covariance(weight, mask, D), routing_covariance(weight, mask, D, reduce="sum")
    assert total.item() == pytest.approx(B * mean.item(), rel=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_elementwise_penalty(k: int) -> None:
    w = np.random.default_rng(0).normal(size=(k, 2, 5))
    by_hand = np.mean([[np.linalg.norm(a * b) for b in w] for a in w])
    leaf = torch.from_numpy(w).float().requires_grad_()
    got = elementwise_penalty(leaf)
    assert got.item() == pytest.approx(by_hand, rel=1e-5)
    got.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert (leaf.grad != 0).all()
    zero = torch.zeros(2, 3, requires_grad=True)
    elementwise_penalty(zero).backward()  # type: ignore[no-untyped-call]
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_partition_contrast() -> None:
    rng = np.random.default_rng(0)
    own, positive, negative = rng.normal(size=(3, D)), rng.normal(size=(3, D)), rng.normal(size=(8, D))
    by_hand = []
    for w, near in zip(own, positive, strict=True):
        e = np.exp(np.array([w @ near, *(negative @ w)]) / 0.7)
        by_hand.append(-np.log(e[0] / e.sum()))
    leaves = [torch.from_numpy(x).float().requires_grad_() for x in (own, positive, negative)]
    leaf_w, leaf_near, leaf_far = leaves
    assert partition_contrast(leaf_w, leaf_near, leaf_far, temperature=0.7).item() == pytest.approx(
        np.mean(by_hand), rel=1e-5
    )
    mask = torch.tensor([True, False, True])
    weighted = partition_contrast(leaf_w, leaf_near, leaf_far, 0.7, torch.tensor([0.1, 0.0, 0.3]))
    assert weighted.item() == pytest.approx((by_hand[0] + 3 * by_hand[2]) / 4, rel=1e-5)
    got = partition_contrast(leaf_w, leaf_near, leaf_far, temperature=0.7, weight_P=mask)
    assert got.item() == pytest.approx((by_hand[0] + by_hand[2]) / 2, rel=1e-5)
    got.backward()  # type: ignore[no-untyped-call]
    gradients = [t.grad for t in leaves if t.grad is not None]
    assert len(gradients) == 3
    assert (gradients[0][1] == 0).all()
    assert (gradients[1][1] == 0).all()
    assert all((g.abs().sum(1) > 0).any() for g in gradients)
    assert partition_contrast(leaf_w, leaf_near, leaf_far, weight_P=torch.zeros(3, dtype=torch.bool)).item() == 0
