"""Adaptive K and one-pass routing: quality and cost beside fixed K and beside iterated routing.

Two of the survey's open questions (arXiv 2506.15284, section 3.7), on a simulated log whose users have different
numbers of planted interests: does a rule that gives each user fewer interests keep the quality of a fixed K, and how
many searches does it save; and what do routing's rounds buy over one pass with learned prototypes? Every model is
``composed`` with its tuned loss; all return the same number of items in all. Each row trains in this process on one
thread. Cost: milliseconds of process CPU time per training step and per 1,000 users encoded, medians, the models
called in turn.

    python benchmarks/adaptive_k.py                     # the demo's log, 1,000 steps
    python benchmarks/adaptive_k.py --users 1000 --steps 200 --seeds 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from gemirec.config import EvaluationConfig, TrainingConfig, from_dict, merge
from gemirec.data.batches import WindowSampler, evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.data.prepare import prepare
from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.evaluation.evaluate import evaluate
from gemirec.evaluation.planted import planted_scores
from gemirec.models.base import Histories, RetrievalModel, TrainBatch
from gemirec.models.catalog import load_profile
from gemirec.training.loop import train

if TYPE_CHECKING:
    from collections.abc import Callable

ATTENTION: dict[str, Any] = {"extractor": {"kind": "attention"}}
ROUTING: dict[str, Any] = {"extractor": {"kind": "routing", "identity": True}}
ONE_PASS: dict[str, Any] = {"extractor": {"kind": "one_pass", "identity": True}}
MODELS: dict[str, dict[str, Any]] = {
    "attention, K 1": {**ATTENTION, "num_interests": 1},
    "attention, K 2": {**ATTENTION, "num_interests": 2},
    "attention, K 4": ATTENTION,
    "attention, log": {**ATTENTION, "adaptive_k": {"kind": "log"}},
    "attention, mass .9": {**ATTENTION, "adaptive_k": {"kind": "mass", "mass": 0.9}},
    "attention, mass .6": {**ATTENTION, "adaptive_k": {"kind": "mass", "mass": 0.6}},
    "attention, silhouette": {**ATTENTION, "adaptive_k": {"kind": "silhouette"}},
    "attention, density": {**ATTENTION, "adaptive_k": {"kind": "density"}},
    "routing, 1 round": merge(ROUTING, {"extractor": {"rounds": 1}}),
    "routing, 3 rounds": ROUTING,
    "routing, 3, all gradients": merge(ROUTING, {"extractor": {"gradient": "all"}}),
    "one pass": ONE_PASS,
    "one pass, fixed prototypes": merge(ONE_PASS, {"extractor": {"train_prototypes": False}}),
}


def fit(name: str, dataset: Dataset, steps: int, learning_rate: float, seed: int, out: Path) -> RetrievalModel:
    """Train one row with the tuned loss."""
    values = load_profile("composed", "tuned")
    budget = {
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "eval_every": max(steps // 4, 1),
        "patience": 4,
    }
    training = from_dict(TrainingConfig, merge(values["training"], budget))
    model_config = merge({key: value for key, value in values["model"].items() if key != "extractor"}, MODELS[name])
    return train("composed", dataset, model_config=model_config, training=training, out=out).model


def quality(model: RetrievalModel, dataset: Dataset, log: SimulatedLog) -> dict[str, float]:
    """Return recall, the share of planted interests' lists that are theirs, and the interests per test user."""
    found = evaluate(model, dataset, EvaluationConfig(bootstrap=0)).metrics
    planted = planted_scores(model, dataset, log)
    count, users = 0.0, 0
    model.eval()
    with torch.no_grad():
        for windows in evaluation_batches(dataset, "test", batch_size=512, max_length=model.max_length):
            count += float(model.interests(Histories(windows.item_BL)).mask_BK.sum())
            users += len(windows.item_BL)
    return {
        "recall@50": float(found["recall@50"]),
        "planted": float(planted["planted_match"]),
        "searches": count / users,
    }


def costs(models: dict[str, RetrievalModel], dataset: Dataset, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median CPU milliseconds of a training step and of encoding 1,000 users, models in turn."""
    sampler = WindowSampler(dataset, batch_size=256, max_length=20, min_history=4)
    windows = sampler.windows(0)
    histories = Histories(windows.item_BL.repeat(4, 1)[:1000])
    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "encode": []} for name in models}

    def step(model: RetrievalModel) -> None:
        model.train()
        batch = TrainBatch(windows.item_BL, target_B=windows.target_B, generator=torch.Generator().manual_seed(0))
        model.zero_grad()
        model.losses(batch, "train").total().backward()  # type: ignore[no-untyped-call]

    def encode(model: RetrievalModel) -> None:
        model.eval()
        with torch.no_grad():
            model.interests(histories)

    functions: dict[str, Callable[[RetrievalModel], None]] = {"step": step, "encode": encode}
    for number in range(rounds + 2):
        for name, model in models.items():
            for what, function in functions.items():
                start = time.process_time()
                function(model)
                if number >= 2:
                    times[name][what].append((time.process_time() - start) * 1e3)
    return {name: {what: statistics.median(values) for what, values in found.items()} for name, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15, help="timings of each model")
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="rows, by name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        log = simulate(root / "log", SimulatorConfig(num_users=arguments.users, num_items=arguments.items))
        dataset = prepare(log.interactions, root / "data", items=log.items)
        found: dict[str, list[dict[str, float]]] = {}
        models: dict[str, RetrievalModel] = {}
        for name in arguments.only:
            for seed in range(1, arguments.seeds + 1):
                out = root / f"run-{len(models)}-{seed}"
                model = fit(name, dataset, arguments.steps, arguments.learning_rate, seed, out)
                found.setdefault(name, []).append(quality(model, dataset, log))
            models[name] = model
        cost = costs(models, dataset, arguments.rounds)
    rows = {
        name: {key: statistics.mean(run[key] for run in runs) for key in runs[0]} | cost[name]
        for name, runs in found.items()
    }
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{arguments.users:,} users, {arguments.steps} steps, mean of {arguments.seeds} seeds")
    print(f"{'':28} recall@50  planted  searches  step ms  ms / 1,000 users")
    for name, row in rows.items():
        print(
            f"{name:28} {row['recall@50']:9.4f} {row['planted']:8.3f} {row['searches']:9.2f} {row['step']:8.1f} "
            f"{row['encode']:17.1f}"
        )


if __name__ == "__main__":
    main()
