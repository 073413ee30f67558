"""The main job, whole: from a log (simulated if none is given) to a trained model, scores beside controls, lists."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gemirec.artifacts import FORMAT_VERSION, atomic_dir, translate_os_errors, write_json
from gemirec.config import Config, EvaluationConfig, from_dict, merge
from gemirec.data.prepare import PrepareConfig, prepare
from gemirec.data.simulator import SimulatorConfig, simulate
from gemirec.errors import StorageError
from gemirec.evaluation.result import EvaluationResult, compare
from gemirec.experiments.demo_text import METRICS
from gemirec.experiments.summaries import dataset_summary
from gemirec.experiments.users import show_users
from gemirec.experiments.watch import Silent, Watcher
from gemirec.models.catalog import config_class
from gemirec.recommender import Recommender
from gemirec.recommender.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemirec.data.dataset import Dataset

CONTROLS = ("popularity", "item_mean", "single_vector")
"""Models that every table carries beside the one that is shown; its own single-interest twin joins them."""
BUDGET: dict[str, Any] = {
    "training": {"steps": 1500, "eval_every": 250, "patience": 3, "eval_users": 2000, "checkpoint_every": 0}
}
"""A small training budget, the same for every model; ``gemirec train`` has the full one."""
EVALUATION = EvaluationConfig(split="test", top_n=(20, 50), users=10_000)
REPORT = "demo.json"


class DemoConfig(Config, frozen=True, kw_only=True):
    """What a demo can be told, section by section; every key is checked where it is used."""

    simulator: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.data.simulator.SimulatorConfig`."""
    prepare: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.data.prepare.PrepareConfig`."""
    model: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of the shown model's config."""
    training: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.config.TrainingConfig`, the same for every model."""
    users: int = 4
    """Users shown at the end."""


def demo(
    out: Path,
    *,
    log: Path | None = None,
    items: Path | None = None,
    users: Path | None = None,
    model: str = "comirec_sa",
    overrides: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Run everything and return what was found; ``out/demo.json`` holds the same.

    Args:
        out: Folder for the dataset, the runs, the artifact and the report; it appears when all is done. A folder of
            an earlier demo is replaced.
        log: Log of the user; ``None`` simulates one with planted interests.
        items: Item table; ``None`` takes ``items.parquet`` beside the log, if there is one.
        users: User table; ``None`` takes ``users.parquet`` beside the log, if there is one.
        model: The model that is shown; the controls are trained beside it.
        overrides: Values laid over the sections ``simulator``, ``prepare``, ``model``, ``training``.
        watcher: Shows progress.

    Raises:
        StorageError: ``out`` holds something that is not a demo.
    """
    started = time.perf_counter()
    watcher = watcher or Silent()
    job = _Job.of(model, overrides)
    _check_target(out)
    with atomic_dir(out, overwrite=True) as folder:
        source = log or _simulate(folder / "log", job.simulator, watcher)
        dataset = _prepare(source, items, users, folder / "dataset", job.prepare, watcher)
        found = [_contest(row, dataset, folder / "models", watcher) for row in job.contestants]
        shown, results = found[-1].recommender, {row.contestant.label: row.result for row in found}
        shown.save_pretrained(folder / "artifact")
        about = results[model].settings
        report = {
            "format_version": FORMAT_VERSION,
            "data": {**dataset_summary(dataset), "folder": str(out / "dataset")},
            "metrics": [_row(row) for row in found],
            "differences": _differences(model, results),
            "evaluation": {key: about[key] for key in ("split", "users", "users_in_split", "exclude_seen")},
            "users": show_users(shown, dataset, job.users),
            "artifact": str(out / "artifact"),
            "out": str(out),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_json(folder / REPORT, report)
    return report


class Contestant(NamedTuple):
    """One row of the table: what it is called, the model, and its configuration."""

    label: str
    model: str
    overrides: dict[str, Any]


class Found(NamedTuple):
    """A contestant, trained and measured."""

    contestant: Contestant
    recommender: Recommender
    result: EvaluationResult


class _Job(NamedTuple):
    """What is asked for, every key and value checked before anything starts."""

    simulator: SimulatorConfig
    prepare: PrepareConfig
    contestants: list[Contestant]
    users: int

    @classmethod
    def of(cls, model: str, overrides: Mapping[str, Any] | None) -> _Job:
        """Check the overrides of every section."""
        wanted = from_dict(DemoConfig, overrides or {}, where="the demo's configuration")
        simulator = from_dict(SimulatorConfig, wanted.simulator, where="the demo's configuration, section simulator")
        prepare_config = from_dict(PrepareConfig, wanted.prepare, where="the demo's configuration, section prepare")
        contestants = _contestants(model, wanted)
        for row in contestants:
            resolve(row.model, "tuned", row.overrides)
        return cls(simulator, prepare_config, contestants, wanted.users)


def _check_target(out: Path) -> None:
    """Refuse to replace anything but an earlier demo."""
    with translate_os_errors(out):
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / REPORT).is_file())):
            raise StorageError("the folder holds something that is not a demo", got=out, fix="choose another folder")


