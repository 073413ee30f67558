"""What every aggregator must do, and what each computes, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.aggregators import AGGREGATORS, make_aggregator
from gemirec.components.extractors import make_extractor
from gemirec.components.roles import Aggregator, Extracted, Sizes
from gemirec.components.score_aggregators import Calibrated, Target
from gemirec.components.vector_aggregators import Base, Concat, Pool
from gemirec.errors import ConfigError
from support_numpy import softmax

B, L, K, D = 5, 6, 3, 4
LENGTHS = [6, 3, 1, 5, 0]
CASES: dict[str, dict[str, Any]] = {
    "max": {"kind": "max"},
    "mean": {"kind": "mean"},
    "target": {"kind": "target", "serving": "max"},
    "calibrated": {"kind": "calibrated"},
    "calibrated, as MIMA": {"kind": "calibrated", "rescale": False},
    "concat": {"kind": "concat"},
    "pool mean": {"kind": "pool"},
    "pool max": {"kind": "pool", "pool": "max"},
    "pool network": {"kind": "pool", "network": True},
    "base mean": {"kind": "base"},
    "base last": {"kind": "base", "base": "last"},
    "base learned": {"kind": "base", "base": "learned"},
    "intent": {"kind": "intent"},
}
EVERY = pytest.mark.parametrize("case", list(CASES))
MASKED = pytest.mark.parametrize("masked", [False, True])


def build(case: str, interests: int = K) -> Aggregator:
    torch.manual_seed(0)
    extractor = make_extractor({"kind": "prototypes"}, Sizes(D, interests, L))
    aggregator = make_aggregator(CASES[case], extractor, "prototypes")
    for name, parameter in aggregator.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return aggregator


def inputs(masked: bool, interests: int = K) -> tuple[Extracted, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask_BL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    item_BLD = torch.randn(B, L, D, generator=generator) * mask_BL[:, :, None]
    exists_BK = torch.arange(interests) < torch.tensor([1, 2, 3, 2, 1])[:, None]
    interest_BKD = torch.randn(B, interests, D, generator=generator) * mask_BL.any(1)[:, None, None]
    if masked:
        interest_BKD = interest_BKD * exists_BK[:, :, None]
    imagined_BLD = torch.randn(B, L, D, generator=generator) * mask_BL[:, :, None]
    return Extracted(interest_BKD, exists_BK if masked else None, None, imagined_BLD), item_BLD, mask_BL


def rows_of(found: Extracted, rows: slice) -> Extracted:
    parts = (found.interest_BKD, found.mask_BK, found.weight_BKL, found.imagined_BLD)
    return Extracted(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]


def test_every_kind_is_in_this_suite() -> None:
    assert {case["kind"] for case in CASES.values()} == set(AGGREGATORS)


@EVERY
@MASKED
@pytest.mark.parametrize("interests", [1, K])
def test_shapes_and_nothing_from_nothing(case: str, masked: bool, interests: int) -> None:
    aggregator = build(case, interests)
    found, item_BLD, mask_BL = inputs(masked, interests)
    served = aggregator(found, item_BLD, mask_BL)
    several = CASES[case]["kind"] in {"max", "target", "calibrated"}
    assert served.vector_BKD.shape == (B, interests if several else 1, D)
    assert (served.vector_BKD[-1] == 0).all()
    if several:
        assert served.mask_BK is found.mask_BK
    else:
        assert served.mask_BK is None
    if interests == 1 and CASES[case]["kind"] not in {"concat", "pool"} and "as MIMA" not in case:
        torch.testing.assert_close(served.vector_BKD, found.interest_BKD)  # one interest is served as it is


@EVERY
@MASKED
def test_missing_interests_take_no_part(case: str, masked: bool) -> None:
    """What stands at an interest that does not exist, and at padding's place, changes nothing."""
    aggregator = build(case).eval()
    found, item_BLD, mask_BL = inputs(True)
    assert found.mask_BK is not None
    other = found.interest_BKD.masked_fill(~found.mask_BK[:, :, None], 7.0)
    one = aggregator(found, item_BLD, mask_BL)
    two = aggregator(Extracted(other, found.mask_BK, None, found.imagined_BLD), item_BLD, mask_BL)
    exists = found.mask_BK if one.mask_BK is not None else torch.ones(B, 1, dtype=torch.bool)
    torch.testing.assert_close(one.vector_BKD[exists], two.vector_BKD[exists])
    if one.weight_BK is not None and two.weight_BK is not None:
        torch.testing.assert_close(one.weight_BK[exists], two.weight_BK[exists])


@EVERY
@MASKED
def test_a_batch_is_its_rows_and_eval_repeats(case: str, masked: bool) -> None:
    aggregator = build(case).eval()
    found, item_BLD, mask_BL = inputs(masked)
    together = aggregator(found, item_BLD, mask_BL)
    assert torch.equal(together.vector_BKD, aggregator(found, item_BLD, mask_BL).vector_BKD)
    for b in range(B):
        row = slice(b, b + 1)
        alone = aggregator(rows_of(found, row), item_BLD[row], mask_BL[row])
        torch.testing.assert_close(alone.vector_BKD[0], together.vector_BKD[b], rtol=1e-4, atol=1e-6)


