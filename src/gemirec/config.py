"""Typed configuration: strict structs from YAML files and ``a.b=c`` overrides.

A config class is a frozen :class:`Config` struct. An unknown key or a value of the wrong type is an error that names
the key, what was got, and the nearest known key. ``to_dict`` and ``from_dict`` round-trip.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
import yaml

from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every config struct: frozen, keyword-only, unknown keys refused."""


ConfigT = TypeVar("ConfigT", bound=Config)


class TrainingConfig(Config, frozen=True, kw_only=True):
    """How a model is trained. All counts are optimiser steps unless said."""

    steps: int = 3000
    """Most optimiser steps, summed over the model's stages in proportion to their lengths."""
    batch_size: int = 256
    """Training windows per step (per process)."""
    learning_rate: float = 1e-3
    """Adam's step size for every dense parameter."""
    item_learning_rate: float | None = None
    """Step size of the item table; ``None`` takes ``learning_rate``."""
    item_optimizer: Literal["lazy_adam", "rowwise_adagrad", "adam"] = "lazy_adam"
    """``lazy_adam`` and ``rowwise_adagrad`` touch only the rows of the step; ``adam`` is dense (the papers' choice)."""
    schedule: Literal["constant", "linear"] = "constant"
    """Step sizes over the run: ``constant``, or ``linear`` from their value at the first step to 0 behind the last."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the dense parameters."""
    clip_norm: float = 0.0
    """Largest norm of the dense gradients; 0 switches clipping off."""
    sampling: Literal["users", "events"] = "users"
    """``users``: distinct users, then a uniform position of each (ComiRec). ``events``: positions drawn uniformly."""
    min_history: int = 4
    """Fewest events before a training target (ComiRec: 4)."""
    eval_every: int = 250
    """Steps between validations."""
    patience: int = 6
    """Validations without improvement before training stops."""
    metric: str = "recall@50"
    """Validation metric, larger is better."""
    eval_users: int = 20_000
    """Most validation users per validation (a fixed sample); 0 takes all."""
    checkpoint_every: int = 250
    """Steps between ``last`` checkpoints."""
    log_every: int = 50
    """Steps between lines in ``metrics.jsonl`` and TensorBoard."""
    seed: int = 1
    """Seed of everything: initialisation, windows, negatives, dropout."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision, through Accelerate."""
    compile: bool = False
    """Compile the model's loss with ``torch.compile`` (no gain measured on CPU)."""
    threads: int = 0
    """Torch threads; 0 leaves torch's setting alone."""


class MergeConfig(Config, frozen=True, kw_only=True):
    """How the lists of a user's interests become one list: in serving and in evaluation alike.

    Raises:
        ConfigError: A number is out of range, or belongs to a kind that was not asked for.

    Example:
        >>> MergeConfig(kind="diverse", diversity=0.2).pool
        4
        >>> MergeConfig(diversity=0.2)
        Traceback (most recent call last):
        gemirec.errors.ConfigError: merge.diversity belongs to the kind diverse
          got: kind max, diversity 0.2
          fix: set merge.kind=diverse, or leave diversity out
    """

    kind: Literal["max", "weighted", "diverse", "quota"] = "max"
    """``max``: an item's best score over the interests. ``weighted``: the same, with scores times the weight that the
    model gives the interest. ``diverse``: the best score, less a penalty for each earlier item of the same category
    (ComiRec's controllable aggregation). ``quota``: every interest fills places of its own."""
    diversity: float = 0.0
    """Lambda of ``diverse``: the penalty, 0 or more, in the unit of the model's scores."""
    pool: int = 4
    """Candidates of ``diverse``, in lengths of the list: the best items over all interests."""
    quota: Literal["equal", "weight"] | tuple[float, ...] = "equal"
    """Shares of the places under ``quota``. ``equal``: the same for every interest; ``weight``: in proportion to the
    weights that the model gives its interests; or one share for each interest, ``[2, 1, 1]``. An interest without a
    share gets no place of its own, and the shares of one that a user lacks go to the others."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, whatever the model."""
        for name, kind, default in (("diversity", "diverse", 0.0), ("quota", "quota", "equal")):
            value = getattr(self, name)
            if value != default and self.kind != kind:
                got, fix = f"kind {self.kind}, {name} {value}", f"set merge.kind={kind}, or leave {name} out"
                raise ConfigError(f"merge.{name} belongs to the kind {kind}", got=got, fix=fix)
        if not 0 <= self.diversity < math.inf:
            raise ConfigError("merge.diversity must be 0 or more", got=self.diversity, fix="for example 0.1")
        if self.pool < 1:
            raise ConfigError("merge.pool must be 1 or more", got=self.pool, fix="leave the default, 4")
        shares = (1.0,) if isinstance(self.quota, str) else self.quota
        if not all(0 <= share < math.inf for share in shares) or sum(shares) <= 0:
            fix = "give one number for each interest, 0 or more, not all 0: [2, 1, 1]"
            raise ConfigError("shares of a quota must be 0 or more, and one of them above 0", got=list(shares), fix=fix)


