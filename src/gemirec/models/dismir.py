"""DisMIR: items partitioned by what is bought together, and interests by capsules (Du et al., KDD 2024).

DOI 10.1145/3637528.3671800. There is no official code and the paper's equations were not at hand: what follows is the
form of its ports, with their choices as named fields.

Axes: B batch, L history length, K interests, D embedding (the parts of the partition), N items (row 0 is padding),
M neighbours, S negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.bpr import HardestNegativeLoss
from gemirec.components.capsule import Routing, RoutingAxis, SharedMap, draw_logits
from gemirec.components.losses import RetrievalLoss
from gemirec.components.regularizers import partition_contrast
from gemirec.data.cooccurrence import Decay, cooccurrence
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset, DataSpec


class DisMIRConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of DisMIR."""

    partition_weight: Annotated[float, Meta(ge=0)] = 0.1
    """lambda, the weight of the partition contrast (ports: 0.01, 0.1 or 1)."""
    partition_negatives: Count = 100
    """Uniform random items that each pair is contrasted with, shared by the batch (ports: 100)."""
    partition_temperature: PositiveFloat = 1.0
    """Divides the inner products in the partition contrast (ports: 1; with ``loss.normalize`` take about .1)."""
    window: Count = 10
    """Items at most so many positions apart in a training sequence count as bought together (inferred)."""
    decay: Decay = "none"
    """How a pair's weight falls with its distance; ``none`` is the plain count behind a confidence (inferred)."""
    neighbours: Count = 50
    """Strongest neighbours of each item that positives are drawn from (ours; the ports keep all)."""
    transform: Literal["identity", "shared"] = "identity"
    """Votes of the routing: the items themselves (ports), or MIND's shared map."""
    initial_logits: Literal["random", "zero"] = "random"
    """Where routing starts. ``zero`` with one round is the ports': every capsule then gets the same weight of every
    item, and so, for any number of rounds, all K interests are equal. ``random`` draws a fixed matrix as MIND does."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of the random logits, truncated at two of them."""
    logit_seed: int = 0
    """Seed of the random logits."""
    rounds: Count = 3
    """Routing rounds (ports: 1, in which agreement plays no part; 3 as MIND and ComiRec)."""
    routing_axis: RoutingAxis = "interests"
    """Axis of the routing softmax."""
    recommendation: Literal["bpr", "softmax"] = "bpr"
    """Recommendation loss: ``bpr`` against the hardest of a few negatives (ports), which reads only the readout and the
    temperature of ``loss``; or ``softmax``, the retrieval loss that ``loss`` describes."""
    hardest_of: Count = 10
    """Negatives that ``bpr`` takes the hardest of (ports: 10)."""


class DisMIR(TableModel):
    """``L = L_rec + lambda L_part`` over capsules whose items are their own partition weights.

    ``L_part`` draws together the vectors of the target and of an item that it is bought with, drawn by the confidence
    ``P(j | i) = C_ij / sum_j C_ij``; an item's vector is its (real-valued, overlapping) weight in each of D parts.
    Until :meth:`learn_from` is called no item has a neighbour and the term is 0.
    """

    neighbour_NM: Tensor
    chance_NM: Tensor
    logit_KL: Tensor

    def __init__(self, config: DisMIRConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.recommendation_loss: RetrievalLoss | HardestNegativeLoss = self.retrieval_loss
        if config.recommendation == "bpr":
            self.recommendation_loss = HardestNegativeLoss(config.loss, spec.num_items, config.hardest_of)
        self.votes = SharedMap(config.dim, bias=False) if config.transform == "shared" else None
        self.routing = Routing(config.rounds, config.routing_axis)
        shape = (config.num_interests, config.max_length)
        generator = torch.Generator().manual_seed(config.logit_seed)
        zero = config.initial_logits == "zero"
        logit_KL = torch.zeros(shape) if zero else draw_logits(shape, config.logit_std, generator)
        self.register_buffer("logit_KL", logit_KL)
        self.register_buffer("neighbour_NM", torch.zeros(spec.num_items + 1, config.neighbours, dtype=torch.int32))
        self.register_buffer("chance_NM", torch.ones(spec.num_items + 1, config.neighbours))

    def learn_from(self, dataset: Dataset) -> None:
        """Take each item's neighbours and the cumulated chance of drawing them from the training sequences."""
        config = self.config
        found = cooccurrence(dataset, window=config.window, decay=config.decay, max_neighbours=config.neighbours)
        cumulated_NM = torch.from_numpy(found.weight_NM).double().cumsum(dim=1)
        self.neighbour_NM.copy_(torch.from_numpy(found.id_NM))
        self.chance_NM.copy_((cumulated_NM / cumulated_NM[:, -1:]).nan_to_num(1.0))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` capsules, all of which exist."""
        return self._route(histories)[0], None

    def attribution(self, histories: Histories) -> Tensor:
        """Return each item's share ``[B, K, L]`` of a capsule's coupling coefficients."""
        _, weight_BKL = self._route(histories)
        return F.normalize(weight_BKL, p=1, dim=2)

    def _route(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """Return the capsules ``[B, K, D]`` and the coupling coefficients ``[B, K, L]`` that formed them."""
        item_BLD = self.item_table(histories.item_BL)
        vote_BKLD = item_BLD[:, None] if self.votes is None else self.votes(item_BLD)
        logit_1KL = self.logit_KL[None, :, : item_BLD.shape[1]]
        return self.routing.route(vote_BKLD, logit_1KL, histories.mask_BL)

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval`` and ``partition``."""
        vector_BKD, _ = self._encode(batch)
        terms = LossTerms()
        retrieval = self.recommendation_loss(
            vector_BKD, batch.target_B, self.item_vectors, weight_B=batch.weight_B, generator=batch.generator
        )
        terms.add("retrieval", retrieval)
        terms.add("partition", self._partition(batch), self.config.partition_weight)
        return terms

    def draw_neighbours(self, item_P: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw one neighbour ``[P]`` of each item ``[P]``, by its confidence; 0 for an item without any."""
        uniform_P1 = torch.rand(len(item_P), 1, generator=generator).to(item_P.device)
        place_P1 = (uniform_P1 >= self.chance_NM[item_P]).sum(dim=1, keepdim=True)
        return self.neighbour_NM[item_P].gather(1, place_P1)[:, 0].long()

    def _partition(self, batch: TrainBatch) -> Tensor:
        """Return the partition contrast of the batch's targets and a neighbour of each."""
        size, count = len(batch.target_B), self.config.partition_negatives
        negative_S = torch.randint(1, self.spec.num_items + 1, (count,), generator=batch.generator)
        positive_B = self.draw_neighbours(batch.target_B, batch.generator)
        ids = torch.cat([batch.target_B, positive_B, negative_S.to(batch.target_B.device)])
        vector_ED = self.item_vectors(ids)
        return partition_contrast(
            vector_ED[:size],
            vector_ED[size : 2 * size],
            vector_ED[2 * size :],
            self.config.partition_temperature,
            (positive_B > 0) * (1.0 if batch.weight_B is None else batch.weight_B),
        )
