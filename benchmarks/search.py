"""Search the ``tuned`` profiles: the same trials for every model, judged on validation users alone.

    python benchmarks/search.py --jobs 2                  # every model, both logs; resumable
    python benchmarks/search.py --report                  # the table of what was tried, and each model's best

Every trainable model gets seven trials: the six loss recipes below (negatives, normalisation and hard negatives are
open to all), then one change of its own on top of its best recipe. A trial's score is the mean, over the logs, of its
best validation Recall@50 divided by the log's best of any model: no log outweighs another.
Needs the real logs in ``../shared/data``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from realdata import MAX_LENGTH, prepared, read_lines, run_all

LOGS = ("amazon-beauty", "ml-1m")
STEPS = {"amazon-beauty": 2000, "ml-1m": 1250}
SINGLE = ("youtube_dnn", "item_mean", "single_vector", "sasrec")
MULTI = ("comirec_sa", "comirec_dr", "mind")
BUDGET = {"batch_size": 256, "eval_every": 250, "patience": 3, "item_optimizer": "lazy_adam"}

RAW: dict[str, Any] = {"normalize": False, "temperature": 1.0, "log_q": True, "unique": False, "num_negatives": 1280}
NORM: dict[str, Any] = {"normalize": True, "log_q": True, "unique": False, "num_negatives": 1280, "beta": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "uniform": {**RAW, "negatives": "uniform", "beta": 0.0, "readout": "hard"},
    "uniform-beta1": {**RAW, "negatives": "uniform", "beta": 1.0, "readout": "hard"},
    "uniform-beta1-best": {**RAW, "negatives": "uniform", "beta": 1.0, "readout": "best"},
    "norm-mixed-tau.1": {**NORM, "negatives": "mixed", "temperature": 0.1, "readout": "hard"},
    "norm-mixed-tau.1-best": {**NORM, "negatives": "mixed", "temperature": 0.1, "readout": "best"},
    "norm-uniform-tau.2-beta1": {**NORM, "negatives": "uniform", "temperature": 0.2, "beta": 1.0, "readout": "best"},
}
"""Readouts of a single vector are all the same, so for those models the two ``best`` recipes vary something else."""
SINGLE_INSTEAD: dict[str, dict[str, Any]] = {
    "uniform-beta1-best": {**RAW, "negatives": "uniform", "beta": 0.5},
    "norm-mixed-tau.1-best": {**NORM, "negatives": "mixed", "temperature": 0.05},
}
VARIATION: dict[str, tuple[str, dict[str, Any]]] = {
    "youtube_dnn": ("lr2e-3", {"training": {"learning_rate": 2e-3}}),
    "item_mean": ("lr2e-3", {"training": {"learning_rate": 2e-3}}),
    "single_vector": ("lr2e-3", {"training": {"learning_rate": 2e-3}}),
    "sasrec": ("lr2e-3", {"training": {"learning_rate": 2e-3}}),
    "comirec_sa": ("k8", {"model": {"num_interests": 8}}),
    "comirec_dr": ("identity", {"model": {"identity_maps": True, "transform_std": 0.1}}),
    "mind": ("identity", {"model": {"identity_map": True}}),
}
"""The seventh trial: one change of the model itself, laid over its best recipe."""
OWN: dict[str, dict[str, Any]] = {
    "sasrec": {"training": {"batch_size": 64}, "model": {"loss": {"num_negatives": 256}}},
    "mind": {"training": {"learning_rate": 3e-3}},
    "comirec_dr": {"training": {"learning_rate": 3e-3}},
}
"""Laid over every trial of a model. SASRec trains on every position of a window: 64 windows hold more targets than the
others' 256, and each meets fewer negatives. Routing squashes short vectors to shorter ones and starts slowly: a larger
step (the papers' is 5e-3)."""


def task(args: argparse.Namespace, data: str, model: str, name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return one trial for :func:`realdata.run_one`."""
    from gemirec.config import merge

    base = {"model": {"max_length": MAX_LENGTH}, "training": {**BUDGET, "steps": STEPS[data]}}
    return {
        "key": f"{data}/{model}/{name}",
        "data": data,
        "cache": str(args.cache),
        "model": model,
        "profile": "paper",
        "overrides": merge(merge(base, overrides), OWN.get(model, {})),
        "split": "valid",
        "seed": 1,
    }


def recipes_of(model: str) -> dict[str, dict[str, Any]]:
    """Return the shared trials of a model: name -> overrides."""
    if model in MULTI:
        return {name: {"model": {"loss": loss}} for name, loss in RECIPES.items()}
    recipes = {name: SINGLE_INSTEAD.get(name, loss) for name, loss in RECIPES.items()}
    bare = {name: {key: value for key, value in loss.items() if key != "readout"} for name, loss in recipes.items()}
    return {name: {"model": {"loss": loss}} for name, loss in bare.items()}


def scores(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return model -> trial -> mean over logs of Recall@50 relative to the log's best."""
    best = {data: max(r["metrics"]["recall@50"] for r in records if r["data"] == data) for data in LOGS}
    sums: dict[str, dict[str, list[float]]] = {}
    for record in records:
        trial = record["key"].split("/", 2)[2]
        relative = record["metrics"]["recall@50"] / best[record["data"]]
        sums.setdefault(record["model"], {}).setdefault(trial, []).append(relative)
    return {m: {t: sum(v) / len(LOGS) for t, v in trials.items() if len(v) == len(LOGS)} for m, trials in sums.items()}


def report(records: list[dict[str, Any]]) -> None:
    """Print every trial's validation Recall@50 per log, and the choice."""
    by_key = {r["key"]: r for r in records}
    for model, trials in scores(records).items():
        print(f"\n{model}")
        for trial, score in sorted(trials.items(), key=lambda item: -item[1]):
            recall = [by_key[f"{data}/{model}/{trial}"]["metrics"]["recall@50"] for data in LOGS]
            steps = [by_key[f"{data}/{model}/{trial}"]["best_step"] for data in LOGS]
            print(f"  {score:.4f}  {trial:32s} " + "  ".join(f"{r:.4f}" for r in recall) + f"  best steps {steps}")


def main() -> None:
    """Run the search, or print what it found."""
    from gemirec.config import merge

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=[*MULTI, *SINGLE])
    parser.add_argument("--cache", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--results", type=Path, default=Path("runs/search.jsonl"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        return report(read_lines(args.results))
    for data in LOGS:
        prepared(data, args.cache)
    tasks = [task(args, d, m, n, o) for m in args.models for n, o in recipes_of(m).items() for d in LOGS]
    ranked = scores(run_all(tasks, args.results, args.jobs))
    seventh = []
    for model in args.models:
        best, (name, change) = max(ranked[model], key=ranked[model].__getitem__), VARIATION[model]
        overrides = merge(recipes_of(model)[best], change)
        seventh += [task(args, data, model, f"{best}+{name}", overrides) for data in LOGS]
    run_all(seventh, args.results, args.jobs)
    report(read_lines(args.results))
    return None


if __name__ == "__main__":
    main()
