"""Shared by the benchmarks on real logs: prepared datasets, one training run, and resumable JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemirec.data.dataset import Dataset

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MAX_LENGTH = 20
"""Most recent events read of a history: ComiRec's value for books, for every log, in the search and on the page."""


def prepared(name: str, cache: Path) -> Dataset:
    """Prepare the real log ``name`` once under ``cache`` (ComiRec's one-pass 5/5 filter and user split)."""
    from gemirec.data.dataset import Dataset

    out = cache / name
    if (out / "dataset.json").exists():
        return Dataset.open(out)
    from gemirec.data.prepare import PrepareConfig, prepare

    folder = DATA / name
    users = folder / "users.parquet"
    return prepare(
        folder / "interactions.parquet",
        out,
        items=folder / "items.parquet",
        users=users if users.exists() else None,
        config=PrepareConfig(),
    )


def run_one(task: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one task in this process, on one thread; returns a JSON-able record.

    ``task``: data, cache, model, profile, overrides (mapping laid over the profile), split, seed, key, work.
    """
    import shutil
    import tempfile
    import time

    import torch

    torch.set_num_threads(1)
    from gemirec.config import EvaluationConfig, TrainingConfig, from_dict, merge
    from gemirec.evaluation.evaluate import evaluate
    from gemirec.models.catalog import load_profile
    from gemirec.training.loop import train

    dataset = prepared(task["data"], Path(task["cache"]))
    values = merge(load_profile(task["model"], task["profile"]), task["overrides"])
    values = merge(values, {"training": {"seed": task["seed"]}})
    training = from_dict(TrainingConfig, values.get("training", {}))
    out = Path(tempfile.mkdtemp(prefix="gemirec-bench-"))
    try:
        result = train(task["model"], dataset, model_config=values["model"], training=training, out=out / "run")
    finally:
        shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    scores = evaluate(result.model, dataset, EvaluationConfig(split=task["split"], bootstrap=task.get("bootstrap", 0)))
    return {
        "key": task["key"],
        "data": task["data"],
        "model": task["model"],
        "profile": task["profile"],
        "seed": task["seed"],
        "split": task["split"],
        "metrics": {name: float(value) for name, value in scores.metrics.items()},
        "intervals": {name: [float(low), float(high)] for name, (low, high) in scores.intervals.items()},
        "best_step": result.best_step,
        "steps": result.steps,
        "train_seconds": round(result.seconds, 1),
        "eval_seconds": round(time.perf_counter() - started, 1),
        "fingerprint": dataset.fingerprint,
        "config": values,
    }


def run_all(tasks: Sequence[dict[str, Any]], results: Path, jobs: int) -> list[dict[str, Any]]:
    """Run every task whose key is not in ``results`` yet, each in a process of its own, ``jobs`` at a time.

    Each record is appended as it comes, so that an interrupted call goes on where it was; a run that fails is reported
    and left out. Returns the records of all tasks that have one.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {record["key"]: record for record in read_lines(results)}
    todo = [task for task in tasks if task["key"] not in done]
    print(f"{len(tasks)} runs, {len(tasks) - len(todo)} done already", flush=True)
    with ThreadPoolExecutor(jobs) as pool, results.open("a") as stream:
        futures = {pool.submit(_in_own_process, task): task["key"] for task in todo}
        for number, future in enumerate(as_completed(futures), 1):
            record = future.result()
            if "failed" in record:
                print(f"{number}/{len(todo)} {futures[future]} FAILED\n{record['failed']}", flush=True)
                continue
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            done[record["key"]] = record
            shown = " ".join(f"{name} {record['metrics'][name]:.4f}" for name in ("recall@20", "recall@50"))
            ran = f"step {record['best_step']}/{record['steps']} {record['train_seconds']} s"
            print(f"{number}/{len(todo)} {record['key']} {shown} {ran}", flush=True)
    return [done[task["key"]] for task in tasks if task["key"] in done]


def _in_own_process(task: dict[str, Any]) -> dict[str, Any]:
    """Run :func:`run_one` in a new interpreter with one thread; ``{"failed": text}`` if it does not come back whole."""
    command = [sys.executable, __file__, json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        return {"failed": f"exit {ran.returncode}: {ran.stderr[-2000:]}"}
    record: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return record


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the records written so far; a last line cut by an interruption is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


if __name__ == "__main__":
    print(json.dumps(run_one(json.loads(sys.argv[1]))))
