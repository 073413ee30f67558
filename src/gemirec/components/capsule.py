"""Dynamic routing: a history's items vote for K capsules, and agreement sharpens the votes.

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RoutingAxis = Literal["interests", "positions"]
RoutingGradient = Literal["last", "all"]
LogitUpdate = Literal["add", "replace"]
_MISSING = -1e9


def squash(vector: Tensor) -> Tensor:
    """Return ``|s|^2 / (1 + |s|^2) * s / |s|`` over the last axis, ``|s| = sqrt(sum s^2 + 1e-9)`` (ComiRec's code).

    Example:
        >>> squash(torch.tensor([3.0, 4.0])).norm().item()  # 25 / 26
        0.961...
    """
    square = vector.square().sum(dim=-1, keepdim=True)
    return vector * (square / ((1 + square) * (square + 1e-9).sqrt()))


def adaptive_mask(length_B: Tensor, num_interests: int) -> Tensor:
    """Return ``[B, K]`` bool: the first ``max(1, min(K, floor(log2 length)))`` interests exist (MIND, section 4.2).

    Example:
        >>> adaptive_mask(torch.tensor([1, 3, 8, 16]), 4).sum(1)
        tensor([1, 1, 3, 4])
    """
    needed_K = 2 ** torch.arange(1, num_interests + 1, device=length_B.device)
    needed_K[0] = 0
    return length_B[:, None] >= needed_K


class SharedMap(nn.Module):
    """MIND's votes: one bilinear map for every position and capsule, ``u_l = S e_l``; ``[B, 1, L, D]``.

    Args:
        dim: D.
        bias: Add a trained bias. The released ComiRec code does, seemingly by accident; MIND's paper does not.
        identity: Start at the identity plus the draws, so that capsules begin in the space of the items (ours).
    """

    def __init__(self, dim: int, bias: bool, identity: bool = False) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim, bias=bias)
        nn.init.xavier_uniform_(self.map.weight)
        if identity:
            self.map.weight.data.add_(torch.eye(dim))
        if bias:
            nn.init.uniform_(self.map.bias, -((3 / dim) ** 0.5), (3 / dim) ** 0.5)

    def forward(self, item_BLD: Tensor) -> Tensor:
        """Return the votes of ``[B, L, D]`` items; the capsule axis has size 1, as all capsules see the same."""
        vote: Tensor = self.map(item_BLD)
        return vote[:, None]


class PositionMaps(nn.Module):
    """ComiRec-DR's votes: a map of its own for each position and capsule, ``u_kl = W_lk e_l``; ``[B, K, L, D]``.

    One batched product over positions; ``[B, L, K D, D]``, which released code materialises, never exists.

    Args:
        dim: D.
        num_interests: K.
        max_length: Positions that have a map.
        std: Standard deviation of the normal initialisation (ComiRec's TensorFlow code: 1).
        identity: Start at the identity plus the draws, so that capsules begin in the space of the items (ours).
    """

    def __init__(self, dim: int, num_interests: int, max_length: int, std: float, identity: bool = False) -> None:
        super().__init__()
        self.num_interests = num_interests
        weight_LDE = nn.init.normal_(torch.empty(max_length, dim, num_interests * dim), std=std)
        self.weight_LDE = nn.Parameter(weight_LDE + torch.eye(dim).repeat(1, num_interests) if identity else weight_LDE)

    def forward(self, item_BLD: Tensor) -> Tensor:
        """Return the votes of ``[B, L, D]`` items."""
        batch, length, _ = item_BLD.shape
        vote_LBE = torch.bmm(item_BLD.transpose(0, 1), self.weight_LDE[:length])
        return vote_LBE.view(length, batch, self.num_interests, -1).permute(1, 2, 0, 3)

    def collect(self, item_BLD: Tensor, vote_BKLD: Tensor, weight_BKL: Tensor) -> Tensor:
        """Return ``sum_l w_kl u_kl`` ``[B, K, D]``, float32, of votes that :meth:`forward` gave for the same items.

        Gradients reach items, maps and weights, and pass the votes by: theirs, ``w_kl`` times the sum's, is never in
        memory as a whole, which makes this twice as fast as summing votes that have a gradient.
        """
        with torch.autocast(item_BLD.device.type, enabled=False):
            parts = item_BLD.float(), self.weight_LDE.float(), vote_BKLD.detach().float(), weight_BKL.float()
            collected: Tensor = _Collect.apply(*parts)  # type: ignore[no-untyped-call]
        return collected


class _Collect(torch.autograd.Function):
    """:meth:`PositionMaps.collect`."""

    @staticmethod
    def forward(ctx: Any, item_BLD: Tensor, weight_LDE: Tensor, vote_BKLD: Tensor, weight_BKL: Tensor) -> Tensor:
        ctx.save_for_backward(item_BLD, weight_LDE, vote_BKLD, weight_BKL)
        return _gather_votes(weight_BKL, vote_BKLD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BKD: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        item_BLD, weight_LDE, vote_BKLD, weight_BKL = ctx.saved_tensors
        item_grad_LBD = torch.empty_like(item_BLD.transpose(0, 1), memory_format=torch.contiguous_format)
        weight_grad_LDE = torch.zeros_like(weight_LDE)
        for place in range(item_BLD.shape[1]):
            vote_grad_BE = (weight_BKL[:, :, place, None] * grad_BKD).flatten(1)
            torch.mm(vote_grad_BE, weight_LDE[place].T, out=item_grad_LBD[place])
            torch.mm(item_BLD[:, place].T, vote_grad_BE, out=weight_grad_LDE[place])
        return item_grad_LBD.transpose(0, 1), weight_grad_LDE, None, _agreement(grad_BKD, vote_BKLD)


class InterestMaps(nn.Module):
    """UMI's votes: a map of its own for each capsule, shared by the positions, ``u_kl = W_k e_l``; ``[B, K, L, D]``.

    Args:
        dim: D.
        num_interests: K.
        identity: Start at the identity plus the draws, so that capsules begin in the space of the items (ours).
    """

    def __init__(self, dim: int, num_interests: int, identity: bool = False) -> None:
        super().__init__()
        weight_KDD = torch.stack([nn.init.xavier_uniform_(torch.empty(dim, dim)) for _ in range(num_interests)])
        self.weight_KDD = nn.Parameter(weight_KDD + torch.eye(dim) if identity else weight_KDD)

    def forward(self, item_BLD: Tensor) -> Tensor:
        """Return the votes of ``[B, L, D]`` items; ``W_k`` acts from the right."""
        interests, dim, _ = self.weight_KDD.shape
        vote_BLE = item_BLD @ self.weight_KDD.permute(1, 0, 2).reshape(dim, interests * dim)
        return vote_BLE.view(*item_BLD.shape[:2], interests, dim).transpose(1, 2)


class Routing(nn.Module):
    """R rounds of routing by agreement (MIND algorithm 1, ComiRec algorithm 1).

    Each round computes::

        c = softmax(b);  s_k = sum_l c_kl g_l u_kl;  v_k = squash(s_k);  b_kl += u_kl . v_k

    Args:
        rounds: R, at least 1.
        axis: Axis of the softmax. ``interests``: each item shares one vote among the capsules (both papers and the
            TensorFlow code). ``positions``: each capsule shares one vote among the items (the PyTorch ports).
        gradient: ``last`` lets the gradient flow through the last round's ``s`` alone, as in the released code;
            ``all`` through every round, couplings included.
        update: ``add`` to ``b`` (both papers), or ``replace`` it by the agreement (UMI's release).
    """

    def __init__(
        self, rounds: int, axis: RoutingAxis, gradient: RoutingGradient = "last", update: LogitUpdate = "add"
    ) -> None:
        super().__init__()
        self.rounds = rounds
        self.axis = axis
        self.gradient = gradient
        self.update = update

    def coupling(self, logit_BKL: Tensor, mask_BL: Tensor, mask_BK: Tensor | None) -> Tensor:
        """Return the coupling coefficients ``c`` ``[B, K, L]``, zero at padding and at missing interests."""
        if mask_BK is not None:
            logit_BKL = logit_BKL.masked_fill(~mask_BK[:, :, None], _MISSING)
        if self.axis == "positions":
            logit_BKL = logit_BKL.masked_fill(~mask_BL[:, None], _MISSING)
        weight_BKL = torch.softmax(logit_BKL, dim=1 if self.axis == "interests" else 2) * mask_BL[:, None]
        return weight_BKL if mask_BK is None else weight_BKL * mask_BK[:, :, None]

    def route(
        self,
        vote_BKLD: Tensor,
        logit_BKL: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        gate_BL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the capsules ``[B, K, D]`` and the weights ``c g`` ``[B, K, L]`` that formed them.

        A history without items gives zeros.

        Args:
            vote_BKLD: ``[B, K or 1, L, D]`` votes.
            logit_BKL: ``[B or 1, K, L]`` initial logits.
            mask_BL: ``[B, L]`` bool, true at real items.
            mask_BK: ``[B, K]`` bool, true at interests that exist; missing ones take no part and come out zero.
            gate_BL: ``[B, L]`` weights ``g`` of the items in every capsule (UMI's gate); ``None`` for 1.
        """
        weight_BKL = self.weights(vote_BKLD, logit_BKL, mask_BL, mask_BK, gate_BL)
        return squash(_gather_votes(weight_BKL, vote_BKLD)), weight_BKL

    def weights(
        self,
        vote_BKLD: Tensor,
        logit_BKL: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        gate_BL: Tensor | None = None,
    ) -> Tensor:
        """Return the weights ``c g`` ``[B, K, L]`` of the last round; arguments as in :meth:`route`."""
        every = self.gradient == "all"
        with torch.set_grad_enabled(every and torch.is_grad_enabled()):
            round_BKLD = vote_BKLD if every else vote_BKLD.detach()
            logit_BKL = logit_BKL.float().expand(len(mask_BL), -1, -1)
            for _ in range(self.rounds - 1):
                weight_BKL = _gated(self.coupling(logit_BKL, mask_BL, mask_BK), gate_BL)
                capsule_BKD = squash(_gather_votes(weight_BKL, round_BKLD))
                agreement_BKL = _agreement(capsule_BKD, round_BKLD)
                logit_BKL = logit_BKL + agreement_BKL if self.update == "add" else agreement_BKL
            weight_BKL = self.coupling(logit_BKL, mask_BL, mask_BK)
        return _gated(weight_BKL, gate_BL)  # the gate learns through the last round, whatever the couplings do

    def forward(self, vote_BKLD: Tensor, logit_BKL: Tensor, mask_BL: Tensor, mask_BK: Tensor | None = None) -> Tensor:
        """Return the capsules of :meth:`route` alone."""
        return self.route(vote_BKLD, logit_BKL, mask_BL, mask_BK)[0]


def draw_logits(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    """Draw initial routing logits ``shape`` from a normal truncated at two standard deviations, on the CPU.

    A shared map with equal logits would keep all capsules equal; MIND and UMI draw them, ComiRec-DR starts at zero.

    Example:
        >>> draw_logits((2, 3), 1.0, torch.Generator().manual_seed(0)).abs().max() <= 2
        tensor(True)
    """
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std, generator=generator)


def _gated(weight_BKL: Tensor, gate_BL: Tensor | None) -> Tensor:
    """Multiply coupling coefficients by the items' gates, if there are any."""
    return weight_BKL if gate_BL is None else weight_BKL * gate_BL[:, None].float()


def _gather_votes(weight_BKL: Tensor, vote_BKLD: Tensor) -> Tensor:
    """Return ``sum_l c_kl u_kl`` ``[B, K, D]``, in float32 like the weights."""
    vote_BKLD = vote_BKLD.float()
    if vote_BKLD.shape[1] == 1:
        return weight_BKL @ vote_BKLD[:, 0]
    return torch.einsum("bkl,bkld->bkd", weight_BKL, vote_BKLD)


def _agreement(capsule_BKD: Tensor, vote_BKLD: Tensor) -> Tensor:
    """Return ``u_kl . v_k`` ``[B, K, L]``."""
    vote_BKLD = vote_BKLD.float()
    if vote_BKLD.shape[1] == 1:
        return capsule_BKD @ vote_BKLD[:, 0].transpose(1, 2)
    return torch.einsum("bkd,bkld->bkl", capsule_BKD, vote_BKLD)
