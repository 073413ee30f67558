"""What the face is told, checked: configuration, data, list lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from gemirec.config import Config, TrainingConfig, from_dict, merge, parse_overrides, to_dict
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from gemirec.data.prepare import PrepareConfig

Fallback = Literal["popularity", "none"]


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


def check_k(k: int) -> None:
    """Raise for a list length that is not a positive whole number."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ConfigError("k must be a whole number of at least 1", got=repr(k), fix="for example k=20")


def check_fallback(fallback: str) -> None:
    """Raise for a fallback that does not exist."""
    if fallback not in {"popularity", "none"}:
        raise ConfigError("no such fallback", got=fallback, fix="choose 'popularity' or 'none'")


def as_dataset(log: Any, out: Path, items: Any, users: Any, config: PrepareConfig | None, *, resume: bool) -> Dataset:
    """Return ``log`` if it is prepared, otherwise prepare it into ``out``."""
    if isinstance(log, (str, Path)) and (Path(log) / "dataset.json").is_file():
        log = Dataset.open(log)
    if isinstance(log, Dataset):
        if items is not None or users is not None or config is not None:
            raise ConfigError(
                "items, users and prepare belong to a raw log",
                got=f"a prepared dataset ({log.path})",
                fix="leave them out, or give the raw log",
            )
        return log
    if resume and (out / "dataset.json").is_file():
        return Dataset.open(out)
    from gemirec.data.prepare import PrepareConfig, prepare

    return prepare(log, out, items=items, users=users, config=config or PrepareConfig())
