"""The main job, whole: from a log (simulated if none is given) to a trained model, scores beside controls, lists."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gemirec.artifacts import FORMAT_VERSION, read_json, translate_os_errors, write_json
from gemirec.config import Config, EvaluationConfig, from_dict, merge
from gemirec.errors import StorageError
from gemirec.experiments.demo_text import METRICS
from gemirec.experiments.users import show_users
from gemirec.experiments.watch import Silent, Watcher
from gemirec.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemirec.data.dataset import Dataset
    from gemirec.evaluation.evaluate import EvaluationResult

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
        out: Folder for the dataset, the runs, the artifact and the report. A folder of an earlier demo is replaced.
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
    wanted = from_dict(DemoConfig, overrides or {}, where="the demo's configuration")
    _make_room(out)
    if log is None:
        log = _simulate(out / "log", wanted.simulator, watcher)
    dataset = _prepare(log, out / "dataset", items, users, wanted.prepare, watcher)
    settings = merge(BUDGET, {"model": wanted.model, "training": wanted.training})
    rows, results, shown = [], {}, None
    for name, of, extra in _contestants(model):
        values = settings if of == model else {"training": settings["training"]}
        recommender, result, row = _contest(name, of, merge(values, extra), dataset, out, watcher)
        rows.append(row)
        results[name] = result
        if name == model:
            shown = recommender
            artifact = recommender.save_pretrained(out / "artifact")
    assert shown is not None
    report = {
        "format_version": FORMAT_VERSION,
        "data": _statistics(dataset),
        "metrics": rows,
        "differences": _differences(model, results),
        "evaluation": {
            key: results[model].settings[key] for key in ("split", "users", "users_in_split", "exclude_seen")
        },
        "users": show_users(shown, dataset, wanted.users),
        "artifact": str(artifact),
        "out": str(out),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(out / REPORT, report)
    return report


def _make_room(out: Path) -> None:
    """Empty ``out`` if an earlier demo made it; mark it as a demo's folder."""
    with translate_os_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not (out / REPORT).is_file() or read_json(out / REPORT).get("format_version") is None:
                raise StorageError(
                    "the folder holds something that is not a demo", got=out, fix="choose another folder"
                )
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / REPORT, {"format_version": FORMAT_VERSION, "state": "running"})


def _simulate(out: Path, values: Mapping[str, Any], watcher: Watcher) -> Path:
    """Simulate a log and return its path."""
    from gemirec.data.simulator import SimulatorConfig, simulate

    config = from_dict(SimulatorConfig, values, where="the demo's configuration (section 'simulator')")
    watcher.note(f"simulating a log with planted interests: {config.num_users:,} users, {config.num_items:,} items")
    return simulate(out, config, progress=watcher.counted).interactions


def _prepare(
    log: Path, out: Path, items: Path | None, users: Path | None, values: Mapping[str, Any], watcher: Watcher
) -> Dataset:
    """Prepare the log, with the tables that lie beside it unless others are named."""
    from gemirec.data.prepare import PrepareConfig, prepare

    config = from_dict(PrepareConfig, values, where="the demo's configuration (section 'prepare')")
    items, users = items or _beside(log, "items.parquet"), users or _beside(log, "users.parquet")
    watcher.note(f"preparing {log}" + "".join(f", {table}" for table in (items, users) if table))
    return prepare(log, out, items=items, users=users, config=config, progress=watcher.staged)


def _beside(log: Path, name: str) -> Path | None:
    """Return the file ``name`` in the log's folder, if there is one."""
    path = log.parent / name
    return path if path.is_file() and path != log else None


def _contestants(model: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return ``(label, model, overrides)``: the controls, the model's single-interest twin, the model."""
    from gemirec.models.catalog import config_class

    rows: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in CONTROLS if name != model]
    if "num_interests" in config_class(model).__struct_fields__:
        rows.append((f"{model} K=1", model, {"model": {"num_interests": 1}}))
    return [*rows, (model, model, {})]


def _contest(
    label: str, model: str, overrides: Mapping[str, Any], dataset: Dataset, out: Path, watcher: Watcher
) -> tuple[Recommender, EvaluationResult, dict[str, Any]]:
    """Train and evaluate one model; return it, its scores, and its row of the table."""
    watcher.note(f"training {label}")
    folder = out / "models" / label.replace(" ", "_").replace("=", "")
    recommender = Recommender.fit(dataset, model=model, overrides=overrides, workdir=folder, progress=watcher.training)
    result = recommender.evaluate(config=EVALUATION)
    row: dict[str, Any] = {"model": label}
    for metric in METRICS:
        row[metric] = result.metrics[metric]
        row[f"{metric} interval"] = list(result.intervals[metric])
    training = recommender.info.training
    row |= {"steps": training["steps"], "best_step": training["best_step"], "train_s": training["seconds"]}
    watcher.note(f"  recall@50 {row['recall@50']:.4f} after {row['steps']:,} steps in {row['train_s']:.0f} s")
    return recommender, result, row


def _differences(model: str, results: Mapping[str, EvaluationResult]) -> list[dict[str, Any]]:
    """Return recall@50 of the model minus each control, with its paired bootstrap interval."""
    from gemirec.evaluation.result import compare

    rows = []
    for name, result in results.items():
        if name != model:
            found = compare(results[model], result)["recall@50"]
            rows.append({"minus": name, "recall@50": found.difference, "interval": [found.low, found.high]})
    return rows


def _statistics(dataset: Dataset) -> dict[str, Any]:
    """Return the counts a reader wants, and the fingerprint."""
    from gemirec.experiments.summaries import dataset_summary

    return dataset_summary(dataset)
