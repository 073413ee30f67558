"""What GemiRec costs: the online path beside ComiRec-SA, the steps of its stages, growth with dictionary and catalogue.

The online path is what a request pays: cached interest indices and the user's recent items to fused vectors
(``GemiRec.fused``), against ``ComiRec-SA.interests`` with as many vectors. Alternately in one process, one thread,
process CPU time, medians.

    python benchmarks/gemirec_cost.py
    python benchmarks/gemirec_cost.py --parts online
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from gemirec.components.embedding import ItemTable
from gemirec.config import TrainingConfig, merge
from gemirec.data.dataset import DataSpec
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.catalog import build_model, load_profile
from gemirec.training.optim import build_optimizers
from gemirec.training.schedule import frozen
from train_step import alternate

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.models.gemirec import GemiRec

LENGTH, K = 20, 5


def spec_of(items: int) -> DataSpec:
    """Return a catalogue without categories and user features."""
    count_N = np.concatenate([[0], 1 + (1e6 / np.arange(1, items + 1)).astype(np.int64)])
    return DataSpec(num_items=items, train_count_N=count_N)


def build(name: str, profile: str, items: int, over: dict[str, Any] | None = None) -> Any:
    """Build a model of a profile, started up to its last stage."""
    torch.manual_seed(0)
    values = merge(load_profile(name, profile)["model"], over or {})
    model = build_model(name, values, spec_of(items))
    with torch.no_grad():
        for stage in model.stages:
            if stage.on_start is not None:
                getattr(model, stage.on_start)()
    return model.eval()


def histories(batch: int, items: int) -> Histories:
    """Return full histories of random items."""
    return Histories(torch.randint(1, items + 1, (batch, LENGTH), generator=torch.Generator().manual_seed(0)))


def sizes(model: Any) -> dict[str, int]:
    """Return the parameters of the parts: item tables, what only the offline side needs, and the rest."""
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, ItemTable))
    offline = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("decoder.", "generator_features.")))
    return {
        "items": tables,
        "offline": offline,
        "online": sum(p.numel() for p in model.parameters()) - tables - offline,
    }


def online(items: int = 12_000) -> None:
    """Print parameters, FLOPs, latency and throughput of the online path."""
    comirec = build("comirec_sa", "paper", items, {"num_interests": K})
    rows: dict[str, tuple[Any, Callable[[Histories], Any]]] = {"comirec_sa paper": (comirec, comirec.interests)}
    for profile in ("paper", "tuned"):
        model: GemiRec = build("gemirec", profile, items)

        def cached(batch: Histories, model: GemiRec = model, kept: dict[int, Any] = {}) -> Any:  # noqa: B006
            size = len(batch.item_BL)
            if size not in kept:
                kept[size] = model.select(model.state(batch))
            return model.fused(batch, kept[size])

        rows[f"gemirec {profile}"] = (model, cached)
        rows[f"gemirec {profile}, generator too"] = (model, model.interests)
    print(f"online path, K {K}, L {LENGTH}, D 64, {items:,} items; ms of CPU")
    print(f"{'':34}{'online':>10}{'offline':>10}{'MFLOP':>8}{'ms @ 1':>9}{'ratio':>7}{'ms @ 512':>10}{'ratio':>7}")
    one, many = histories(1, items), histories(512, items)
    with torch.no_grad():
        for _, call in rows.values():
            call(one), call(many)
        at_one = alternate({name: _times(call, one, 20) for name, (_, call) in rows.items()}, 30)
        at_many = alternate({name: _times(call, many, 1) for name, (_, call) in rows.items()}, 15)
        for name, (model, call) in rows.items():
            with FlopCounterMode(display=False) as counter:
                call(one)
            base = "comirec_sa paper"
            parts, ms_one, ms_many = sizes(model), at_one[name] / 20, at_many[name]
            print(
                f"{name:34}{parts['online']:10,}{parts['offline']:10,}{counter.get_total_flops() / 1e6:8.2f}"
                f"{ms_one:9.3f}{at_one[name] / at_one[base]:7.2f}{ms_many:10.2f}{ms_many / at_many[base]:7.2f}"
            )


def _times(call: Callable[[Histories], Any], batch: Histories, times: int) -> Callable[[], None]:
    """Return a function that calls ``times`` times: short calls are below the clock's grain."""

    def run() -> None:
        for _ in range(times):
            call(batch)

    return run


