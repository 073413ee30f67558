"""The item and user tables: joined to the log's ids, categories and user features encoded, every column carried.

Axes: N items of the log in index order, U users of the log in index order, F categorical and G numeric features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.data.dataset import FeatureInfo
from gemirec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.options import PrepareConfig

MAX_CODES = 256
"""Whole-number user columns of at most this many values are taken as codes, of more as quantities."""
_OWN_ITEM_COLUMNS = ("item_id", "count", "train_count", "category_index")
_OWN_USER_COLUMNS = ("user_id", "split")


def join_by_id(ids: pl.Series, table: pl.DataFrame, key: str, what: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows of ``table`` for ``ids``, nulls where an id is missing, and counts of what was met.

    Integers and their texts match. Of repeated ids the first row counts.

    Args:
        ids: The log's ids, distinct.
        table: The user's table.
        key: Its id column.
        what: Name for errors.

    Raises:
        DataError: No id column, or none of the ids occurs.
    """
    if key not in table.columns:
        raise DataError(
            f"the {what} has no column {key!r}",
            got=f"columns {', '.join(table.columns)}",
            fix=f"name its id column {key!r}, as the log does",
        )
    own = table.with_columns(as_id(table[key], ids.dtype).alias(key))
    rows = own.filter(pl.col(key).is_not_null()).unique(key, keep="first", maintain_order=True)
    known = rows.with_columns(pl.lit(value=True).alias("__known"))
    joined = ids.alias(key).to_frame().join(known, on=key, how="left", maintain_order="left")
    missing = joined["__known"].null_count()
    if missing == len(ids):
        raise DataError(
            f"no id of the {what} occurs in the log",
            got=f"{what}: {table[key].head(3).to_list()}, log: {ids.head(3).to_list()}",
            fix="give the table that belongs to this log",
        )
    counts = {"rows": table.height, "repeated_ids": own.height - rows.height, "missing_ids": missing}
    return joined.drop(key, "__known"), counts


