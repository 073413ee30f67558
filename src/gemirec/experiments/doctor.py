"""Look at the machine: versions, devices, extras, folders, and a self-test that trains and recommends."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import gemirec

SELF_TEST_STEPS = 60
"""Training steps of the self-test."""


def doctor(*, self_test: bool = True) -> dict[str, Any]:
    """Return what a bug report needs, and whether training and recommending work here.

    Args:
        self_test: Simulate a small log, train on it and recommend (a few seconds).

    Returns:
        ``{"ok": bool, "gemirec": ..., "machine": {...}, "torch": {...}, "packages": {...}, "extras": {...},
        "folders": {...}, "self_test": {...}}``; values are plain, so that it is JSON.
    """
    result: dict[str, Any] = {
        "ok": True,
        "gemirec": gemirec.__version__,
        "machine": _machine(),
        "torch": _torch(),
        "packages": _packages(),
        "extras": _extras(),
        "folders": _folders(),
    }
    if self_test:
        result["self_test"] = _self_test()
    result["ok"] = all(result["folders"].values()) and (not self_test or result["self_test"]["passed"])
    return result


def _machine() -> dict[str, Any]:
    """Return the operating system, Python and cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def _torch() -> dict[str, Any]:
    """Return torch's version, build, threads and devices."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_built():
        devices.append("mps")
    return {
        "version": torch.__version__,
        "build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        "threads": torch.get_num_threads(),
        "accelerators": devices or "none",
        "parallel_backend": "MKL" if "mkl" in str(torch.__config__.show()).lower() else "OpenBLAS or other",
    }


def _version(package: str) -> str | None:
    """Return the installed version of a distribution, ``None`` if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, list[str]]:
    """Return the distributions that each extra asks for; the key ``""`` is the core."""
    found: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("gemirec") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        if name and name[0] != "gemirec":
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def _packages() -> dict[str, str]:
    """Return the versions of the core requirements."""
    return {name: _version(name) or "missing" for name in sorted(_requirements().get("", []))}


def _extras() -> dict[str, str]:
    """Return for each extra what is installed and what is missing."""
    out = {}
    for extra, names in sorted(_requirements().items()):
        if extra in {"", "all", "dev", "docs"}:
            continue
        missing = [name for name in names if _version(name) is None]
        here = ", ".join(f"{name} {_version(name)}" for name in names if name not in missing)
        fix = f"missing {', '.join(missing)}: pip install 'gemirec[{extra}]'" if missing else ""
        out[extra] = "; ".join(part for part in (here, fix) if part)
    return out


def _folders() -> dict[str, bool]:
    """Return whether the folders that runs write to can be written."""
    return {str(folder): os.access(folder, os.W_OK) for folder in (Path.cwd(), Path(tempfile.gettempdir()))}


def _self_test() -> dict[str, Any]:
    """Train on a small planted log and hold the result against popularity."""
    from gemirec.data.prepare import prepare
    from gemirec.data.simulator import SimulatorConfig, simulate
    from gemirec.recommender import Recommender

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gemirec-doctor-") as folder:
        log = simulate(Path(folder) / "log", SimulatorConfig(num_users=600, num_items=400))
        dataset = prepare(log.interactions, Path(folder) / "dataset", items=log.items)
        settings = ["model.dim=16", f"training.steps={SELF_TEST_STEPS}", "training.eval_every=0"]
        settings += ["training.learning_rate=0.02", "training.checkpoint_every=0"]
        trained = Recommender.fit(dataset, overrides=settings)
        popular = Recommender.fit(dataset, model="popularity")
        recall = [found.evaluate(split="test", bootstrap=0).metrics["recall@50"] for found in (trained, popular)]
        answer = trained.recommend(histories=[dataset.items["item_id"].head(3).to_list()], k=5)
    return {
        "passed": recall[0] > recall[1] and answer.height == 5,
        "recall_at_50": round(recall[0], 4),
        "recall_at_50_of_popularity": round(recall[1], 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
