"""The run folder: what was asked for, so that a resumed run is the same run.

Layout::

    config.json        model name and configuration, training configuration, dataset fingerprint, versions
    metrics.jsonl      every logged number
    tensorboard/       the same, if TensorBoard is installed
    checkpoints/       see gemirec.training.checkpoint
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from gemirec.artifacts import FORMAT_VERSION, check_format, read_json, translate_os_errors, write_json
from gemirec.errors import ArtifactError, StorageError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that can change a result."""
    found = {"python": platform.python_version()}
    for name in ("gemirec", "torch", "numpy", "polars", "accelerate", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def open_run(run: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """Create the run folder with ``config.json``, or check that it holds the same run.

    Args:
        run: The folder.
        config: Plain values that define the run.
        resume: Continue what is there. A folder without ``config.json`` is a fresh run either way.

    Raises:
        StorageError: The folder holds a run and ``resume`` is false.
        TrainingError: The run there was made with another configuration or dataset.
        ArtifactError: The folder holds something else, or ``config.json`` is damaged.
    """
    file = run / "config.json"
    if not file.exists():
        with translate_os_errors(run):
            if run.exists() and (
                not run.is_dir() or any(not p.name.startswith(".config.json.") for p in run.iterdir())
            ):
                raise StorageError(
                    "the run folder holds something else", got=run, fix="choose an empty or a new folder"
                )
            run.mkdir(parents=True, exist_ok=True)
        write_json(file, {"format_version": FORMAT_VERSION, **config, "versions": versions()})
        return
    if not resume:
        raise StorageError(
            "the run folder holds a run already", got=run, fix="resume it (--resume), or choose another folder"
        )
    found = read_json(file)
    if not isinstance(found, dict):
        raise ArtifactError("config.json of a run is damaged", got=file, fix="train again into another folder")
    check_format("run", found.pop("format_version", None), run)
    found.pop("versions", None)
    before, now = _flatten(found), _flatten(config)
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differing:
        raise TrainingError(
            "the run there was made with another configuration or dataset",
            got="; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} asked" for key in differing),
            fix="resume with the configuration and dataset of config.json, or train into another folder",
        )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into ``{"a.b": value}``; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(inner) if isinstance(inner, tuple) else inner
    return flat