class EvaluationConfig(Config, frozen=True, kw_only=True):
    """What is measured, and on whom."""

    split: Literal["valid", "test"] = "test"
    """Which held-out part is ranked."""
    top_n: tuple[int, ...] = (20, 50)
    """List lengths. Every model returns the same total number of items: the largest of these."""
    exclude_seen: bool = False
    """Remove history items from the ranking. ComiRec's lineage does not, and counts repeats as hits."""
    batch_size: int = 512
    """Users per block."""
    item_chunk: int = 65_536
    """Items scored at once."""
    merge: MergeConfig = MergeConfig()
    """How each user's list is made of the lists of its interests; the default is what ``recommend`` does by default."""
    users: int = 0
    """Most users (a fixed sample by seed); 0 takes all."""
    bootstrap: int = 1000
    """Bootstrap resamples of users for the intervals; 0 switches them off."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    seed: int = 1
    """Seed of the user sample and the bootstrap."""


def to_dict(config: Config) -> dict[str, Any]:
    """Return plain dicts, lists and scalars that :func:`from_dict` turns back into an equal config."""
    value = msgspec.to_builtins(config)
    assert isinstance(value, dict)
    return value


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], *, where: str = "config") -> ConfigT:
    """Build a config from plain values, strictly.

    A nested mapping lies over the default that the parent gives the field, not over the nested class's own defaults.

    Args:
        cls: The config class.
        values: Nested mapping of plain values.
        where: Name of the source, for errors.

    Raises:
        ConfigError: An unknown key (with the nearest known one) or a value of the wrong type.

    Example:
        >>> from_dict(TrainingConfig, {"steps": 10}).steps
        10
        >>> from_dict(TrainingConfig, {"stepz": 10})
        Traceback (most recent call last):
        gemirec.errors.ConfigError: unknown key in config
          got: stepz
          fix: did you mean 'steps'? known keys: batch_size, checkpoint_every, clip_norm, ...
    """
    _check_keys(cls, values, where, "")
    try:
        return msgspec.convert(_on_defaults(cls, values), cls)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".") or "(top level)"
        raise ConfigError(
            f"a value in {where} cannot be used", got=f"{key}: {message}", fix=f"correct {key!r}"
        ) from error


def _on_defaults(cls: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the nested mappings of ``values`` over the defaults that ``cls`` gives those fields, at any depth."""
    out = dict(values)
    for field in msgspec.structs.fields(cls):
        value = out.get(field.name)
        if isinstance(field.default, Config) and isinstance(value, dict):
            out[field.name] = merge(to_dict(field.default), _on_defaults(type(field.default), value))
    return out


def _check_keys(cls: type[Config], values: Mapping[str, Any], where: str, prefix: str) -> None:
    """Raise for the first unknown key, at any depth, naming the nearest known one."""
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            known = sorted(hints)
            shown = ", ".join(known if len(known) <= 3 or not near else [*known[:3], "..."])
            guess = f"did you mean {prefix + near[0]!r}? " if near else ""
            raise ConfigError(f"unknown key in {where}", got=f"{prefix}{key}", fix=f"{guess}known keys: {shown}")
        nested = _nested_config(hints[key])
        if nested is not None and isinstance(value, dict):
            _check_keys(nested, value, where, f"{prefix}{key}.")


def _nested_config(hint: Any) -> type[Config] | None:
    """Return the config class inside a type hint, if there is exactly one."""
    candidates = [hint, *get_args(hint)]
    found = [item for item in candidates if isinstance(item, type) and issubclass(item, Config)]
    return found[0] if found else None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        ConfigError: The file is missing, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("a config file cannot be read", got=f"{path}: {error}", fix="check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError("a config file is not YAML", got=f"{path}: {error}", fix="correct the file") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            "a config file must hold a mapping", got=f"{path}: {type(value).__name__}", fix="write key: value lines"
        )
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on top, mapping by mapping.

    Example:
        >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
        {'a': {'x': 1, 'y': 3}}
    """
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turn ``["a.b=1", "c=x"]`` into ``{"a": {"b": 1}, "c": "x"}``; values are read as YAML scalars.

    Raises:
        ConfigError: A pair without ``=`` or with an empty key.

    Example:
        >>> parse_overrides(["training.steps=100", "model.loss.temperature=0.1"])
        {'training': {'steps': 100}, 'model': {'loss': {'temperature': 0.1}}}
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not sep or not all(key.split(".")):
            raise ConfigError(
                "an override is not of the form a.b=value", got=pair, fix="write for example --set training.steps=500"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError("an override's value is not YAML", got=pair, fix="quote the value") from error
        if isinstance(value, str):  # YAML reads 1e-3 as a string
            with contextlib.suppress(ValueError):
                value = float(value)
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out
