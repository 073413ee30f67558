"""Between the caller's item ids and the model's item indices.

Axes: E events of all users one after the other, N items (index 0 is padding and means "not known").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Catalog:
    """The items that a model knows, in the order of its item table.

    Args:
        items: The prepared dataset's item table; row r is item index r + 1.

    Example:
        >>> catalog = Catalog(pl.DataFrame({"item_id": ["tea", "cup"], "train_count": [3, 9]}))
        >>> catalog.encode(pl.Series(["cup", "unknown", "tea"])).tolist()
        [2, 0, 1]
        >>> catalog.ids(np.array([1, 2])).to_list()
        ['tea', 'cup']
        >>> catalog.most_popular.tolist()
        [2, 1]
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self.items = items
        self._lookup = items.select("item_id", pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("index"))
        self.count_N: NDArray[np.int64] = np.concatenate([[0], items["train_count"].to_numpy()]).astype(np.int64)
        """``[N + 1]`` training events of each item."""
        self.most_popular: NDArray[np.int64] = np.argsort(-self.count_N[1:], kind="stable") + 1
        """``[N]`` item indices, most training events first."""

    def __len__(self) -> int:
        return self.items.height

    @property
    def id_type(self) -> pl.DataType:
        """The dtype of the caller's item ids."""
        return self.items["item_id"].dtype

    def encode(self, ids: pl.Series) -> NDArray[np.int64]:
        """Return ``[E]`` item indices of ``ids``; 0 where an id is null or not known.

        Ids are read in the catalogue's own type: ``"12"`` finds 12 in a catalogue of integers, and 12 finds ``"12"``.
        """
        asked = ids.cast(self.id_type, strict=False).alias("item_id").to_frame()
        lookup = self._lookup
        if asked.height < lookup.height:  # hash the few that are asked for, not the whole catalogue
            lookup = lookup.filter(pl.col("item_id").is_in(asked["item_id"].drop_nulls().unique().implode()))
        found = asked.join(lookup, on="item_id", how="left", maintain_order="left")
        return found["index"].fill_null(0).to_numpy().astype(np.int64)

    def ids(self, index_E: NDArray[np.integer[Any]]) -> pl.Series:
        """Return the caller's ids of item indices ``[E]``, all at least 1."""
        return self.items["item_id"].gather(pl.Series(index_E - 1, dtype=pl.Int64))

    def allowed(self, allow: Sequence[object] | pl.Series | None) -> NDArray[np.int64] | None:
        """Return the sorted, distinct indices of an allow-list; ``None`` without one.

        Raises:
            DataError: None of the ids is known.
        """
        if allow is None:
            return None
        if isinstance(allow, str):
            raise DataError("an allow-list must be a list of item ids", got=repr(allow), fix="write allow=[...]")
        ids = allow if isinstance(allow, pl.Series) else pl.Series(list(allow), strict=False)
        index = np.unique(self.encode(ids))
        index = index[index > 0]
        if not len(index):
            raise DataError(
                "no item of the allow-list is known to the model",
                got=f"{len(ids)} ids, for example {ids.head(3).to_list()}",
                fix=f"give item ids as in the log, for example {self.items['item_id'].head(3).to_list()}",
            )
        return index
