"""Every model of the catalogue at one shape, on one core, beside the bare computation of ComiRec-SA.

Shape: d 64, 20 events of history, K 4, 12 k items, 1,280 uniform negatives, batch 256; each model's own structure is
its ``paper`` profile's. A step is what training runs: windows from a dataset on disk, loss, backward, optimiser.
Encoding is ``interests`` of 1,000 users in evaluation mode. Timings of all models alternate, so that a noisy minute
hits everybody; process CPU time, medians. Models that train in stages show every stage. *Targets* are what one window
trains: models that train every position pay for so many examples at once.

    python benchmarks/model_speed.py
    python benchmarks/model_speed.py --models comirec_sa mima --rounds 30 --json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import polars as pl
import torch

from gemirec.artifacts import write_json
from gemirec.config import Config, TrainingConfig, merge
from gemirec.data.batches import WindowSampler
from gemirec.data.dataset import Dataset
from gemirec.models.base import Histories
from gemirec.models.catalog import MODELS, build_model, config_class, load_profile
from gemirec.training.loop import TrainingLoop
from gemirec.training.schedule import frozen
from gemirec.training.session import LossModule, new_accelerator
from train_step import DIM, INTERESTS, LENGTH, NEGATIVES, Bare, alternate, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

ITEMS, BATCH, USERS, CATEGORIES = 12_000, 256, 1_000, 40
SHAPE: dict[str, Any] = {"dim": DIM, "max_length": LENGTH, "num_interests": INTERESTS}
LOSS: dict[str, Any] = {"negatives": "uniform", "num_negatives": NEGATIVES, "unique": False, "log_q": True}
LIMIT = {"mgnm": 8.0, "mima": 8.0}
"""Steps' most times ComiRec-SA's; 4 for the others."""


def _known(cls: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a config has no field for."""
    return {name: value for name, value in values.items() if name in cls.__struct_fields__}


def built(name: str, dataset: Dataset) -> Any:
    """Build a model of its paper's structure at the common shape."""
    cls = config_class(name)
    values = load_profile(name, "paper")["model"]
    over = _known(cls, {**SHAPE, "loss": LOSS})
    if name == "gemirec":
        over.pop("loss")  # its candidates are in-batch negatives and the table's own hard ones
    torch.manual_seed(0)
    model = build_model(name, merge(values, over), dataset.spec())
    with torch.no_grad():
        model.learn_from(dataset)
    return model


class Steps:
    """Training steps of one stage of one model."""

    def __init__(self, name: str, stage: int, dataset: Dataset, run: Path) -> None:
        self.model = built(name, dataset)
        self.stage = self.model.stages[stage]
        with torch.no_grad():
            for earlier in self.model.stages[: stage + 1]:
                if earlier.on_start is not None:
                    getattr(self.model, earlier.on_start)()
        config = TrainingConfig(batch_size=BATCH, min_history=LENGTH, item_optimizer="lazy_adam")
        accelerator = new_accelerator("no")
        run.mkdir()
        self.model.train()
        self.loop = TrainingLoop(self.model, dataset, config, run, accelerator, None)
        self.losses = accelerator.prepare_model(LossModule(self.model))
        self.sampler = WindowSampler(dataset, batch_size=BATCH, max_length=LENGTH, min_history=LENGTH)

    @property
    def targets(self) -> int:
        """Targets that a window trains: its last event, or one at each position."""
        return LENGTH if getattr(self.model.config, "all_positions", False) else 1

    def __call__(self) -> None:
        """Train one step."""
        with frozen(self.model, self.stage):
            self.loop.step(self.losses, self.sampler, self.stage.name)


def with_categories(folder: Path) -> Dataset:
    """Write the benchmark's dataset and give its items categories, which some methods need."""
    write_dataset(folder, ITEMS)
    items = pl.read_parquet(folder / "items.parquet")
    category = pl.Series("category_index", [i % CATEGORIES + 1 for i in range(ITEMS)], dtype=pl.Int32)
    items.with_columns(category).write_parquet(folder / "items.parquet")
    info = json.loads((folder / "dataset.json").read_text())
    info["categories"] = [f"c{i}" for i in range(CATEGORIES)]
    write_json(folder / "dataset.json", info)
    return Dataset.open(folder)


def encoders(names: list[str], dataset: Dataset) -> dict[str, Callable[[], None]]:
    """Return a function per model that encodes ``USERS`` full histories."""
    generator = torch.Generator().manual_seed(0)
    histories = Histories(torch.randint(1, ITEMS + 1, (USERS, LENGTH), generator=generator))

    def one(name: str) -> Callable[[], None]:
        model = built(name, dataset).eval()
        with torch.no_grad():
            for stage in model.stages:
                if stage.on_start is not None:
                    getattr(model, stage.on_start)()

        def encode() -> None:
            with torch.inference_mode():
                model.interests(histories)

        return encode

    return {name: one(name) for name in names}


def measure(names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Time every model; returns a row per model and stage."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = with_categories(Path(folder) / "data")
        steps: dict[str, Steps] = {}
        for name in names:
            for number, stage in enumerate(built(name, dataset).stages):
                steps[f"{name} {stage.name}"] = Steps(name, number, dataset, Path(folder) / f"{name}-{number}")
        first = next(iter(steps.values()))
        bare = Bare(first.sampler, ITEMS, rows=True)
        step_ms = alternate({"bare": bare.step, **steps}, rounds)
        for step in steps.values():
            step.loop.close()
        encode_ms = alternate(encoders(names, dataset), rounds)
    base = step_ms["comirec_sa train"]
    rows: list[dict[str, Any]] = []
    for key, step in steps.items():
        name, ms = key.split(" ")[0], step_ms[key]
        rows.append(
            {
                "model": name,
                "stage": step.stage.name,
                "targets": step.targets,
                "step_ms": ms,
                "examples_per_s": BATCH / ms * 1e3,
                "step_ratio": ms / base,
                "bare_ratio": ms / step_ms["bare"],
                "encode_ms": encode_ms[name],
                "encode_ratio": encode_ms[name] / encode_ms["comirec_sa"],
                "limit": LIMIT.get(name, 4.0),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[name for name in MODELS if name != "popularity"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ["comirec_sa", *(name for name in arguments.models if name != "comirec_sa")]
    rows = measure(names, arguments.rounds)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| model | stage | targets | step, ms | windows/s | x ComiRec-SA | x bare | 1,000 users, ms | x ComiRec-SA |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        over = "" if r["step_ratio"] <= r["limit"] else f" (over {r['limit']:g})"
        shown = (
            f"`{r['model']}`",
            r["stage"],
            str(r["targets"]),
            f"{r['step_ms']:.1f}",
            f"{r['examples_per_s']:,.0f}",
            f"{r['step_ratio']:.2f}{over}",
            f"{r['bare_ratio']:.2f}",
            f"{r['encode_ms']:.1f}",
            f"{r['encode_ratio']:.2f}",
        )
        print("| " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
