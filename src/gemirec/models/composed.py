"""Any extractor, any regularisers, any aggregator: the survey's framework as one model (arXiv 2506.15284).

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor

from gemirec.components.adaptive import AdaptiveConfig, existing_after, existing_before
from gemirec.components.aggregators import make_aggregator
from gemirec.components.extractors import make_extractor
from gemirec.components.penalties import Penalised, Penalty
from gemirec.components.roles import Aggregated, Extracted, Sizes
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests, LossTerms, TrainBatch
from gemirec.models.common import MultiInterestConfig, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class ComposedConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """The three parts by name. A part is a mapping ``{kind: NAME, field: value}``; docs/framework.md has them all."""

    extractor: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "attention"})
    """From the history to K interests: ``attention``, ``routing``, ``one_pass``, ``graph``, ``prototypes``,
    ``transform``."""
    regularizers: tuple[dict[str, Any], ...] = ()
    """Terms of the loss beside the retrieval, each kind at most once: ``cosine``, ``orthogonality``, ``contrast``,
    ``covariance``, ``elementwise``, ``partition``."""
    aggregator: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "max"})
    """From the interests to what is served: ``max``, ``mean``, ``target``, ``calibrated``, ``concat``, ``pool``,
    ``base``, ``intent``."""
    adaptive_k: AdaptiveConfig = AdaptiveConfig()
    """The rule that gives a user fewer than K interests."""


class Composed(TableModel):
    """``extractor -> adaptive K -> aggregator``, the regularisers on the interests before they are aggregated."""

    def __init__(self, config: ComposedConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        kind = str(config.extractor.get("kind"))
        self.extractor = make_extractor(config.extractor, Sizes(config.dim, config.num_interests, config.max_length))
        self.aggregator = make_aggregator(config.aggregator, self.extractor, kind)
        self.penalties = [Penalty(values, self.extractor, kind) for values in config.regularizers]
        _check(config, kind, self.extractor.gives_weights, [penalty.kind for penalty in self.penalties])

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return the vectors that are served and which of them exist."""
        _, served = self._serve(histories)
        return _scaled(served), served.mask_BK

    def interests(self, histories: Histories) -> Interests:
        """Return the vectors that are served, with the aggregator's weights, if it has any, already in them."""
        _, served = self._serve(histories)
        vector_BKD, mask_BK = _scaled(served).float(), served.mask_BK
        if mask_BK is None:
            mask_BK = torch.ones(vector_BKD.shape[:2], dtype=torch.bool, device=vector_BKD.device)
        first_K = torch.arange(vector_BKD.shape[1], device=vector_BKD.device) == 0
        mask_BK = torch.where(histories.mask_BL.any(dim=1)[:, None], mask_BK, first_K)
        return Interests(vector_BKD, mask_BK, served.weight_BK)

    def attribution(self, histories: Histories) -> Tensor | None:
        """Return the routing weights ``[B, K, L]``, rows summing to 1, if each interest is served as extracted."""
        found, served = self._serve(histories)
        weight_BKL = found.weight_BKL
        if weight_BKL is None or served.vector_BKD.shape[1] != weight_BKL.shape[1]:
            return None
        weight_BKL = weight_BKL / weight_BKL.sum(dim=2, keepdim=True).clamp(min=1e-20)
        return weight_BKL[:, :, : histories.item_BL.shape[1]]

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval`` and a term for each regulariser, by its kind."""
        wide = widen(batch, self.max_length)
        found, item_BLD = self.extract(wide)
        target_BD = self.item_vectors(batch.target_B) if self.aggregator.uses_target else None
        trained = self._aggregate(found, item_BLD, wide.mask_BL, target_BD)
        terms = LossTerms()
        vector_BKD, target_B = _scaled(trained), batch.target_B
        terms.add("retrieval", self._retrieval(vector_BKD, trained.mask_BK, target_B, batch.weight_B, batch.generator))
        about = Penalised(
            found=found,
            extractor=self.extractor,
            item_BLD=item_BLD,
            mask_BL=wide.mask_BL,
            weight_B=batch.weight_B,
            look_up=self.item_table,
            num_items=self.spec.num_items,
            generator=batch.generator,
        )
        for penalty in self.penalties:
            terms.add(penalty.kind, penalty(about), penalty.config.weight)
        return terms

    def extract(self, histories: Histories) -> tuple[Extracted, Tensor]:
        """Return what the extractor says, adaptive K applied, and the item vectors ``[B, L, D]`` it read.

        Args:
            histories: As wide as the model reads.
        """
        item_BLD, mask_BL = self.item_table(histories.item_BL), histories.mask_BL
        generator = histories.generator if isinstance(histories, TrainBatch) else None
        rule = self.config.adaptive_k
        before_BK = existing_before(rule, mask_BL, self.config.num_interests)
        if before_BK is not None:  # the same for each level of a graph
            before_BK = before_BK.repeat(1, self.extractor.num_interests // self.config.num_interests)
        found = self.extractor(item_BLD, mask_BL, before_BK, generator)
        after_BK = existing_after(rule, found.interest_BKD, found.weight_BKL, item_BLD, mask_BL)
        if after_BK is None:
            return found, item_BLD
        return replace(found, mask_BK=after_BK, interest_BKD=found.interest_BKD * after_BK[:, :, None]), item_BLD

    def _serve(self, histories: Histories) -> tuple[Extracted, Aggregated]:
        """Return what was extracted and what is served, each vector normalised if the loss normalises."""
        wide = widen(histories, self.max_length)
        found, item_BLD = self.extract(wide)
        return found, self._aggregate(found, item_BLD, wide.mask_BL)

    def _encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Encode windows of any width up to ``max_length``; the aggregator's weights come behind the normalisation."""
        return self.encode(widen(histories, self.max_length))

    def _aggregate(
        self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None = None
    ) -> Aggregated:
        """Return what is served, or trained if there are targets; vectors are normalised as the loss does.

        Scores are compared after normalisation, so aggregators of scores get normalised interests.
        """
        if self.aggregator.of_scores:
            found = replace(found, interest_BKD=self._normalize(found.interest_BKD))
        if target_BD is None:
            merged: Aggregated = self.aggregator(found, item_BLD, mask_BL)
        else:
            merged = self.aggregator.train_vectors(found, target_BD)
        if self.aggregator.of_scores and merged.vector_BKD is found.interest_BKD:
            return merged
        return replace(merged, vector_BKD=self._normalize(merged.vector_BKD))


