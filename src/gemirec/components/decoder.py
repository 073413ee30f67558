"""The generator of future interests: a small GPT over the history (GemiRec's MIPDM, arXiv 2510.14626).

It has its own parameters and its own loss, reads item vectors without a gradient into them, and is used off the serving
path: ``p = softmax(z_FC(z_GPT([z_feat(u_feat), S_u])))`` over the interests of a dictionary, trained on the interest of
the next item.

Axes: B batch, L history length, D item vector, P user profile (``feature_BP``) or label (``_P``), H hidden, X states,
C sub-dictionaries, M interests, W window of labels, k interests returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.codes import count_interests
from gemirec.components.interest_heads import FactorisedHead, FlatHead
from gemirec.components.transformer import Block, check_heads
from gemirec.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

Positions = Literal["all", "last"]


class DecoderConfig(Config, frozen=True, kw_only=True):
    """The generator of future interests."""

    layers: Annotated[int, Meta(ge=1)] = 6
    """Blocks (paper: 6)."""
    heads: Annotated[int, Meta(ge=1)] = 4
    """Attention heads (paper: 4); must divide ``hidden``."""
    hidden: Annotated[int, Meta(ge=1)] = 16
    """Width of the states (paper: 16, which is tiny; 64 is the larger choice, ours)."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Probability of dropping a unit (inferred: none)."""
    head: Literal["flat", "factorised"] = "flat"
    """``flat``: one softmax over all interests (paper). ``factorised``: one per sub-dictionary, given the codes before
    it, whose cost grows with the sum of the sizes (ours)."""
    positions: Positions = "all"
    """Train every position of the window on what follows it (inferred), or the last one only."""
    window: Annotated[int, Meta(ge=1)] = 1
    """W: a position's label is the interests of the next W items, weighted alike (paper: 1; more is ours)."""


