"""Validation during training: the metric that early stopping and the best checkpoint follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch

from gemirec.config import EvaluationConfig
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gemirec.config import TrainingConfig
    from gemirec.data.dataset import Dataset
    from gemirec.models.base import RetrievalModel
    from gemirec.training.checkpoint import TrainState


class Validator:
    """Evaluates a model on a fixed sample of the validation users.

    Args:
        model: The model; it is put back into ``train`` mode afterwards.
        dataset: A prepared dataset.
        config: ``metric``, ``eval_users``, ``seed``, ``patience``.
        accelerator: With several processes the main one works and the others wait for its figures.
    """

    def __init__(
        self, model: RetrievalModel, dataset: Dataset, config: TrainingConfig, accelerator: Accelerator
    ) -> None:
        self.model, self.dataset, self.accelerator = model, dataset, accelerator
        self.metric, self.patience = config.metric, config.patience
        self.present = len(dataset.users_in("valid")) > 0
        """Whether the dataset has validation users at all."""
        self.config = EvaluationConfig(
            split="valid",
            top_n=tuple(sorted({*EvaluationConfig().top_n, int(config.metric.rpartition("@")[2])})),
            users=config.eval_users,
            bootstrap=0,
            seed=config.seed,
        )

    def check(self) -> None:
        """Validate one user, so that an unknown metric shows before the first step."""
        if self.present:
            self._evaluate(msgspec.structs.replace(self.config, users=1))

    def metrics(self) -> dict[str, float]:
        """Return every validation metric."""
        return self._evaluate(self.config)

    def update(self, state: TrainState, value: float) -> bool:
        """Enter ``value`` into the books of early stopping; return whether it is the best so far (strictly)."""
        if state.best_metric is None or value > state.best_metric:
            state.best_metric, state.best_step, state.bad_validations = value, state.step, 0
            return True
        state.bad_validations += 1
        state.stopped = state.bad_validations >= self.patience
        return False

    def _evaluate(self, config: EvaluationConfig) -> dict[str, float]:
        from gemirec.evaluation.evaluate import evaluate

        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            self.model.eval()
            with torch.no_grad():
                found = [dict(evaluate(self.model, self.dataset, config).metrics)]
            self.model.train()
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found)
        metrics: dict[str, float] = found[0]
        if self.metric not in metrics:
            raise ConfigError(
                "training.metric is not among the metrics of the evaluation",
                got=self.metric,
                fix=f"choose one of {', '.join(sorted(metrics))}",
            )
        return metrics
