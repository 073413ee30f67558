"""One training step of ComiRec-SA against the bare computation of the same tensor shapes, in the same run.

Ours: :meth:`gemirec.training.loop.TrainingLoop.step` as training runs it: windows cut from a dataset on disk, seeds,
negatives, loss, backward, sparse row update of the item table, dense update, log bookkeeping. Bare: forward, backward
and update written as straight-line torch on windows drawn beforehand, with the faster of two updates at that size:
fused Adam over the whole table, or the same row update inlined. Both on one thread, alternately; process CPU time,
medians.

    python benchmarks/train_step.py            # batch 256 at 12 k items; batch 128 at 12 k and 368 k
    python benchmarks/train_step.py --json
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

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.artifacts import write_json
from gemirec.config import TrainingConfig
from gemirec.data.batches import WindowSampler
from gemirec.data.dataset import Dataset, new_info
from gemirec.models.catalog import build_model
from gemirec.training.loop import TrainingLoop
from gemirec.training.session import LossModule, new_accelerator

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, LENGTH, INTERESTS, NEGATIVES, EVENTS = 64, 20, 4, 1280, 40
CASES = ((256, 12_000), (128, 12_000), (128, 368_000))
"""Batch size and items."""
STEPS = 4
"""Steps per timing."""


def write_dataset(path: Path, items: int, users: int = 20_000) -> Dataset:
    """Write ``users`` training users whose events follow a power law over items, straight as arrays."""
    import msgspec

    rng = np.random.default_rng(0)
    folder = path / "shards" / "00000"
    folder.mkdir(parents=True)
    events = (rng.random(users * EVENTS) ** 3 * items).astype(np.int32) + 1
    np.save(folder / "events.npy", events)
    np.save(folder / "times.npy", np.arange(len(events), dtype=np.int64))
    np.save(folder / "offsets.npy", np.arange(users + 1, dtype=np.int64) * EVENTS)
    np.save(folder / "bounds.npy", np.tile(np.array([[EVENTS, 0, 0, 0, 0]], dtype=np.int32), (users, 1)))
    count = np.bincount(events, minlength=items + 1)[1:]
    pl.DataFrame({"item_id": np.arange(items), "count": count, "train_count": count}).write_parquet(
        path / "items.parquet"
    )
    pl.DataFrame({"user_id": np.arange(users)}).write_parquet(path / "users.parquet")
    info = new_info(
        name="benchmark",
        num_users=users,
        num_items=items,
        num_events=len(events),
        users_per_split={"train": users, "valid": 0, "test": 0},
        user_id_type="integer",
        item_id_type="integer",
        shard_users=[users],
        fingerprint=f"benchmark-{items}",
    )
    write_json(path / "dataset.json", msgspec.to_builtins(info))
    return Dataset.open(path)


class Ours:
    """Steps of the real training loop."""

    def __init__(self, dataset: Dataset, run: Path, batch: int, item_optimizer: str, model: str = "comirec_sa") -> None:
        config = TrainingConfig(batch_size=batch, min_history=LENGTH, item_optimizer=item_optimizer)  # type: ignore[arg-type]
        torch.manual_seed(0)
        loss = {"num_negatives": NEGATIVES}
        built = build_model(model, {"dim": DIM, "max_length": LENGTH, "loss": loss}, dataset.spec())
        accelerator = new_accelerator("no")
        run.mkdir()
        self.loop = TrainingLoop(built, dataset, config, run, accelerator, None)
        self.losses = accelerator.prepare_model(LossModule(built))
        self.sampler = WindowSampler(dataset, batch_size=batch, max_length=LENGTH, min_history=LENGTH)
        built.train()

    def step(self) -> None:
        """Train one step."""
        self.loop.step(self.losses, self.sampler, "train")

    def log(self) -> None:
        """Check and average the losses, as every ``log_every`` steps."""
        self.loop.window.report("train", self.loop.config)

    def windows(self) -> None:
        """Draw one batch and nothing else."""
        self.sampler.windows(self.loop.state.step)


class Bare:
    """ComiRec-SA in straight-line torch: attention, hard readout, sampled softmax with logQ, Adam."""

    def __init__(self, sampler: WindowSampler, items: int, *, rows: bool) -> None:
        torch.manual_seed(0)
        self.items, self.rows = items, rows
        self.batches = [sampler.windows(step) for step in range(20)]
        self.count = 0
        table_ND = torch.randn(items + 1, DIM) * 0.013
        hidden = 4 * DIM
        shapes = ((hidden, DIM), (hidden,), (INTERESTS, hidden), (LENGTH, DIM))
        self.dense = [nn.Parameter(torch.randn(shape) * 0.05) for shape in shapes]
        self.table = nn.Parameter(table_ND)
        tables = [] if rows else [self.table]
        self.adam = torch.optim.Adam([*self.dense, *tables], lr=1e-3, fused=True)
        self.first_ND, self.second_ND = torch.zeros_like(table_ND), torch.zeros_like(table_ND)
        self.steps = torch.zeros(())

    def loss(self, item_BL: Tensor, target_B: Tensor) -> Tensor:
        """Forward."""
        inner, bias, outer, position_LD = self.dense
        item_BLD = F.embedding(item_BL, self.table, padding_idx=0, sparse=self.rows)
        hidden_BLA = torch.sigmoid(F.linear(item_BLD + position_LD, inner, bias))  # as ours: see SelfAttention
        logit_BKL = F.linear(hidden_BLA, outer).transpose(1, 2).masked_fill((item_BL == 0)[:, None], -1e9)
        interest_BKD = torch.softmax(logit_BKL, dim=2) @ item_BLD
        negative_S = torch.randint(1, self.items + 1, (NEGATIVES,))
        vector_ED = F.embedding(torch.cat([target_B, negative_S]), self.table, padding_idx=0, sparse=self.rows)
        positive_BD, negative_SD = vector_ED[: len(target_B)], vector_ED[len(target_B) :]
        with torch.no_grad():
            best_B = torch.einsum("bkd,bd->bk", interest_BKD, positive_BD).argmax(1)
        user_BD = interest_BKD[torch.arange(len(best_B)), best_B]
        log_q = float(np.log(NEGATIVES / self.items))
        score_BS = (user_BD @ negative_SD.T - log_q).masked_fill(target_B[:, None] == negative_S, -1e30)
        positive_B1 = (user_BD * positive_BD).sum(1, keepdim=True) - log_q
        return F.cross_entropy(torch.cat([positive_B1, score_BS], 1), torch.zeros(len(target_B), dtype=torch.int64))

    def step(self) -> None:
        """Forward, backward, update."""
        windows = self.batches[self.count % len(self.batches)]
        self.count += 1
        self.adam.zero_grad()
        self.table.grad = None
        self.loss(windows.item_BL, windows.target_B).backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        if self.rows:
            self._update_rows()

    @torch.no_grad()
    def _update_rows(self) -> None:
        assert self.table.grad is not None
        row_R, place_E = torch.unique(self.table.grad._indices()[0], return_inverse=True)
        grad_RD = torch.zeros(len(row_R), DIM).index_add_(0, place_E, self.table.grad._values())
        self.steps += 1
        tables = (self.table, self.first_ND, self.second_ND)
        rows = [F.embedding(row_R, part_ND) for part_ND in tables]
        betas = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
        torch._fused_adam_([rows[0]], [grad_RD], [rows[1]], [rows[2]], [], [self.steps], lr=1e-3, **betas)  # type: ignore[call-overload]
        for part_ND, part_RD in zip(tables, rows, strict=True):
            part_ND.index_copy_(0, row_R, part_RD)


def alternate(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median process CPU time of each function in ms, called one after the other."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(STEPS):
                function()
            if number >= 2:
                times[name].append((time.process_time() - start) / STEPS * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(batch: int, items: int, rounds: int) -> dict[str, Any]:
    """Time one case."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "data", items)
        ours = Ours(dataset, Path(folder) / "run", batch, "lazy_adam")
        dense_table = Bare(ours.sampler, items, rows=False)
        rows = Bare(ours.sampler, items, rows=True)
        functions = {"ours": ours.step, "rows": rows.step, "dense": dense_table.step, "loader": ours.windows}
        functions["log"] = ours.log
        found = alternate(functions, rounds)
        ours.loop.close()
    bare = min(found["rows"], found["dense"])
    return {
        "batch": batch,
        "items": items,
        "step_ms": found["ours"],
        "bare_ms": bare,
        "bare_dense_ms": found["dense"],
        "bare_rows_ms": found["rows"],
        "ratio": found["ours"] / bare,
        "loader_share": found["loader"] / found["ours"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(batch, items, arguments.rounds) for batch, items in CASES]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print("batch    items  step ms  bare ms  (dense, rows)     ratio  loader")
    for r in results:
        print(
            f"{r['batch']:5d} {r['items']:8,d} {r['step_ms']:8.1f} {r['bare_ms']:8.1f}  "
            f"({r['bare_dense_ms']:.1f}, {r['bare_rows_ms']:.1f})  {r['ratio']:10.2f} {r['loader_share']:6.1%}"
        )


if __name__ == "__main__":
    main()
