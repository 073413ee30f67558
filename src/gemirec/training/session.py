"""What a run holds while it trains: device, precision, process rank, seeds, and the numbers of the last steps.

Axes: B batch, W steps since the last report, T loss terms.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gemirec.errors import ConfigError, TrainingError
from gemirec.models.base import TrainBatch
from gemirec.training.schedule import DROPOUT, NEGATIVES, derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from accelerate import Accelerator

    from gemirec.config import TrainingConfig
    from gemirec.models.base import LossTerms, RetrievalModel


class LossModule(nn.Module):
    """The model's loss as a ``forward``, which is what autocast, DDP and ``torch.compile`` wrap."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total and the unweighted terms."""
        terms: LossTerms = self.model.losses(batch, stage)
        return terms.total(), terms.terms


class StepRandomness:
    """Every random draw of step ``s`` from seeds derived from (seed, s, rank): resuming needs no random state."""

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.seed, self.rank = seed, rank
        self.generator = torch.Generator()
        self._on_cpu = device.type == "cpu"

    def at(self, step: int) -> torch.Generator:
        """Seed torch for ``step`` and return the generator of the batch, seeded too."""
        seed = derive_seed(self.seed, step, DROPOUT, self.rank)
        if self._on_cpu:
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        self.generator.manual_seed(derive_seed(self.seed, step, NEGATIVES, self.rank))
        return self.generator


class LossWindow:
    """Loss terms since the last report, kept on the device: one synchronisation per report, not per step."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._row_W: list[Tensor] = []
        self._first_step = 0
        self._start = time.perf_counter()

    def restart_clock(self) -> None:
        """Start counting time here: what lay before was validation or writing."""
        self._start = time.perf_counter()

    @torch.no_grad()
    def add(self, step: int, total: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Keep the numbers of one step."""
        if not self._row_W:
            self.names, self._first_step = ("loss", *terms), step
        self._row_W.append(torch.stack((total.detach(), *terms.values())))

    def report(self, stage: str, config: TrainingConfig) -> tuple[dict[str, float], int, float]:
        """Return the mean of every term, the number of steps and their seconds; then start anew.

        Raises:
            TrainingError: A value was not finite; names the step and the first term that was not.
        """
        if not self._row_W:
            return {}, 0, 0.0
        value_WT = torch.stack(self._row_W).double().cpu()
        seconds = time.perf_counter() - self._start
        bad_WT = ~torch.isfinite(value_WT)
        if bool(bad_WT.any()):
            row = int(bad_WT.any(dim=1).nonzero()[0])
            terms = [c for c in range(1, len(self.names)) if bad_WT[row, c]]
            column = terms[0] if terms else 0
            raise TrainingError(
                f"the loss term {self.names[column]!r} is not finite",
                got=f"{float(value_WT[row, column])} at step {self._first_step + row + 1} of stage {stage!r}",
                fix=f"lower training.learning_rate (now {config.learning_rate}) or set training.clip_norm; "
                "the best checkpoint so far is kept",
            )
        mean_T = value_WT.mean(dim=0).tolist()
        means = {("loss" if not c else f"loss/{name}"): mean_T[c] for c, name in enumerate(self.names)}
        steps = len(self._row_W)
        self._row_W = []
        self.restart_clock()
        return means, steps, seconds


def apply_gradients(
    accelerator: Accelerator, optimizers: Mapping[str, torch.optim.Optimizer], clip_norm: float
) -> None:
    """Clip the dense gradients, update every parameter, and drop the gradients.

    The optimisers are not wrapped by Accelerate: it would update its loss scaler after each of them instead of once.
    """
    scaler = accelerator.scaler
    if clip_norm > 0 and "dense" in optimizers:
        if scaler is not None:
            scaler.unscale_(optimizers["dense"])
        nn.utils.clip_grad_norm_(optimizers["dense"].param_groups[0]["params"], clip_norm)
    for optimizer in optimizers.values():
        if scaler is None:
            optimizer.step()
        elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            scaler.step(optimizer)
        optimizer.zero_grad()
    if scaler is not None:
        scaler.update()


def new_accelerator(precision: str) -> Accelerator:
    """Return an Accelerator of ``precision``, even if this process trained with another one before."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps the first precision of the process for ever; a library may train twice.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        # Without cpu=True, Accelerate overlooks torchrun's processes on a machine without an accelerator.
        return Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    except ValueError as error:
        raise ConfigError(
            "training.precision is not possible here", got=f"{precision}: {error}", fix="set training.precision=no"
        ) from error


def to_train_batch(windows: Any, generator: torch.Generator, device: torch.device) -> TrainBatch:
    """Turn the sampler's windows into the models' batch, on ``device``."""
    batch = TrainBatch(
        item_BL=windows.item_BL,
        target_B=windows.target_B,
        weight_B=windows.weight_B,
        user_categorical_BF=windows.user_categorical_BF,
        user_numeric_BG=windows.user_numeric_BG,
        generator=generator,
    )
    return batch if device.type == "cpu" else batch.to(device)


@contextlib.contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Leave torch's random state and thread count as they were found."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if threads:
                torch.set_num_threads(before)
