r"""Two LSTMs over the same sequences, one in each direction, in one loop over positions.

An LSTM's gates are sigmoids ``i, f, s, o`` of ``x A + h R + b``, and with ``tanh(z) = 2 sigmoid(2z) - 1``, on the CPU a
sixth of its price, doubled cells ``C`` and ``S = sigmoid(C)`` a step is::

    C <- f C + 4 i s - 2 i,    h = o (2 S - 1)

where ``s`` has twice the input of LSTM's third gate. Positions may have maps ``A`` of their own, so that an LSTM over a
linear map of items costs a product with the items alone. Backward computes no gradient of the items.

Axes: G sequences, L positions, 2 directions (onward, backward), I input, D state, X = 4 D gates, Y = I + 1 + D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def two_way_states(
    item_GLI: Tensor, map_L2IX: Tensor, recurrent_2DX: Tensor, bias_2X: Tensor, mask_GL: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the states ``[G, L, D]`` of the LSTM that reads onward and of the one that reads backward.

    What stands at padding means nothing. Gradients reach the maps, not the items.

    Args:
        item_GLI: ``[G, L, I]`` inputs, float32, padded on the right; taken as constants.
        map_L2IX: ``[L, 2, I, 4 D]`` input maps of every position; gates in torch's order: input, forget, cell, output.
        recurrent_2DX: ``[2, D, 4 D]`` maps of the state before.
        bias_2X: ``[2, 4 D]``.
        mask_GL: ``[G, L]`` bool, true at real items. The backward LSTM begins at the last of them.
    """
    keep = torch.is_grad_enabled()
    with torch.autocast(item_GLI.device.type, enabled=False):
        scale_X = _per_gate(recurrent_2DX, 1, 1, 2, 1)
        parts = (map_L2IX.float() * scale_X, recurrent_2DX.float() * scale_X, bias_2X.float() * scale_X)
        # Compiled, the loop would be unrolled; nn.LSTM is not compiled either.
        apply = torch.compiler.disable(_TwoWay.apply)  # type: ignore[no-untyped-call]
        onward_LGD, backward_LGD = apply(item_GLI.detach().float(), *parts, mask_GL, keep)
    return onward_LGD.transpose(0, 1), backward_LGD.transpose(0, 1)


def _per_gate(like_X: Tensor, *number: float) -> Tensor:
    """Return ``[4 D]``: one number for each gate."""
    return like_X.new_tensor(number).repeat_interleave(like_X.shape[-1] // 4)


class _TwoWay(torch.autograd.Function):
    """:func:`two_way_states` with ``s``'s maps doubled; states ``[L, G, D]``."""

    @staticmethod
    def forward(
        ctx: Any,
        item_GLI: Tensor,
        map_L2IX: Tensor,
        recurrent_2DX: Tensor,
        bias_2X: Tensor,
        mask_GL: Tensor,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        sequences, length, width = item_GLI.shape
        dim = recurrent_2DX.shape[1]
        # Step t reads position t onward and L - 1 - t backward. Items, a one for the bias and states lie side by side:
        # one product for all.
        step_L2IX = torch.stack([map_L2IX[:, 0], map_L2IX[:, 1].flip(0)], dim=1)
        bias_L21X = bias_2X[:, None].expand(length, -1, -1, -1)
        weight_L2YX = torch.cat([step_L2IX, bias_L21X, recurrent_2DX.expand(length, -1, -1, -1)], dim=2)
        real_LG1 = mask_GL.T[:, :, None].to(item_GLI.dtype)
        read_2GY = item_GLI.new_zeros(2, sequences, width + 1 + dim)
        cell_2GD = item_GLI.new_zeros(2, sequences, dim)
        saved, state = [], []
        for t in range(length):
            read_2GY[0, :, :width] = item_GLI[:, t]
            read_2GY[1, :, :width] = item_GLI[:, length - 1 - t]
            read_2GY[:, :, width] = 1
            gate_2GX = torch.bmm(read_2GY, weight_L2YX[t]).sigmoid_()
            i, f, s, o = gate_2GX.chunk(4, dim=2)
            next_2GD = (f * cell_2GD).addcmul_(i, s, value=4).sub_(i, alpha=2)
            next_2GD[1].mul_(real_LG1[length - 1 - t])  # at padding, the backward LSTM has not begun
            squashed_2GD = next_2GD.sigmoid()
            if keep:
                saved += [read_2GY, gate_2GX, cell_2GD, squashed_2GD]
            cell_2GD, read_2GY = next_2GD, torch.empty_like(read_2GY)
            state.append(torch.addcmul(-o, o, squashed_2GD, value=2, out=read_2GY[:, :, width + 1 :]))
        ctx.save_for_backward(weight_L2YX, real_LG1, *saved)
        ctx.sizes = length, width
        return torch.stack([h[0] for h in state]), torch.stack([h[1] for h in reversed(state)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, onward_LGD: Tensor, backward_LGD: Tensor) -> tuple[Tensor | None, ...]:
        length, width = ctx.sizes
        weight_L2YX, real_LG1, *saved = ctx.saved_tensors
        # Gradients of the gates' inputs lack these factors, which weights and results take instead.
        scale_X = _per_gate(weight_L2YX, 4, 1, 4, 2)
        recurrent_2XD = (weight_L2YX[0, :, width + 1 :] * scale_X).transpose(1, 2).contiguous()
        grad_L2YX = torch.empty_like(weight_L2YX)
        gate_grad_2GX = torch.empty_like(saved[1])
        gi, gf, gs, go = gate_grad_2GX.chunk(4, dim=2)
        cell_grad_2GD = torch.zeros_like(saved[2])
        for t in reversed(range(length)):
            read_2GY, gate_2GX, cell_2GD, squashed_2GD = saved[4 * t : 4 * t + 4]
            i, f, s, o = gate_2GX.chunk(4, dim=2)
            grad_2GD = torch.stack([onward_LGD[t], backward_LGD[length - 1 - t]])
            if t < length - 1:
                grad_2GD.baddbmm_(gate_grad_2GX, recurrent_2XD)
            torch.addcmul(grad_2GD * -0.5, grad_2GD, squashed_2GD, out=go)
            cell_grad_2GD.add_(torch.ops.aten.sigmoid_backward(grad_2GD.mul_(o), squashed_2GD), alpha=2)
            cell_grad_2GD[1].mul_(real_LG1[length - 1 - t])
            torch.addcmul(cell_grad_2GD * -0.5, cell_grad_2GD, s, out=gi)
            torch.mul(cell_grad_2GD, cell_2GD, out=gf)
            torch.mul(cell_grad_2GD, i, out=gs)
            torch.ops.aten.sigmoid_backward.grad_input(gate_grad_2GX, gate_2GX, grad_input=gate_grad_2GX)
            torch.bmm(read_2GY.transpose(1, 2), gate_grad_2GX, out=grad_L2YX[t])
            cell_grad_2GD.mul_(f)
        grad_L2YX *= scale_X
        step_L2IX = grad_L2YX[:, :, :width]
        map_L2IX = torch.stack([step_L2IX[:, 0], step_L2IX[:, 1].flip(0)], dim=1)
        sum_2YX = grad_L2YX[:, :, width:].sum(dim=0)
        return None, map_L2IX, sum_2YX[:, 1:], sum_2YX[:, 0], None, None
