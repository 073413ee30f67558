"""What ablations and comparisons share: seeds, a folder of their own, one run of many, one result over seeds."""

from __future__ import annotations

import shutil
import time
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from gemirec.artifacts import read_json, translate_os_errors, write_json
from gemirec.components.embedding import ItemTable
from gemirec.config import MergeConfig, to_dict
from gemirec.errors import ConfigError, StorageError
from gemirec.evaluation.result import EvaluationResult
from gemirec.recommender import Recommender
from gemirec.retrieval.retrieve import check_categories

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import polars as pl

    from gemirec.config import EvaluationConfig
    from gemirec.data.dataset import Dataset
    from gemirec.experiments.watch import Watcher
    from gemirec.training.progress import Progress

FACTS, COST = "facts.json", "cost.json"
CLOCK_EVERY_S = 5.0
"""Seconds between the writings of a training's clock: a killed process loses no more than these."""


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``1,2,3``.

    Raises:
        ConfigError: Something in it is not a whole number.

    Example:
        >>> parse_seeds("1, 2")
        [1, 2]
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError("seeds must be whole numbers with commas between", got=text, fix="--seeds 1,2,3") from error


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise for a list without a seed, or with a negative one."""
    if not seeds or min(seeds) < 0:
        raise ConfigError("seeds must be whole numbers from 0 on, one or more", got=list(seeds), fix="seeds 1,2,3")


def earlier_report(out: Path, name: str) -> Any:
    """Return the report that an earlier call left in a folder, ``None`` for a new or an empty folder.

    Args:
        out: The folder.
        name: The report's file name, by which the folder is known.

    Raises:
        StorageError: The folder holds something else.
        ArtifactError: The report is damaged.
    """
    file, half_written = out / name, f".{name}."
    with translate_os_errors(out):
        if not file.is_file():
            strange = out.exists() and (
                not out.is_dir() or any(not path.name.startswith(half_written) for path in out.iterdir())
            )
            if strange:
                raise StorageError("the folder holds something else", got=out, fix="choose another folder")
            return None
    return read_json(file)


def told(evaluation: EvaluationConfig) -> dict[str, Any]:
    """Return what an evaluation is told, by which earlier ones are known: the default merge goes without saying.

    Example:
        >>> from gemirec.config import EvaluationConfig
        >>> "merge" in told(EvaluationConfig())
        False
    """
    values = to_dict(evaluation)
    return values if evaluation.merge != MergeConfig() else {k: v for k, v in values.items() if k != "merge"}


def measured(
    data: Dataset,
    folder: Path,
    *,
    model: str,
    profile: str,
    overrides: Mapping[str, Any],
    evaluation: EvaluationConfig,
    scores: Path,
    watcher: Watcher,
) -> EvaluationResult:
    """Train and evaluate one run into ``folder``, or do what an earlier call left undone, or read what it found.

    The folder then holds ``run/`` without its checkpoints, ``artifact/``, :data:`FACTS` (parameters, steps, speed) and
    :data:`COST` (wall seconds of training, over all calls, and of the last evaluation).

    Args:
        data: The prepared dataset.
        folder: The run's own folder.
        model: Name in the catalogue.
        profile: ``tuned`` or ``paper``.
        overrides: Sections ``model`` and ``training``, the seed among them.
        evaluation: What is measured.
        scores: Where the evaluation is written; complete if ``evaluation.json`` is there.
        watcher: Shows progress.

    Raises:
        ConfigError: The data lack the categories that the evaluation's merge needs; before any training.
    """
    check_categories(evaluation.merge, data.spec().category_N)
    if not (scores / "evaluation.json").is_file():
        if (folder / "artifact").is_dir() and (folder / FACTS).is_file():
            recommender = Recommender.from_pretrained(folder / "artifact")
        else:
            recommender = _fit(data, folder, watcher, model=model, profile=profile, overrides=overrides)
        started = time.perf_counter()
        result = recommender.evaluate(data, evaluation, progress=watcher.counted)
        result.write(scores)
        write_json(folder / COST, {**cost(folder), "evaluate": round(time.perf_counter() - started, 2)})
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    return EvaluationResult.read(scores)  # holds no lists of users until they are asked for


def _fit(data: Dataset, folder: Path, watcher: Watcher, **asked: Any) -> Recommender:
    """Train, or go on training; write facts and artifact, the artifact last."""
    clock = _Clock(folder, watcher)
    recommender = Recommender.fit(data, **asked, workdir=folder, resume=True, progress=clock)
    clock.write()
    outcome = recommender.info.training
    tables = {id(part.weight) for part in recommender.model.modules() if isinstance(part, ItemTable)}
    sizes = {id(tensor): tensor.numel() for tensor in recommender.model.parameters()}
    facts = {
        **{name: outcome[name] for name in ("steps", "best_step", "best_metric", "examples_per_s")},
        "parameters": sum(sizes.values()),
        "parameters_beside_items": sum(size for key, size in sizes.items() if key not in tables),
    }
    write_json(folder / FACTS, facts)
    recommender.save_pretrained(folder / "artifact", histories=False, overwrite=True)
    return recommender


def cost(folder: Path) -> dict[str, float]:
    """Return the wall seconds of a run, ``train`` and ``evaluate``; what was never begun is left out."""
    return dict(read_json(folder / COST)) if (folder / COST).is_file() else {}


class _Clock:
    """Adds this call's training time to what earlier calls spent, while it passes progress on.

    Args:
        folder: The run's own folder.
        watcher: Who is shown the progress.
    """

    def __init__(self, folder: Path, watcher: Watcher) -> None:
        self._folder, self._watcher = folder, watcher
        self._before = cost(folder)
        self._start = self._written = time.perf_counter()

    def __call__(self, now: Progress) -> None:
        """Show progress, and write the time if it is long ago."""
        self._watcher.training(now)
        if time.perf_counter() - self._written >= CLOCK_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the time spent so far."""
        self._written = time.perf_counter()
        seconds = self._before.get("train", 0.0) + self._written - self._start
        write_json(self._folder / COST, {**self._before, "train": round(seconds, 2)})


def over_seeds(results: Sequence[EvaluationResult], metrics: Sequence[str]) -> EvaluationResult:
    """Return one result whose metrics per user are means over seeds; only the table, and only ``metrics``.

    A metric that one of the results lacks is left out.

    Args:
        results: Results over the same users in the same order.
        metrics: Columns of their tables.
    """
    import polars as pl

    def users() -> pl.DataFrame:
        tables = [result.users for result in results]
        present = [metric for metric in metrics if all(metric in table.columns for table in tables)]
        means = {
            m: pl.DataFrame([t[m].rename(str(n)) for n, t in enumerate(tables)]).mean_horizontal() for m in present
        }
        return tables[0].select("user_id").with_columns(**means)

    return EvaluationResult({}, {}, results[0].settings, users)


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean, and the standard deviation if there are two values or more.

    Example:
        >>> mean_and_deviation([1.0, 3.0]), mean_and_deviation([2.0]), mean_and_deviation([])
        ((2.0, 1.4142135623730951), (2.0, None), (None, None))
    """
    return (fmean(values) if values else None), (stdev(values) if len(values) > 1 else None)
