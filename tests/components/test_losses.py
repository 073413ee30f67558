"""The retrieval loss against plain NumPy, row by row and candidate by candidate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gemirec.components.losses import (
    LossConfig,
    MultiInterestLossConfig,
    RetrievalLoss,
    label_aware_weights,
    softmax_loss,
)
from gemirec.components.negatives import Negatives, Sampler
from gemirec.config import from_dict
from gemirec.errors import ConfigError

N, D, B, K, S, J = 9, 5, 6, 3, 12, 4
Array = NDArray[np.float64]


class FixedSampler(Sampler):
    """Returns what it is told to."""

    def __init__(self, ids: Tensor, log_q_S: Tensor, log_q_target_B: Tensor, in_batch: bool = False) -> None:
        self.answer = Negatives(ids, log_q_S, log_q_target_B)
        self.in_batch = in_batch

    def sample(self, target_B: Tensor, generator: torch.Generator | None = None) -> Negatives:
        return self.answer


class Case:
    """Random vectors, ids and log q, with repeated ids so that accidental hits occur."""

    def __init__(self, seed: int = 0, num_interests: int = K) -> None:
        rng = np.random.default_rng(seed)
        self.table = rng.normal(size=(N + 1, D))
        self.table[0] = 0
        self.interest = rng.normal(size=(B, num_interests, D))
        self.target = rng.integers(1, N + 1, B)
        self.ids = rng.integers(1, N + 1, S)
        self.log_q_N = np.log(rng.uniform(0.1, 2.0, N + 1))
        self.mask = rng.random((B, num_interests)) < 0.7
        self.mask[:, 0] = True
        self.weight = rng.uniform(0.5, 2, B)
        self.further = rng.normal(size=(B, J))
        self.further[1, 2:] = self.further[2] = -1e30

    def torch_loss(
        self, config: LossConfig, *, mask: bool = False, weight: bool = False, further: bool = False
    ) -> Tensor:
        loss = RetrievalLoss(config, np.ones(N + 1))
        ids, log_q = torch.from_numpy(self.ids), torch.from_numpy(self.log_q_N).float()
        target = torch.from_numpy(self.target)
        if config.negatives == "in_batch":
            ids = target
        elif config.negatives == "mixed":
            ids = torch.cat([target, ids])
        loss.sampler = FixedSampler(ids, log_q[ids], log_q[target], config.negatives in ("in_batch", "mixed"))
        table = torch.from_numpy(self.table).float()
        return loss(
            torch.from_numpy(self.interest).float(),
            target,
            lambda i: table[i],
            mask_BK=torch.from_numpy(self.mask) if mask else None,
            weight_B=torch.from_numpy(self.weight).float() if weight else None,
            negative_BJ=torch.from_numpy(self.further).float() if further else None,
        )

    def numpy_loss(
        self, config: LossConfig, *, mask: bool = False, weight: bool = False, further: bool = False
    ) -> float:
        ids = self.ids
        if config.negatives == "in_batch":
            ids = self.target
        elif config.negatives == "mixed":
            ids = np.concatenate([self.target, self.ids])
        rows = [self._row(b, ids, config, self.mask[b] if mask else None, further=further) for b in range(B)]
        return float(np.average(rows, weights=self.weight if weight else None))

    def _row(
        self, b: int, ids: NDArray[np.int64], config: LossConfig, mask: NDArray[np.bool_] | None, *, further: bool
    ) -> float:
        interest = self.interest[b] if mask is None else self.interest[b][mask]
        positive = self.table[self.target[b]]
        to_positive = interest @ positive
        readout = config.readout if isinstance(config, MultiInterestLossConfig) else "hard"
        if readout == "hard":
            user = interest[to_positive.argmax()]
            scores = [self.table[i] @ user for i in ids]
            own = positive @ user
        elif readout == "best":
            scores = [max(interest @ self.table[i]) for i in ids]
            own = to_positive.max()
        else:
            assert isinstance(config, MultiInterestLossConfig)
            power = np.sign(to_positive) * np.abs(to_positive) ** config.power
            a = np.exp(power - power.max())
            user = (a / a.sum()) @ interest
            scores = [self.table[i] @ user for i in ids]
            own = positive @ user
        kept, bias = [], []
        for j, i in enumerate(ids):
            diagonal = config.negatives in ("in_batch", "mixed") and j == b
            if diagonal or (config.mask_hits and i == self.target[b]):
                continue
            kept.append(scores[j] / config.temperature)
            bias.append(-self.log_q_N[i] if config.log_q else 0.0)
        s = np.array(kept)
        w = np.exp(config.beta * s) / np.exp(config.beta * s).mean() if len(s) else s
        top = own / config.temperature - (self.log_q_N[self.target[b]] if config.log_q else 0.0)
        mass = (w * np.exp(s + np.array(bias))).sum() + further * np.exp(self.further[b] / config.temperature).sum()
        return float(-np.log(np.exp(top) / (np.exp(top) + mass)))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"log_q": False},
    {"mask_hits": False},
    {"temperature": 0.3},
    {"beta": 1.0},
    {"beta": 0.1, "log_q": False, "temperature": 2.0},
    {"beta": 1.0, "mask_hits": False},
    {"negatives": "in_batch"},
    {"negatives": "in_batch", "log_q": False, "mask_hits": False},
    {"negatives": "mixed", "temperature": 0.7},
    {"negatives": "mixed", "mask_hits": False, "beta": 0.5},
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("readout", ["hard", "best", "label_aware"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loss_equals_numpy(variant: dict[str, Any], readout: Any, masked: bool) -> None:
    config = MultiInterestLossConfig(readout=readout, power=2.0, **variant)
    case = Case()
    for weighted in (False, True):
        got = case.torch_loss(config, mask=masked, weight=weighted).item()
        assert got == pytest.approx(case.numpy_loss(config, mask=masked, weight=weighted), rel=2e-5)


@pytest.mark.parametrize("readout", ["hard", "best", "label_aware"])
def test_readouts_agree_for_one_interest(readout: Any) -> None:
    case = Case(num_interests=1)
    reference = case.torch_loss(LossConfig())
    torch.testing.assert_close(case.torch_loss(MultiInterestLossConfig(readout=readout)), reference)


def test_infonce_is_the_in_batch_softmax_of_cosines() -> None:
    rng = np.random.default_rng(3)
    user, item = rng.normal(size=(2, B, D))
    user, item = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (user, item))
    logit = user @ item.T / 0.1
    expected = -(np.diag(logit) - np.log(np.exp(logit).sum(1))).mean()
    config = LossConfig(negatives="in_batch", normalize=True, temperature=0.1, log_q=False)
    loss = RetrievalLoss(config, np.ones(B + 1))
    table = torch.from_numpy(np.vstack([np.zeros(D), item])).float()
    got = loss(torch.from_numpy(user).float()[:, None], torch.arange(1, B + 1), lambda i: table[i])
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_log_q_of_in_batch_is_the_training_share() -> None:
    """With logQ each logit loses the log of B times the item's share of events: predicted and got."""
    count = np.array([0, 6, 3, 1])
    table = torch.zeros(4, 2)
    target = torch.tensor([1, 2, 3])
    interest = torch.zeros(3, 1, 2)
    share = count[1:] / count.sum()
    expected = np.mean([-np.log((1 / share[b]) / (1 / share).sum()) for b in range(3)])
    got = RetrievalLoss(LossConfig(negatives="in_batch"), count)(interest, target, lambda i: table[i])
    assert got.item() == pytest.approx(expected, rel=1e-5)
    without = RetrievalLoss(LossConfig(negatives="in_batch", log_q=False), count)(interest, target, lambda i: table[i])
    assert without.item() == pytest.approx(math.log(3), rel=1e-5)


