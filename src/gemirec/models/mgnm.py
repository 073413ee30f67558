"""MGNM: capsules at every level of a graph over the history's own items (Tian et al., SIGIR 2022, arXiv 2205.01286).

Axes: B batch, L history length, K interests, D embedding, E levels, G levels times batch (level 0 first),
X = 4 D gates, Z = 2 D states of both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from gemirec.components.capsule import PositionMaps, Routing, draw_logits, squash
from gemirec.components.graph import GraphLevels, Hops, adjacency
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.components.pooling import mean_pool
from gemirec.components.regularizers import weighted_mean
from gemirec.components.two_way_lstm import two_way_states
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

NonNegative = Annotated[float, Meta(ge=0)]


class MGNMConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of MGNM. ``num_interests`` are those of a level: a user is served ``levels`` times as many."""

    levels: Count = 4
    """E, levels of the graph, the items themselves counted (released code: 4)."""
    hops: Hops = "chained"
    """``chained``: each level is a hop from the level before it (paper). ``input``: each is one hop from the items,
    with maps of its own (the released code's reading, whose maps beyond the first are missing)."""
    normalise_graph: bool = True
    """Give each item an edge to itself and divide each row of the graph by its sum (an option of the released code;
    inferred: without it, vectors grow with the history)."""
    user_graph: Literal["off", "history_mean"] = "off"
    """The user's vector inside the edges, ``sigmoid((x_i * u) . x_j)``. The paper has a table of users, which serves
    nobody else; the released code switches it off. ``history_mean`` is a substitute of ours."""
    rounds: Count = 3
    """Routing rounds R (released code: 3)."""
    sequential: bool = False
    """Let an LSTM over the votes, in both directions, speak in the second round (paper: sequential capsule network). A
    training step at ``dim`` 64 then costs about 11 of ComiRec-SA's on one core instead of 4: it makes 16 times the
    multiplications (5.2 G to 0.33 G), 70 % of them in the LSTMs, which take half of its time."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of the initial routing logits, truncated at two of them (released code: 1, drawn anew for each
    example, at serving too)."""
    logit_seed: int = 0
    """Seed of the fixed initial logits (ours: one ``[K, L]`` matrix for all users; serving is then deterministic)."""
    redraw_logits: bool = False
    """Draw new initial logits for each example in training, as the released code does; serving keeps the fixed ones."""
    transform_std: PositiveFloat = 1.0
    """Standard deviation of the capsules' maps' normal initialisation (released code: 1)."""
    identity_maps: bool = False
    """Start the maps of hops and capsules at the identity plus the draws (ours)."""
    train_interests: Literal["levels", "served"] = "levels"
    """``levels``: the sum over levels of the loss with that level's K interests (paper). ``served``: the loss with all
    interests of all levels, which is what serving compares (ours)."""
    graph_weight: NonNegative = 1e-5
    """Weight of the graph's L1 norm, the sum of a history's edges (released code: 1e-5)."""
    l2_weight: NonNegative = 1e-5
    """Weight of ``sum w^2 / 2`` over all parameters but the item table, which a sparse step could not afford (released
    code: 1e-5 over everything, beside a loss that is summed over the batch)."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig(readout="label_aware", power=1.0)
    """The retrieval loss; a level's interests are mixed by their softmax of ``h . v`` (released code; there each
    candidate mixes them anew, and the loss is binary cross-entropy)."""


class MGNM(TableModel):
    """Levels of the graph, one capsule network for all of them, and the K interests of each level.

    The paper scores an item by the best level's mixture of interests under that item, which no index can hold. Served
    are all E K interests, each item scored by the nearest (inferred).
    """

    logit_KL: Tensor

    def __init__(self, config: MGNMConfig, spec: DataSpec) -> None:
        if config.sequential and config.rounds < 3:
            raise ConfigError(
                "the sequential capsules speak in the second round of routing, which must not be the last",
                got=f"sequential: true, rounds: {config.rounds}",
                fix="set model.rounds to 3 or more",
            )
        super().__init__(config, spec)
        dim, interests = config.dim, config.num_interests
        self.graph = GraphLevels(
            dim, config.levels, hops=config.hops, normalise=config.normalise_graph, identity=config.identity_maps
        )
        self.votes = PositionMaps(dim, interests, config.max_length, config.transform_std, config.identity_maps)
        self.routing = Routing(config.rounds, "interests")
        self.sequence = VoteSequence(dim, interests) if config.sequential else None
        generator = torch.Generator().manual_seed(config.logit_seed)
        self.register_buffer("logit_KL", draw_logits((interests, config.max_length), config.logit_std, generator))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return the ``[B, E K, D]`` interests of all levels, those of level 0 first; all of them exist."""
        return self._levels(histories)[0].flatten(1, 2), None

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval``, ``graph`` (L1 of the edges) and ``l2``."""
        config, histories = self.config, widen(batch, self.max_length)
        interest_BEKD, edge_BLL = self._levels(histories)
        interest_BEKD = self._normalize(interest_BEKD)
        groups = [interest_BEKD.flatten(1, 2)] if config.train_interests == "served" else interest_BEKD.unbind(1)
        losses = [
            self._retrieval(vector_BKD, None, batch.target_B, batch.weight_B, batch.generator) for vector_BKD in groups
        ]
        terms = LossTerms()
        terms.add("retrieval", torch.stack(losses).sum())
        terms.add("graph", weighted_mean(edge_BLL.sum(dim=(1, 2)), batch.weight_B), config.graph_weight)
        dense = [parameter for name, parameter in self.named_parameters() if not name.startswith("item_table")]
        terms.add("l2", torch.stack([parameter.square().sum() / 2 for parameter in dense]).sum(), config.l2_weight)
        return terms

    def _levels(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """Return the interests ``[B, E, K, D]`` and the edges ``[B, L, L]`` before normalisation."""
        item_BLD, mask_BL = self.item_table(histories.item_BL), histories.mask_BL
        user_BD = mean_pool(item_BLD, mask_BL) if self.config.user_graph == "history_mean" else None
        edge_BLL = adjacency(item_BLD, mask_BL, user_BD)
        levels = self.graph(item_BLD, mask_BL, edge_BLL)
        item_GLD, mask_GL = torch.cat(levels), mask_BL.repeat(len(levels), 1)
        interest_GKD = self._route(item_GLD, self._logits(histories, len(levels)), mask_GL)
        return interest_GKD.view(len(levels), len(mask_BL), *interest_GKD.shape[1:]).transpose(0, 1), edge_BLL

    def _route(self, item_GLD: Tensor, logit_GKL: Tensor, mask_GL: Tensor) -> Tensor:
        """Return the capsules ``[G, K, D]``."""
        with torch.no_grad():  # only the last round's sum has a gradient to the votes
            vote_GKLD = self.votes(item_GLD)
        if self.sequence is None:
            weight_GKL = self.routing.weights(vote_GKLD, logit_GKL, mask_GL)
        else:
            state_GLD = self.sequence(item_GLD, self.votes.weight_LDE, mask_GL)
            weight_GKL = weights_in_sequence(self.routing, self.sequence, vote_GKLD, state_GLD, logit_GKL, mask_GL)
        return squash(self.votes.collect(item_GLD, vote_GKLD, weight_GKL))

    def _logits(self, histories: Histories, levels: int) -> Tensor:
        """Return the initial routing logits ``[G or 1, K, L]``."""
        if not (self.config.redraw_logits and self.training):
            return self.logit_KL[None]
        generator = histories.generator if isinstance(histories, TrainBatch) else None
        shape = (levels * len(histories.item_BL), *self.logit_KL.shape)
        return draw_logits(shape, self.config.logit_std, generator).to(self.logit_KL.device)


class VoteSequence(nn.Module):
    """What comes before and after a vote: an LSTM in each direction over the votes of all capsules, mapped to votes.

    Votes are linear in the items, and so are sums over the votes that the map gives: neither the LSTMs' inputs
    ``[G, L, K D]`` nor those votes ever exist.
    """

    def __init__(self, dim: int, num_interests: int) -> None:
        super().__init__()
        self.onward = nn.LSTM(num_interests * dim, dim, batch_first=True)
        self.reverse = nn.LSTM(num_interests * dim, dim, batch_first=True)
        self.outer = nn.Linear(2 * dim, num_interests * dim, bias=False)

    def forward(self, item_GLD: Tensor, weight_LDE: Tensor, mask_GL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states ``[G, L, D]`` of both directions; items and their maps ``weight_LDE`` are constants.

        Each direction begins at a real item, so that padding is seen by none of them.
        """
        input_XE, recurrent_XD, *bias_X = zip(self.onward.all_weights[0], self.reverse.all_weights[0], strict=True)
        map_LDX = weight_LDE[: item_GLD.shape[1]].detach() @ torch.cat(input_XE).T
        map_L2DX = torch.stack(map_LDX.chunk(2, dim=2), dim=1)
        recurrent_2DX = torch.stack(recurrent_XD).transpose(1, 2)
        bias_2X = torch.stack(bias_X[0]) + torch.stack(bias_X[1])
        return two_way_states(item_GLD, map_L2DX, recurrent_2DX, bias_2X, mask_GL)

    def gather(self, weight_GKL: Tensor, state_GLD: tuple[Tensor, Tensor]) -> Tensor:
        """Return the weighted sums ``[G, K, D]`` of its votes."""
        sum_GKZ = torch.cat([weight_GKL @ part_GLD for part_GLD in state_GLD], dim=2)
        return torch.einsum("gkz,kdz->gkd", sum_GKZ, self._outer_KDZ())

    def agreement(self, capsule_GKD: Tensor, state_GLD: tuple[Tensor, Tensor]) -> Tensor:
        """Return the inner products ``[G, K, L]`` of capsules and its votes."""
        asked_GKZ = torch.einsum("gkd,kdz->gkz", capsule_GKD, self._outer_KDZ())
        parts = zip(state_GLD, asked_GKZ.chunk(2, dim=2), strict=True)
        # States on the left: their gradient then lies in memory as they do.
        agreement_GLK = torch.stack([part_GLD @ asked_GKD.transpose(1, 2) for part_GLD, asked_GKD in parts])
        return agreement_GLK.sum(dim=0).transpose(1, 2)

    def _outer_KDZ(self) -> Tensor:
        """Return the map to votes, by interest."""
        dim = self.onward.hidden_size
        return self.outer.weight.view(-1, dim, 2 * dim)


