"""Items that came after training: checked against the catalogue, put behind it, written beside the model.

Axes: N items of the model (row 0 is padding), A items behind them, C items that get a vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch

from gemirec.artifacts import load_tensors, save_tensors
from gemirec.config import to_dict
from gemirec.data.features import as_id, join_by_id
from gemirec.data.sources import read_table
from gemirec.data.writer import Fingerprint, write_table
from gemirec.errors import ArtifactError, ConfigError, DataError
from gemirec.retrieval.cold_start import ColdItems, ColdStartConfig, cold_items

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gemirec.models.base import RetrievalModel
    from gemirec.recommender.catalog import Catalog

TABLE, TENSORS = "new_items.parquet", "new_items.safetensors"
"""Files of an artifact with new items: the rows behind ``items.parquet``, and what is served of them."""


class Added(NamedTuple):
    """What came of adding items.

    Attributes:
        items: The whole item table, new rows last.
        cold: All items without interactions, those of earlier calls included.
        facts: What an artifact records of this call.
    """

    items: pl.DataFrame
    cold: ColdItems
    facts: dict[str, Any]


def add_items(
    model: RetrievalModel,
    catalog: Catalog,
    items: Any,
    config: ColdStartConfig,
    *,
    known: Any = None,
    category: str | None = "category",
    before: ColdItems | None = None,
) -> Added:
    """Give the items of a table a vector from their side features.

    Args:
        model: The trained model.
        catalog: Its items, and those added before.
        items: Path or table with ``item_id`` and side features. An item that the catalogue has without any training
            event counts as new and changes its vector.
        config: How.
        known: Path or table with ``item_id`` and the same features of the model's items; ``None`` takes what the
            model's own item table holds.
        category: Column that the category indices of the item table come from.
        before: Items that were added before.

    Raises:
        ConfigError: A column is missing, or the model learns no item vectors.
        DataError: Ids are repeated, empty or trained already, or a feature cannot be used.
    """
    if not model.trainable:
        raise ConfigError(
            "this model learns no item vectors, so there are none to learn from",
            got=type(model).__name__,
            fix="train another model, for example comirec_sa",
        )
    new, index_C = _numbered(read_table(items, what="table of new items"), catalog, config)
    size = model.spec.num_items
    own = catalog.items.head(size)
    if known is not None:
        table = read_table(known, what="table of known items")
        own = join_by_id(own["item_id"], table, "item_id", "table of known items")[0]
    with torch.no_grad():
        item_ND = model.item_vectors()
    width = min(int(model.config.dim), item_ND.shape[1])
    cold = cold_items(item_ND, width, own, catalog.count_N[: size + 1], new, index_C, config)
    behind = new.filter(pl.Series(index_C > len(catalog)))
    fingerprint = Fingerprint()
    fingerprint.add_ids("ids", new["item_id"])
    fingerprint.add("index", cold.index_C.numpy())
    fingerprint.add("vector", cold.vector_CD.numpy())
    facts = {"items": new.height, "config": to_dict(config), "fingerprint": fingerprint.hexdigest()}
    return Added(
        pl.concat([catalog.items, _rows(behind, catalog.items, category)]),
        cold if before is None else before.merged(cold),
        facts,
    )


def _numbered(table: pl.DataFrame, catalog: Catalog, config: ColdStartConfig) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return the items that get a vector, and their item indices: their own, or the next ones behind the catalogue."""
    if "item_id" not in table.columns:
        raise DataError(
            "the table of new items has no column 'item_id'",
            got=f"columns {', '.join(table.columns)}",
            fix="rename its id column",
        )
    ids = as_id(table["item_id"], catalog.id_type)
    if ids.null_count():
        example = table["item_id"].filter(ids.is_null())[0]
        raise DataError(
            "an id of the new items cannot be read",
            got=f"{example!r}; the model's ids are of type {catalog.id_type}, like {catalog.items['item_id'][0]!r}",
            fix="give every item an id of that type",
        )
    if ids.n_unique() < len(ids):
        raise DataError(
            "an id occurs more than once among the new items",
            got=repr(ids.filter(ids.is_duplicated())[0]),
            fix="give one row per item",
        )
    table = table.with_columns(ids.alias("item_id"))
    index_C = catalog.encode(ids)
    trained_C = catalog.count_N[index_C] > 0
    if trained_C.any() and config.existing == "refuse":
        raise DataError(
            f"the model was trained on {int(trained_C.sum())} of {len(ids)} new items",
            got=f"for example {ids.filter(pl.Series(trained_C))[0]!r}",
            fix="leave them out, or set existing=skip to do so here",
        )
    if trained_C.all():
        raise DataError("no item is new", got=f"{len(ids)} items that the model was trained on", fix="nothing is to do")
    table, index_C = table.filter(pl.Series(~trained_C)), index_C[~trained_C]
    behind_C = index_C == 0
    index_C[behind_C] = len(catalog) + 1 + np.arange(behind_C.sum())
    return table, index_C


def _rows(new: pl.DataFrame, items: pl.DataFrame, category: str | None) -> pl.DataFrame:
    """Return rows as the item table has them: counts of 0, null where a column is not given."""
    new = new.with_columns(count=pl.lit(0), train_count=pl.lit(0)).drop("category_index", strict=False)
    rows = new.select(
        (pl.col(name) if name in new.columns else pl.lit(None)).cast(dtype, strict=False).alias(name)
        for name, dtype in items.schema.items()
    )
    if "category_index" not in rows.columns or category not in rows.columns:
        return rows
    code = items.select(category, code="category_index").drop_nulls().unique(category)
    coded = rows.join(code, on=category, how="left", maintain_order="left").drop("category_index")
    return (
        coded.rename({"code": "category_index"})
        .with_columns(pl.col("category_index").fill_null(0))
        .select(items.columns)
    )


def write_new_items(folder: Path, rows: pl.DataFrame, cold: ColdItems) -> None:
    """Write the rows behind the model's items, and what is served of them."""
    write_table(folder / TABLE, rows)
    save_tensors(folder / TENSORS, cold.tensors())


def read_new_items(folder: Path, model: RetrievalModel, items: pl.DataFrame) -> tuple[pl.DataFrame, ColdItems]:
    """Read what :func:`write_new_items` wrote; returns the whole item table and the new items.

    Raises:
        ArtifactError: A file is damaged or does not fit the model.
    """
    try:
        rows = pl.read_parquet(folder / TABLE)
        whole = pl.concat([items, rows])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            "the table of new items is damaged", got=f"{folder / TABLE}: {error}", fix="add the items again"
        ) from error
    with torch.no_grad():
        width = model.item_vectors(torch.zeros(1, dtype=torch.int64)).shape[1]
    tensors = load_tensors(folder / TENSORS)
    return whole, ColdItems.of(tensors, width=width, trained=items.height, items=whole.height)
