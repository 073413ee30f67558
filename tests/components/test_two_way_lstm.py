"""The two LSTMs against ``nn.LSTM`` on every sequence alone, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemirec.components.two_way_lstm import two_way_states

G, L, D, E = 6, 5, 4, 7
LENGTHS = [5, 3, 1, 0, 5, 2]


def alone(lstms: list[nn.LSTM], item_GLD: Tensor, map_LDE: Tensor) -> list[Tensor]:
    """The states ``[G, L, D]`` of each direction, zero at padding, from one unpadded sequence at a time."""
    states = [torch.zeros(G, L, D) for _ in lstms]
    for g, length in enumerate(LENGTHS):
        if length:
            read_LE = torch.einsum("ld,lde->le", item_GLD[g, :length], map_LDE[:length])
            states[0][g, :length] = lstms[0](read_LE)[0]
            states[1][g, :length] = lstms[1](read_LE.flip(0))[0].flip(0)
    return states


def test_states_and_gradients_are_those_of_two_lstms() -> None:
    """Items go through a map of their position first, which the input maps take in."""
    torch.manual_seed(0)
    lstms = [nn.LSTM(E, D), nn.LSTM(E, D)]
    mask_GL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    item_GLD, map_LDE = torch.randn(G, L, D) * mask_GL[:, :, None], torch.randn(L, D, E)

    input_XE, recurrent_XD, *bias_X = zip(lstms[0].all_weights[0], lstms[1].all_weights[0], strict=True)
    map_L2DX = torch.stack([map_LDE @ weight_XE.T for weight_XE in input_XE], dim=1)
    recurrent_2DX = torch.stack(recurrent_XD).transpose(1, 2)
    bias_2X = torch.stack(bias_X[0]) + torch.stack(bias_X[1])
    found = [
        state_GLD * mask_GL[:, :, None]
        for state_GLD in two_way_states(item_GLD, map_L2DX, recurrent_2DX, bias_2X, mask_GL)
    ]
    wanted = alone(lstms, item_GLD, map_LDE)
    grads = []
    for states in (found, wanted):
        weight_GLD = torch.randn(2, G, L, D, generator=torch.Generator().manual_seed(1))
        loss = sum((w * state).sum() for w, state in zip(weight_GLD, states, strict=True))
        assert isinstance(loss, Tensor)
        grads.append(torch.autograd.grad(loss, [p for lstm in lstms for p in lstm.parameters()]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
    assert all((grad != 0).any() for grad in grads[0])
    with torch.no_grad():
        again = two_way_states(item_GLD, map_L2DX, recurrent_2DX, bias_2X, mask_GL)
    assert torch.equal(again[0] * mask_GL[:, :, None], found[0])