def as_id(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return ids of a table in the type of the log's; what cannot be is null."""
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        values = whole.zip_with(
            (whole.cast(values.dtype) == values).fill_null(value=False), pl.Series([None], dtype=pl.Int64)
        )
    return values.cast(dtype, strict=False)


def carried(joined: pl.DataFrame, own: tuple[str, ...]) -> pl.DataFrame:
    """Return the table's columns, renamed ``..._given`` where the dataset has a column of that name."""
    return joined.rename({name: f"{name}_given" for name in joined.columns if name in own})


def encode_category(joined: pl.DataFrame, column: str) -> tuple[NDArray[np.int32], list[str]]:
    """Return ``[N]`` category index (0 unknown) and the names: most items first, ties by name."""
    values = joined[column]
    if isinstance(values.dtype, (pl.List, pl.Array)):
        values = values.list.first() if isinstance(values.dtype, pl.List) else values.arr.first()
    text = _as_text(values)
    names = _vocabulary(text)
    return _codes(text, names), names


def _as_text(values: pl.Series) -> pl.Series:
    """Return values as text; whole floats without ``.0``, NaN as null."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
        if (values.drop_nulls() == values.drop_nulls().floor()).all():
            values = values.cast(pl.Int64, strict=False)
    return values.cast(pl.String)


def _vocabulary(text: pl.Series, most: int | None = None) -> list[str]:
    """Return the distinct values, most frequent first, ties by value."""
    counts = text.drop_nulls().alias("value").value_counts(name="n").sort(["n", "value"], descending=[True, False])
    values: list[str] = counts["value"].head(most or counts.height).to_list()
    return values


def _codes(text: pl.Series, names: list[str]) -> NDArray[np.int32]:
    """Return the position + 1 of every value in ``names``, 0 where it is not there."""
    lookup = pl.DataFrame(
        {"value": pl.Series(names, dtype=pl.String), "code": np.arange(1, len(names) + 1, dtype=np.int32)}
    )
    found = text.alias("value").to_frame().join(lookup, on="value", how="left", maintain_order="left")
    return found["code"].fill_null(0).to_numpy().astype(np.int32)


@dataclass
class UserFeatures:
    """Encoded user features.

    Attributes:
        info: One entry per feature, categorical ones first.
        categorical_UF: int32 codes, 0 unknown; ``None`` without categorical features.
        numeric_UG: float32, standardised over the training users, 0 unknown; ``None`` without numeric features.
    """

    info: list[FeatureInfo]
    categorical_UF: NDArray[np.int32] | None
    numeric_UG: NDArray[np.float32] | None


def encode_users(joined: pl.DataFrame, train_U: NDArray[np.bool_], config: PrepareConfig) -> UserFeatures:
    """Encode the columns of the user table.

    Args:
        joined: ``[U]`` rows of the user table.
        train_U: Users with training events; vocabularies and scales are taken from them alone.
        config: Names of the features, or ``None`` to pick them.

    Raises:
        ConfigError: A named feature is not in the table.
        DataError: A feature named numeric is not.
    """
    categorical, numeric = _pick(joined, config)
    train = pl.Series(train_U)
    info, codes, numbers = [], [], []
    for name in categorical:
        text = _as_text(joined[name])
        names = _vocabulary(text.filter(train), config.max_vocabulary)
        info.append(FeatureInfo(name, "categorical", names))
        codes.append(_codes(text, names))
    for name in numeric:
        values = _numbers(joined[name])
        known = values[train_U & np.isfinite(values)]
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
        std = std if std > 0 else 1.0
        info.append(FeatureInfo(name, "numeric", [], mean, std))
        numbers.append(np.where(np.isfinite(values), (values - mean) / std, 0).astype(np.float32))
    return UserFeatures(
        info, np.stack(codes, axis=1) if codes else None, np.stack(numbers, axis=1) if numbers else None
    )


def _numbers(values: pl.Series) -> NDArray[np.float64]:
    """Return a column as float64, NaN where unknown."""
    try:
        return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"the user feature {values.name!r} is not numeric",
            got=str(error).splitlines()[0],
            fix="list it under user_categorical instead",
        ) from error


def _pick(joined: pl.DataFrame, config: PrepareConfig) -> tuple[list[str], list[str]]:
    """Return the names of categorical and numeric features: as configured, or by type."""
    named = {name for names in (config.user_categorical, config.user_numeric) for name in names or ()}
    for name in sorted(named):
        if name not in joined.columns:
            raise ConfigError(
                "the user table has no such feature", got=name, fix=f"choose from {', '.join(joined.columns)}"
            )
    kinds = {name: _kind(joined[name]) for name in joined.columns if name not in named}
    categorical, numeric = config.user_categorical, config.user_numeric
    if categorical is None:
        categorical = tuple(name for name, kind in kinds.items() if kind == "categorical")
    if numeric is None:
        numeric = tuple(name for name, kind in kinds.items() if kind == "numeric")
    return list(categorical), list(numeric)


def _kind(values: pl.Series) -> str:
    """Return what a column is by itself: lists, dates and constants are carried, not features."""
    dtype: Any = values.dtype
    distinct = values.drop_nulls().n_unique()
    if distinct < 2:
        return "none"
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum, pl.Boolean)):
        return "categorical"
    if dtype.is_integer() or dtype.is_float():
        known = values.drop_nulls()
        whole = dtype.is_integer() or bool((known == known.floor()).all())
        return "categorical" if whole and distinct <= MAX_CODES else "numeric"
    return "none"


def item_table(
    ids: pl.Series,
    count_N: NDArray[np.int64],
    train_count_N: NDArray[np.int64],
    given: pl.DataFrame | None,
    category: str | None,
) -> tuple[pl.DataFrame, list[str], dict[str, int]]:
    """Return ``items.parquet``, the category names, and counts of the join."""
    table = pl.DataFrame({"item_id": ids, "count": count_N, "train_count": train_count_N})
    if given is None:
        return table, [], {}
    joined, counts = join_by_id(ids, given, "item_id", "item table")
    names: list[str] = []
    if category is not None and category in joined.columns:
        index_N, names = encode_category(joined, category)
        table = table.with_columns(category_index=pl.Series(index_N))
    return table.hstack(carried(joined, _OWN_ITEM_COLUMNS)), names, counts


def user_table(ids: pl.Series, part_U: NDArray[np.int8], given: pl.DataFrame | None) -> pl.DataFrame:
    """Return ``users.parquet``: ``part_U`` has bit 1 for train, 2 for valid, 4 for test."""
    names = ["+".join(n for bit, n in ((1, "train"), (2, "valid"), (4, "test")) if code & bit) for code in range(8)]
    split = pl.Series(names).gather(pl.Series(part_U, dtype=pl.UInt32))
    table = pl.DataFrame({"user_id": ids, "split": split})
    return table if given is None else table.hstack(carried(given, _OWN_USER_COLUMNS))