def _scaled(aggregated: Aggregated) -> Tensor:
    """Return the vectors ``[B, K, D]`` times their weights."""
    if aggregated.weight_BK is None:
        return aggregated.vector_BKD
    return aggregated.vector_BKD * aggregated.weight_BK[:, :, None]


def _check(config: ComposedConfig, extractor: str, gives_weights: bool, penalties: list[str]) -> None:
    """Raise for what the parts themselves cannot see."""
    twice = {kind for kind in penalties if penalties.count(kind) > 1}
    if twice:
        raise ConfigError(
            "a regularizer stands twice", got=", ".join(sorted(twice)), fix="give it once, with the sum of the weights"
        )
    if config.adaptive_k.kind == "mass" and not gives_weights:
        raise ConfigError(
            f"adaptive_k 'mass' needs routing weights, extractor {extractor!r} has none",
            got=f"extractor: {extractor}, adaptive_k: mass",
            fix="choose adaptive_k log, silhouette or density, or another extractor",
        )
    if config.extractor.get("gate") == "aggregator" and config.aggregator["kind"] != "intent":
        raise ConfigError(
            "extractor 'prototypes' with gate 'aggregator' learns its activation through aggregator 'intent' alone",
            got=f"aggregator: {config.aggregator['kind']}",
            fix="set extractor.gate: assignment, or aggregator: {kind: intent}",
        )