def _simulate(out: Path, config: SimulatorConfig, watcher: Watcher) -> Path:
    """Simulate a log and return its path."""
    watcher.note(f"simulating a log with planted interests: {config.num_users:,} users, {config.num_items:,} items")
    return simulate(out, config, progress=watcher.counted).interactions


def _prepare(
    log: Path, items: Path | None, users: Path | None, out: Path, config: PrepareConfig, watcher: Watcher
) -> Dataset:
    """Prepare the log, with the tables that lie beside it unless others are named."""
    items, users = items or _beside(log, "items.parquet"), users or _beside(log, "users.parquet")
    watcher.note("preparing " + ", ".join(table.name for table in (log, items, users) if table))
    return prepare(log, out, items=items, users=users, config=config, progress=watcher.staged)


def _beside(log: Path, name: str) -> Path | None:
    """Return the file ``name`` in the log's folder, if there is one."""
    path = log.parent / name
    return path if path.is_file() and path != log else None


def _contestants(model: str, wanted: DemoConfig) -> list[Contestant]:
    """Return the controls, the model's single-interest twin, and last the model."""
    budget = merge(BUDGET, {"training": wanted.training})
    own = merge(budget, {"model": wanted.model})
    rows = [Contestant(name, name, budget) for name in CONTROLS if name != model]
    if "num_interests" in config_class(model).__struct_fields__:
        rows.append(Contestant(f"{model} K=1", model, merge(own, {"model": {"num_interests": 1}})))
    return [*rows, Contestant(model, model, own)]


def _contest(contestant: Contestant, dataset: Dataset, runs: Path, watcher: Watcher) -> Found:
    """Train and evaluate one model."""
    watcher.note(f"training {contestant.label}")
    recommender = Recommender.fit(
        dataset,
        model=contestant.model,
        overrides=contestant.overrides,
        workdir=runs / contestant.label.replace(" ", "_").replace("=", ""),
        progress=watcher.training,
    )
    result = recommender.evaluate(config=EVALUATION)
    training = recommender.info.training
    recall = result.metrics["recall@50"]
    watcher.note(f"  recall@50 {recall:.4f} after {training['steps']:,} steps in {training['seconds']:.0f} s")
    return Found(contestant, recommender, result)


def _row(found: Found) -> dict[str, Any]:
    """Return one row of the table."""
    row: dict[str, Any] = {"model": found.contestant.label}
    for metric in METRICS:
        row[metric] = found.result.metrics[metric]
        row[f"{metric} interval"] = list(found.result.intervals[metric])
    training = found.recommender.info.training
    return row | {"steps": training["steps"], "best_step": training["best_step"], "train_s": training["seconds"]}


def _differences(model: str, results: Mapping[str, EvaluationResult]) -> list[dict[str, Any]]:
    """Return recall@50 of the model minus each control, with its paired bootstrap interval."""
    rows = []
    for name, result in results.items():
        if name != model:
            found = compare(results[model], result)["recall@50"]
            rows.append({"minus": name, "recall@50": found.difference, "interval": [found.low, found.high]})
    return rows