def weights_in_sequence(
    routing: Routing,
    sequence: VoteSequence,
    vote_GKLD: Tensor,
    state_GLD: tuple[Tensor, Tensor],
    logit_GKL: Tensor,
    mask_GL: Tensor,
) -> Tensor:
    """Return the last round's couplings ``[G, K, L]`` of the sequential capsule network.

    Routing by agreement in which the second round hears ``LSTM(sg u) + sg u`` in place of the votes ``u``; ``sg`` stops
    the gradient. The sequence learns through the logits that its round leaves behind, the maps through the last round's
    sum alone. (The released code reshapes votes across capsules and positions before its LSTM; here they stay apart.)

    Args:
        routing: Rounds, at least 3, and couplings.
        sequence: The LSTMs.
        vote_GKLD: ``[G, K, L, D]`` votes, taken as constants.
        state_GLD: What ``sequence`` gave for them.
        logit_GKL: ``[G or 1, K, L]`` initial logits.
        mask_GL: ``[G, L]`` bool, true at real items.
    """
    logit_GKL = logit_GKL.float().expand(len(mask_GL), -1, -1)
    vote_GKLD = vote_GKLD.detach().float()
    for number in range(routing.rounds - 1):
        weight_GKL = routing.coupling(logit_GKL, mask_GL, None)
        sum_GKD = torch.einsum("gkl,gkld->gkd", weight_GKL, vote_GKLD)
        if number == 1:
            sum_GKD = sum_GKD + sequence.gather(weight_GKL, state_GLD)
        capsule_GKD = squash(sum_GKD)
        logit_GKL = logit_GKL + torch.einsum("gkd,gkld->gkl", capsule_GKD, vote_GKLD)
        if number == 1:
            logit_GKL = logit_GKL + sequence.agreement(capsule_GKD, state_GLD)
    return routing.coupling(logit_GKL, mask_GL, None)
