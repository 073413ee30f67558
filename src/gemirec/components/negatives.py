"""Negative samplers: which items the positive is compared with, and how often each was to be expected.

Every sampler answers ``sample(target_B, generator)`` with candidate ids and the log of their *expected count* among
the candidates; subtracting that from a logit is the logQ correction of sampled softmax (Bengio & Senecal 2008;
TensorFlow's ``sampled_softmax_loss``; Yi et al. 2019 for in-batch). Candidates are shared by the whole batch, so the
loss costs one matrix product. Item 0 (padding) is never drawn.

Axes: B batch, S candidates, N items (row 0 of an ``N`` axis is padding).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gemirec.components.losses import LossConfig

_MOST_TRIES = 64
"""A draw of S distinct ids gives up after this many times S tries and returns the distinct ids found so far."""


class Negatives(NamedTuple):
    """Candidates of one batch.

    Attributes:
        id_S: ``[S]`` int64 item ids, on the device of the targets.
        log_q_S: ``[S]`` float32 log of each candidate's expected count among the ``S``.
        log_q_target_B: ``[B]`` float32 the same for the targets.
    """

    id_S: Tensor
    log_q_S: Tensor
    log_q_target_B: Tensor


class Proposal(ABC):
    """A distribution over items that can be drawn from quickly, whatever the size of the catalogue."""

    num_items: int

    @abstractmethod
    def draw(self, size: int, generator: torch.Generator | None) -> Tensor:
        """Draw ``size`` ids independently; returns ``[size]`` int64 on the CPU."""

    @abstractmethod
    def log_prob(self, item_ids: Tensor) -> Tensor:
        """Return the log probability of ``item_ids`` ``[...]``, float32 on their device."""


class Uniform(Proposal):
    """Every item is equally likely."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def draw(self, size: int, generator: torch.Generator | None) -> Tensor:
        """Draw ``size`` ids."""
        return torch.randint(1, self.num_items + 1, (size,), generator=generator)

    def log_prob(self, item_ids: Tensor) -> Tensor:
        """Return ``-log N`` for every id."""
        return torch.full(item_ids.shape, -math.log(self.num_items), device=item_ids.device)


class _Tabled(Proposal):
    """A proposal whose log probabilities lie in a table, copied to a device on first use there."""

    def __init__(self, log_prob_N: Tensor) -> None:
        self.num_items = len(log_prob_N) - 1
        self._log_prob_N = {"cpu": log_prob_N.float()}

    def log_prob(self, item_ids: Tensor) -> Tensor:
        """Look ``item_ids`` up."""
        device = str(item_ids.device)
        if device not in self._log_prob_N:
            self._log_prob_N[device] = self._log_prob_N["cpu"].to(item_ids.device)
        return self._log_prob_N[device][item_ids]


class LogUniform(_Tabled):
    """``p(item of popularity rank r) = log((r + 1) / r) / log(N + 1)``, r from 1: close to a Zipf law.

    TensorFlow's default sampler, which ComiRec uses. There the class number stands in for the rank and class 0
    (padding) is the likeliest negative; here the rank comes from the training counts and padding is left out.

    Args:
        train_count_N: ``[N + 1]`` training events per item.
    """

    def __init__(self, train_count_N: Tensor) -> None:
        self._id_by_rank = torch.argsort(train_count_N[1:], descending=True, stable=True) + 1
        rank_N = torch.arange(1, len(train_count_N), dtype=torch.float64)
        log_prob_N = torch.full((len(train_count_N),), -math.inf, dtype=torch.float64)
        log_prob_N[self._id_by_rank] = torch.log(torch.log1p(1 / rank_N) / math.log(len(train_count_N)))
        super().__init__(log_prob_N)

    def draw(self, size: int, generator: torch.Generator | None) -> Tensor:
        """Invert the distribution function, ``log(r + 1) / log(N + 1)``."""
        uniform = torch.rand(size, dtype=torch.float64, generator=generator)
        rank = torch.exp(uniform * math.log(self.num_items + 1)).long() - 1
        return self._id_by_rank[rank.clamp_(max=self.num_items - 1)]


class Popularity(_Tabled):
    """``p(item) ~ train_count^alpha``; an item without training events counts as seen once, so that log q is finite.

    Args:
        train_count_N: ``[N + 1]`` training events per item.
        alpha: 0 gives the uniform, 1 the unigram, 0.75 word2vec's distribution.
    """

    def __init__(self, train_count_N: Tensor, alpha: float) -> None:
        mass_N = train_count_N.double().clamp(min=1) ** alpha
        mass_N[0] = 0
        super().__init__(torch.log(mass_N / mass_N.sum()))
        self._cumulative_N = torch.cumsum(mass_N, 0)

    def draw(self, size: int, generator: torch.Generator | None) -> Tensor:
        """Invert the cumulative distribution by binary search: ``log2 N`` steps a draw."""
        uniform = torch.rand(size, dtype=torch.float64, generator=generator) * self._cumulative_N[-1]
        return torch.searchsorted(self._cumulative_N, uniform, right=True).clamp_(1, self.num_items)


