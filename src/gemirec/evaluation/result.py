"""What an evaluation found: means, intervals, settings, and a table with a row per user."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.artifacts import FORMAT_VERSION, atomic_file, check_format, read_json, translate_os_errors, write_json
from gemirec.errors import ArtifactError, ConfigError
from gemirec.evaluation.significance import Difference, paired_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl
    import torch


@dataclass
class EvaluationResult:
    """The outcome of one evaluation.

    Attributes:
        metrics: Means over users, keyed like ``recall@20`` or, where no list length matters, ``int_cos``; and what is
            pooled over all users, like ``coverage@20`` and ``cur_micro@20``.
        intervals: Bootstrap interval ``(low, high)`` of every metric that is a mean over users; empty if switched off.
        settings: Everything needed to read the numbers: dataset name and fingerprint, split, list lengths, seen-item
            switch, users, seeds, versions, hardware, seconds.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    settings: dict[str, Any]
    build_users: Callable[[], pl.DataFrame] = field(repr=False)
    """Makes the table; called once, at the first use of :attr:`users`."""
    _users: pl.DataFrame | None = field(default=None, repr=False)

    @property
    def users(self) -> pl.DataFrame:
        """One row per user: ``user_id, history_length, num_targets``, every metric, ``items`` and ``interests``.

        ``items`` are the log's own ids, best first, as retrieved; ``interests`` says which one won each item. A metric
        that has no value for the user is null.
        """
        if self._users is None:
            self._users = self.build_users()
        return self._users

    def to_dict(self) -> dict[str, Any]:
        """Return metrics, intervals and settings as plain JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "metrics": dict(self.metrics),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "settings": self.settings,
        }

    def write(self, folder: str | Path) -> None:
        """Write ``evaluation.json`` and ``users.parquet`` into ``folder``, which is made if needed."""
        folder = Path(folder)
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(folder / "users.parquet") as tmp:
                self.users.write_parquet(tmp)
        write_json(folder / "evaluation.json", self.to_dict())

    @classmethod
    def read(cls, folder: str | Path) -> EvaluationResult:
        """Read what :meth:`write` wrote.

        Raises:
            ArtifactError: A file is missing, damaged or of another version.
        """
        folder = Path(folder)
        raw = read_json(folder / "evaluation.json")
        check_format("evaluation", raw.get("format_version") if isinstance(raw, dict) else None, folder)
        try:
            found = {name: (float(low), float(high)) for name, (low, high) in raw["intervals"].items()}
            return cls(raw["metrics"], found, raw["settings"], lambda: _read_users(folder / "users.parquet"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                "evaluation.json is damaged", got=f"{folder}: {error!r}", fix="evaluate again"
            ) from error


def compare(
    first: EvaluationResult,
    second: EvaluationResult,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 1,
) -> dict[str, Difference]:
    """Compare two results by a paired bootstrap over users: for every shared metric, ``first - second``.

    A metric that no user has in both results (a collapse metric, where one model has a single interest) is left out.

    Raises:
        ConfigError: The results are not over the same dataset, split, users and seen-item switch.
    """
    for key in ("dataset_fingerprint", "split", "exclude_seen"):
        if first.settings[key] != second.settings[key]:
            raise ConfigError(
                "two evaluations cannot be compared",
                got=f"{key} is {first.settings[key]!r} and {second.settings[key]!r}",
                fix="evaluate both on the same prepared dataset with the same settings",
            )
    if not first.users["user_id"].equals(second.users["user_id"]):
        raise ConfigError(
            "two evaluations cannot be compared",
            got=f"{len(first.users)} and {len(second.users)} users, not the same",
            fix="evaluate both with the same evaluation.users and evaluation.seed",
        )
    shared = [n for n, kind in first.users.schema.items() if kind.is_float() and n in second.users.columns]
    if not shared:
        return {}
    first_UM, second_UM = (
        np.stack([result.users[name].fill_null(float("nan")).to_numpy() for name in shared], axis=1)
        for result in (first, second)
    )
    found = paired_columns(first_UM, second_UM, resamples=resamples, confidence=confidence, seed=seed)
    return {name: gain for name, gain in zip(shared, found, strict=True) if gain is not None}


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware, for the settings of a result."""
    import torch

    import gemirec

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "versions": {
            "gemirec": gemirec.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "hardware": {
            "device": str(device),
            "name": name,
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def _processor() -> str:
    """Return the processor's name, as exactly as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read_users(path: Path) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            "the table of users is missing or damaged", got=f"{path}: {error}", fix="evaluate again"
        ) from error
