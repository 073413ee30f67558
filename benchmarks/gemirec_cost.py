"""What GemiRec costs: online path beside ComiRec-SA, steps of its stages, growth with dictionary and catalogue, cache.

The online path is what a request pays: cached interest indices and the user's recent items to fused vectors
(``OnlinePath``), against ``ComiRec-SA.interests`` with as many vectors. Alternately in one process, one thread,
process CPU time, medians. The process keeps the memory that it has had, as a server's allocator does: otherwise page
faults, up to half of a large batch's time, fall on one path or the other by chance.

    python benchmarks/gemirec_cost.py                    # about 4 minutes
    python benchmarks/gemirec_cost.py --parts online
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
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
from gemirec.models.gemirec.online import OnlinePath
from gemirec.training.optim import build_optimizers
from gemirec.training.schedule import frozen
from train_step import alternate

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.models.gemirec import GemiRec

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 28)}
LENGTH, K = 20, 5
DICTIONARIES = ((16, 8, 4, 2), (32, 16, 8, 4), (64, 32, 16, 8))
FLAT_BATCH = 8
"""Windows a step of the largest dictionary: the flat head's logits take 21 MB for each of them."""
OFFLINE = ("decoder.", "generator_features.", "dictionary.quantizer.encoder.", "dictionary.quantizer.decoder.", "place")
"""Parameters that the online path does not read."""


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
    offline = sum(p.numel() for n, p in model.named_parameters() if n.startswith(OFFLINE))
    return {
        "items": tables,
        "offline": offline,
        "online": sum(p.numel() for p in model.parameters()) - tables - offline,
    }


def online(items: int = 12_000) -> None:
    """Print parameters, FLOPs, latency and throughput of the online path."""
    comirec = build("comirec_sa", "paper", items, {"num_interests": K})
    rows: dict[str, tuple[Any, Callable[[Histories], Any]]] = {"comirec_sa paper": (comirec, comirec.interests)}
    four = build("comirec_sa", "paper", items)
    rows["comirec_sa paper, K 4"] = (four, four.interests)
    for profile in ("paper", "tuned"):
        model: GemiRec = build("gemirec", profile, items)

        path = OnlinePath(model)

        def cached(
            batch: Histories,
            model: GemiRec = model,
            path: Callable[..., Any] = path,
            kept: dict[int, Any] = {},  # noqa: B006
        ) -> Any:
            size = len(batch.item_BL)
            if size not in kept:
                kept[size] = model.select(model.state(batch))
            return path(batch, kept[size])

        rows[f"gemirec {profile}"] = (model, cached)
        rows[f"gemirec {profile}, generator too"] = (model, model.interests)
    print(f"online path, K {K}, L {LENGTH}, D 64, {items:,} items; ms of CPU")
    print(f"{'':34}{'online':>10}{'offline':>10}{'MFLOP':>8}{'ms @ 1':>9}{'ratio':>7}{'ms @ 512':>10}{'ratio':>7}")
    one, many = histories(1, items), histories(512, items)
    with torch.inference_mode():
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

    def __init__(
        self, name: str, profile: str, items: int, stage: str | None = None, over: Any = None, batch_size: int = 0
    ) -> None:
        self.model = build(name, profile, items, over).train()
        training = load_profile(name, profile)["training"]
        self.batch_size = batch_size or int(training["batch_size"])
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


def few(functions: dict[str, Callable[[], None]], rounds: int = 5) -> dict[str, float]:
    """Return the median process CPU time of each function in ms, in turns, after one call that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if number:
                times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def growth() -> None:
    """Print how the joint step grows with the dictionary and with the catalogue."""
    print("\njoint step, ms of CPU; the paper's profile by dictionary, 12,000 items")
    for dictionary in DICTIONARIES:
        largest = dictionary == DICTIONARIES[-1]
        for batch in (128, FLAT_BATCH) if largest else (128,):
            heads = ("factorised",) if largest and batch == 128 else ("flat", "factorised")
            steppers = {
                head: Stepper("gemirec", "paper", 12_000, "joint", sized(dictionary, head), batch) for head in heads
            }
            found = few({head: stepper.step for head, stepper in steppers.items()})
            shown = "  ".join(f"{head} {ms:.1f}" for head, ms in found.items())
            print(f"{int(np.prod(dictionary)):>10,} interests, batch {batch:3}  {shown}")
    print("by catalogue, each with its profile's batch")
    for items in (10_000, 100_000, 1_000_000):
        steppers = {profile: Stepper("gemirec", profile, items, "joint") for profile in ("paper", "tuned")}
        steppers["paper, factorised"] = Stepper(
            "gemirec", "paper", items, "joint", sized(DICTIONARIES[1], "factorised")
        )
        found = few({name: stepper.step for name, stepper in steppers.items()})
        print(f"{items:>10,} items  " + "  ".join(f"{name} {ms:.1f}" for name, ms in found.items()))


def sized(dictionary: tuple[int, ...], head: str) -> dict[str, Any]:
    """Return the settings of a dictionary and a head."""
    return {"quantizer": {"sizes": list(dictionary)}, "decoder": {"head": head}}


def caching(items: int = 12_000, users: int = 256) -> None:
    """Print what 1,000 users cost the generator and the selection: in the nightly cache, and in an evaluation."""
    print("\ngenerator and selection, ms of CPU for 1,000 users, batch 256")
    batch = histories(users, items)
    cases: dict[str, Any] = {"tuned": build("gemirec", "tuned", items)}
    for dictionary in DICTIONARIES:
        for head in ("flat", "factorised"):
            name = f"paper, {int(np.prod(dictionary)):,} interests, {head}"
            cases[name] = build("gemirec", "paper", items, sized(dictionary, head))
    with torch.no_grad():
        found = few({name: _selecting(model, batch) for name, model in cases.items()})
    for name, ms in found.items():
        print(f"{name:40}{ms * 1000 / users:9.0f}")


def _selecting(model: Any, batch: Histories) -> Callable[[], None]:
    """Return a function that selects the interests of a batch."""

    def run() -> None:
        model.select(model.state(batch))

    return run


PARTS: dict[str, Callable[[], None]] = {"online": online, "training": training, "growth": growth, "caching": caching}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS))
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):  # read when the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    for part in arguments.parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
