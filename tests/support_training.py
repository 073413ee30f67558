"""A small trainable model, and a process that trains it and can be killed, for the tests of training."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec import artifacts
from gemirec.components.embedding import ItemTable
from gemirec.config import TrainingConfig
from gemirec.data.dataset import Dataset
from gemirec.models.base import Histories, Interests, LossTerms, ModelConfig, RetrievalModel, Stage, TrainBatch
from gemirec.training import checkpoint
from gemirec.training.loop import TrainResult, train_model

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class TinyConfig(ModelConfig, frozen=True, kw_only=True):
    """Nothing beyond dim and max_length."""


class TinyModel(RetrievalModel):
    """Mean of item vectors, dropout, one linear map; sampled softmax: every source of randomness of a real model."""

    def __init__(self, spec: DataSpec, stages: tuple[Stage, ...] = (Stage("train"),), dim: int = 8) -> None:
        super().__init__(TinyConfig(dim=dim, max_length=10), spec)
        self.items = ItemTable(spec.num_items, dim)
        self.layer = nn.Linear(dim, dim)
        self.started: list[str] = []
        self._stages = stages

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self._stages

    def begin_second(self) -> None:
        """Change the parameters when the second stage starts, with randomness, so that running it twice shows."""
        self.started.append("second")
        self.layer.weight.mul_(1 + 0.1 * torch.rand_like(self.layer.weight))

    def _user(self, item_BL: Tensor) -> Tensor:
        mask_BL1 = (item_BL != 0).unsqueeze(-1)
        mean_BD = (self.items(item_BL) * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)
        user_BD: Tensor = self.layer(mean_BD)
        return user_BD

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        return self.items.weight if item_ids is None else F.embedding(item_ids, self.items.weight)

    def interests(self, histories: Histories) -> Interests:
        user_BD = self._user(histories.item_BL)
        return Interests(user_BD[:, None], torch.ones(len(user_BD), 1, dtype=torch.bool))

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        user_BD = F.dropout(self._user(batch.item_BL), 0.2, training=self.training)
        negative_S = torch.randint(1, self.spec.num_items + 1, (16,), generator=batch.generator)
        positive_B1 = (user_BD * self.items(batch.target_B)).sum(1, keepdim=True)
        logit_BS = torch.cat([positive_B1, user_BD @ self.items(negative_S).T], dim=1)
        loss_B = F.cross_entropy(logit_BS, torch.zeros(len(user_BD), dtype=torch.int64), reduction="none")
        if batch.weight_B is not None:
            loss_B = loss_B * batch.weight_B
        terms = LossTerms()
        terms.add("retrieval", loss_B.mean())
        terms.add("norm", user_BD.square().mean(), weight=0.1)
        return terms


TWO_STAGES = (Stage("first", 1, frozen=("layer",)), Stage("second", 2, on_start="begin_second"))


def fit_tiny(
    dataset: Dataset,
    out: Path,
    *,
    stages: tuple[Stage, ...] = (Stage("train"),),
    resume: bool = False,
    progress: Any = None,
    **training: Any,
) -> TrainResult:
    """Train a :class:`TinyModel`; ``training`` are fields of :class:`TrainingConfig`."""
    config = TrainingConfig(**{"steps": 30, "batch_size": 16, "eval_every": 10, "log_every": 5, **training})
    torch.manual_seed(config.seed)
    model = TinyModel(dataset.spec(), stages)
    return train_model(model, dataset, name="tiny", training=config, out=out, resume=resume, progress=progress)


def train_and_die(dataset: str, out: str, training: dict[str, Any], kill_at: tuple[str, int] | None) -> None:
    """Train in this process; ``kill_at`` names a moment of saving and its step where the process kills itself.

    Moments: ``step`` (in the middle of a step), ``files`` (some files of the checkpoint written, others not),
    ``folder`` (the folder is in place, the index not), ``index`` (the index is in place, old folders not deleted).
    """
    torch.set_num_threads(1)
    if kill_at is not None:
        _arm(*kill_at)
    fit_tiny(Dataset.open(dataset), Path(out), stages=TWO_STAGES, resume=True, **training)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment: str, step: int) -> None:
    """Wrap one function so that it kills the process at the given moment of the given step."""
    if moment == "step":
        losses = TinyModel.losses
        calls = iter(range(1_000_000))

        def dying_losses(self: TinyModel, batch: TrainBatch, stage: str) -> LossTerms:
            if next(calls) == step:
                _die()
            return losses(self, batch, stage)

        TinyModel.losses = dying_losses  # type: ignore[method-assign]
        return
    name = f"step-{step:08d}"
    if moment == "files":

        def dying_save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
            artifacts.save_tensors(path, tensors, metadata)
            if name in str(path):
                _die()

        vars(checkpoint)["save_tensors"] = dying_save
        return

    def dying_write(path: Path, value: Any) -> None:
        ours = path.name == "index.json" and value["last"] == name
        if ours and moment == "folder":
            _die()
        artifacts.write_json(path, value)
        if ours:
            _die()

    vars(checkpoint)["write_json"] = dying_write