def test_remi_weights_have_mean_one_and_their_gradient_flows() -> None:
    case = Case()
    flat = softmax_inputs(case)
    config = LossConfig(beta=1.0, log_q=False)
    detached = LossConfig(beta=1.0, log_q=False, detach_weights=True)
    torch.testing.assert_close(softmax_loss(config, *flat, **bias()), softmax_loss(detached, *flat, **bias()))
    gradients = []
    for choice in (config, detached):
        interest = flat[0].clone().requires_grad_()
        softmax_loss(choice, interest, flat[1], flat[2], **bias()).sum().backward()  # type: ignore[no-untyped-call]
        assert interest.grad is not None
        gradients.append(interest.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3
    equal = torch.ones(B, S, D)  # equal scores: weights are 1, beta changes nothing
    same = (flat[0][:, :1], flat[1], equal[0])
    torch.testing.assert_close(
        softmax_loss(config, *same, **bias()), softmax_loss(LossConfig(log_q=False), *same, **bias())
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("readout", ["hard", "best", "label_aware"])
def test_further_negatives_join_the_denominator(variant: dict[str, Any], readout: Any) -> None:
    """Each row's own, with neither log q nor REMI's weight; -1e30 masks one, a row without any has its plain loss."""
    config, case = MultiInterestLossConfig(readout=readout, power=2.0, **variant), Case(4)
    got = case.torch_loss(config, weight=True, further=True).item()
    assert got == pytest.approx(case.numpy_loss(config, weight=True, further=True), rel=2e-5)
    case.further = np.full((B, J), -1e30)
    torch.testing.assert_close(case.torch_loss(config, further=True), case.torch_loss(config))
    case.further = np.zeros((B, 0))
    torch.testing.assert_close(case.torch_loss(config, further=True), case.torch_loss(config))


def test_the_gradient_of_a_further_negative_is_its_share_of_the_softmax() -> None:
    """d L_b / d s_bj = e^{s_bj} / (B Z_b); a masked one has none, and a row with nothing else stays finite."""
    score = torch.tensor([[0.3, -1.0], [-1e30, 2.0]], requires_grad=True)
    table = torch.zeros(2, D)
    loss = RetrievalLoss(LossConfig(num_negatives=4, log_q=False), np.array([0, 3]))  # every candidate is a hit
    loss(torch.ones(2, 1, D), torch.tensor([1, 1]), lambda i: table[i], negative_BJ=score).backward()  # type: ignore[no-untyped-call]
    e = np.exp([[0.3, -1.0], [-np.inf, 2.0]])
    expected = e / (1 + e.sum(1, keepdims=True)) / 2
    assert score.grad is not None
    np.testing.assert_allclose(score.grad.numpy(), expected, rtol=1e-5)


def softmax_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(case.interest).float(),
        torch.from_numpy(case.table[case.target]).float(),
        torch.from_numpy(case.table[case.ids]).float(),
    )


def bias() -> dict[str, Any]:
    return {"bias_B": None, "bias_BS": torch.zeros(B, S)}


def test_detached_gradient_equals_finite_differences_with_frozen_weights() -> None:
    case = Case(5)
    interest, positive, negative = (x.double() for x in softmax_inputs(case))
    interest = interest[:, :1]
    with torch.no_grad():
        score = interest[:, 0] @ negative.T
        weight = torch.exp(score) / torch.exp(score).mean(1, keepdim=True)
    user = interest.clone().requires_grad_()
    own = (user[:, 0] * positive).sum(1)
    frozen = torch.log1p((weight * torch.exp(user[:, 0] @ negative.T - own[:, None])).sum(1)).sum()
    (expected,) = torch.autograd.grad(frozen, user)
    other = interest.clone().requires_grad_()
    config = LossConfig(beta=1.0, detach_weights=True)
    loss = softmax_loss(config, other, positive, negative, bias_B=None, bias_BS=torch.zeros(B, S).double())
    (got,) = torch.autograd.grad(loss.sum(), other)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_row_whose_candidates_are_all_hits_has_no_loss_and_a_finite_gradient(beta: float) -> None:
    loss = RetrievalLoss(LossConfig(beta=beta, num_negatives=4), np.array([0, 3]))
    table = torch.randn(2, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(torch.ones(2, 1, D), torch.tensor([1, 1]), lambda i: table[i])
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert table.grad is not None
    assert table.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 10.0])
