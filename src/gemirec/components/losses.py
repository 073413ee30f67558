"""The retrieval loss: softmax over the target and shared negatives, for one or several interest vectors.

For example b with interests ``h_bk``, target v and candidates v_j, scores are inner products divided by the
temperature, ``s = h.v / tau``, less ``log q`` with the logQ correction, and::

    L_b = -log( e^{s_v} / (e^{s_v} + sum_j w_bj e^{s_bj}) )

``w`` is 1, or REMI's hard-negative weight ``e^{beta s_bj} / mean_j e^{beta s_bj}`` (``s`` there without logQ;
arXiv 2302.14532). Which interest gives the scores is the *readout*:

- ``hard``: the interest nearest to the target scores everything (MIND's limit, ComiRec eq. 6-7, REMI);
- ``best``: each candidate is scored by the interest nearest to *it*, which is what serving does;
- ``label_aware``: the mixture ``sum_k a_k h_k`` with ``a = softmax((h_k.v)^p)`` scores everything (MIND eq. 8).

Axes: B batch, K interests, D embedding, S candidates, J further negatives of a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.negatives import make_sampler
from gemirec.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER = -1e30
"""Logit of a masked candidate: finite, so that a row with every candidate masked has a gradient that is finite."""
_ARGMAX_POWER = 100.0
"""From this power on, label-aware attention is the argmax (the rule of DeepMatch and EasyRec)."""
_LARGEST_LOG_LOGIT = 9.0


class LossConfig(Config, frozen=True, kw_only=True):
    """The retrieval loss: where negatives come from and how scores are made."""

    negatives: Literal["uniform", "log_uniform", "popularity", "in_batch", "mixed"] = "uniform"
    """Where candidates come from. ``log_uniform``: over items ordered by training count (TensorFlow's default).
    ``popularity``: count^alpha. ``in_batch``: the other targets. ``mixed``: in-batch and sampled together."""
    mixed_with: Literal["uniform", "log_uniform", "popularity"] = "uniform"
    """The sampled part of ``mixed``."""
    num_negatives: Annotated[int, Meta(ge=1)] = 1280
    """Sampled candidates per batch, shared by its rows (ComiRec: 10 x batch). Not used by ``in_batch``."""
    unique: bool = False
    """Draw distinct candidates, as TensorFlow does; otherwise with replacement, as REMI does."""
    alpha: Annotated[float, Meta(ge=0)] = 0.75
    """Exponent of ``popularity``."""
    log_q: bool = True
    """Subtract the log of the expected count from every logit, so that frequent negatives are not over-punished."""
    mask_hits: bool = True
    """Leave out candidates that are the row's own target."""
    normalize: bool = False
    """Compare L2-normalised vectors, in training and at serving."""
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """Scores are divided by this in the loss. With ``normalize``, about 0.05 to 0.2."""
    beta: Annotated[float, Meta(ge=0)] = 0.0
    """REMI's hard-negative exponent; 0 weights negatives alike. Its paper: 10 books, 1 Gowalla, 0.1 RetailRocket."""
    detach_weights: bool = False
    """Stop the gradient through REMI's weights. The released code does not."""


class MultiInterestLossConfig(LossConfig, frozen=True, kw_only=True):
    """The retrieval loss of a model with several interests: also which of them is trained."""

    readout: Literal["hard", "best", "label_aware"] = "hard"
    """Which interest scores the candidates; see the module's docstring."""
    power: Annotated[float, Meta(ge=0)] = 1.0
    """The p of ``label_aware``; 0 averages the interests, 100 and more is ``hard``."""


class RetrievalLoss:
    """The loss that ``config`` describes, with its sampler.

    Args:
        config: What to compute.
        train_count_N: ``[N + 1]`` training events per item, entry 0 for padding.

    Example:
        >>> import numpy as np
        >>> loss = RetrievalLoss(LossConfig(num_negatives=8), np.array([0, 5, 3, 2]))
        >>> table = torch.zeros(4, 2)
        >>> interest_BKD = torch.zeros(1, 1, 2)
        >>> value = loss(interest_BKD, torch.tensor([1]), lambda ids: table[ids])
        >>> value.ndim
        0
    """

    def __init__(self, config: LossConfig, train_count_N: Any) -> None:
        self.config = config
        self.sampler = make_sampler(config, train_count_N)

    def __call__(
        self,
        interest_BKD: Tensor,
        target_B: Tensor,
        look_up: Callable[[Tensor], Tensor],
        *,
        mask_BK: Tensor | None = None,
        weight_B: Tensor | None = None,
        generator: torch.Generator | None = None,
        negative_BJ: Tensor | None = None,
    ) -> Tensor:
        """Draw candidates and return the mean loss, a float32 scalar; 0 for a batch without rows.

        Args:
            interest_BKD: ``[B, K, D]`` interests, normalised if ``config.normalize``.
            target_B: ``[B]`` int64 positive items.
            look_up: Gives the vectors ``[n, D]`` of ids ``[n]``, normalised if ``config.normalize``.
            mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
            weight_B: ``[B]`` example weights; the mean is weighted by them. ``None`` for equal ones.
            generator: Source of the draws; torch's global one if ``None``.
            negative_BJ: ``[B, J]`` scores of further negatives of each row (GemiRec's interest negatives), before the
                temperature; -1e30 masks one. They get neither log q nor REMI's weight.
        """
        batch = len(target_B)
        if batch == 0:
            return interest_BKD.float().sum()
        with torch.no_grad():
            negatives = self.sampler.sample(target_B, generator)
            bias_BS = self._bias(target_B, negatives.id_S, negatives.log_q_S)
        if self.sampler.in_batch:  # the first B candidates are the targets: one lookup serves both
            negative_SD = look_up(negatives.id_S)
            positive_BD = negative_SD[:batch]
        else:
            vector_ED = look_up(torch.cat([target_B, negatives.id_S]))
            positive_BD, negative_SD = vector_ED[:batch], vector_ED[batch:]
        bias_B = -negatives.log_q_target_B if self.config.log_q else None
        with torch.autocast(target_B.device.type, enabled=False):  # exponentials want float32
            loss_B = softmax_loss(
                self.config,
                interest_BKD.float(),
                positive_BD.float(),
                negative_SD.float(),
                bias_B=bias_B,
                bias_BS=bias_BS,
                mask_BK=mask_BK,
                negative_BJ=None if negative_BJ is None else negative_BJ.float(),
            )
            if weight_B is None:
                return loss_B.mean()
            return (loss_B * weight_B).sum() / weight_B.sum()

    def _bias(self, target_B: Tensor, id_S: Tensor, log_q_S: Tensor) -> Tensor:
        """Return ``[B, S]``: minus log q where a candidate counts, a very small number where it is masked."""
        bias_S = -log_q_S if self.config.log_q else torch.zeros_like(log_q_S)
        if self.config.mask_hits:
            return torch.where(target_B[:, None] == id_S, _NEVER, bias_S)
        bias_BS = bias_S.expand(len(target_B), -1).clone()
        if self.sampler.in_batch:  # a row's own target is its positive, never its negative
            bias_BS[:, : len(target_B)].fill_diagonal_(_NEVER)
        return bias_BS


def softmax_loss(
    config: LossConfig,
    interest_BKD: Tensor,
    positive_BD: Tensor,
    negative_SD: Tensor,
    *,
    bias_B: Tensor | None,
    bias_BS: Tensor,
    mask_BK: Tensor | None = None,
    negative_BJ: Tensor | None = None,
) -> Tensor:
    """Return ``[B]`` losses, given the candidates; the formula of the module's docstring.

    Args:
        config: Which loss; the sampler's fields are not read.
        interest_BKD: ``[B, K, D]`` float32.
        positive_BD: ``[B, D]`` float32 target vectors.
        negative_SD: ``[S, D]`` float32 candidate vectors.
        bias_B: ``[B]`` added to the positive's logit (minus log q), or ``None``.
        bias_BS: ``[B, S]`` added to the candidates' logits; ``-1e30`` masks a candidate.
        mask_BK: ``[B, K]`` bool, true where an interest exists.
        negative_BJ: ``[B, J]`` float32 scores of further negatives, or ``None``.
    """
    scale = 1 / config.temperature
    readout, power = _readout(config)
    if readout == "best" and interest_BKD.shape[1] > 1:
        positive_B = _mask(torch.einsum("bkd,bd->bk", interest_BKD, positive_BD), mask_BK).amax(1) * scale
        score_BS = _mask(interest_BKD @ negative_SD.T, mask_BK).max(dim=1).values * scale
    else:
        user_BD = read_out(interest_BKD, positive_BD, mask_BK, power) * scale
        positive_B = (user_BD * positive_BD).sum(-1)
        score_BS = user_BD @ negative_SD.T
    if bias_B is not None:
        positive_B = positive_B + bias_B
    further = [] if negative_BJ is None else [negative_BJ * scale]
    if config.beta > 0:
        mass_B1 = _weighted_log_mass(score_BS, bias_BS, config)[:, None]
        mass_B = _log_sum_exp(torch.cat([mass_B1, *further], dim=1)) if further else mass_B1[:, 0]
        return F.softplus(mass_B - positive_B)
    first_B = torch.zeros(len(score_BS), dtype=torch.int64, device=score_BS.device)
    logit_BE = torch.cat([positive_B[:, None], score_BS + bias_BS, *further], dim=1)
    return F.cross_entropy(logit_BE, first_B, reduction="none")


def read_out(interest_BKD: Tensor, positive_BD: Tensor, mask_BK: Tensor | None, power: float) -> Tensor:
    """Return the one vector ``[B, D]`` per row that scores all candidates (``hard`` and ``label_aware``)."""
    if interest_BKD.shape[1] == 1:
        return interest_BKD[:, 0]
    if power < _ARGMAX_POWER:
        weight_BK = label_aware_weights(interest_BKD, positive_BD, power, mask_BK)
        return torch.einsum("bk,bkd->bd", weight_BK, interest_BKD)
    with torch.no_grad():
        score_BK = torch.einsum("bkd,bd->bk", interest_BKD, positive_BD)
        best_B = _mask(score_BK, mask_BK).argmax(dim=1)
    return interest_BKD[torch.arange(len(best_B), device=best_B.device), best_B]


def label_aware_weights(interest_BKD: Tensor, positive_BD: Tensor, power: float, mask_BK: Tensor | None) -> Tensor:
    """Return ``softmax_k(sign(s) |s|^p)``, ``s = h_k.v`` ``[B, K]``: MIND's label-aware attention.

    A negative score keeps its sign (the paper's plain power is undefined there for a fractional p), p = 0 gives equal
    weights, and where the best power exceeds ``e^9`` all are divided by what brings it there, so that none overflows.
    """
    score_BK = torch.einsum("bkd,bd->bk", interest_BKD, positive_BD)
    if power == 0:
        return torch.softmax(_mask(torch.zeros_like(score_BK), mask_BK), dim=1)
    log_BK = power * score_BK.abs().clamp(min=1e-6).log()
    top_B1 = _mask(score_BK, mask_BK).argmax(dim=1, keepdim=True)
    excess_B1 = (log_BK.gather(1, top_B1) - _LARGEST_LOG_LOGIT).clamp(min=0)
    logit_BK = score_BK.sign() * (log_BK - excess_B1).clamp(max=_LARGEST_LOG_LOGIT + 3).exp()
    return torch.softmax(_mask(logit_BK, mask_BK), dim=1)


def _readout(config: LossConfig) -> tuple[str, float]:
    """Return the readout's name and its power; ``hard`` is label-aware attention with an infinite one."""
    if not isinstance(config, MultiInterestLossConfig) or config.readout == "hard":
        return "hard", math.inf
    return config.readout, config.power


def _weighted_log_mass(score_BS: Tensor, bias_BS: Tensor, config: LossConfig) -> Tensor:
    """Return ``log sum_j w_j e^{s_j + bias_j}`` ``[B]`` with REMI's weights, in log space throughout.

    With ``w_j = n e^{beta s_j} / sum_i e^{beta s_i}`` over the n unmasked candidates this is
    ``logsumexp((1 + beta) s + bias) - logsumexp(beta s) + log n``.
    """
    masked_BS = bias_BS <= _NEVER / 2
    count_B = masked_BS.shape[1] - masked_BS.sum(dim=1)
    tilting_BS = score_BS.detach() if config.detach_weights else score_BS
    log_norm_B = _log_sum_exp(torch.add(masked_BS * _NEVER, tilting_BS, alpha=config.beta))
    if config.detach_weights:
        log_sum_B = _log_sum_exp(score_BS + bias_BS + config.beta * tilting_BS)
    else:
        log_sum_B = _log_sum_exp(torch.add(bias_BS, score_BS, alpha=1 + config.beta))
    log_mass_B = log_sum_B - log_norm_B + count_B.clamp(min=1).log()
    return log_mass_B.masked_fill(count_B == 0, _NEVER)


def _log_sum_exp(finite_BS: Tensor) -> Tensor:
    """Return ``log sum_s e^x`` ``[B]``; a third of the passes of ``torch.logsumexp``, which also handles infinities."""
    largest_B1 = finite_BS.detach().amax(dim=1, keepdim=True)
    return (finite_BS - largest_B1).exp_().sum(dim=1).log() + largest_B1[:, 0]


def _mask(score_BK_: Tensor, mask_BK: Tensor | None) -> Tensor:
    """Put a very small score at interests that do not exist; ``score_BK_`` is ``[B, K]`` or ``[B, K, S]``."""
    if mask_BK is None:
        return score_BK_
    missing_BK = ~mask_BK
    return score_BK_.masked_fill(missing_BK if score_BK_.ndim == 2 else missing_BK[:, :, None], _NEVER)
