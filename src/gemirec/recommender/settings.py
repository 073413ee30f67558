"""From a profile and overrides to the model's configuration and the training's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gemirec.config import Config, TrainingConfig, from_dict, merge, parse_overrides, to_dict


class RunConfig(Config, frozen=True, kw_only=True):
    """What a training run is made of: the sections of a profile, of ``--config`` and of ``--set``."""

    model: dict[str, Any] = msgspec.field(default_factory=dict)
    """The model's configuration; its keys are those of the model's config class."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""


def resolve(model: str, profile: str, overrides: Mapping[str, Any] | Iterable[str] | None = None) -> RunConfig:
    """Lay ``overrides`` over a profile and check every key and value.

    Args:
        model: Name in the catalogue of models.
        profile: ``paper`` or ``tuned``.
        overrides: Nested mapping with the sections ``model`` and ``training``, or strings ``"training.steps=500"``.

    Raises:
        ConfigError: An unknown model, profile, key, or a value of the wrong type.

    Example:
        >>> resolve("comirec_sa", "tuned", ["training.steps=7"]).training.steps
        7
        >>> resolve("comirec_sa", "tuned", {"trainig": {"steps": 7}})
        Traceback (most recent call last):
        gemirec.errors.ConfigError: unknown key in the run's configuration
          got: trainig
          fix: did you mean 'training'? known keys: model, training
    """
    from gemirec.models.catalog import config_class, load_profile

    values: Mapping[str, Any] = {}
    if isinstance(overrides, Mapping):
        values = overrides
    elif overrides is not None:
        values = parse_overrides(overrides)
    base = load_profile(model, profile)
    run = from_dict(RunConfig, merge(base, values), where="the run's configuration")
    full = from_dict(config_class(model), run.model, where=f"the configuration of {model} (section 'model')")
    return RunConfig(model=to_dict(full), training=run.training)
