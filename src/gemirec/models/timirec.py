"""TiMiRec: a predictor learns from the target which interest matters, and mixes them by it (Wang et al., CIKM 2022).

1. ``pretrain``: the extractor alone, trained through the interest nearest the target, as ComiRec-SA.
2. ``finetune``: the predictor reads the history by itself and gives a distribution over the K interests; the user is
   the mixture under it, one vector in training and at serving. The target's own distribution teaches it.

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.attention import SelfAttention
from gemirec.components.embedding import ItemTable
from gemirec.components.pooling import last_state
from gemirec.components.regularizers import weighted_mean
from gemirec.models.base import Histories, LossTerms, Stage, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, Probability, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

PRETRAIN, FINETUNE = "pretrain", "finetune"
_MASKED = -1e9


class TiMiRecConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of TiMiRec. ``loss.readout`` acts in the first stage: the second has one vector for each user."""

    layers: Annotated[int, Meta(ge=0)] = 1
    """Transformer layers of one head before the attention (released code: 1, or none)."""
    use_positions: bool = True
    """Add learned positions, counted from the newest item, to the item vectors (released code)."""
    attention_dim: Count = 8
    """Hidden width of the attention (released code: 8)."""
    predictor_layers: Count = 1
    """Layers from the GRU's last state to the K logits (released code: 1, or 2 on ml-1m)."""
    dropout: Probability = 0.5
    """Probability of dropping a unit between the predictor's layers, of which there must be 2 (released code)."""
    distillation_temperature: PositiveFloat = 1.0
    """T of the distillation (released code: 1 on Grocery, .1 on Beauty, .5 on ml-1m)."""
    pretrain_share: PositiveFloat = 1.0
    """Share of the steps for the first stage (inferred: each stage trained until it stopped improving)."""
    finetune_share: PositiveFloat = 1.0
    """Share of the steps for the second stage (inferred)."""


