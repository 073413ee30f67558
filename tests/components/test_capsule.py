"""Routing against plain NumPy transcriptions of what the papers and the TensorFlow code compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemirec.components.capsule import (
    InterestMaps,
    PositionMaps,
    Routing,
    RoutingAxis,
    SharedMap,
    adaptive_mask,
    squash,
)

B, L, K, D = 3, 5, 3, 4
LENGTHS = [5, 2, 0]


def case() -> tuple[torch.Tensor, torch.Tensor]:
    item_BLD = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return item_BLD * mask_BL[:, :, None], mask_BL


def numpy_squash(s: Any) -> Any:
    square = (s**2).sum(-1, keepdims=True)
    return square / (1 + square) * s / np.sqrt(square + 1e-9)


def numpy_routing(vote: Any, logit: Any, length: int, rounds: int, axis: RoutingAxis) -> Any:
    """Votes ``[K, L, D]`` and logits ``[K, L]`` of one user, item by item and capsule by capsule."""
    interests, positions, dim = vote.shape
    for _ in range(rounds):
        c = np.zeros((interests, positions))
        if axis == "interests":
            for t in range(length):
                c[:, t] = np.exp(logit[:, t]) / np.exp(logit[:, t]).sum()
        else:
            for k in range(interests):
                c[k, :length] = np.exp(logit[k, :length]) / np.exp(logit[k, :length]).sum()
        s = np.zeros((interests, dim))
        for k in range(interests):
            for t in range(length):
                s[k] += c[k, t] * vote[k, t]
        v = numpy_squash(s)
        logit = logit + np.einsum("ktd,kd->kt", vote, v)
    return v


@pytest.mark.parametrize("axis", ["interests", "positions"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_comirec_dr_equals_the_transcription(rounds: int, axis: RoutingAxis) -> None:
    """``w`` ``[1, T, K d, d]``: the vote of position t for capsule k is rows ``k d .. (k + 1) d`` of ``w_t x_t``."""
    torch.manual_seed(0)
    maps = PositionMaps(D, K, L, std=1.0)
    item_BLD, mask_BL = case()
    w = maps.weight_LDE.detach().numpy().transpose(0, 2, 1)  # [T, K d, d]
    got = Routing(rounds, axis)(maps(item_BLD), torch.zeros(1, K, L), mask_BL).detach().numpy()
    for b, length in enumerate(LENGTHS):
        vote = np.zeros((K, L, D))
        for t in range(L):
            vote[:, t] = (w[t] @ item_BLD[b, t].numpy()).reshape(K, D)
        np.testing.assert_allclose(got[b], numpy_routing(vote, np.zeros((K, L)), length, rounds, axis), atol=1e-5)


@pytest.mark.parametrize("axis", ["interests", "positions"])
@pytest.mark.parametrize("bias", [False, True])
def test_mind_equals_the_transcription(bias: bool, axis: RoutingAxis) -> None:
    torch.manual_seed(0)
    shared = SharedMap(D, bias)
    item_BLD, mask_BL = case()
    logit = torch.randn(K, L, generator=torch.Generator().manual_seed(1))
    got = Routing(3, axis)(shared(item_BLD), logit[None], mask_BL).detach().numpy()
    w = shared.map.weight.detach().numpy()
    for b, length in enumerate(LENGTHS):
        vote = item_BLD[b].numpy() @ w.T + (shared.map.bias.detach().numpy() if bias else 0)
        expected = numpy_routing(np.stack([vote] * K), logit.numpy(), length, 3, axis)
        np.testing.assert_allclose(got[b], expected, atol=1e-5)


def test_collected_votes_are_the_sum_and_have_its_gradients() -> None:
    """To items, maps (of which there are more than positions) and weights, as if nothing were left out."""
    torch.manual_seed(0)
    maps = PositionMaps(D, K, L + 2, std=1.0)
    item_BLD, weight_BKL, grad_BKD = (
        case()[0].requires_grad_(),
        torch.randn(B, K, L).requires_grad_(),
        torch.randn(B, K, D),
    )
    reached = (item_BLD, maps.weight_LDE, weight_BKL)
    vote_BKLD = maps(item_BLD)
    whole_BKD = torch.einsum("bkl,bkld->bkd", weight_BKL, vote_BKLD)
    collected_BKD = maps.collect(item_BLD, vote_BKLD, weight_BKL)
    torch.testing.assert_close(collected_BKD, whole_BKD)
    wanted = torch.autograd.grad(whole_BKD, reached, grad_BKD)
    torch.testing.assert_close(torch.autograd.grad(collected_BKD, reached, grad_BKD), wanted)


def test_missing_interests_take_no_part() -> None:
    """With two of three capsules the result is that of routing among those two, and the third is zero."""
    item_BLD, mask_BL = case()
    logit = torch.randn(1, K, L, generator=torch.Generator().manual_seed(1))
    mask_BK = torch.tensor([[True, True, False]]).expand(B, K)
    got = Routing(3, "interests")(item_BLD[:, None], logit, mask_BL, mask_BK)
    alone = Routing(3, "interests")(item_BLD[:, None], logit[:, :2], mask_BL)
    torch.testing.assert_close(got[:, :2], alone)
    assert (got[:, 2] == 0).all()


@pytest.mark.parametrize("axis", ["interests", "positions"])
def test_coupling_sums_to_one_over_its_axis(axis: RoutingAxis) -> None:
    _, mask_BL = case()
    weight = Routing(3, axis).coupling(torch.randn(B, K, L, generator=torch.Generator().manual_seed(0)), mask_BL, None)
    over_interests, over_positions = weight.sum(1), weight.sum(2)
    if axis == "interests":
        torch.testing.assert_close(over_interests, mask_BL.float())
        assert not torch.allclose(over_positions[0], torch.ones(K))
    else:
        torch.testing.assert_close(over_positions[:2], torch.ones(2, K))
        assert not torch.allclose(over_interests[0], torch.ones(L))
    assert (weight * ~mask_BL[:, None] == 0).all()


def test_gradient_flows_through_the_last_round_alone() -> None:
    """The gradient is that of ``squash(sum c u)`` with the couplings held fixed."""
    item_BLD, mask_BL = case()
    routing = Routing(3, "interests")
    logit = torch.randn(1, K, L, generator=torch.Generator().manual_seed(1))
    vote = item_BLD[:2, None].clone().requires_grad_()
    (got,) = torch.autograd.grad(routing(vote, logit, mask_BL[:2]).square().sum(), vote)
    b = logit.expand(2, K, L)
    with torch.no_grad():
        for _ in range(2):
            c = routing.coupling(b, mask_BL[:2], None)
            b = b + squash(c @ vote[:, 0]) @ vote[:, 0].transpose(1, 2)
        c = routing.coupling(b, mask_BL[:2], None)
    other = vote.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(squash(c @ other[:, 0]).square().sum(), other)
    torch.testing.assert_close(got, expected)


def test_gradient_of_all_rounds_is_that_of_the_whole_computation() -> None:
    """And the values are those of the last round alone."""
    item_BLD, mask_BL = case()
    logit = torch.randn(1, K, L, generator=torch.Generator().manual_seed(1))
    vote = item_BLD[:2, None].clone().requires_grad_()
    got = Routing(3, "interests", gradient="all")(vote, logit, mask_BL[:2])
    assert torch.equal(got, Routing(3, "interests")(vote, logit, mask_BL[:2]))
    (gradient,) = torch.autograd.grad(got.square().sum(), vote)
    other = item_BLD[:2, None].clone().requires_grad_()
    b = logit.expand(2, K, L)
    for _ in range(3):
        c = torch.softmax(b, dim=1) * mask_BL[:2, None]
        v = squash(c @ other[:, 0])
        b = b + v @ other[:, 0].transpose(1, 2)
    (expected,) = torch.autograd.grad(v.square().sum(), other)
    torch.testing.assert_close(gradient, expected)
    (last,) = torch.autograd.grad(Routing(3, "interests")(vote, logit, mask_BL[:2]).square().sum(), vote)
    assert not torch.allclose(gradient, last)


@pytest.mark.parametrize("update", ["add", "replace"])
def test_umi_equals_the_transcription(update: Any) -> None:
    """A map per capsule, gated items, logits replaced by the agreement."""
    torch.manual_seed(0)
    maps = InterestMaps(D, K)
    item_BLD, mask_BL = case()
    gate_BL = torch.rand(B, L, generator=torch.Generator().manual_seed(2))
    logit = torch.randn(K, L, generator=torch.Generator().manual_seed(1))
    capsule, weight = Routing(3, "interests", update=update).route(
        maps(item_BLD), logit[None], mask_BL, gate_BL=gate_BL
    )
    for b, n in enumerate(LENGTHS):
        vote = np.einsum("td,kde->kte", item_BLD[b, :n].numpy(), maps.weight_KDD.detach().numpy())
        logits = logit.numpy()[:, :n]
        for _ in range(3):
            c = np.exp(logits) / np.exp(logits).sum(0) * gate_BL[b, :n].numpy()
            v = numpy_squash(np.einsum("kt,ktd->kd", c, vote))
            agreement = np.einsum("ktd,kd->kt", vote, v)
            logits = logits + agreement if update == "add" else agreement
        np.testing.assert_allclose(capsule[b].detach(), v, atol=1e-5)
        np.testing.assert_allclose(weight[b, :, :n].detach(), c, atol=1e-5)
        assert (weight[b, :, n:] == 0).all()


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8))
def test_squash_keeps_direction_and_shortens_below_one(values: list[float]) -> None:
    vector = torch.tensor(values)
    out = squash(vector)
    np.testing.assert_allclose(out.numpy(), numpy_squash(np.array(values)), rtol=1e-4, atol=1e-6)
    assert out.norm() <= 1 + 1e-6
    assert (out * vector >= 0).all()


@given(st.integers(0, 1000), st.integers(1, 8))
def test_adaptive_number_of_interests(length: int, most: int) -> None:
    expected = max(1, min(most, int(np.floor(np.log2(length))))) if length else 1
    mask = adaptive_mask(torch.tensor([length]), most)[0]
    assert mask.tolist() == [k < expected for k in range(most)]


def test_adaptive_number_at_the_published_lengths() -> None:
    assert adaptive_mask(torch.tensor([1, 3, 8, 16]), 4).sum(1).tolist() == [1, 1, 3, 4]


def test_the_maps_are_initialised_as_asked() -> None:
    """torch-rechub left these weights as the allocator gave them."""
    torch.manual_seed(0)
    weight = PositionMaps(32, 4, 20, std=1.0).weight_LDE
    assert weight.std().item() == pytest.approx(1, rel=0.02)
    assert abs(weight.mean().item()) < 0.02
    assert SharedMap(64, True).map.weight.abs().max() <= (6 / 128) ** 0.5
