"""Scores against the planted truth of a simulated log: interests recovered, births found.

Interest k of a user is judged by its own list of :data:`LIST` items: ``share_kj`` is the share of the list that lies in
cluster j. A user's *planted* interests are its J clusters in the log's truth, the born one among them if its first
event is not later than the user's last history event; a born one that comes later is a *new* birth, which the model
cannot have seen. With the one-to-one matching of interests and planted clusters that has the largest sum of shares:

==========================  ===========================================================================================
``planted_match``           mean over users of the mean over J of the share that a planted interest is matched with, 0
                            if with none
``planted_recovered``       mean over users of the share of the J that are matched with a share of :data:`FOUND` or more
``births_found``            share of the users with a new birth for whom some interest has at least :data:`FOUND` of its
                            list in the born cluster
``births_in_list@50``       share of them with an item of the born cluster in the merged list of :data:`MERGED` items
``planted_users``           users ranked
``births_users``            users with a new birth
==========================  ===========================================================================================

The three of the births are given apart by what announces the birth, too: ``births_found_feature``,
``births_in_list_precursor@50``, ``births_users_none`` and so on. A score over no user is left out. A model with fewer
interests than planted ones cannot recover all. A long list meets any cluster now and then by chance: compare
``births_in_list`` with a control (popularity), not with 0.

In a log with aspects (:class:`~gemirec.data.simulator.SimulatorConfig`) a planted interest can also be a value of an
aspect; an item lies in its cluster and in each of its values.

Axes: B users of a block, U users of the split, K interests, J slots of planted clusters (the born one is last),
A aspects, R places of a list (``label_NA``: items, row 0 is padding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import TEST_START, VALID_START
from gemirec.errors import DataError
from gemirec.evaluation.assignment import assign
from gemirec.evaluation.ranking import catalogue, rank_block, serving
from gemirec.retrieval.index import ExactIndex

if TYPE_CHECKING:
    from typing import Literal

    import polars as pl
    import torch
    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset
    from gemirec.data.simulator import SimulatedLog
    from gemirec.models.base import RetrievalModel

LIST = 20
"""Length of the list that labels an interest."""
MERGED = 50
"""Length of the merged list in which births are looked for."""
FOUND = 0.5
"""Least share of a list in a cluster for the interest to count as that cluster's."""
ANNOUNCEMENTS = ("feature", "precursor", "none")
NONE = -1
"""No cluster."""


@dataclass(frozen=True)
class Truth:
    """What was planted for U users of a split.

    Attributes:
        planted_UJ: ``[U, J]`` int64 clusters of the planted interests that the history can show, ``NONE`` elsewhere.
        born_U: ``[U]`` int64 cluster that is born after the history, ``NONE`` if none is.
        announced_U: ``[U]`` what announces the birth, one of :data:`ANNOUNCEMENTS`; of no meaning without one.
        label_NA: ``[N + 1, 1 + A]`` int64 cluster of each item and its values, numbered as interests are; ``NONE`` for
            padding.
    """

    planted_UJ: NDArray[np.int64]
    born_U: NDArray[np.int64]
    announced_U: NDArray[Any]
    label_NA: NDArray[np.int64]

    @property
    def cluster_N(self) -> NDArray[np.int64]:
        """``[N + 1]`` int64 cluster of each item, ``NONE`` for padding."""
        return self.label_NA[:, 0]