class TiMiRec(TableModel):
    """Multi-interest extractor and interest predictor; see the module's docstring.

    The released code's loss (BPR, softmax-weighted over one negative) is replaced by the retrieval loss that every
    model here shares.
    """

    phase: Tensor

    def __init__(self, config: TiMiRecConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.extractor = Extractor(config)
        self.predictor = Predictor(config, spec.num_items)
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The extractor; then extractor and predictor together."""
        return (
            Stage(PRETRAIN, self.config.pretrain_share, frozen=("predictor.",)),
            Stage(FINETUNE, self.config.finetune_share, on_start="start_finetune"),
        )

    def start_finetune(self) -> None:
        """From here on a user is served the mixture."""
        self.phase.fill_(1)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return the K interests ``[B, K, D]`` in the first stage, the mixture ``[B, 1, D]`` from the second on."""
        interest_BKD = self._extract(histories)
        if int(self.phase) == 0:
            return interest_BKD, None
        return mixture(interest_BKD, self.predictor(histories)), None

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval``; in the second stage also ``distillation``, with the weight ``T^2``."""
        terms, histories = LossTerms(), widen(batch, self.max_length)
        interest_BKD = self._extract(histories)
        vector_BKD = interest_BKD
        if stage == FINETUNE:
            logit_BK = self.predictor(histories)
            vector_BKD = mixture(interest_BKD, logit_BK)
        vector_BKD = self._normalize(vector_BKD)
        terms.add("retrieval", self._retrieval(vector_BKD, None, batch.target_B, batch.weight_B, batch.generator))
        if stage == FINETUNE:
            temperature = self.config.distillation_temperature
            loss_B = distillation(logit_BK, interest_BKD, self.item_table(batch.target_B), temperature)
            terms.add("distillation", weighted_mean(loss_B, batch.weight_B), temperature**2)
        return terms

    def _extract(self, histories: Histories) -> Tensor:
        """Return the interests ``[B, K, D]``; zero for an empty history."""
        interest_BKD: Tensor = self.extractor(self.item_table(histories.item_BL), histories.mask_BL)
        return interest_BKD


def mixture(interest_BKD: Tensor, logit_BK: Tensor) -> Tensor:
    """Return ``sum_k softmax(logit)_k h_k`` ``[B, 1, D]``.

    Example:
        >>> mixture(torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 2))
        tensor([[[2.]]])
    """
    weight_BK = torch.softmax(logit_BK.float(), dim=1)
    return torch.einsum("bk,bkd->bd", weight_BK.to(interest_BKD.dtype), interest_BKD)[:, None]


def distillation(logit_BK: Tensor, interest_BKD: Tensor, target_BD: Tensor, temperature: float) -> Tensor:
    """Return ``KL( softmax(cos(h_k, v) / T) || softmax(logit_k / T) )`` ``[B]``; only the logits get a gradient.

    Args:
        logit_BK: ``[B, K]`` the predictor's logits.
        interest_BKD: ``[B, K, D]`` interests.
        target_BD: ``[B, D]`` vectors of the targets.
        temperature: T.

    Example:
        >>> distillation(torch.zeros(1, 2), torch.ones(1, 2, 3), torch.ones(1, 3), 0.5)  # both uniform
        tensor([0.])
    """
    with torch.no_grad():
        cosine_BK = F.cosine_similarity(interest_BKD.float(), target_BD.float()[:, None], dim=2)
        teacher_BK = torch.log_softmax(cosine_BK / temperature, dim=1)
    student_BK = torch.log_softmax(logit_BK.float() / temperature, dim=1)
    return F.kl_div(student_BK, teacher_BK, reduction="none", log_target=True).sum(dim=1)


class Extractor(nn.Module):
    """Positions, transformer layers, and ``A = softmax_L( W2 tanh( W1 X' ) )``, ``H = A X'``.

    Unlike ComiRec-SA's, positions and layers are in the values X' that are summed, not in the logits alone.
    """

    def __init__(self, config: TiMiRecConfig) -> None:
        super().__init__()
        self.position_LD = None
        if config.use_positions:
            self.position_LD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.max_length, config.dim)))
        self.layers = nn.ModuleList(Layer(config.dim) for _ in range(config.layers))
        self.attention = SelfAttention(
            config.dim, config.num_interests, config.max_length, config.attention_dim, positions="none"
        )

    def forward(self, item_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the interests ``[B, K, D]`` of item vectors ``[B, L, D]``."""
        state_BLD = item_BLD
        if self.position_LD is not None:
            age_BL = mask_BL.sum(dim=1, keepdim=True) - 1 - torch.arange(mask_BL.shape[1], device=mask_BL.device)
            state_BLD = state_BLD + self.position_LD[age_BL.clamp(min=0)]
        for layer in self.layers:
            state_BLD = layer(state_BLD, mask_BL)
        out_BKD: Tensor = self.attention(state_BLD * mask_BL[:, :, None], mask_BL)
        return out_BKD


class Layer(nn.Module):
    """A transformer layer of one head: all items see each other, each part followed by residual and normalisation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        self.first_norm = nn.LayerNorm(dim)
        self.second_norm = nn.LayerNorm(dim)
        for layer in (self.query_key_value, self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, state_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the next states ``[B, L, D]``; what stands at padding means nothing, and nothing sees it."""
        query_BLD, key_BLD, value_BLD = self.query_key_value(state_BLD).chunk(3, dim=2)
        bias_B1L = torch.where(mask_BL, 0.0, _MASKED)[:, None].to(query_BLD.dtype)
        seen_BLD = F.scaled_dot_product_attention(query_BLD, key_BLD, value_BLD, attn_mask=bias_B1L)
        state_BLD = self.first_norm(state_BLD + seen_BLD)
        out_BLD: Tensor = self.second_norm(state_BLD + self.outer(torch.relu(self.inner(state_BLD))))
        return out_BLD


class Predictor(nn.Module):
    """Interest logits from a GRU over an item table of its own, so that it does not disturb the extractor's."""

    def __init__(self, config: TiMiRecConfig, num_items: int) -> None:
        super().__init__()
        dim = config.dim
        self.table = ItemTable(num_items, dim, config.item_init, config.item_std)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        hidden = [
            module
            for _ in range(config.predictor_layers - 1)
            for module in (nn.Linear(dim, dim), nn.Dropout(config.dropout), nn.ReLU())
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(dim, config.num_interests))

    def forward(self, histories: Histories) -> Tensor:
        """Return the logits ``[B, K]`` from the state after the last item."""
        state_BLD, _ = self.gru(self.table(histories.item_BL))
        out_BK: Tensor = self.head(last_state(state_BLD, histories.mask_BL))
        return out_BK