class Sampler(ABC):
    """Gives the candidates of a batch.

    Attributes:
        in_batch: Whether the first B candidates are the batch's own targets, in order.
    """

    in_batch: bool = False

    @abstractmethod
    def sample(self, target_B: Tensor, generator: torch.Generator | None = None) -> Negatives:
        """Draw the candidates of a batch with targets ``target_B`` ``[B]``."""


class Sampled(Sampler):
    """S draws from a proposal, shared by the batch.

    Args:
        proposal: Where ids come from.
        num_negatives: S. With ``unique`` at most the number of items.
        unique: Draw until S *distinct* ids are found, as TensorFlow's candidate samplers do; the expected count is
            then ``1 - (1 - q)^tries``. A skewed proposal over few items may give up early with fewer than S.
    """

    def __init__(self, proposal: Proposal, num_negatives: int, unique: bool) -> None:
        self.proposal = proposal
        self.unique = unique
        self.num_negatives = min(num_negatives, proposal.num_items) if unique else num_negatives

    def draw(self, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """Return ``[S]`` ids on the CPU and the number of tries behind them."""
        if not self.unique:
            return self.proposal.draw(self.num_negatives, generator), self.num_negatives
        drawn = self.proposal.draw(2 * self.num_negatives, generator)
        while True:
            first = _first_occurrences(drawn)
            if len(first) >= self.num_negatives:
                first = first[: self.num_negatives]
                return drawn[first], int(first[-1]) + 1
            if len(drawn) >= _MOST_TRIES * self.num_negatives:
                return drawn[first], len(drawn)
            drawn = torch.cat([drawn, self.proposal.draw(len(drawn), generator)])

    def log_count(self, item_ids: Tensor, tries: int) -> Tensor:
        """Return the log expected count of ``item_ids`` ``[...]`` after ``tries`` draws."""
        log_prob = self.proposal.log_prob(item_ids)
        if not self.unique:
            return log_prob + math.log(tries)
        never = tries * torch.log1p(-log_prob.exp().clamp(max=1 - 1e-7))
        return torch.log(-torch.expm1(never))

    def sample(self, target_B: Tensor, generator: torch.Generator | None = None) -> Negatives:
        """Draw S ids."""
        ids, tries = self.draw(generator)
        id_S = ids.to(target_B.device)
        return Negatives(id_S, self.log_count(id_S, tries), self.log_count(target_B, tries))


class InBatch(Sampler):
    """The batch's own targets serve as candidates of every row; S = B.

    The expected count of an item is ``B x`` its share of the training events, which is how often it is a target.
    """

    in_batch = True

    def __init__(self, target: Proposal) -> None:
        self.target = target

    def sample(self, target_B: Tensor, generator: torch.Generator | None = None) -> Negatives:
        """Return the targets; nothing is drawn."""
        log_q_B = self.target.log_prob(target_B) + math.log(len(target_B))
        return Negatives(target_B, log_q_B, log_q_B)


class Mixed(Sampler):
    """In-batch candidates followed by S sampled ones (mixed negative sampling, Yang et al. 2020).

    An item can enter either way, so its expected count is the sum of the two.
    """

    in_batch = True

    def __init__(self, target: Proposal, sampled: Sampled) -> None:
        self.target = target
        self.sampled = sampled

    def sample(self, target_B: Tensor, generator: torch.Generator | None = None) -> Negatives:
        """Draw S ids behind the B targets."""
        ids, tries = self.sampled.draw(generator)
        id_S = torch.cat([target_B, ids.to(target_B.device)])
        log_in_batch = self.target.log_prob(id_S) + math.log(len(target_B))
        log_q_S = torch.logaddexp(log_in_batch, self.sampled.log_count(id_S, tries))
        return Negatives(id_S, log_q_S, log_q_S[: len(target_B)])


def make_sampler(config: LossConfig, train_count_N: Any) -> Sampler:
    """Return the sampler that ``config`` asks for.

    Args:
        config: The fields ``negatives``, ``num_negatives``, ``unique``, ``alpha``, ``mixed_with`` are read.
        train_count_N: ``[N + 1]`` array of training events per item, entry 0 for padding.
    """
    count_N = torch.from_numpy(np.array(train_count_N, dtype=np.int64))
    if config.negatives == "in_batch":
        return InBatch(Popularity(count_N, 1.0))
    kind = config.mixed_with if config.negatives == "mixed" else config.negatives
    proposal: Proposal
    if kind == "uniform":
        proposal = Uniform(len(count_N) - 1)
    elif kind == "log_uniform":
        proposal = LogUniform(count_N)
    else:
        proposal = Popularity(count_N, config.alpha)
    sampled = Sampled(proposal, config.num_negatives, config.unique)
    return Mixed(Popularity(count_N, 1.0), sampled) if config.negatives == "mixed" else sampled


def _first_occurrences(ids: Tensor) -> Tensor:
    """Return, ascending, the positions at which an id of ``ids`` ``[n]`` stands for the first time."""
    value, order = torch.sort(ids, stable=True)
    is_first = torch.ones(len(ids), dtype=torch.bool)
    is_first[1:] = value[1:] != value[:-1]
    return torch.sort(order[is_first]).values