class InterestDecoder(nn.Module):
    """A causal transformer that predicts the interest of what comes next.

    The blocks are the project's pre-norm ones, with ReLU where GPT-2 has GELU and a hidden layer of 4 H; the paper says
    only GPT, 6 layers, 4 heads and hidden size 16. Positions are learned and count from the feature token.

    Args:
        config: Widths and head.
        sizes: Codes of each sub-dictionary.
        dim: D, width of the item vectors.
        feature_width: P, width of the user's profile; 0 without user features: a learned constant stands for it.
        max_length: Most items of a history.

    Raises:
        ConfigError: ``heads`` does not divide ``hidden``.

    Example:
        >>> decoder = InterestDecoder(DecoderConfig(layers=1), (4, 3), dim=8, feature_width=0, max_length=5)
        >>> state_BNH = decoder(torch.zeros(2, 5, 8))
        >>> state_BNH.shape
        torch.Size([2, 6, 16])
        >>> decoder.log_probs(state_BNH[:, 5]).shape
        torch.Size([2, 12])
        >>> index_Xk, logp_Xk = decoder.top(state_BNH[:, 5], k=3, beam=8)
        >>> index_Xk.shape
        torch.Size([2, 3])
    """

    def __init__(
        self, config: DecoderConfig, sizes: Sequence[int], dim: int, feature_width: int, max_length: int
    ) -> None:
        super().__init__()
        check_heads(config.heads, config.hidden, "decoder.heads", "hidden")
        self.config = config
        self.sizes = tuple(sizes)
        self.num_interests = count_interests(self.sizes)
        hidden = config.hidden
        self.project = nn.Linear(dim, hidden, bias=False)  # a bias is in the positions
        self.feature = nn.Linear(feature_width, hidden) if feature_width else None
        self.position_LH = nn.Parameter(nn.init.normal_(torch.empty(max_length + 1, hidden), std=0.02))
        self.blocks = nn.ModuleList(
            Block(hidden, config.heads, 4 * hidden, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(hidden)
        head = FlatHead if config.head == "flat" else FactorisedHead
        self.head: FlatHead | FactorisedHead = head(hidden, self.sizes)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, item_BLD: Tensor, feature_BP: Tensor | None = None) -> Tensor:
        """Return the states ``[B, L + 1, H]`` of the feature token and the items.

        State j has read the features and the first j items: with n items in a history, its state n predicts the
        interest of the item after them, and state 0 predicts from the features alone. States behind the last item
        mean nothing.

        Args:
            item_BLD: ``[B, L, D]`` item vectors, oldest first, padding behind; detach them to keep the generator apart.
            feature_BP: ``[B, P]`` profiles; only, and always, if ``feature_width`` is not 0.
        """
        token_BLH = self.project(item_BLD)
        if self.feature is None:
            first_BH = token_BLH.new_zeros(len(item_BLD), self.config.hidden)  # position 0 is the learned constant
        else:
            first_BH = self.feature(feature_BP)
        token_BLH = torch.cat([first_BH[:, None], token_BLH], dim=1)
        state_BLH = F.dropout(token_BLH + self.position_LH[: token_BLH.shape[1]], self.config.dropout, self.training)
        for block in self.blocks:
            state_BLH = block(state_BLH)
        out: Tensor = self.norm(state_BLH)
        return out

    def log_probs(self, state_XH: Tensor) -> Tensor:
        """Return the log-probabilities ``[X, M]`` float32 of all interests, by flat index."""
        return self.head.log_probs(state_XH)

    def loss(self, state_XH: Tensor, code_XC: Tensor) -> Tensor:
        """Return ``-log p`` ``[X]`` float32 of one interest ``[X, C]`` int64 per state (the paper's ``L_MIPDM``)."""
        return self.head.loss(state_XH, code_XC)

    def top(self, state_XH: Tensor, k: int, beam: int) -> tuple[Tensor, Tensor]:
        """Return the most probable interests, best first, equal ones by ascending index, without gradient.

        Args:
            state_XH: ``[X, H]`` states.
            k: Interests per state; more than M gives M columns.
            beam: Prefixes that the factorised head keeps after each level, at least ``k``; exact if that is all of
                them. The flat head is always exact.

        Returns:
            ``([X, k] int64 flat indices, [X, k] float32 log-probabilities)``.
        """
        return self.head.top(state_XH, k, beam)


def future_targets(
    item_BL: Tensor, length_B: Tensor, target_B: Tensor, window: int = 1, positions: Positions = "all"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what each state of a batch of histories must predict: the next ``window`` items, weighted alike.

    A history of n items has the states 1 to n (see :meth:`InterestDecoder.forward`); the item after the last one is
    the target, and nothing is known behind it, so that the last positions have fewer items. State 0 is not trained, and
    an empty history gives nothing.

    Args:
        item_BL: ``[B, L]`` int64 items, oldest first, padding behind.
        length_B: ``[B]`` int64, real items of each.
        target_B: ``[B]`` int64, the item after them.
        window: W, at least 1.
        positions: ``all`` states, or the ``last`` one of each history, which has the target alone.

    Returns:
        Row, state number, item (all int64) and weight (float32) of each label, ``[P]``, by row, state and time; the
        weights of one state sum to 1.

    Example:
        >>> labels = future_targets(torch.tensor([[7, 8, 0]]), torch.tensor([2]), torch.tensor([9]), window=2)
        >>> [part.tolist() for part in labels]
        [[0, 0, 0], [1, 1, 2], [8, 9, 9], [0.5, 0.5, 1.0]]
    """
    device = item_BL.device
    item_BN = F.pad(item_BL, (0, 1)).scatter(1, length_B[:, None], target_B[:, None])
    state_L1 = torch.arange(1, item_BN.shape[1], device=device)[:, None]
    ahead_W = torch.arange(window, device=device)
    length_B11 = length_B[:, None, None]
    real_BLW = state_L1 + ahead_W <= length_B11
    if positions == "last":
        real_BLW &= state_L1 == length_B11
    row_P, place_P, ahead_P = torch.nonzero(real_BLW, as_tuple=True)
    state_P = place_P + 1
    weight_P = 1.0 / (length_B[row_P] - state_P + 1).clamp(max=window)
    return row_P, state_P, item_BN[row_P, state_P + ahead_P], weight_P
