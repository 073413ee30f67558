"""The denoiser of DMI: a noised interest reads those items of the history that it is about, and is made clean.

One step (METHODS 2.3; all of it is a reconstruction, the paper's is not published), x noised, t its time, X the unit
vectors of the history's items::

    q     = x + time(t)
    score = q W_q X^T                                         one head; W_q starts as the identity
    c     = sqrt(D) (A X) W_v,  A = softmax_L(score) over the items that are kept    pruned anew at every step
    x0^   = x / sqrt(a_t) + g * c + g' * u + FFN( LN( q + c + u ) )

``u`` is optional guidance by other users (:mod:`gemirec.components.guidance`). g, g' (one number per dimension) and the
last layer of FFN start at 0 (g' at ``guide_start``): an untrained denoiser returns what it is given, whatever the time.
The item vectors are keys and values themselves, so that nothing of size L x D^2 is computed per step: the two maps act
on K queries.

Axes: B batch, L history length, K interests, D embedding, T steps of the forward process and one for none.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from gemirec.components.roles import Count, Positive, two_layers
from gemirec.config import Config

Prune = Literal["top", "mean", "learned", "none"]
_MASKED = -1e9
_SLACK = 1e-4
"""Scores so close below a limit reach it: equal items are kept or pruned together, whatever rounding does."""


class PruneConfig(Config, frozen=True, kw_only=True):
    """Which items of the history an interest reads. The paper's rule is not published: all of it is ours."""

    rule: Prune = "top"
    """``top``: the share ``rho`` of the items that score best. ``mean``: items that score at least the mean.
    ``learned``: items that score at least a learned number of standard deviations above the mean; what is kept is 0 or
    1, its gradient that of a sigmoid. ``none``: all. Under any rule the best item is kept."""
    rho: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the items that ``top`` keeps, rounded up: one item at least."""
    threshold: float = 0.0
    """Where the threshold of ``learned`` starts, in standard deviations of a user's scores."""
    softness: Positive = 0.5
    """Width of the sigmoid whose gradient ``learned`` takes, in standard deviations."""


class DenoiserConfig(Config, frozen=True, kw_only=True):
    """The denoiser's shape (ours)."""

    hidden_factor: Count = 2
    """Width of the hidden layer in multiples of ``dim``."""
    prune: PruneConfig = PruneConfig()
    """Which items are read."""
    cross_attention: bool = True
    """Read the history at all. Without it ``c`` is 0, and guidance is all that a step knows of beside the interest."""
    guide_start: Annotated[float, Meta(ge=0, le=4)] = 0.0
    """Where ``g'`` starts, how much of the guidance each step adds. Above 0 an untrained denoiser is not the identity:
    it draws interests to what other users say from the first training step on."""


def kept_items(
    score_BKL: Tensor, mask_BL: Tensor, config: PruneConfig, threshold: Tensor | float | None = None
) -> Tensor:
    """Return 1 where an interest keeps an item and 0 elsewhere, ``[B, K, L]`` float32.

    Padding is never kept; of a history with items at least the best one is. Gradient flows for ``learned`` alone, to
    scores and threshold (straight through); the choice of the other rules has none, the attention over what they keep
    has its own.

    Args:
        score_BKL: ``[B, K, L]`` scores.
        mask_BL: ``[B, L]`` bool, true at real items.
        config: The rule.
        threshold: Of ``learned``; ``None`` takes the config's.

    Example:
        >>> score_BKL, mask_BL = torch.tensor([[[3.0, 1.0, 2.0, 9.0]]]), torch.tensor([[True, True, True, False]])
        >>> kept_items(score_BKL, mask_BL, PruneConfig(rule="top", rho=0.5))
        tensor([[[1., 0., 1., 0.]]])
        >>> kept_items(score_BKL, mask_BL, PruneConfig(rule="top", rho=0.001))
        tensor([[[1., 0., 0., 0.]]])
    """
    real_BKL, score_BKL = mask_BL[:, None].expand_as(score_BKL), score_BKL.float()
    if config.rule == "none":
        return real_BKL.float()
    shown_BKL = score_BKL.masked_fill(~real_BKL, _MASKED)
    count_B11 = mask_BL.sum(dim=1)[:, None, None]
    if config.rule == "top":
        last_B11 = (config.rho * count_B11).ceil().long().clamp(min=1) - 1
        descending_BKL = shown_BKL.detach().sort(dim=2, descending=True).values
        limit_BK1 = descending_BKL.gather(2, last_B11.expand(-1, score_BKL.shape[1], -1))
        return ((shown_BKL >= limit_BK1 - _SLACK) & real_BKL).float()
    count_B11 = count_B11.clamp(min=1)
    above_BKL = score_BKL - (score_BKL * real_BKL).sum(dim=2, keepdim=True) / count_B11
    if config.rule == "mean":
        return ((above_BKL >= -_SLACK) & real_BKL).float()
    variance_BK1 = (above_BKL.square() * real_BKL).sum(dim=2, keepdim=True) / count_B11
    over_BKL = above_BKL * (variance_BK1 + 1e-6).rsqrt() - (config.threshold if threshold is None else threshold)
    best_BKL = shown_BKL >= shown_BKL.amax(dim=2, keepdim=True) - _SLACK
    hard_BKL = (((over_BKL >= -_SLACK) | best_BKL) & real_BKL).float()
    soft_BKL = torch.sigmoid(over_BKL / config.softness) * real_BKL
    return hard_BKL + (soft_BKL - soft_BKL.detach())


