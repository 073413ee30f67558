"""What trains when, and from which seeds: the parts of a run that are pure functions of the configuration."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from gemirec.config import TrainingConfig
    from gemirec.models.base import Stage

_MASK = (1 << 64) - 1

INIT, DROPOUT, NEGATIVES, STAGE_START = range(4)
"""Purposes of :func:`derive_seed`."""


def derive_seed(seed: int, step: int, purpose: int, rank: int = 0) -> int:
    """Return a 63-bit seed of its own for each (seed, step, purpose, rank), by splitmix64.

    Because every draw of a step comes from such a seed, a run can be continued at any step without stored random state.

    Example:
        >>> derive_seed(1, 0, DROPOUT) == derive_seed(1, 0, DROPOUT)
        True
        >>> len({derive_seed(1, step, purpose) for step in range(100) for purpose in range(4)})
        400
    """
    value = 0
    for part in (seed, step, purpose, rank):  # one round each: seed 1 at step 2 is not seed 2 at step 1
        value = (value ^ part) + 0x9E3779B97F4A7C15 & _MASK
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value >> 1


@dataclass(frozen=True)
class StageSpan:
    """A stage and its steps: it trains steps ``start`` to ``end - 1`` of the run."""

    stage: Stage
    start: int
    end: int


def plan_stages(stages: Sequence[Stage], steps: int) -> tuple[StageSpan, ...]:
    """Divide ``steps`` among the stages in proportion to their shares; the lengths add up to ``steps`` exactly.

    Example:
        >>> from gemirec.models.base import Stage
        >>> [(s.stage.name, s.start, s.end) for s in plan_stages([Stage("a", 1), Stage("b", 3)], 10)]
        [('a', 0, 2), ('b', 2, 10)]
    """
    total = sum(stage.share for stage in stages)
    if not stages or total <= 0 or any(stage.share < 0 for stage in stages):
        raise ConfigError(
            "the model's stages have no length",
            got=", ".join(f"{stage.name}: {stage.share}" for stage in stages) or "no stage",
            fix="give at least one stage a positive share and none a negative one",
        )
    spans, start, share = [], 0, 0.0
    for stage in stages:
        share += stage.share
        end = round(steps * share / total)
        spans.append(StageSpan(stage, start, end))
        start = end
    return tuple(spans)


def rate_factor(schedule: str, step: int, steps: int) -> float:
    """Return what every step size is multiplied by at ``step`` (from 0) of a run of ``steps``.

    Example:
        >>> [rate_factor("linear", step, 4) for step in range(4)], rate_factor("constant", 3, 4)
        ([1.0, 0.75, 0.5, 0.25], 1.0)
    """
    return 1.0 - step / steps if schedule == "linear" else 1.0


@contextlib.contextmanager
def frozen(model: nn.Module, stage: Stage) -> Iterator[None]:
    """Switch off the gradients of the parameters that ``stage`` freezes, for the time of the block.

    Raises:
        ConfigError: A prefix matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in stage.frozen:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(
                f"stage {stage.name!r} freezes a parameter that does not exist",
                got=prefix,
                fix=f"name a prefix of one of: {', '.join(names)}",
            )
    still = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith(stage.frozen)]
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)


def check_training_config(config: TrainingConfig) -> None:
    """Raise :class:`ConfigError` for a training value that cannot be used."""
    least = {"steps": 1, "batch_size": 1, "patience": 1, "min_history": 1}
    least |= dict.fromkeys(("eval_every", "checkpoint_every", "log_every", "eval_users", "threads", "seed"), 0)
    for key, smallest in least.items():
        if getattr(config, key) < smallest:
            raise ConfigError(f"training.{key} is too small", got=getattr(config, key), fix=f"give {smallest} or more")
    for key in ("learning_rate", "item_learning_rate", "weight_decay", "clip_norm"):
        value = getattr(config, key)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"training.{key} must be a number >= 0", got=value, fix="give a finite value >= 0")
    if not re.fullmatch(r"[a-z_]+@[1-9][0-9]*", config.metric):
        raise ConfigError(
            "training.metric is not a metric at a list length", got=config.metric, fix="write for example recall@50"
        )
