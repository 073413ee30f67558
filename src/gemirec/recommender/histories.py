"""Histories as the model reads them: from known users, or from raw lists of the caller's item ids.

Axes: B users asked for, E their events one after the other (oldest first), F categorical and G numeric user features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from gemirec.data.batches import gather_events
from gemirec.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset
    from gemirec.recommender.catalog import Catalog

RawHistories = Sequence[Sequence[object]] | Mapping[Any, Sequence[object]] | pl.DataFrame


@dataclass(frozen=True)
class Encoded:
    """The histories of B users as item indices.

    Attributes:
        label: ``[B]`` what the answer calls each user: the user's id, the caller's key, or the row number.
        item_E: ``[E]`` int64 item indices, all at least 1, oldest first in each user.
        offset_B1: ``[B + 1]`` int64 first event of each user.
        skipped_B: ``[B]`` int64 events of each user whose item is not known.
        categorical_BF: ``[B, F]`` int64 feature codes or ``None``.
        numeric_BG: ``[B, G]`` float32 or ``None``.
    """

    label: pl.Series
    item_E: NDArray[np.int64]
    offset_B1: NDArray[np.int64]
    skipped_B: NDArray[np.int64]
    categorical_BF: NDArray[np.int64] | None = None
    numeric_BG: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def known_B(self) -> NDArray[np.bool_]:
        """``[B]`` bool, true for users with at least one known item."""
        known: NDArray[np.bool_] = np.diff(self.offset_B1) > 0
        return known

    def with_known_items(self) -> Encoded:
        """Return the users with at least one known item."""
        keep = self.known_B
        if keep.all():
            return self
        return Encoded(
            self.label.filter(pl.Series(keep)),
            self.item_E,  # the others have no events
            np.concatenate([self.offset_B1[:-1][keep], self.offset_B1[-1:]]),
            self.skipped_B[keep],
            None if self.categorical_BF is None else self.categorical_BF[keep],
            None if self.numeric_BG is None else self.numeric_BG[keep],
        )

    def blocks(self, size: int) -> Iterator[Encoded]:
        """Yield consecutive parts of at most ``size`` users."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            offset = self.offset_B1[start : stop + 1]
            yield Encoded(
                self.label[start:stop],
                self.item_E[offset[0] : offset[-1]],
                offset - offset[0],
                self.skipped_B[start:stop],
                None if self.categorical_BF is None else self.categorical_BF[start:stop],
                None if self.numeric_BG is None else self.numeric_BG[start:stop],
            )