class TimeEmbedding(nn.Module):
    """``W_2 silu( W_1 p(t) + b_1 ) + b_2``, p sines and cosines of t, their wavelengths spread from 2 pi to 4 T.

    ``W_2`` starts at zero: an untrained one says nothing.

    Args:
        steps: T, the largest time.
        dim: D.
    """

    sinusoid_TD: Tensor

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        half = (dim + 1) // 2
        rate = torch.exp(-torch.linspace(0, 1, half) * math.log(max(4 * steps / (2 * math.pi), 1)))
        angle = torch.arange(steps + 1)[:, None] * rate
        self.register_buffer("sinusoid_TD", torch.cat([angle.sin(), angle.cos()], dim=1)[:, :dim], persistent=False)
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        _zero(self.network[2])

    def forward(self, step_B: Tensor) -> Tensor:
        """Return ``[B, D]`` of times ``[B]`` int64, 0 to T."""
        out_BD: Tensor = self.network(self.sinusoid_TD[step_B])
        return out_BD


class Denoiser(nn.Module):
    """One prediction of the clean interests; see the module's docstring. ``forward`` can be exported on its own.

    Interests live where their dimensions have variance 1: directions times ``sqrt(D)``.

    Args:
        config: Its shape.
        dim: D.
        signal_T: ``[T + 1]`` float32, the forward process's ``a_t``.
        guided: It is given guidance.
    """

    skip_T: Tensor

    def __init__(self, config: DenoiserConfig, dim: int, signal_T: Tensor, *, guided: bool = False) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.register_buffer("skip_T", signal_T.rsqrt(), persistent=False)
        self.time = TimeEmbedding(len(signal_T) - 1, dim)
        self.query, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.value.weight)
        self.norm = nn.LayerNorm(dim)
        self.network = two_layers(dim, config.hidden_factor * dim, dim)
        _zero(self.network[2])
        self.context_gate_D = nn.Parameter(torch.zeros(dim))
        self.guide_gate_D = nn.Parameter(torch.full((dim,), config.guide_start)) if guided else None
        learned = config.prune.rule == "learned"
        self.threshold = nn.Parameter(torch.tensor(config.prune.threshold)) if learned else None

    def forward(
        self,
        noised_BKD: Tensor,
        step_B: Tensor,
        item_BLD: Tensor,
        mask_BL: Tensor,
        guide_BKD: Tensor | None = None,
    ) -> Tensor:
        """Return x0^ ``[B, K, D]`` float32.

        Args:
            noised_BKD: ``[B, K, D]`` x_t.
            step_B: ``[B]`` int64 t, from 0 to T; ``[1]`` for one time for all.
            item_BLD: ``[B, L, D]`` unit vectors of the history's items, zero at padding.
            mask_BL: ``[B, L]`` bool, true at real items. Without any the context is zero.
            guide_BKD: ``[B, K, D]`` what other users say; only, and always, if ``guided``.
        """
        noised_BKD = noised_BKD.float()
        timed_BKD = noised_BKD + self.time(step_B)[:, None]
        attention_BKL = self._attention(timed_BKD, item_BLD, mask_BL)
        context_BKD = self.value(math.sqrt(self.dim) * (attention_BKL.to(item_BLD.dtype) @ item_BLD))
        clean_BKD = self.skip_T[step_B][:, None, None] * noised_BKD + self.context_gate_D * context_BKD
        mixed_BKD = timed_BKD + context_BKD
        if self.guide_gate_D is not None:
            assert guide_BKD is not None
            clean_BKD = clean_BKD + self.guide_gate_D * guide_BKD
            mixed_BKD = mixed_BKD + guide_BKD
        out_BKD: Tensor = clean_BKD + self.network(self.norm(mixed_BKD))
        return out_BKD.float()

    def attention(self, noised_BKD: Tensor, step_B: Tensor, item_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what each interest reads: ``[B, K, L]`` float32, rows summing to 1 over the items it keeps.

        Arguments as for :meth:`forward`. Rows of histories without items are zero, without cross-attention all are.
        """
        return self._attention(noised_BKD.float() + self.time(step_B)[:, None], item_BLD, mask_BL)

    def _attention(self, timed_BKD: Tensor, item_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        score_BKL = (self.query(timed_BKD) @ item_BLD.transpose(1, 2)).float()
        kept_BKL = kept_items(score_BKL, mask_BL, self.config.prune, self.threshold)
        if not self.config.cross_attention:
            return torch.zeros_like(kept_BKL)
        share_BKL = torch.softmax(score_BKL.masked_fill(~mask_BL[:, None], _MASKED), dim=2) * kept_BKL
        return share_BKL / share_BKL.sum(dim=2, keepdim=True).clamp(min=1e-20)


def _zero(layer: nn.Module) -> None:
    """Let a linear layer start as zero."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
