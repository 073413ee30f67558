"""The generator of future interests: its heads against plain NumPy, its causality, its labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.components.codes import all_codes, flat_index
from gemirec.components.decoder import DecoderConfig, InterestDecoder, future_targets
from gemirec.components.interest_heads import FactorisedHead, FlatHead
from gemirec.errors import ConfigError

SIZES = (4, 3, 2)
HEADS = ["flat", "factorised"]
D, L = 6, 5


def decoder(
    head: Any = "flat", feature_width: int = 0, sizes: tuple[int, ...] = SIZES, **fields: Any
) -> InterestDecoder:
    torch.manual_seed(0)
    module = InterestDecoder(DecoderConfig(layers=2, hidden=8, head=head, **fields), sizes, D, feature_width, L)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


def states(count: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def array(tensor: torch.Tensor) -> Any:
    return tensor.detach().double().numpy()


def log_softmax(x: Any) -> Any:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def numpy_log_probs(head: FlatHead | FactorisedHead, state: Any) -> Any:
    """The formulas, tuple by tuple, for one state."""
    if isinstance(head, FlatHead):
        return log_softmax(array(head.output.weight) @ state + array(head.output.bias))
    out = []
    for code in np.ndindex(*head.sizes):
        total, vector = 0.0, state
        for level, layer in enumerate(head.outputs):
            total += log_softmax(array(layer.weight) @ vector + array(layer.bias))[code[level]]  # type: ignore[arg-type]
            if level < len(head.codes):
                vector = vector + array(head.codes[level])[code[level]]
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sizes", [SIZES, (5,), (2, 3, 2, 2)])
def test_heads_equal_numpy_and_sum_to_one(head: str, sizes: tuple[int, ...]) -> None:
    module, state_XH = decoder(head, sizes=sizes), states()
    logp_XM = module.log_probs(state_XH)
    assert logp_XM.shape == (7, math.prod(sizes))
    assert logp_XM.dtype == torch.float32
    np.testing.assert_allclose(logp_XM.exp().sum(1).detach(), 1, atol=1e-5)
    expected = np.stack([numpy_log_probs(module.head, array(state)) for state in state_XH])
    np.testing.assert_allclose(logp_XM.detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_minus_the_log_probability_of_the_tuple(head: str) -> None:
    module = decoder(head)
    code_MC = all_codes(SIZES)
    state_XH = states(len(code_MC)).requires_grad_()
    loss_X = module.loss(state_XH, code_MC)
    gathered_X = -module.log_probs(state_XH).gather(1, flat_index(code_MC, SIZES)[:, None])[:, 0]
    torch.testing.assert_close(loss_X, gathered_X)
    of_loss = torch.autograd.grad(loss_X.sum(), [state_XH, *module.head.parameters()])
    of_gathered = torch.autograd.grad(gathered_X.sum(), [state_XH, *module.head.parameters()])
    torch.testing.assert_close(of_loss, of_gathered)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("k", [1, 5, 24, 100])
def test_top_is_the_sorted_distribution_when_the_beam_holds_all_prefixes(head: str, k: int) -> None:
    module, state_XH = decoder(head), states(50)
    index_Xk, logp_Xk = module.top(state_XH, k, beam=12)
    value_XM, order_XM = module.log_probs(state_XH).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(logp_Xk, value_XM[:, :k].detach())
    assert torch.equal(index_Xk, order_XM[:, :k])


@pytest.mark.parametrize("head", HEADS)
def test_equal_probabilities_come_by_ascending_index(head: str) -> None:
    module = decoder(head)
    for parameter in module.head.parameters():
        torch.nn.init.zeros_(parameter)
    for beam in (1, 4, 12):
        assert module.top(states(3), 5, beam)[0].tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_tie_goes_to_the_lower_index_though_its_prefix_is_less_probable() -> None:
    head = FactorisedHead(8, (2, 2))
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head.outputs[0].bias.data = torch.tensor([0.0, 100.0])  # log-probabilities -100 and 0, exactly
    head.outputs[1].bias.data = torch.tensor([100.0, 0.0])
    index_Xk, logp_Xk = head.top(states(1), 4, beam=2)
    assert index_Xk.tolist() == [[2, 0, 3, 1]]
    assert logp_Xk.tolist() == [[0.0, -100.0, -100.0, -200.0]]


def test_a_narrow_beam_finds_true_log_probabilities_and_enough_of_them() -> None:
    module, state_XH = decoder("factorised"), states(50)
    exact_Xk = module.top(state_XH, 3, beam=12)[1]
    index_Xk, logp_Xk = module.top(state_XH, 3, beam=1)
    assert index_Xk.shape == (50, 3)
    torch.testing.assert_close(logp_Xk, module.log_probs(state_XH).gather(1, index_Xk).detach())
    assert bool((logp_Xk <= exact_Xk + 1e-5).all())
    assert bool((logp_Xk[:, :-1] >= logp_Xk[:, 1:]).all())


def test_the_factorised_head_grows_with_the_sum_of_the_sizes() -> None:
    def parameters(head: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in head.parameters())

    for sizes in [(32, 16, 8, 4), (64, 32, 16, 8), (1000, 1000, 1000)]:
        assert parameters(FactorisedHead(16, sizes)) == sum(sizes) * (16 + 1) + sum(sizes[:-1]) * 16
    assert parameters(FlatHead(16, (32, 16, 8, 4))) == 16_384 * (16 + 1)
    billion = FactorisedHead(16, (1000, 1000, 1000))  # a billion interests, none of them built
    loss_X = billion.loss(torch.zeros(2, 16), torch.tensor([[1, 2, 3], [999, 0, 5]]))
    assert torch.isfinite(loss_X).all()
    assert billion.top(torch.zeros(2, 16), 4, beam=20)[0].shape == (2, 4)


@pytest.mark.parametrize("feature_width", [0, 3])
def test_a_state_reads_the_features_and_the_items_before_it_only(feature_width: int) -> None:
    module = decoder(feature_width=feature_width)
    generator = torch.Generator().manual_seed(1)
    item_BLD = torch.randn(2, L, D, generator=generator)
    feature_BP = torch.randn(2, 3, generator=generator) if feature_width else None
    before = module(item_BLD, feature_BP)
    assert before.shape == (2, L + 1, 8)
    changed_BLD = item_BLD.clone()
    changed_BLD[:, 2:] += 1.0
    after = module(changed_BLD, feature_BP)
    assert torch.equal(before[:, :3], after[:, :3])  # states 0, 1, 2 have read no item, the first, the first two
    assert (before[:, 3:] - after[:, 3:]).abs().amax(2).min() > 0.01
    if feature_BP is not None:
        other = module(item_BLD, feature_BP + 1.0)
        assert (before - other).abs().amax(2).min() > 0.01


def test_padding_behind_and_wider_windows_change_no_real_state() -> None:
    module = decoder()
    item_BLD = torch.randn(1, 3, D, generator=torch.Generator().manual_seed(1))
    padded_BLD = torch.cat([item_BLD, torch.full((1, 2, D), 9.0)], dim=1)
    torch.testing.assert_close(module(padded_BLD)[:, :4], module(item_BLD))
    empty_BLD = torch.zeros(1, 0, D)
    torch.testing.assert_close(module(empty_BLD), module(item_BLD)[:, :1])


def test_the_input_is_projected_items_behind_a_token_with_positions() -> None:
    module = decoder(feature_width=3)
    item_BLD, feature_BP = torch.randn(1, 2, D), torch.randn(1, 3)
    assert module.feature is not None
    rows = [array(module.feature.weight) @ array(feature_BP[0]) + array(module.feature.bias)]
    rows += [array(module.project.weight) @ array(item) for item in item_BLD[0]]
    state = torch.tensor(np.stack(rows) + array(module.position_LH)[:3]).float()[None]
    for block in module.blocks:
        state = block(state)
    torch.testing.assert_close(module(item_BLD, feature_BP), module.norm(state))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads 4, hidden 10"):
        InterestDecoder(DecoderConfig(hidden=10), SIZES, D, 0, L)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 9), st.sampled_from(["all", "last"]))
def test_future_targets_equal_the_loop(lengths: list[int], window: int, positions: Any) -> None:
    width = max(lengths)
    item_BL = torch.zeros(len(lengths), width, dtype=torch.int64)
    expected = []
    for row, n in enumerate(lengths):
        item_BL[row, :n] = 100 * row + 1 + torch.arange(n)
        follow = [*item_BL[row, :n].tolist(), 1000 + row]
        for state in range(1, n + 1):
            if positions == "last" and state < n:
                continue
            following = follow[state : state + window]
            expected += [(row, state, item, np.float32(1 / len(following))) for item in following]
    target_B = 1000 + torch.arange(len(lengths))
    labels = future_targets(item_BL, torch.tensor(lengths), target_B, window, positions)
    assert list(zip(*(part.tolist() for part in labels), strict=True)) == expected