@EVERY
@MASKED
def test_gradient_reaches_interests_and_parameters(case: str, masked: bool) -> None:
    aggregator = build(case)
    found, item_BLD, mask_BL = inputs(masked)
    found.interest_BKD.requires_grad_()
    target_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(3))
    if aggregator.uses_target:
        served = aggregator.train_vectors(found, target_BD)
        assert served.vector_BKD.shape == (B, 1, D)
    else:
        served = aggregator(found, item_BLD, mask_BL)
    vector = served.vector_BKD if served.weight_BK is None else served.vector_BKD * served.weight_BK[:, :, None]
    (vector * torch.randn(vector.shape, generator=torch.Generator().manual_seed(2))).sum().backward()  # type: ignore[no-untyped-call]
    assert found.interest_BKD.grad is not None
    assert found.interest_BKD.grad.isfinite().all()
    assert (found.interest_BKD.grad[0] != 0).any()
    for name, parameter in aggregator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any() or name == "head.2.bias", name  # one bias for all cancels in a softmax


@MASKED
def test_the_mean_of_scores_is_the_score_of_the_mean(masked: bool) -> None:
    """So recommendation aggregation by the mean needs one vector and not K."""
    found, item_BLD, mask_BL = inputs(masked)
    catalogue_ND = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    exists_BK = torch.ones(B, K, dtype=torch.bool) if found.mask_BK is None else found.mask_BK
    score_BKN = (found.interest_BKD @ catalogue_ND.T) * exists_BK[:, :, None]
    expected_BN = score_BKN.sum(1) / exists_BK.sum(1, keepdim=True)
    got_BN = (build("mean")(found, item_BLD, mask_BL).vector_BKD @ catalogue_ND.T)[:, 0]
    torch.testing.assert_close(got_BN, expected_BN)
    pooled = build("pool mean")(found, item_BLD, mask_BL).vector_BKD
    assert torch.equal(pooled, build("mean")(found, item_BLD, mask_BL).vector_BKD)


def existing(found: Extracted, b: int) -> Any:
    mask = slice(None) if found.mask_BK is None else found.mask_BK[b]
    return found.interest_BKD[b][mask].numpy()


@MASKED
def test_base_and_target_equal_numpy(masked: bool) -> None:
    found, item_BLD, mask_BL = inputs(masked)
    target_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(3))
    for case in ("base mean", "base last", "base learned"):
        base = build(case)
        assert isinstance(base, Base)
        got = base(found, item_BLD, mask_BL).vector_BKD[:, 0].detach().numpy()
        for b, n in enumerate(LENGTHS[:-1]):
            x = item_BLD[b, :n].numpy()
            anchor = (
                base.base_1D[0].detach().numpy() if case == "base learned" else x.mean(0) if "mean" in case else x[-1]
            )
            h = existing(found, b)
            weight = softmax(h @ (base.map.weight.detach().numpy() @ anchor))
            np.testing.assert_allclose(got[b], weight @ h, rtol=1e-4, atol=1e-6)
    target = build("target")
    assert isinstance(target, Target)
    got = target.train_vectors(found, target_BD).vector_BKD[:, 0].detach().numpy()
    for b in range(B):
        h = existing(found, b)
        weight = softmax(h @ np.tanh(target.key.weight.detach().numpy() @ target_BD[b].numpy()))
        np.testing.assert_allclose(got[b], weight @ h, rtol=1e-4, atol=1e-6)


def layers(network: torch.nn.Sequential, x: Any) -> Any:
    w1, b1, w2, b2 = (p.detach().numpy() for p in network.parameters())
    return np.maximum(x @ w1.T + b1, 0) @ w2.T + b2


@MASKED
def test_calibrated_concat_and_pool_equal_numpy(masked: bool) -> None:
    found, item_BLD, mask_BL = inputs(masked)
    calibrated, plain, concat, pool = (
        build(case) for case in ("calibrated", "calibrated, as MIMA", "concat", "pool max")
    )
    network = build("pool network")
    assert isinstance(calibrated, Calibrated)
    assert isinstance(concat, Concat)
    assert isinstance(pool, Pool)
    assert isinstance(network, Pool)
    assert network.network is not None
    scaled, weight = (part(found, item_BLD, mask_BL).weight_BK for part in (calibrated, plain))
    assert scaled is not None
    assert weight is not None
    parts = [part(found, item_BLD, mask_BL).vector_BKD[:, 0].detach().numpy() for part in (concat, pool, network)]
    for b in range(B - 1):
        h = existing(found, b)
        pi = softmax(layers(calibrated.head, h)[:, 0])
        np.testing.assert_allclose(weight[b, : len(h)].detach(), pi, rtol=1e-4)
        np.testing.assert_allclose(scaled[b, : len(h)].detach(), pi * len(h), rtol=1e-4)
        np.testing.assert_allclose(
            parts[0][b], layers(concat.network, found.interest_BKD[b].numpy().reshape(-1)), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(parts[1][b], h.max(0), rtol=1e-5)
        np.testing.assert_allclose(parts[2][b], layers(network.network, h.mean(0)), rtol=1e-4, atol=1e-5)


def test_the_routing_head_does_not_move_the_interests() -> None:
    found, item_BLD, mask_BL = inputs(False)
    found.interest_BKD.requires_grad_()
    weight = build("calibrated")(found, item_BLD, mask_BL).weight_BK
    assert weight is not None
    weight[:, 0].sum().backward()
    assert found.interest_BKD.grad is None


def test_what_cannot_be_is_refused() -> None:
    extractor = make_extractor({"kind": "attention"}, Sizes(D, K, L))
    with pytest.raises(
        ConfigError, match=r"(?s)aggregator .target. weighs interests by the target.*aggregator.serving: max"
    ) as error:
        make_aggregator({"kind": "target"}, extractor, "attention")
    assert "concat" in str(error.value)
    with pytest.raises(
        ConfigError, match=r"aggregator 'intent' reads the prototypes .* extractor 'attention' has none"
    ):
        make_aggregator({"kind": "intent"}, extractor, "attention")
    with pytest.raises(ConfigError, match="did you mean 'max'"):
        make_aggregator({"kind": "maxx"}, extractor, "attention")
