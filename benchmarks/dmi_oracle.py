"""How far interests of the log ``aspects`` could be cleaned without training, and what recall that would give.

    python benchmarks/dmi_oracle.py
    python benchmarks/dmi_oracle.py --data aspects-taste       # a log whose users have taste beside their interests

Takes ComiRec-SA's run of ``dmi.py``, or makes it, and changes its interests after the fact: each is drawn to the
history's items, to its like among other users' interests or among all items, or to the mean of all items of the planted
interest that it is nearest to; last, it is replaced by the user's planted interests themselves. Printed: the planted
noise that is left, the share of interests that are matched with a planted one, and Recall@50, all of test users.

Axes: B users, K interests, J planted interests, D embedding, L history length, M remembered interests, N items,
P possible planted interests.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dmi import SIMULATED, prepared_log
from gemirec import Recommender
from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.data.simulator import SimulatedLog
from gemirec.evaluation.planted import NONE, read_truth
from gemirec.evaluation.planted_noise import planted_noise
from gemirec.experiments.compare import compare
from gemirec.models.base import Histories, Interests
from rivals import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Tensor, Histories], Tensor]

REMEMBERED = 4000


class Oracle:
    """A trained model, its log and what was planted."""

    def __init__(self, artifact: Path, data: Path, log: Path) -> None:
        self.recommender = Recommender.from_pretrained(artifact)
        self.model = self.recommender.model.eval()
        self.base = self.model.interests
        self.data, self.log = Dataset.open(data), SimulatedLog.open(log)
        truth = read_truth(self.data, self.log, self.data.users_in("test"), "test")
        self.planted_BJ = torch.from_numpy(truth.planted_UJ)
        item_ND = self.model.item_vectors().detach()
        self.item_ND = F.normalize(item_ND, dim=1)
        label_NA = truth.label_NA[1:]
        sum_PD = np.zeros((label_NA.max() + 1, item_ND.shape[1]))
        for label_N in label_NA.T:
            np.add.at(sum_PD, label_N, item_ND[1:].numpy())
        self.planted_PD = F.normalize(torch.from_numpy(sum_PD).float(), dim=1)
        self.done = 0
        blocks = evaluation_batches(self.data, "valid", batch_size=512, max_length=self.model.max_length)
        found = [F.normalize(self.base(Histories(block.item_BL)).vector_BKD, dim=2).flatten(0, 1) for block in blocks]
        self.other_MD = torch.cat(found)[:REMEMBERED]

    def show(self, name: str, read: Callable[[Histories], Interests]) -> None:
        """Print noise and recall of what ``read`` gives."""
        self.done = 0
        noise = planted_noise(self.model, self.data, self.log, read=read)
        self.done = 0
        self.model.interests = read  # type: ignore[method-assign, assignment]
        recall = self.recommender.evaluate(self.data).metrics["recall@50"]
        self.model.interests = self.base  # type: ignore[method-assign]
        print(f"| {name} | {noise['interest_noise']:.3f} | {noise['noise_matched']:.2f} | {recall:.4f} |", flush=True)

    def changed(self, change: Change) -> Callable[[Histories], Interests]:
        """Return the model's interests, their directions changed."""

        def read(histories: Histories) -> Interests:
            found = self.base(histories)
            length_BK1 = torch.linalg.vector_norm(found.vector_BKD, dim=2, keepdim=True)
            turned_BKD = F.normalize(change(F.normalize(found.vector_BKD, dim=2), histories), dim=2)
            return replace(found, vector_BKD=length_BK1 * turned_BKD)

        return read

    def own(self, users: int) -> Tensor:
        """Return the planted interests of the next users; the test users are read in their order."""
        part_BJ = self.planted_BJ[self.done : self.done + users]
        self.done += users
        return part_BJ

    def to_history(self, sharpness: float) -> Change:
        """Draw to the history's items, by a softmax of cosines."""

        def change(unit_BKD: Tensor, histories: Histories) -> Tensor:
            item_BLD = self.item_ND[histories.item_BL]
            score_BKL = (sharpness * unit_BKD @ item_BLD.transpose(1, 2)).masked_fill(~histories.mask_BL[:, None], -1e9)
            return score_BKL.softmax(dim=2) @ item_BLD

        return change

    def to_nearest(self, among_XD: Tensor, count: int, share: float = 1.0) -> Change:
        """Draw to the ``count`` nearest of some unit vectors, by a share of the way."""

        def change(unit_BKD: Tensor, _: Histories) -> Tensor:
            best = (unit_BKD @ among_XD.T).topk(count, dim=2)
            near_BKD = ((10 * best.values).softmax(dim=2)[..., None] * among_XD[best.indices]).sum(dim=2)
            return (1 - share) * unit_BKD + share * F.normalize(near_BKD, dim=2)

        return change

    def to_planted(self, share: float) -> Change:
        """Draw each to the user's planted interest that it is nearest to."""

        def change(unit_BKD: Tensor, _: Histories) -> Tensor:
            own_BJ = self.own(len(unit_BKD))
            own_BJD = self.planted_PD[own_BJ.clamp(min=0)]
            score_BKJ = (unit_BKD @ own_BJD.transpose(1, 2)).masked_fill((own_BJ == NONE)[:, None], -9)
            near_BK1 = score_BKJ.argmax(dim=2)[..., None].expand(-1, -1, unit_BKD.shape[2])
            return (1 - share) * unit_BKD + share * own_BJD.gather(1, near_BK1)

        return change

    def planted(self, histories: Histories) -> Interests:
        """Return the user's planted interests in place of the model's."""
        own_BJ = self.own(len(histories.item_BL))
        return Interests(self.planted_PD[own_BJ.clamp(min=0)], own_BJ != NONE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model is looked at."""
    parser.add_argument("--data", default="aspects", choices=list(SIMULATED))
    parser.add_argument("--cache", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--out", type=Path, default=Path("runs/dmi"))
    parser.add_argument("--artifact", type=Path, help="another trained model of the log")


def opened(args: argparse.Namespace) -> Oracle:
    """Return the oracle of these options; ComiRec-SA is trained if it is not there."""
    data = prepared_log(args.data, args.cache)
    if args.artifact is None:
        report = compare([data], args.out, models=["comirec_sa"], seeds=[1], overrides=SETTINGS)
        rows = [row for row in report["rows"] if row["dataset"] == args.data and row["model"] == "comirec_sa"]
        args.artifact = args.out / next(iter(rows[0]["runs"].values())) / "artifact"
    with torch.no_grad():
        return Oracle(args.artifact, data, args.cache / f"{args.data}-log")


@torch.no_grad()
def show_all(oracle: Oracle) -> None:
    """Print the table."""
    print("| interests | planted noise | matched | recall@50 |\n|---|---|---|---|")
    oracle.show("as they are", oracle.base)
    for sharpness in (5, 20):
        change = oracle.to_history(sharpness)
        oracle.show(f"drawn to the history's items, sharpness {sharpness}", oracle.changed(change))
    for count, share in ((10, 1.0), (50, 1.0), (50, 0.5)):
        change = oracle.to_nearest(oracle.other_MD, count, share)
        oracle.show(f"drawn to {count} users' interests, share {share}", oracle.changed(change))
    oracle.show("drawn to the 20 nearest items", oracle.changed(oracle.to_nearest(oracle.item_ND[1:], 20)))
    for share in (0.3, 0.6, 1.0):
        oracle.show(f"drawn to the nearest planted interest, share {share}", oracle.changed(oracle.to_planted(share)))
    oracle.show("the planted interests themselves", oracle.planted)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    show_all(opened(parser.parse_args()))


if __name__ == "__main__":
    main()