def test_large_scores_stay_finite(beta: float) -> None:
    interest = torch.full((B, 1, D), 50.0, requires_grad=True)
    negative = torch.linspace(-40, 40, S)[:, None].expand(S, D)
    loss = softmax_loss(LossConfig(beta=beta), interest, -torch.ones(B, D), negative, **bias())
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite().all()
    assert interest.grad is not None
    assert interest.grad.isfinite().all()


@pytest.mark.parametrize("readout", ["hard", "best", "label_aware"])
def test_bfloat16_autocast_computes_the_loss_in_float32(readout: Any) -> None:
    case = Case(1)
    config = MultiInterestLossConfig(readout=readout, beta=0.5)
    outside = case.torch_loss(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.torch_loss(config)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=5),
    st.floats(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_label_aware_weights_are_a_distribution_ordered_by_score(score: list[float], power: float) -> None:
    interest = torch.tensor(score)[None, :, None]
    weight = label_aware_weights(interest, torch.ones(1, 1), power, None)[0]
    assert weight.isfinite().all()
    assert weight.sum().item() == pytest.approx(1, abs=1e-5)
    if power > 0:
        assert weight[int(np.argmax(score))] >= weight.max() - 1e-6


def test_label_aware_power_runs_from_the_mean_to_the_argmax() -> None:
    interest = torch.tensor([[[2.0], [1.5], [-3.0]]])
    one = torch.ones(1, 1)
    torch.testing.assert_close(label_aware_weights(interest, one, 0.0, None), torch.full((1, 3), 1 / 3))
    power = np.array([2.0, 1.5, -3.0]) ** 3
    expected = torch.tensor(np.exp(power) / np.exp(power).sum()).float()[None]
    torch.testing.assert_close(label_aware_weights(interest, one, 3.0, None), expected)
    torch.testing.assert_close(label_aware_weights(interest, one, 60.0, None), torch.tensor([[1.0, 0.0, 0.0]]))
    negative = label_aware_weights(-interest.abs(), one, 60.0, None)
    torch.testing.assert_close(negative, torch.tensor([[0.0, 1.0, 0.0]]))
    mask = torch.tensor([[False, True, True]])
    assert label_aware_weights(interest, one, 0.0, mask)[0].tolist() == pytest.approx([0, 0.5, 0.5])
    case = Case(2)
    hard = case.torch_loss(LossConfig())
    torch.testing.assert_close(case.torch_loss(MultiInterestLossConfig(readout="label_aware", power=100.0)), hard)


def test_best_is_never_below_hard() -> None:
    """Each negative scored by its own best interest scores at least as high: the serving-like loss is the harder."""
    for seed in range(10):
        case = Case(seed)
        assert case.torch_loss(MultiInterestLossConfig(readout="best")) >= case.torch_loss(LossConfig()) - 1e-6


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"num_negatives": 0}, {"beta": -1}, {"negatives": "all"}])
def test_bad_values_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        from_dict(LossConfig, bad)
