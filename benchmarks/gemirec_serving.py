"""What a trained GemiRec gives when it is served in other ways: cells, the history's share, K. Nothing is trained.

Each row changes fields of the model's configuration that act at serving, and evaluates on the validation users.

    python benchmarks/gemirec_serving.py run/artifact data                  # the shares of the history
    python benchmarks/gemirec_serving.py run/artifact data --part cells     # of a model trained with cells=none
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from gemirec.config import EvaluationConfig, merge, to_dict
from gemirec.data.dataset import Dataset
from gemirec.evaluation.evaluate import evaluate
from gemirec.models.catalog import build_model
from gemirec.recommender import Recommender

if TYPE_CHECKING:
    from gemirec.models.base import RetrievalModel

ROWS: dict[str, list[dict[str, Any]]] = {
    "share": [{"history_share": share} for share in (0.0, 0.2, 0.5, 0.8)]
    + [{"history_share": 0.5, "num_interests": 8}],
    "cells": [
        {"cells": "none"},
        {"cells": "own", "cell_bonus": 0.1},
        {"cells": "own", "cell_bonus": 0.4},
        {"cells": "apart"},
        {"cells": "apart", "num_interests": 10},
        {"cells": "apart", "num_interests": 10, "cell_prior": 0.02},
        {"cells": "apart", "num_interests": 10, "cell_prior": 0.05},
    ],
}
METRICS = ("recall@50", "exclusive@50", "amr@50", "list_div@50", "cur@50")


def served_as(model: RetrievalModel, change: dict[str, Any]) -> RetrievalModel:
    """Return the model with its weights and another configuration; a learned prior that it lacks starts as set."""
    other = build_model("gemirec", merge(to_dict(model.config), change), model.spec)
    state = dict(model.state_dict())
    if "cell_prior" in change:
        state["prior"] = torch.tensor(change["cell_prior"])
    other.load_state_dict(state)
    return other.eval()


def main() -> None:
    """Print one row per way of serving."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--part", choices=list(ROWS), default="share")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, dataset = Recommender.from_pretrained(given.artifact).model, Dataset.open(given.dataset)
    print(f"{dataset.info.name}, validation users")
    print(f"{'served with':60}" + "".join(f"{name:>14}" for name in METRICS))
    for change in ROWS[given.part]:
        found = evaluate(served_as(model, change), dataset, EvaluationConfig(split="valid", bootstrap=0)).metrics
        told = ", ".join(f"{name} {value}" for name, value in change.items())
        print(f"{told:60}" + "".join(f"{found[name]:14.4f}" if name in found else f"{'-':>14}" for name in METRICS))


if __name__ == "__main__":
    main()
