"""From a log to a prepared dataset: the steps in order.

read -> row filters -> duplicates -> frequency filter -> numbering (items by count, users by hash) -> order by time ->
split -> files. What each step means is written once, for any dataframe engine, in :mod:`gemirec.data.definition`;
on one machine the log is streamed by polars and Arrow into integer codes, and the steps over the whole log are NumPy
kernels. Memory is about 32 bytes per event and the ids; time grows linearly.

Axes: U users and N items of the dataset, E events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.artifacts import atomic_dir, write_json
from gemirec.config import to_dict
from gemirec.data.dataset import Dataset, new_info
from gemirec.data.features import UserFeatures, encode_users, item_table, join_by_id, user_table
from gemirec.data.filters import Kept, drop_duplicates, k_core, one_pass
from gemirec.data.hashing import order_users
from gemirec.data.options import Columns, PrepareConfig
from gemirec.data.ordering import Plan, SplitMaker, write_shards
from gemirec.data.reading import ReadLog, read_log
from gemirec.data.sources import open_log, read_table
from gemirec.data.writer import Fingerprint, write_array, write_table
from gemirec.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gemirec.data.ordering import Written

__all__ = ["Columns", "PrepareConfig", "prepare"]

EVENTS_PER_SHARD = 16_000_000


def prepare(
    log: Any,
    out: str | Path,
    *,
    items: Any = None,
    users: Any = None,
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Dataset:
    """Turn a log into a dataset folder.

    Args:
        log: Path, folder, glob pattern, list of paths (Parquet, CSV, TSV, JSONL, RecBole ``.inter``, ComiRec text) or a
            pandas, polars or Arrow table with ``user_id``, ``item_id``, ``timestamp``.
        out: Folder to write; it appears whole or not at all.
        items: Optional item table with ``item_id``; ``category`` is indexed, every column is carried along.
        users: Optional user table with ``user_id``; its columns become user features.
        config: Names of columns, filters, split; ComiRec's protocol by default.
        overwrite: Replace a dataset that is there.
        progress: Called with the stage (read, filter, order, write) and the fraction of it that is done.

    Returns:
        The opened dataset.

    Raises:
        DataError: The log or a table cannot be used; nothing is written.
        StorageError: ``out`` exists, or the disk refuses; nothing half-written stays.

    Example:
        >>> import tempfile
        >>> log = pl.DataFrame({"user_id": [u for u in "abcdefghij" for _ in range(5)],
        ...                     "item_id": [1, 2, 3, 4, 5] * 10, "timestamp": range(50)})
        >>> dataset = prepare(log, tempfile.mkdtemp() + "/dataset")
        >>> dataset.num_users, dataset.num_items, dataset.info.users_per_split
        (10, 5, {'train': 8, 'valid': 1, 'test': 1})
    """
    config = config or PrepareConfig()
    out = Path(out)
    _check_target(out, overwrite=overwrite)
    with atomic_dir(out, overwrite=overwrite) as folder:
        _Preparation(config, folder, progress or _silent).run(log, items, users)
    return Dataset.open(out)


def _silent(stage: str, fraction: float) -> None:
    """Report nothing."""


def _check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse to overwrite anything but a dataset."""
    if not overwrite or not out.exists() or (out / "dataset.json").exists():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise StorageError(
            "the output to overwrite is not a dataset", got=out, fix="choose another path, or remove it yourself"
        )


