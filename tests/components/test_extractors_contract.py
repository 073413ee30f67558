"""What every extractor must do, whatever its kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gemirec.components.extractors import EXTRACTORS, make_extractor
from gemirec.components.roles import Extracted, Extractor, Sizes
from gemirec.errors import ConfigError

B, L, K, D = 5, 7, 3, 8
LENGTHS = [7, 3, 1, 5, 0]
CASES: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention"},
    "attention, noisy cosines": {"kind": "attention", "cosine": True, "temperature": 0.2, "gumbel": 0.5},
    "MIND": {"kind": "routing"},
    "MIND, redrawn": {"kind": "routing", "redraw_logits": True, "gradient": "all"},
    "ComiRec-DR": {"kind": "routing", "maps": "positions", "logits": "zero"},
    "UMI": {"kind": "routing", "maps": "interests", "update": "replace", "gate": "history"},
    "ports": {"kind": "routing", "axis": "positions"},
    "one pass": {"kind": "one_pass"},
    "one pass, mean": {"kind": "one_pass", "collect": "mean", "axis": "positions"},
    "MGNM": {"kind": "graph", "levels": 3},
    "SINE": {"kind": "prototypes", "num_prototypes": 6},
    "transform": {"kind": "transform"},
    "transform, last": {"kind": "transform", "pool": "last", "identity": True},
}
EVERY = pytest.mark.parametrize("case", list(CASES))


def build(case: str, interests: int = K) -> Extractor:
    torch.manual_seed(0)
    return make_extractor(CASES[case], Sizes(D, interests, L))


def histories(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    item_BLD = torch.randn(B, L, D, generator=torch.Generator().manual_seed(seed))
    mask_BL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return item_BLD * mask_BL[:, :, None], mask_BL


def test_every_kind_is_in_this_suite() -> None:
    assert {case["kind"] for case in CASES.values()} == set(EXTRACTORS)


@EVERY
@pytest.mark.parametrize("interests", [1, K])
def test_shapes(case: str, interests: int) -> None:
    extractor = build(case, interests)
    found = extractor(*histories())
    assert found.interest_BKD.shape == (B, extractor.num_interests, D)
    assert extractor.num_interests % interests == 0
    assert (found.weight_BKL is not None) == extractor.gives_weights
    assert (found.imagined_BLD is not None) == extractor.gives_prototypes
    if found.weight_BKL is not None:
        assert found.weight_BKL.shape == (B, extractor.num_interests, L)
        assert found.weight_BKL.dtype == torch.float32
        assert (found.weight_BKL >= 0).all()
    own = extractor.interest_parameters()
    assert own is None or own.shape[0] == interests


@EVERY
def test_nothing_comes_from_nothing(case: str) -> None:
    """A history without items has zero interests, and padding no weight."""
    found = build(case)(*histories())
    assert (found.interest_BKD[-1] == 0).all()
    assert found.interest_BKD.isfinite().all()
    if found.weight_BKL is not None:
        assert (found.weight_BKL * ~histories()[1][:, None] == 0).all()


@EVERY
def test_padding_changes_nothing(case: str) -> None:
    """Bit for bit, at the width that models read; up to rounding at any other."""
    extractor = build(case).eval()
    item_BLD, mask_BL = histories()
    short = mask_BL.sum(1) <= 3
    wide = extractor(item_BLD[short], mask_BL[short])
    again = extractor(torch.nn.functional.pad(item_BLD[short][:, :3], (0, 0, 0, L - 3)), mask_BL[short])
    narrow = extractor(item_BLD[short][:, :3], mask_BL[short][:, :3])
    assert torch.equal(wide.interest_BKD, again.interest_BKD)
    torch.testing.assert_close(narrow.interest_BKD, wide.interest_BKD, rtol=1e-4, atol=1e-6)
    if wide.weight_BKL is not None and narrow.weight_BKL is not None:
        torch.testing.assert_close(narrow.weight_BKL, wide.weight_BKL[:, :, :3], rtol=1e-4, atol=1e-6)


@EVERY
def test_a_batch_is_its_rows(case: str) -> None:
    extractor = build(case).eval()
    item_BLD, mask_BL = histories()
    together = extractor(item_BLD, mask_BL)
    for b in range(B):
        alone = extractor(item_BLD[b : b + 1], mask_BL[b : b + 1])
        torch.testing.assert_close(alone.interest_BKD[0], together.interest_BKD[b], rtol=1e-4, atol=1e-6)


@EVERY
def test_missing_interests_are_zero(case: str) -> None:
    """Zero vectors and zero weights; the mask is handed on."""
    extractor = build(case)
    count = extractor.num_interests
    mask_BK = torch.arange(count) % K < torch.tensor([1, 2, 3, 1, 2])[:, None]
    found: Extracted = extractor(*histories(), mask_BK)
    assert found.mask_BK is not None
    assert torch.equal(found.mask_BK, mask_BK)
    assert (found.interest_BKD[~mask_BK] == 0).all()
    if found.weight_BKL is not None:
        assert (found.weight_BKL[~mask_BK] == 0).all()
    everyone = extractor(*histories(), torch.ones(B, count, dtype=torch.bool), torch.Generator().manual_seed(1))
    plain = extractor(*histories(), None, torch.Generator().manual_seed(1))
    torch.testing.assert_close(everyone.interest_BKD, plain.interest_BKD)


@EVERY
def test_gradient_reaches_items_and_parameters(case: str) -> None:
    """And every number stays finite, the empty row's, too."""
    extractor = build(case)
    item_BLD, mask_BL = histories()
    item_BLD.requires_grad_()
    found = extractor(item_BLD * mask_BL[:, :, None], mask_BL, None, torch.Generator().manual_seed(0))
    (
        found.interest_BKD * torch.randn(found.interest_BKD.shape, generator=torch.Generator().manual_seed(2))
    ).sum().backward()
    assert item_BLD.grad is not None
    assert item_BLD.grad.isfinite().all()
    assert (item_BLD.grad[mask_BL].abs().sum(1) > 0).any()
    for name, parameter in extractor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any(), name


@EVERY
def test_eval_repeats_and_training_draws_from_the_generator(case: str) -> None:
    extractor = build(case)

    def run(seed: int) -> torch.Tensor:
        out: torch.Tensor = extractor(*histories(), None, torch.Generator().manual_seed(seed)).interest_BKD
        return out

    assert torch.equal(run(0), run(0))
    draws = not torch.equal(run(0), run(1))
    assert draws == (case in {"attention, noisy cosines", "MIND, redrawn"})
    extractor.eval()
    assert torch.equal(run(0), run(1))


def test_impossible_settings_are_refused() -> None:
    sizes = Sizes(D, K, L)
    with pytest.raises(ConfigError, match="keeps them equal"):
        make_extractor({"kind": "routing", "logits": "zero"}, sizes)
    make_extractor({"kind": "routing", "logits": "zero"}, Sizes(D, 1, L))
    with pytest.raises(ConfigError, match="fewer prototypes"):
        make_extractor({"kind": "prototypes", "num_prototypes": 2}, sizes)
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        make_extractor({"kind": "atention"}, sizes)
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        make_extractor({"kind": "routing", "round": 2}, sizes)
    with pytest.raises(ConfigError, match="has no kind"):
        make_extractor({"rounds": 2}, sizes)
