"""A model whose answers are known, and when two evaluations are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gemirec.models.base import Histories, Interests, LossTerms, ModelConfig, RetrievalModel, TrainBatch

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec
    from gemirec.evaluation.evaluate import EvaluationResult


class FakeModel(RetrievalModel):
    """Items have random vectors; interest k is a random vector of the k-th event of the window."""

    def __init__(self, spec: DataSpec, count: int = 3, dim: int = 16, seed: int = 0) -> None:
        super().__init__(ModelConfig(dim=dim, max_length=10), spec)
        generator = torch.Generator().manual_seed(seed)
        self.item_ND = torch.nn.Parameter(torch.randn(spec.num_items + 1, dim, generator=generator))
        self.query_ND = torch.nn.Parameter(torch.randn(spec.num_items + 1, dim, generator=generator))
        self.count = count

    def item_vectors(self, item_ids: torch.Tensor | None = None) -> torch.Tensor:
        return self.item_ND if item_ids is None else self.item_ND[item_ids]

    def interests(self, histories: Histories) -> Interests:
        assert not self.training
        assert not torch.is_grad_enabled()
        item_BK = histories.item_BL[:, : self.count]
        mask_BK = item_BK > 0
        mask_BK[:, 0] = True
        return Interests(self.query_ND[item_BK], mask_BK)

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        raise AssertionError("evaluation does not train")


def same(first: EvaluationResult, second: EvaluationResult) -> bool:
    return first.metrics == second.metrics and first.users.equals(second.users)
