"""Gathers the blocks of an evaluation: columns over users, exposure over items, and the table made of them.

Axes: B users of a block, U users in all, F places fetched, N places shown (item arrays: items, row 0 is padding).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.evaluation.evolution import new_category_recall
from gemirec.evaluation.long_tail import group_recall, popularity_groups
from gemirec.evaluation.metrics import accuracy, category_diversity, coverage, gini, rank_targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from gemirec.data.batches import EvalWindows
    from gemirec.data.dataset import Dataset
    from gemirec.evaluation.metrics import TargetRanks
    from gemirec.evaluation.ranking import Ranked


@dataclass
class BlockTable:
    """What the blocks found so far.

    Args:
        dataset: For ids, categories and the size of the catalogue.
        top_n: List lengths, ascending.
    """

    dataset: Dataset
    top_n: tuple[int, ...]
    users: int = 0
    blocks: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    exposure: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    new_hits: dict[int, int] = field(default_factory=dict)
    new_users: int = 0
    new_targets: int = 0
    metric_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        items = self.dataset.items
        self.category_N: NDArray[np.int32] | None = None
        if "category_index" in items.columns:
            self.category_N = np.zeros(self.dataset.num_items + 1, dtype=np.int32)
            self.category_N[1:] = items["category_index"].to_numpy()
        self.group_N = popularity_groups(np.concatenate([[0], items["train_count"].to_numpy()]))
        for n in self.top_n:
            self.exposure[n] = np.zeros(self.dataset.num_items + 1, dtype=np.int64)

    def add(
        self,
        windows: EvalWindows,
        parts: Sequence[tuple[tuple[int, ...], Ranked, Mapping[str, NDArray[np.float64]]]],
    ) -> None:
        """Measure one block.

        Args:
            windows: The block.
            parts: List lengths with the lists that have them as their heads, and ``[B]`` metrics measured elsewhere;
                together the lengths of the table, ascending. The last lists are shown.
        """
        target_E, offset_B1 = windows.target_E.numpy(), windows.target_offset_B1.numpy()
        found: dict[str, NDArray[Any]] = {}
        for top_n, ranked, extra in parts:
            merged = ranked.merged
            id_BF, score_BF = merged.id_BN.cpu().numpy(), merged.score_BN.cpu().numpy()
            complete = id_BF.shape[1] >= self.dataset.num_items
            ranks = rank_targets(id_BF, score_BF, target_E, offset_B1, complete=complete)
            found |= accuracy(ranks, top_n)
            for n in top_n:
                shown = id_BF[:, :n]
                self.exposure[n] += np.bincount(shown[shown > 0], minlength=self.dataset.num_items + 1)
                if self.category_N is not None:
                    found[f"diversity@{n}"] = category_diversity(shown, self.category_N)
            found |= group_recall(ranks, self.group_N, top_n)
            found |= self._evolution(windows, ranks, top_n) | dict(extra)
        self.metric_names = list(found)
        last = self.top_n[-1]
        found["user"] = windows.user_B.numpy()
        found["history_length"] = np.diff(windows.seen_offset_B1.numpy())
        found["num_targets"] = np.diff(offset_B1)
        found["seen_targets"] = _seen_targets(windows)
        found["items"] = id_BF[:, :last].astype(np.int32)
        found["interests"] = merged.interest_BN[:, :last].cpu().numpy().astype(np.int16)
        for name, value in found.items():
            self.blocks.setdefault(name, []).append(value)
        self.users += len(id_BF)

    def _evolution(
        self, windows: EvalWindows, ranks: TargetRanks, top_n: tuple[int, ...]
    ) -> dict[str, NDArray[np.float64]]:
        """Return ``cur@n`` of a block and count its hits; nothing without categories."""
        if self.category_N is None:
            return {}
        seen_E, seen_offset_B1 = windows.seen_E.numpy(), windows.seen_offset_B1.numpy()
        new = new_category_recall(ranks, seen_E, seen_offset_B1, self.category_N, top_n)
        if top_n[-1] == self.top_n[-1]:  # once for each block
            self.new_users += int((new.targets_B > 0).sum())
            self.new_targets += int(new.targets_B.sum())
        for n, hits_B in new.hits.items():
            self.new_hits[n] = self.new_hits.get(n, 0) + int(hits_B.sum())
        return new.recall()

    def column(self, name: str) -> NDArray[Any]:
        """Return one column over all users."""
        if len(self.blocks[name]) > 1:
            self.blocks[name] = [np.concatenate(self.blocks[name])]
        return self.blocks[name][0]

    def means(self) -> dict[str, float]:
        """Return every metric; those without any value are left out."""
        out = {}
        for name in self.metric_names:
            value_U = self.column(name)
            if np.isfinite(value_U).any():
                out[name] = float(np.nanmean(value_U))
        for n, exposure_N in self.exposure.items():
            out[f"coverage@{n}"] = coverage(exposure_N[1:])
            out[f"gini@{n}"] = gini(exposure_N[1:])
        if self.new_targets:
            out |= {f"cur_micro@{n}": hits / self.new_targets for n, hits in self.new_hits.items()}
        return out

    def counts(self) -> dict[str, Any]:
        """Return what the settings say of the users."""
        targets = int(self.column("num_targets").sum())
        return {
            "targets": targets,
            "users_without_history": int((self.column("history_length") == 0).sum()),
            "seen_target_share": round(int(self.column("seen_targets").sum()) / targets, 6),
            "item_categories": self.category_N is not None,
            "cur_users": self.new_users,
            "cur_targets": self.new_targets,
        }

    def table(self) -> pl.DataFrame:
        """Return the table of users, with the log's own ids."""
        import polars as pl

        user_id = self.dataset.users["user_id"].gather(self.column("user"))
        columns = {name: pl.Series(self.column(name)) for name in ("history_length", "num_targets")}
        metrics = {name: pl.Series(self.column(name)).fill_nan(None) for name in self.metric_names}
        item_UN = self.column("items")
        present = pl.Series(item_UN.ravel() > 0)
        item_id = self.dataset.items["item_id"].gather(np.maximum(item_UN.ravel() - 1, 0))
        flat = pl.DataFrame(
            {
                "row": np.repeat(np.arange(len(item_UN), dtype=np.int32), item_UN.shape[1]),
                "items": item_id,
                "interests": self.column("interests").ravel(),
            }
        ).filter(present)
        lists = flat.group_by("row", maintain_order=True).agg("items", "interests")
        base = pl.DataFrame({"row": np.arange(len(item_UN), dtype=np.int32), "user_id": user_id, **columns, **metrics})
        return base.join(lists, on="row", how="left", maintain_order="left").drop("row")


def _seen_targets(windows: EvalWindows) -> NDArray[np.int64]:
    """Return ``[B]`` how many of a user's targets, repeats counted, are in its history."""
    target_E, seen_E = windows.target_E.numpy(), windows.seen_E.numpy()
    rows = np.arange(len(windows.user_B))
    user_E = np.repeat(rows, np.diff(windows.target_offset_B1.numpy()))
    stride = int(max(target_E.max(initial=0), seen_E.max(initial=0))) + 1
    seen_key = np.repeat(rows, np.diff(windows.seen_offset_B1.numpy())) * stride + seen_E
    return np.bincount(user_E[np.isin(user_E * stride + target_E, seen_key)], minlength=len(rows))