class Stepper:
    """Optimiser steps of one model and stage on random windows, loader left out."""

    def __init__(self, name: str, profile: str, items: int, stage: str | None = None, over: Any = None) -> None:
        self.model = build(name, profile, items, over).train()
        training = load_profile(name, profile)["training"]
        self.batch_size = int(training["batch_size"])
        config = TrainingConfig(learning_rate=1e-3, item_optimizer="lazy_adam")
        self.optimizers = build_optimizers(self.model, config)
        stages = self.model.stages
        self.stage = next(s for s in stages if s.name == (stage or stages[-1].name))
        self.items, self.step_number = items, 0

    def step(self) -> None:
        """Do one step."""
        generator = torch.Generator().manual_seed(self.step_number)
        item_BL = torch.randint(1, self.items + 1, (self.batch_size, LENGTH), generator=generator)
        target_B = torch.randint(1, self.items + 1, (self.batch_size,), generator=generator)
        with frozen(self.model, self.stage):
            batch = TrainBatch(item_BL, target_B=target_B, generator=generator)
            self.model.losses(batch, self.stage.name).total().backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.step_number += 1


def training(items: int = 12_000) -> None:
    """Print the milliseconds of a step of every stage."""
    cases: dict[str, tuple[str, str, str | None]] = {
        f"gemirec {p} {s}": ("gemirec", p, s) for p in ("paper", "tuned") for s in ("retrieval", "dictionary", "joint")
    }
    cases |= {"comirec_sa tuned": ("comirec_sa", "tuned", None), "sasrec tuned": ("sasrec", "tuned", None)}
    steppers = {label: Stepper(name, profile, items, stage) for label, (name, profile, stage) in cases.items()}
    found = alternate({label: stepper.step for label, stepper in steppers.items()}, 7)
    print(f"\ntraining step at {items:,} items, ms of CPU; every model with its profile's batch")
    for label, ms in found.items():
        print(f"{label:34}{steppers[label].batch_size:6}{ms:9.1f}")


def growth() -> None:
    """Print how the joint step grows with the dictionary and with the catalogue."""
    print("\njoint step of the paper's profile, ms of CPU")
    for dictionary in ((16, 8, 4, 2), (32, 16, 8, 4), (64, 32, 16, 8)):
        steppers = {}
        for head in ("flat", "factorised"):
            if head == "factorised" or np.prod(dictionary) <= 16_384:
                over = {"quantizer": {"sizes": list(dictionary)}, "decoder": {"head": head}}
                steppers[head] = Stepper("gemirec", "paper", 12_000, "joint", over)
        found = alternate({head: stepper.step for head, stepper in steppers.items()}, 5)
        shown = "  ".join(f"{head} {ms:.1f}" for head, ms in found.items())
        print(f"{int(np.prod(dictionary)):>10,} interests  {shown}" + ("" if "flat" in found else "  flat not run"))
    for items in (10_000, 100_000, 1_000_000):
        over = {"refresh_every": 1}
        steppers = {
            p: Stepper("gemirec", p, items, "joint", over if p == "paper" else None) for p in ("paper", "tuned")
        }
        found = alternate({p: stepper.step for p, stepper in steppers.items()}, 5)
        print(f"{items:>10,} items      " + "  ".join(f"{p} {ms:.1f}" for p, ms in found.items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["online", "training", "growth"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts or ("online", "training", "growth"):
        {"online": online, "training": training, "growth": growth}[part]()


if __name__ == "__main__":
    main()