def history_lengths(dataset: Dataset, user_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of events of each user ``[B]``, held-out ones included."""
    length_B = np.zeros(len(user_B), dtype=np.int64)
    for shard, rows, local in dataset.by_shard(user_B):
        length_B[rows] = shard.offsets[local + 1] - shard.offsets[local]
    return length_B


def encode_raw(histories: RawHistories, catalog: Catalog) -> Encoded:
    """Encode lists of the caller's item ids, oldest first; items that are not known are skipped and counted.

    Args:
        histories: A list of lists (users are then called 0, 1, ...), a mapping from any label to a list, or a polars
            table with ``user_id`` and ``item_id`` (one row an event, oldest first, or one row a user with lists).
        catalog: The items that the model knows.

    Raises:
        DataError: Something that is not a list of lists.
    """
    if isinstance(histories, pl.DataFrame):
        label, ids, length_B = _from_table(histories)
    else:
        label, ids, length_B = _from_lists(histories)
    index_E = catalog.encode(ids)
    user_E = np.repeat(np.arange(len(label)), length_B)
    known_E = index_E > 0
    known_B = np.bincount(user_E[known_E], minlength=len(label))
    offset_B1 = np.concatenate([[0], np.cumsum(known_B)]).astype(np.int64)
    return Encoded(label, index_E[known_E], offset_B1, length_B - known_B)


def _from_lists(
    histories: Sequence[Sequence[object]] | Mapping[Any, Sequence[object]],
) -> tuple[pl.Series, pl.Series, NDArray[np.int64]]:
    """Return labels, all ids, and the number of events of each user."""
    if isinstance(histories, (str, bytes)) or not isinstance(histories, (Sequence, Mapping)):
        raise DataError(
            "histories must be a list of lists of item ids", got=repr(histories)[:80], fix="write histories=[[...]]"
        )
    if isinstance(histories, Mapping):
        label, rows = pl.Series("user_id", list(histories.keys()), strict=False), list(histories.values())
    else:
        label, rows = pl.Series("user_id", np.arange(len(histories))), list(histories)
    for number, row in enumerate(rows):
        if isinstance(row, (str, bytes)) or not hasattr(row, "__len__"):
            raise DataError(
                "histories must be a list of lists of item ids",
                got=f"entry {number}: {row!r:.80}",
                fix=f"write one list per user, for example histories=[[{row!r:.40}]]",
            )
    ids = pl.Series("item_id", [item for row in rows for item in row], strict=False)
    return label, ids, np.array([len(row) for row in rows], dtype=np.int64)


def _from_table(table: pl.DataFrame) -> tuple[pl.Series, pl.Series, NDArray[np.int64]]:
    """Return labels, all ids, and the number of events of each user, of a polars table."""
    missing = {"user_id", "item_id"} - set(table.columns)
    if missing:
        raise DataError(
            "a table of histories needs the columns user_id and item_id",
            got=f"columns {table.columns}",
            fix="rename the columns of your table",
        )
    if not isinstance(table["item_id"].dtype, pl.List):
        table = table.group_by("user_id", maintain_order=True).agg("item_id")
    length_B = table["item_id"].list.len().fill_null(0).cast(pl.Int64)
    ids = table.filter(length_B > 0)["item_id"].explode()
    return table["user_id"], ids, length_B.to_numpy()


class HistoryStore(Protocol):
    """Where the histories of known users come from."""

    def lookup(self, user_ids: pl.Series) -> Encoded:
        """Return the histories of ``user_ids``, in their order.

        Raises:
            DataError: A user is not known, named with the way out.
        """


class DatasetHistories:
    """Histories of the users of a prepared dataset: all their events, held-out ones included."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def lookup(self, user_ids: pl.Series) -> Encoded:
        """See :class:`HistoryStore`."""
        users = self.dataset.users.select("user_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("row"))
        found = _rows_of(users.lazy(), user_ids)
        user_B = found["row"].to_numpy()
        length_B = history_lengths(self.dataset, user_B)
        item_E, offset_B1 = gather_events(self.dataset, user_B, np.zeros_like(length_B), length_B)
        categorical, numeric = self.dataset.user_features()
        return Encoded(
            found["user_id"],
            item_E,
            offset_B1,
            np.zeros(len(user_B), dtype=np.int64),
            None if categorical is None else np.asarray(categorical[user_B], dtype=np.int64),
            None if numeric is None else np.asarray(numeric[user_B], dtype=np.float32),
        )


class ParquetHistories:
    """Histories saved in an artifact folder: read per question, filtered while reading, never loaded whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lookup(self, user_ids: pl.Series) -> Encoded:
        """See :class:`HistoryStore`."""
        if not self.path.exists():
            raise ArtifactError(
                "the artifact holds no histories, so it knows no users by id",
                got=self.path,
                fix="give histories=[[...]], or save the artifact again with histories=True",
            )
        table = _rows_of(pl.scan_parquet(self.path), user_ids)
        length_B = table["items"].list.len().cast(pl.Int64)
        items = table.filter(length_B > 0)["items"].explode()
        offset_B1 = np.concatenate([[0], np.cumsum(length_B.to_numpy())]).astype(np.int64)
        features: list[Any] = []
        for name, dtype in (("categorical", np.int64), ("numeric", np.float32)):
            features.append(np.array(table[name].to_list(), dtype=dtype) if name in table.columns else None)
        item_E = items.to_numpy().astype(np.int64)
        skipped_B = np.zeros(len(user_ids), dtype=np.int64)
        return Encoded(table["user_id"], item_E, offset_B1, skipped_B, *features)


def _rows_of(users: pl.LazyFrame, user_ids: pl.Series) -> pl.DataFrame:
    """Return the rows of ``users`` for ``user_ids``, in their order; ids are read in the table's own type."""
    dtype = users.collect_schema()["user_id"]
    asked = user_ids.cast(dtype, strict=False).alias("user_id")
    found = users.filter(pl.col("user_id").is_in(asked.drop_nulls().unique().implode())).collect()
    table = asked.to_frame().join(
        found.with_columns(known=pl.lit(value=True)), on="user_id", how="left", maintain_order="left"
    )
    unknown = user_ids.filter(table["known"].is_null())
    if len(unknown):
        examples = users.select("user_id").head(3).collect()["user_id"].to_list()
        raise DataError(
            f"{len(unknown)} of {len(user_ids)} users are not known",
            got=f"for example {unknown[0]!r}; known ids look like {examples}",
            fix="for users without a stored history give histories=[[item ids, oldest first]]",
        )
    return table.drop("known")
