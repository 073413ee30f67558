"""The training loop: stages, validation, early stopping, checkpoints, resume.

Everything random of step ``s`` comes from (seed, s) and the sampler is stateless, so a run killed at any step and
resumed gives, on the CPU, bit for bit the weights of the uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemirec.artifacts import translate_os_errors
from gemirec.config import TrainingConfig, to_dict
from gemirec.training.checkpoint import Checkpoints, TrainState
from gemirec.training.optim import build_optimizers, scale_rates
from gemirec.training.progress import Progress
from gemirec.training.run_folder import open_run, versions
from gemirec.training.schedule import (
    INIT,
    STAGE_START,
    StageSpan,
    check_training_config,
    derive_seed,
    frozen,
    plan_stages,
    rate_factor,
)
from gemirec.training.session import (
    LossModule,
    LossWindow,
    StepRandomness,
    apply_gradients,
    new_accelerator,
    to_train_batch,
    torch_settings,
)
from gemirec.training.tracking import Tracker
from gemirec.training.validation import Validator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemirec.data.dataset import Dataset
    from gemirec.models.base import RetrievalModel
    from gemirec.training.progress import ProgressCallback

logger = logging.getLogger("gemirec")


@dataclass(frozen=True)
class TrainResult:
    """What training gives back.

    Attributes:
        model: The model with the best weights (the last ones if there were no validation users), in ``eval`` mode.
        best_step: Step of those weights.
        best_metric: Their validation metric; ``None`` without validation users.
        seconds: Wall time of this call, validation and checkpoints included.
        examples_per_s: Training windows per second of training time, validation and checkpoints not counted.
        steps: Steps done, over all calls of a resumed run.
    """

    model: RetrievalModel
    best_step: int
    best_metric: float | None
    seconds: float
    examples_per_s: float
    steps: int


def train(
    model_name: str,
    dataset: Dataset,
    *,
    model_config: Mapping[str, Any],
    training: TrainingConfig,
    out: Path | str,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainResult:
    """Build a model of the catalogue and train it into a run folder.

    Args:
        model_name: Name in :data:`gemirec.models.catalog.MODELS`.
        dataset: A prepared dataset.
        model_config: The model's configuration, plain values; missing fields take their defaults.
        training: How to train.
        out: The run folder; see :mod:`gemirec.training.run_folder`.
        resume: Continue from the run folder's ``last`` checkpoint; start if there is none yet.
        progress: Called at every log line and validation.

    Raises:
        ConfigError: An unknown model, key or metric.
        TrainingError: A loss is not finite, or the folder holds another run.
        ArtifactError: A checkpoint is cut or damaged.
        StorageError: The folder holds a run and ``resume`` is false, or the disk refuses.
    """
    from gemirec.models.catalog import build_model

    with torch_settings(0):
        torch.manual_seed(derive_seed(training.seed, 0, INIT))
        model = build_model(model_name, model_config, dataset.spec())
    return train_model(model, dataset, name=model_name, training=training, out=out, resume=resume, progress=progress)


def train_model(
    model: RetrievalModel,
    dataset: Dataset,
    *,
    name: str,
    training: TrainingConfig,
    out: Path | str,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainResult:
    """Train a model that is built already; ``name`` is what the run folder calls it. Else as :func:`train`."""
    start = time.perf_counter()
    check_training_config(training)
    run = Path(out)
    with torch_settings(training.threads):
        accelerator = new_accelerator(training.precision)
        config = {"model_name": name, "model": to_dict(model.config), "training": to_dict(training)}
        config |= {"dataset": {"name": dataset.info.name, "fingerprint": dataset.fingerprint}}
        if accelerator.is_main_process:
            open_run(run, config, resume=resume)
        accelerator.wait_for_everyone()
        loop = TrainingLoop(model, dataset, training, run, accelerator, progress)
        try:
            loop.train()
        finally:
            loop.close()
        state = loop.state
    rate = state.examples / state.seconds if state.seconds else 0.0
    return TrainResult(model, state.best_step, state.best_metric, time.perf_counter() - start, rate, state.step)


class TrainingLoop:
    """One call of :func:`train_model`: owns the optimisers, the state and the files of the run.

    Args:
        model: The model to train, in place.
        dataset: A prepared dataset.
        config: How to train.
        run: The run folder, opened by :func:`~gemirec.training.run_folder.open_run`.
        accelerator: Device, precision and processes.
        progress: Called at every log line and validation, or ``None``.
    """

    def __init__(
        self,
        model: RetrievalModel,
        dataset: Dataset,
        config: TrainingConfig,
        run: Path,
        accelerator: Any,
        progress: ProgressCallback | None,
    ) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.accelerator, self.progress = accelerator, progress
        self.main = bool(accelerator.is_main_process)
        model.to(accelerator.device)
        self.checkpoints = Checkpoints(run)
        self.optimizers = build_optimizers(model, config) if model.trainable else {}
        self.spans = plan_stages(model.stages, config.steps if model.trainable else 0)
        self.state = self._resume()
        resumes_at = self.state.step if self.checkpoints.index() else None
        self.tracker = Tracker(run, step=resumes_at) if self.main else None
        self.random = StepRandomness(config.seed, accelerator.process_index, accelerator.device)
        self.window = LossWindow()
        self.value: float | None = None
        self.alarmed: set[str] = set()
        self.validator = Validator(model, dataset, config, accelerator)

    def _resume(self) -> TrainState:
        if self.main:
            self.checkpoints.clean()
        if "last" not in self.checkpoints.index():
            return TrainState(versions=versions())
        state = self.checkpoints.load("last", self.model, self.optimizers)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))
        return state

    def close(self) -> None:
        """Close the files."""
        if self.tracker is not None:
            self.tracker.close()

    def train(self) -> None:
        """Run what is left of the stages, then take the best weights."""
        if not self.checkpoints.index():
            self.validator.check()
            with torch.no_grad():
                self.model.learn_from(self.dataset)
            if not self.model.trainable:
                self._save(best=self.validator.present and self._validate("", last_stage=True))
        for number, span in enumerate(self.spans):
            if not self.state.stopped and self.state.step < span.end:
                self._run_stage(span, last_stage=number == len(self.spans) - 1)
        self.checkpoints.load("best" if "best" in self.checkpoints.index() else "last", self.model)
        self.model.eval()

    def _run_stage(self, span: StageSpan, *, last_stage: bool) -> None:
        """Train the steps of one stage that are not done yet."""
        from gemirec.data.batches import WindowSampler

        config, stage = self.config, span.stage
        if self.state.step == span.start and stage.on_start is not None:
            torch.manual_seed(derive_seed(config.seed, span.start, STAGE_START))
            with torch.no_grad():
                getattr(self.model, stage.on_start)()
        sampler = WindowSampler(
            self.dataset,
            batch_size=config.batch_size,
            max_length=self.model.max_length,
            sampling=config.sampling,
            min_history=config.min_history,
            seed=config.seed,
        )
        with frozen(self.model, stage):
            losses = self.accelerator.prepare_model(LossModule(self.model))
            if config.compile:
                losses = torch.compile(losses)
            self.model.train()
            self.window.restart_clock()
            while self.state.step < span.end and not self.state.stopped:
                self.step(losses, sampler, stage.name)
                self._after_step(span, last_stage=last_stage)

    def step(self, losses: Any, sampler: Any, stage: str) -> None:
        """Do one optimiser step: the hot path. Nothing in it waits for the device.

        Args:
            losses: The prepared :class:`~gemirec.training.session.LossModule`.
            sampler: The window sampler.
            stage: Name of the stage.
        """
        step = self.state.step
        if self.config.schedule != "constant":
            scale_rates(self.optimizers, self.config, rate_factor(self.config.schedule, step, self.config.steps))
        windows = sampler.windows(step * self.accelerator.num_processes + self.accelerator.process_index)
        batch = to_train_batch(windows, self.random.at(step), self.accelerator.device)
        total, terms = losses(batch, stage)
        self.accelerator.backward(total)
        apply_gradients(self.accelerator, self.optimizers, self.config.clip_norm)
        self.window.add(step, total, terms)
        self.state.step = step + 1

    def _after_step(self, span: StageSpan, *, last_stage: bool) -> None:
        """Log, validate, look inside the model and write a checkpoint where they are due."""
        config, step = self.config, self.state.step
        ends = step == span.end
        validates = self.validator.present and (_due(step, config.eval_every) or (ends and last_stage))
        looks = ends or _due(step, config.eval_every)
        saves = ends or _due(step, config.checkpoint_every)
        if not (looks or saves or _due(step, config.log_every)):
            return
        self._report(span.stage.name)
        best = self._validate(span.stage.name, last_stage=last_stage) if validates else False
        if looks:
            self._look_inside(span.stage.name)
        if saves or best or self.state.stopped:
            self._save(best=best)
        self.window.restart_clock()

    def _report(self, stage: str) -> None:
        """Bring the losses of the last steps over, check them, and log them."""
        self.state.stage = stage
        means, steps, seconds = self.window.report(stage, self.config)
        examples = steps * self.config.batch_size * self.accelerator.num_processes
        self.state.seconds += seconds
        self.state.examples += examples
        rate = examples / seconds if seconds else 0.0
        names = {"dense": "lr", "items": "item_lr"}
        rates = {names[key]: optimizer.param_groups[0]["lr"] for key, optimizer in self.optimizers.items()}
        if self.tracker is not None:
            self.tracker.log("train", self.state.step, stage, {**means, **rates, "examples_per_s": rate})
        if self.progress is not None and self.main:
            self.progress(
                Progress(
                    step=self.state.step,
                    steps=self.config.steps,
                    stage=stage,
                    loss=means["loss"],
                    examples_per_s=rate,
                    metric=self.config.metric,
                    value=self.value,
                    best=self.state.best_metric,
                )
            )

    def _validate(self, stage: str, *, last_stage: bool) -> bool:
        """Validate and log; return whether this is the best so far.

        Only the last stage has a best and can stop early: an earlier one may train what no ranking shows yet.
        """
        start = time.perf_counter()
        metrics = self.validator.metrics()
        if self.tracker is not None:
            self.tracker.log("valid", self.state.step, stage, {**metrics, "seconds": time.perf_counter() - start})
        self.value = metrics[self.config.metric]
        return self.validator.update(self.state, self.value) if last_stage else False

    def _look_inside(self, stage: str) -> None:
        """Log the model's diagnostics, and warn once per stage if its inner state has gone wrong."""
        if self.tracker is None or not (found := self.model.diagnostics()):
            return
        alarm = self.model.alarm()
        finite = {name: value for name, value in found.items() if math.isfinite(value)}  # JSON has no infinity
        self.tracker.log("health", self.state.step, stage, {**finite, "alarm": float(alarm is not None)})
        if alarm is not None and stage not in self.alarmed:
            self.alarmed.add(stage)
            logger.warning("stage %s, step %d: %s", stage, self.state.step, alarm)

    def _save(self, *, best: bool) -> None:
        """Write a checkpoint; without validation the newest is the best."""
        if not self.validator.present:
            self.state.best_step = self.state.step
        if self.accelerator.scaler is not None:
            self.state.scaler = {key: float(value) for key, value in self.accelerator.scaler.state_dict().items()}
        if self.main:
            with translate_os_errors(self.checkpoints.path):
                self.checkpoints.save(self.state, self.model, self.optimizers, best=best)
        self.accelerator.wait_for_everyone()


def _due(step: int, every: int) -> bool:
    """Whether something done every ``every`` steps is due; 0 means never."""
    return every > 0 and step % every == 0
