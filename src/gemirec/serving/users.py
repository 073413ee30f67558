"""The users of a request: whose history is read, from where, as the model's item indices.

Axes: B users of a batch, U users of the artifact, E events of all users one after the other, F categorical and G
numeric user features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.errors import ArtifactError
from gemirec.recommender.histories import Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gemirec.recommender.catalog import Catalog
    from gemirec.serving.events import EventLog
    from gemirec.serving.wire import UserRequest


@dataclass(frozen=True)
class StoredHistories:
    """The histories of an artifact in memory: 4 bytes an event and some 150 bytes a user.

    A request must not wait for a Parquet file to be read, nor for a dataframe's thread pool: a dictionary and slices
    answer in microseconds.

    Attributes:
        row_of: Row of each user, by the id as text.
        item_E: int32 item indices, oldest first in each user.
        offset_U1: ``[U + 1]`` int64 first event of each user.
        categorical_UF: ``[U, F]`` int64 feature codes or ``None``.
        numeric_UG: ``[U, G]`` float32 or ``None``.
    """

    row_of: dict[str, int]
    item_E: NDArray[np.int32]
    offset_U1: NDArray[np.int64]
    categorical_UF: NDArray[np.int64] | None = None
    numeric_UG: NDArray[np.float32] | None = None

    @classmethod
    def open(cls, path: Path) -> StoredHistories:
        """Read ``histories.parquet`` of an artifact; without the file nobody is known.

        Raises:
            ArtifactError: The file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.exists():
            return cls({}, np.empty(0, np.int32), np.zeros(1, np.int64))
        try:
            table = pq.read_table(path).combine_chunks()
            lists = table["items"].combine_chunks()
            offset_U1 = lists.offsets.to_numpy().astype(np.int64)
            item_E = lists.values.to_numpy()[offset_U1[0] : offset_U1[-1]].astype(np.int32)
            ids = table["user_id"].cast(pa.string()).to_pylist()
        except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
            raise ArtifactError(
                "the histories of the artifact are damaged",
                got=f"{path}: {error}",
                fix="copy the artifact again, whole, or save it again",
            ) from error
        features: list[Any] = []
        for name, dtype in (("categorical", np.int64), ("numeric", np.float32)):
            column = table[name].combine_chunks() if name in table.column_names else None
            wide = None if column is None else column.flatten().to_numpy().astype(dtype)
            features.append(None if wide is None else wide.reshape(len(ids), -1))
        return cls({user: row for row, user in enumerate(ids)}, item_E, offset_U1 - offset_U1[0], *features)

    def items(self, row: int) -> NDArray[np.int32]:
        """Return the item indices of a user, oldest first; nothing for row -1."""
        return self.item_E[self.offset_U1[row] : self.offset_U1[row + 1]] if row >= 0 else self.item_E[:0]


class Users:
    """Reads the histories that requests are about.

    Args:
        catalog: The items that the model knows.
        stored: The artifact's histories.
        events: What users did since; ``None`` for nothing.
        after: Number of the last event that the artifact was trained on.
    """

    def __init__(self, catalog: Catalog, stored: StoredHistories, events: EventLog | None, after: int = 0) -> None:
        self.stored = stored
        self._events = events
        self._after = after
        self.item_ids: list[int | str] = catalog.items["item_id"].to_list()
        """Row r is the id of item index r + 1."""
        self._index = {str(item): index for index, item in enumerate(self.item_ids, 1)}

    def index(self, item: object) -> int:
        """Return the index of an item, 0 if the model does not know it."""
        return self._index.get(str(item), 0)

    def read(self, requests: Sequence[UserRequest]) -> Encoded:
        """Return the histories of a batch, labelled by the number of the request.

        A request's own history counts as it is; without one, what is stored of the user and then the events since. User
        features are those of the artifact, 0 (unknown) for others.
        """
        rows = [-1 if ask.user_id is None else self.stored.row_of.get(str(ask.user_id), -1) for ask in requests]
        since = self._since(requests)
        parts, skipped = [], []
        for ask, row, new in zip(requests, rows, since, strict=True):
            given = new if ask.history is None else ask.history
            known = [index for item in given if (index := self.index(item))]
            own = np.array(known, dtype=np.int64)
            parts.append(own if ask.history is not None else np.concatenate([self.stored.items(row), own]))
            skipped.append(len(given) - len(known))
        offset_B1 = np.cumsum([0, *map(len, parts)]).astype(np.int64)
        item_E = np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)
        row_B = np.array(rows)
        return Encoded(
            pl.Series(np.arange(len(requests))),
            item_E,
            offset_B1,
            np.array(skipped, dtype=np.int64),
            _features(self.stored.categorical_UF, row_B),
            _features(self.stored.numeric_UG, row_B),
        )

    def _since(self, requests: Sequence[UserRequest]) -> list[list[str]]:
        """Return the items of each user's events since the artifact was trained; nothing where a history is given."""
        asked = {str(ask.user_id) for ask in requests if ask.history is None and ask.user_id is not None}
        if self._events is None or not asked:
            return [[] for _ in requests]
        users = list(asked)
        found = dict(zip(users, self._events.recent(users, self._after), strict=True))
        return [found.get(str(ask.user_id), []) if ask.history is None else [] for ask in requests]


def _features(table: NDArray[Any] | None, row_B: NDArray[np.int64]) -> NDArray[Any] | None:
    """Return the rows of a table of features, 0 for row -1."""
    if table is None:
        return None
    if not len(table):
        return np.zeros((len(row_B), table.shape[1]), dtype=table.dtype)
    out: NDArray[Any] = np.where(row_B[:, None] >= 0, table[row_B], table.dtype.type(0))
    return out
