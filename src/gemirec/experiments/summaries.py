"""What the verbs are told and what they say, light enough for verbs that need no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemirec.config import load_yaml, merge, parse_overrides

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset


def layered(config: Path | None, overrides: Iterable[str] | None) -> dict[str, Any]:
    """Return the values of a YAML file with ``a.b=c`` overrides on top."""
    return merge(load_yaml(config) if config else {}, parse_overrides(overrides or []))


def dataset_summary(dataset: Dataset) -> dict[str, Any]:
    """Return the counts of a prepared dataset that a reader wants, and its fingerprint."""
    info = dataset.info
    return {
        "name": info.name,
        "users": info.num_users,
        "items": info.num_items,
        "events": info.num_events,
        "split": dict(info.users_per_split),
        "categories": len(info.categories),
        "user_features": ", ".join(feature.name for feature in info.user_features) or "none",
        "steps": list(info.raw.get("steps", [])),
        "fingerprint": info.fingerprint,
        "folder": str(dataset.path),
    }


def evaluation_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of :func:`evaluate_run` as a reader wants it: one row a metric, and the settings that matter."""
    rows = []
    for name, value in result["metrics"].items():
        low, high = result["intervals"].get(name, (None, None))
        rows.append({"metric": name, "value": value, "low": low, "high": high})
    settings = result["settings"]
    keys = ("dataset", "dataset_fingerprint", "split", "users", "users_in_split", "exclude_seen", "candidates", "seed")
    merged = {f"merge.{key}": value for key, value in settings["merge"].items() if settings["merge"]["kind"] != "max"}
    rows += [{"metric": name, "value": value, "low": None, "high": None} for name, value in _planted(result)]
    return {"model": result["model"], "metrics": rows, **{key: settings[key] for key in keys}, **merged}


def _planted(result: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Return the scores against the planted truth, if the result has them."""
    return dict(result.get("planted", {})).items()