@dataclass
class _Preparation:
    """One run: the steps' shared state."""

    config: PrepareConfig
    folder: Path
    progress: Callable[[str, float], None]
    steps: list[dict[str, Any]] = field(default_factory=list)

    def run(self, log: Any, items: Any, users: Any) -> None:
        """Run every step and write the folder."""
        config = self.config
        need = ["event"] if config.events else []
        need += ["split"] if config.split == "column" else []
        need += ["weight"] if config.min_weight is not None else []
        opened = open_log(log, config.columns, format=config.format, text_ids=config.id_type == "string", need=need)
        given_items = None if items is None else read_table(items, what="item table")
        given_users = None if users is None else read_table(users, what="user table")
        read = read_log(opened, config, self.progress)
        kept = self._filter(read)
        item_ids, item_index = self._number_items(read.item_ids, kept)
        plan, user_ids = self._number_users(read.user_ids, kept)
        split = SplitMaker.of(config, plan, read.coded.time, read.coded.label, user_ids)
        fingerprint = Fingerprint()
        fingerprint.add_ids("item_ids", item_ids)
        fingerprint.add_ids("user_ids", user_ids)
        written = write_shards(self.folder, read.coded, plan, item_index, split, fingerprint, self.progress)
        self._check_split(written)
        joins, features, categories = self._tables(item_ids, user_ids, written, given_items, given_users)
        info = new_info(
            name=config.name or opened.name,
            num_users=len(user_ids),
            num_items=len(item_ids),
            num_events=int(plan.length_U.sum()),
            users_per_split=written.users_per_split,
            user_id_type="integer" if user_ids.dtype.is_integer() else "string",
            item_id_type="integer" if item_ids.dtype.is_integer() else "string",
            shard_users=[int(n) for n in plan.shard_users],
            fingerprint=fingerprint.hexdigest(),
            prepare=to_dict(config),
            raw={
                "steps": self.steps,
                "split": split.name,
                "events_per_split": written.events_per_split,
                "users_without_history": split.users_without_history,
                "cut_times": list(split.cuts) if split.cuts else None,
                "time_unit": read.time_unit,
                "tables": joins,
            },
            categories=categories,
            user_features=features.info,
        )
        _write_info(self.folder, info)
        self.progress("write", 1.0)

    def _filter(self, read: ReadLog) -> Kept:
        """Duplicates and the frequency filter; counts after each."""
        config, coded = self.config, read.coded
        self.progress("filter", 0.0)
        *before, (last, events) = read.rows.items()
        self.steps += [{"step": step, "events": count} for step, count in before]
        users, items = len(read.user_ids), len(read.item_ids)
        self.steps.append({"step": last, "events": events, "users": users, "items": items})
        if config.duplicates != "keep":
            drop_duplicates(coded, users, config.duplicates)
            step = {"step": f"duplicates: {config.duplicates}", "events": coded.events, "users": users, "items": items}
            self.steps.append(step)
        minima = (0, 0) if config.filter == "none" else (config.min_item, config.min_user)
        kept = (k_core if config.filter == "k_core" else one_pass)(coded, users, items, *minima)
        left = int(kept.user_count_U.sum())
        if config.filter != "none":
            step = {"step": f"filter: {config.filter} (item {minima[0]}, user {minima[1]})", "events": left}
            step |= {"users": int(kept.user_U.sum()), "items": int(kept.item_N.sum()), "rounds": kept.rounds}
            self.steps.append(step)
        if not left:
            raise DataError(
                "the frequency filter removes every event",
                got=f"{coded.events} events of {users} users and {items} items, filter={config.filter}, "
                f"min_item={config.min_item}, min_user={config.min_user}",
                fix="lower min_item and min_user, or set filter=one_pass or filter=none",
            )
        self.progress("filter", 1.0)
        return kept

    def _number_items(self, ids: pl.Series, kept: Kept) -> tuple[pl.Series, NDArray[np.int32]]:
        """Return the items' ids in index order, and ``[codes]`` the index of every code (0: left out)."""
        codes = np.flatnonzero(kept.item_N)
        table = pl.DataFrame({"id": ids.gather(codes), "count": kept.item_count_N[codes], "code": codes})
        table = table.sort(["count", "id"], descending=[True, False])
        index = np.zeros(len(ids), dtype=np.int32)
        index[table["code"].to_numpy()] = np.arange(1, table.height + 1, dtype=np.int32)
        self._count_N = table["count"].to_numpy()
        return table["id"], index

    def _number_users(self, ids: pl.Series, kept: Kept) -> tuple[Plan, pl.Series]:
        """Return the plan of the files and the users' ids in index order."""
        codes = np.flatnonzero(kept.user_U)
        order, crc_U = order_users(ids.gather(codes), self.config.seed)
        codes = codes[order]
        length_U = kept.user_count_U[codes]
        shards = self.config.shards or -(-int(length_U.sum()) // EVENTS_PER_SHARD)
        plan = Plan.of(codes, crc_U, length_U, min(shards, len(codes)), len(ids))
        return plan, ids.gather(codes)

    def _check_split(self, written: Written) -> None:
        """Raise if nothing is left to train on."""
        if not written.users_per_split["train"]:
            raise DataError(
                "no user is left to train on",
                got=f"users per part: {written.users_per_split}",
                fix="give more users, or another split (leave_one_out needs only one user)",
            )

    def _tables(
        self,
        item_ids: pl.Series,
        user_ids: pl.Series,
        written: Written,
        given_items: pl.DataFrame | None,
        given_users: pl.DataFrame | None,
    ) -> tuple[dict[str, Any], UserFeatures, list[str]]:
        """Write the item and user tables and the user features."""
        joins: dict[str, Any] = {}
        table, categories, counts = item_table(
            item_ids, self._count_N, written.train_count_N[1:], given_items, self.config.category
        )
        write_table(self.folder / "items.parquet", table)
        if given_items is not None:
            joins["items"] = counts | {"categories": len(categories)}
        features, joined = UserFeatures([], None, None), None
        if given_users is not None:
            joined, joins["users"] = join_by_id(user_ids, given_users, "user_id", "user table")
            features = encode_users(joined, (written.part_U & 1) > 0, self.config)
        write_table(self.folder / "users.parquet", user_table(user_ids, written.part_U, joined))
        if features.categorical_UF is not None:
            write_array(self.folder / "user_categorical.npy", features.categorical_UF)
        if features.numeric_UG is not None:
            write_array(self.folder / "user_numeric.npy", features.numeric_UG)
        return joins, features, categories


def _write_info(folder: Path, info: Any) -> None:
    """Write ``dataset.json``."""
    import msgspec

    write_json(folder / "dataset.json", msgspec.to_builtins(info))
