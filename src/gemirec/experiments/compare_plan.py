"""What a comparison is made of: contestants, data sets, and the folder of each run by what it would train.

A run lies in ``OUT/runs/DATA-FINGERPRINT/MODEL-KEY/seedN``. The fingerprint is the dataset's; the key is a digest of
all that the configuration says apart from the defaults of this release. Another value is therefore another folder, and
a setting that a later release adds does not make a finished run look like another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gemirec.artifacts import read_json
from gemirec.config import Config, TrainingConfig, from_dict, merge, to_dict
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.models.catalog import MODELS, config_class, entry
from gemirec.recommender.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ContestantConfig(Config, frozen=True, kw_only=True):
    """What is special about one model of a comparison; its name may be one of its own."""

    base: str = ""
    """Model of the catalogue that it is; empty: the name is one."""
    profile: str = ""
    """``tuned`` or ``paper``; empty takes the comparison's."""
    model: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of its model's config."""
    training: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.config.TrainingConfig`."""


class CompareConfig(Config, frozen=True, kw_only=True):
    """What a comparison can be told, section by section."""

    model: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of the models' configs; a model that does not have a field goes without it."""
    training: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.config.TrainingConfig`, for every model; the seed comes from the seeds."""
    evaluation: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.config.EvaluationConfig`, for every model."""
    models: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """By name, fields of :class:`ContestantConfig`: one model's own settings, or a variant under a name of its own."""


@dataclass(frozen=True, eq=False)
class Contestant:
    """One model of the comparison.

    Attributes:
        name: What the table calls it.
        base: Its model in the catalogue.
        profile: ``tuned`` or ``paper``.
        overrides: Sections ``model`` and ``training`` laid over the profile.
        config: The whole configuration, ``model`` and ``training``, as plain JSON values without the seed.
        key: Digest of it.
    """

    name: str
    base: str
    profile: str
    overrides: dict[str, Any]
    config: dict[str, Any]
    key: str


@dataclass(frozen=True, eq=False)
class Contest:
    """One data set of the comparison.

    Attributes:
        name: What the table calls it.
        data: The dataset.
        folder: Name of its folder among the runs.
    """

    name: str
    data: Dataset
    folder: str


def contestants(names: Sequence[str], profile: str, wanted: CompareConfig) -> list[Contestant]:
    """Return the models of a comparison, each with its whole configuration, in the order of ``names``.

    Args:
        names: Names of the catalogue or of ``wanted.models``; ``all`` stands for the whole catalogue.
        profile: For those that have none of their own.
        wanted: What the comparison is told.

    Raises:
        ConfigError: No model, an unknown one, or a setting that none of them has.
    """
    listed = list(dict.fromkeys(name for given in names for name in (MODELS if given == "all" else (given,))))
    if not listed:
        raise ConfigError("there is no model to compare", got="none", fix="--models comirec_sa,gemirec, or all")
    for name, settings in wanted.models.items():  # a list of variants may hold more than are asked for
        if name not in listed and not settings.get("base"):
            entry(name)
    where = "the comparison's configuration, models."
    own = {name: from_dict(ContestantConfig, wanted.models.get(name, {}), where=where + name) for name in listed}
    bases = {name: own[name].base or name for name in listed}
    _check_shared(wanted.model, bases, profile)
    return [_contestant(name, bases[name], own[name], profile, wanted) for name in listed]


def _check_shared(model: Mapping[str, Any], bases: Mapping[str, str], profile: str) -> None:
    """Raise for a shared model setting that no model has, with the first model's suggestion."""
    for base in bases.values():
        entry(base)  # an unknown model is the first thing to say
    known = {field for base in bases.values() for field in config_class(base).__struct_fields__}
    for field, value in model.items():
        if field not in known:
            resolve(next(iter(bases.values())), profile, {"model": {field: value}})


def _contestant(name: str, base: str, own: ContestantConfig, profile: str, wanted: CompareConfig) -> Contestant:
    """Return one model with its whole configuration."""
    fields = config_class(base).__struct_fields__
    shared = {"model": {k: v for k, v in wanted.model.items() if k in fields}, "training": wanted.training}
    overrides = merge(shared, {"model": own.model, "training": own.training})
    profile = own.profile or profile
    run = resolve(base, profile, overrides)
    default = _plain({"model": to_dict(config_class(base)()), "training": to_dict(TrainingConfig())})
    config = _plain({"model": run.model, "training": to_dict(run.training)})
    for values in (config, default):
        del values["training"]["seed"]
    return Contestant(name, base, profile, overrides, config, digest(departures(config, default)))


def contests(folders: Sequence[Path]) -> list[Contest]:
    """Return the data sets of a comparison, each once; two of one name are told apart by their fingerprints.

    Raises:
        ConfigError: There is none.
        ArtifactError: A folder is missing or no prepared dataset.
    """
    found = {data.fingerprint: data for data in (Dataset.open(folder) for folder in folders)}
    if not found:
        raise ConfigError("there is no data set to compare on", got="none", fix="gemirec compare DATA --out OUT")
    names = [data.info.name for data in found.values()]
    out = []
    for data in found.values():
        short, name = data.fingerprint[:8], data.info.name
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        out.append(Contest(name if names.count(name) == 1 else f"{name} {short}", data, f"{safe}-{short}"))
    return out


def run_folder(contest: Contest, contestant: Contestant, seed: int) -> str:
    """Return the folder of a run, relative to the comparison's."""
    return f"runs/{contest.folder}/{contestant.base}-{contestant.key}/seed{seed}"


def check_run(folder: Path, contest: Contest, contestant: Contestant) -> None:
    """Raise if a run that is there was made from other data, or with another value of a setting.

    The folder's name tells runs apart already; this finds a run made when a default of the library was another.

    Raises:
        ConfigError: It is another run.
    """
    file = folder / "run" / "config.json"
    there = read_json(file)
    asked = {**contestant.config, "dataset": {"fingerprint": contest.data.fingerprint}}
    try:
        kept = {part: {k: v for k, v in there[part].items() if k != "seed"} for part in ("model", "training")}
        before: dict[str, Any] = {**kept, "dataset": {"fingerprint": there["dataset"]["fingerprint"]}}
    except (KeyError, TypeError, AttributeError):
        before = {"config.json": "damaged"}
    other = departures(before, asked)
    if other:
        raise ConfigError(
            "a run there was made with other defaults or from other data",
            got=f"{file}: {json.dumps(other)}",
            fix=f"delete {folder} to train it anew, or choose another --out",
        )


def departures(values: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``values`` that ``default`` lacks or has otherwise, at any depth.

    Example:
        >>> departures({"a": 1, "b": {"x": 2, "y": 3}}, {"a": 1, "b": {"x": 2, "y": 0}, "c": 9})
        {'b': {'y': 3}}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        before = default.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = departures(value, before)
            if inner:
                out[key] = inner
        elif key not in default or value != before:
            out[key] = value
    return out


def digest(values: Any) -> str:
    """Return eight hexadecimal digits that stand for plain values.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}), len(digest({}))
        (True, 8)
    """
    text = json.dumps(_plain(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(values: Any) -> Any:
    """Return values as JSON has them: lists for tuples."""
    return msgspec.json.decode(msgspec.json.encode(values))