def planted_scores(
    model: RetrievalModel,
    dataset: Dataset,
    log: SimulatedLog,
    split: Literal["valid", "test"] = "test",
    *,
    batch_size: int = 512,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Return the scores of the module's table for the held-out users of a split.

    Args:
        model: The model. It is put into ``eval`` mode, and back afterwards.
        dataset: The log, prepared with its own ids and timestamps.
        log: The simulated log with its truth.
        split: Which held-out part; the histories end where it begins.
        batch_size: Users per block.
        device: Where to compute; ``None`` leaves the model where it is.

    Raises:
        DataError: The split is empty, the catalogues differ, or the dataset was not prepared from this log.
        ConfigError: Interests and planted clusters are too many to match (above 12 each).
    """
    users_U = dataset.users_in(split)
    if len(users_U) == 0:
        raise DataError(f"the {split} split is empty", got=str(dataset.path), fix="prepare with another split")
    truth = read_truth(dataset, log, users_U, split)
    parts: dict[str, list[NDArray[Any]]] = {}
    with serving(model, device) as place:
        index, first = ExactIndex(catalogue(model, dataset)), 0
        for windows in evaluation_batches(
            dataset, split, batch_size=batch_size, max_length=model.max_length, users=users_U
        ):
            ranked = rank_block(model, index, windows, max(LIST, MERGED), place)
            rows = slice(first, first := first + len(windows.user_B))
            lists = ranked.id_BKR[:, :, :LIST].cpu().numpy(), ranked.merged.id_BN[:, :MERGED].cpu().numpy()
            for name, value in score_lists(*lists, truth.planted_UJ[rows], truth.born_U[rows], truth.label_NA).items():
                parts.setdefault(name, []).append(value)
    return _summary({name: np.concatenate(values) for name, values in parts.items()}, truth)


def score_lists(
    id_BKR: NDArray[np.int64],
    merged_BN: NDArray[np.int64],
    planted_BJ: NDArray[np.int64],
    born_B: NDArray[np.int64],
    label_NA: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each user, ``[B]`` each: ``match``, ``recovered``, ``found``, ``in_list``.

    ``match`` and ``recovered`` are NaN without a planted interest, ``found`` and ``in_list`` without a new birth.

    Args:
        id_BKR: ``[B, K, R]`` list of each interest; below 1 is missing.
        merged_BN: ``[B, N]`` merged lists.
        planted_BJ: ``[B, J]`` planted clusters, ``NONE`` for empty slots.
        born_B: ``[B]`` cluster of the new birth, ``NONE`` without one.
        label_NA: ``[N + 1, 1 + A]`` clusters that each item lies in, or ``[N + 1]`` if it is one.

    Example:
        >>> lists, cluster = np.array([[[1, 2], [3, 4]]]), np.array([-1, 7, 7, 8, 9])
        >>> found = score_lists(lists, lists[:, 0], np.array([[7, 5]]), np.array([9]), cluster)
        >>> {name: value.tolist() for name, value in found.items()}
        {'match': [0.5], 'recovered': [0.5], 'found': [1.0], 'in_list': [0.0]}
    """
    slot_BJ = np.concatenate([planted_BJ, born_B[:, None]], axis=1)
    label_NA = label_NA.reshape(len(label_NA), -1)
    listed_BKRA = np.where(id_BKR[..., None] > 0, label_NA[np.maximum(id_BKR, 0)], NONE)
    size_BK = np.maximum((id_BKR > 0).sum(axis=2), 1)
    inside_BKJ = np.stack(
        [(listed_BKRA == slot_B[:, None, None, None]).any(axis=3).sum(axis=2) for slot_B in slot_BJ.T], axis=2
    )
    share_BKJ = np.where(slot_BJ[:, None, :] != NONE, inside_BKJ / size_BK[:, :, None], 0.0)
    planted_share_BKJ, born_share_BK = share_BKJ[:, :, :-1], share_BKJ[:, :, -1]
    matched_BJ = (planted_share_BKJ * assign(planted_share_BKJ)).sum(axis=1)
    slots_B, birth_B = (planted_BJ != NONE).sum(axis=1), born_B != NONE
    merged_label_BNA = np.where(merged_BN[..., None] > 0, label_NA[np.maximum(merged_BN, 0)], NONE)
    some_B = np.maximum(slots_B, 1)
    in_list_B = (merged_label_BNA == born_B[:, None, None]).any(axis=(1, 2))
    return {
        "match": np.where(slots_B > 0, matched_BJ.sum(axis=1) / some_B, np.nan),
        "recovered": np.where(slots_B > 0, (matched_BJ >= FOUND).sum(axis=1) / some_B, np.nan),
        "found": np.where(birth_B, (born_share_BK >= FOUND).any(axis=1), np.nan),
        "in_list": np.where(birth_B, in_list_B, np.nan),
    }


def _summary(user: dict[str, NDArray[np.float64]], truth: Truth) -> dict[str, float]:
    """Return the means over users, births also by announcement, and the counts."""
    out = {"planted_users": float(len(truth.born_U))}
    if np.isfinite(user["match"]).any():
        out["planted_match"] = float(np.nanmean(user["match"]))
        out["planted_recovered"] = float(np.nanmean(user["recovered"]))
    birth_U = truth.born_U != NONE
    for kind in ("", *ANNOUNCEMENTS):
        chosen_U = birth_U & (truth.announced_U == kind) if kind else birth_U
        end = f"_{kind}" if kind else ""
        out[f"births_users{end}"] = float(chosen_U.sum())
        if chosen_U.any():
            out[f"births_found{end}"] = float(user["found"][chosen_U].mean())
            out[f"births_in_list{end}@{MERGED}"] = float(user["in_list"][chosen_U].mean())
    return out


def read_truth(
    dataset: Dataset, log: SimulatedLog, users_U: NDArray[np.int64], split: Literal["valid", "test"]
) -> Truth:
    """Read what was planted for the users ``users_U`` of a split, and the clusters and values of the dataset's items.

    Raises:
        DataError: An id or a time of the dataset is not the log's.
    """
    import polars as pl

    label_NA = _labels(dataset, log)
    columns = ["interests", "born_cluster", "birth_time", "announced_by"]
    users = _joined(dataset.users["user_id"].gather(users_U), pl.scan_parquet(log.truth_users), "user_id", columns, log)
    size_U = users["interests"].list.len().to_numpy()
    planted_UJ = np.full((len(users_U), log.config.interests_max + 1), NONE, dtype=np.int64)
    planted_UJ[:, :-1][np.arange(log.config.interests_max) < size_U[:, None]] = users["interests"].explode().to_numpy()
    cluster_U = users["born_cluster"].fill_null(NONE).to_numpy().astype(np.int64)
    seen_U = users["birth_time"].fill_null(0).to_numpy() <= _last_seen(dataset, log, users_U, split)
    planted_UJ[:, -1] = np.where(seen_U, cluster_U, NONE)
    announced_U = users["announced_by"].cast(pl.String).fill_null("none").to_numpy()
    return Truth(planted_UJ, np.where(seen_U, NONE, cluster_U), announced_U, label_NA)


def _labels(dataset: Dataset, log: SimulatedLog) -> NDArray[np.int64]:
    """Return the clusters of the dataset's items and, behind them, their values."""
    import polars as pl

    config = log.config
    columns = ["cluster", "aspect_values"] if config.aspects else ["cluster"]
    items = _joined(dataset.items["item_id"], pl.scan_parquet(log.truth_items), "item_id", columns, log)
    label_NA = items["cluster"].to_numpy().astype(np.int64)[:, None]
    if config.aspects:
        first_A = config.num_clusters + np.arange(config.aspects) * config.aspect_values
        label_NA = np.concatenate([label_NA, first_A + items["aspect_values"].to_numpy()], axis=1)
    return np.concatenate([np.full((1, label_NA.shape[1]), NONE), label_NA])


def _joined(ids: pl.Series, truth: pl.LazyFrame, name: str, columns: list[str], log: SimulatedLog) -> pl.DataFrame:
    """Return the truth's ``columns`` of each id, in the order of ``ids``."""
    import polars as pl

    key = pl.col(name).cast(pl.String)
    wanted = ids.alias(name).to_frame().lazy().select(key)
    rows = truth.select(key, *columns, known=pl.lit(value=True))
    found = wanted.join(rows, on=name, how="left", maintain_order="left").collect()
    unknown = found.filter(pl.col("known").is_null())[name]
    if len(unknown):
        raise DataError(
            "the dataset has ids that the simulated log has not",
            got=f"{name} {unknown[0]!r} and {len(unknown) - 1} more; log {log.path}",
            fix="give the log that the dataset was prepared from",
        )
    return found


def _last_seen(dataset: Dataset, log: SimulatedLog, users_U: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Return the time of each user's last history event, before everything without one."""
    last_U = np.full(len(users_U), np.iinfo(np.int64).min)
    for shard, rows, local in dataset.by_shard(users_U):
        cut = shard.bounds[local, VALID_START if split == "valid" else TEST_START].astype(np.int64)
        time = np.asarray(shard.times)[np.maximum(shard.offsets[local] + cut - 1, 0)]
        last_U[rows] = np.where(cut > 0, time, last_U[rows])
    known_U = last_U[last_U > np.iinfo(np.int64).min]
    begin, end = log.config.start, log.config.start + log.config.horizon
    if len(known_U) and not begin <= known_U.min() <= known_U.max() <= end:
        raise DataError(
            "the dataset's times are not those of the simulated log",
            got=f"{known_U.min()} to {known_U.max()}, the log's lie in {begin} to {end}",
            fix="prepare the log with its timestamp column as it is",
        )
    return last_U
