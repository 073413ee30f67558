"""Do networks that are trained by retrieval alone clean the interests of the log ``aspects``?

    python benchmarks/dmi_refiners.py

ComiRec-SA's run of ``dmi.py`` stays as it is (it is made if it is not there); a small network behind it moves its
interests, trained for the softmax over all items of the nearest interest. It reads the interest alone (``interest``);
also the history that the interest attends to (``history``); or also mean and spread of each dimension over that history
(``spread``), which say what its items agree on. Printed: the loss of the first and the last third of the steps, and
what ``dmi_oracle.py`` prints.

Axes: B users, K interests, D embedding, L history length, F features read.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmi_oracle import Oracle, add_options, opened
from gemirec.data.batches import WindowSampler
from gemirec.models.base import Histories

READS = {"interest": 1, "history": 2, "spread": 4}
STEPS, RATE, TEMPERATURE = 1200, 3e-3, 0.1


class Refiner(nn.Module):
    """Adds to a unit interest what a network of one hidden layer says; starts as the identity."""

    def __init__(self, reads: str, dim: int) -> None:
        super().__init__()
        self.reads = reads
        self.turn = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.turn.weight)
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        width = READS[reads] * dim
        self.last = nn.Linear(256, dim)
        self.network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256), nn.SiLU(), self.last)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, unit_BKD: Tensor, item_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the refined directions ``[B, K, D]``."""
        parts = [unit_BKD]
        if self.reads != "interest":
            score_BKL = self.sharpness * self.turn(unit_BKD) @ item_BLD.transpose(1, 2)
            share_BKL = score_BKL.masked_fill(~mask_BL[:, None], -1e9).softmax(dim=2)
            parts.append(share_BKL @ item_BLD)
        if self.reads == "spread":
            turned_BLD = self.turn(item_BLD)
            mean_BKD = share_BKL @ turned_BLD
            variance_BKD = (share_BKL @ turned_BLD.square() - mean_BKD.square()).clamp(min=1e-6)
            parts += [mean_BKD, (mean_BKD.square() / variance_BKD + 1e-3).log()]
        dim = unit_BKD.shape[2]
        read_BKF = torch.cat([part if i == 3 else dim**0.5 * part for i, part in enumerate(parts)], dim=2)
        return F.normalize(unit_BKD + self.network(read_BKF) / dim**0.5, dim=2)


def trained(oracle: Oracle, reads: str) -> tuple[Refiner, list[float]]:
    """Train a refiner; return it and the loss of each step."""
    torch.manual_seed(0)
    refiner = Refiner(reads, oracle.item_ND.shape[1])
    sampler = WindowSampler(oracle.data, batch_size=256, max_length=oracle.model.max_length, sampling="events")
    optimizer, losses = torch.optim.Adam(refiner.parameters(), RATE), []
    for step in range(STEPS):
        windows = sampler.windows(step)
        with torch.no_grad():
            unit_BKD = F.normalize(oracle.base(Histories(windows.item_BL)).vector_BKD, dim=2)
        refined_BKD = refiner(unit_BKD, oracle.item_ND[windows.item_BL], windows.item_BL > 0)
        score_BN = (refined_BKD @ oracle.item_ND[1:].T).amax(dim=1) / TEMPERATURE
        loss = F.cross_entropy(score_BN, windows.target_B - 1)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return refiner, losses


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    oracle = opened(parser.parse_args())
    print("| interests | planted noise | matched | recall@50 |\n|---|---|---|---|")
    for reads in READS:
        refiner, losses = trained(oracle, reads)
        third = STEPS // 3
        first, last = (sum(part) / third for part in (losses[:third], losses[-third:]))

        def change(unit_BKD: Tensor, histories: Histories, refiner: Refiner = refiner) -> Tensor:
            refined_BKD: Tensor = refiner(unit_BKD, oracle.item_ND[histories.item_BL], histories.mask_BL)
            return refined_BKD

        with torch.no_grad():
            oracle.show(f"reads {reads}, loss {first:.3f} to {last:.3f}", oracle.changed(change))


if __name__ == "__main__":
    main()
