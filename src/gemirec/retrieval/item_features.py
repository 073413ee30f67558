"""Side features of items as numbers: categories one by one, words of texts hashed, vectors that the caller gives.

A row is ``[categories | words | vectors]``. Each part has length 1 (on average, for the vectors), or is 0 where nothing
is known, so that one ridge strength fits all three:

*Categories*: 1 / sqrt(n) at each of the item's n categories, of every column. The most frequent values of the known
items have a place each; other values count as unknown.

*Words*: texts are put in lower case (Unicode) and cut into runs of letters and digits. Every distinct word of an item
adds +1 or -1 to one of a fixed number of buckets (feature hashing, Weinberger et al. 2009), then the part is divided by
its length. Order, repeats and the column of a word do not matter. The hash is the project's own
(:mod:`gemirec.data.hashing`): the same on every machine.

*Vectors*: minus the mean of the known items', over the root of their mean squared length.

Axes: X items of a table, F features, W words, V width of a given vector.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import polars as pl
from msgspec import Meta

from gemirec.config import Config
from gemirec.data.features import as_id
from gemirec.data.hashing import crc32, mix
from gemirec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD_SALT = 2
"""Keeps the words' hash apart from those of users."""
Count = Annotated[int, Meta(ge=1)]


class ItemFeatureConfig(Config, frozen=True, kw_only=True):
    """Which columns say what an item is like. Each must be in the table of the known and in that of the new items."""

    categories: tuple[str, ...] | None = None
    """Columns with a category, or a list of them, per item; empty takes ``category`` where both tables have it."""
    texts: tuple[str, ...] | None = None
    """Columns with a text per item; empty takes ``title`` where both tables have it."""
    vectors: tuple[str, ...] = ()
    """Columns with a list of numbers per item, all equally long."""
    most_categories: Count = 1024
    """Most values of one category column that have a place of their own."""
    buckets: Count = 1024
    """Buckets that words are hashed into; memory and time grow with the square of all features."""


class Columns(NamedTuple):
    """The columns that are used, by kind."""

    categories: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: tuple[str, ...]


def shared_columns(known: pl.DataFrame, new: pl.DataFrame, config: ItemFeatureConfig) -> Columns:
    """Return the columns of ``config``, or the usual ones where it names none.

    Raises:
        ConfigError: A named column is not in both tables, or there is none at all.

    Example:
        >>> table = pl.DataFrame({"title": ["red cup"], "price": [3.0]})
        >>> shared_columns(table, table, ItemFeatureConfig())
        Columns(categories=(), texts=('title',), vectors=())
    """

    def usual(named: tuple[str, ...] | None, name: str) -> tuple[str, ...]:
        if named is not None:
            return named
        return (name,) if name in known.columns and name in new.columns else ()

    found = Columns(usual(config.categories, "category"), usual(config.texts, "title"), config.vectors)
    for name in [name for names in found for name in names]:
        for what, table in (("known", known), ("new", new)):
            if name not in table.columns:
                near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)
                raise ConfigError(
                    f"the table of the {what} items has no column {name!r}",
                    got=f"columns {', '.join(table.columns)}",
                    fix=f"did you mean {near[0]!r}?" if near else "name columns that are in both tables",
                )
    if not any(found):
        raise ConfigError(
            "no side feature is named, and the usual ones (category, title) are not in both tables",
            got=f"known items: {', '.join(known.columns)}; new items: {', '.join(new.columns)}",
            fix="name columns of both tables as categories, texts or vectors, for example texts=[title]",
        )
    return found


class ItemFeatures:
    """From rows of an item table to rows of numbers, as the module docstring says.

    Args:
        known: The items to learn from; vocabularies, means and scales are taken from them alone.
        columns: Which columns to use.
        config: Sizes.

    Raises:
        DataError: A column is of the wrong type, or vectors differ in width or are not finite.

    Example:
        >>> known = pl.DataFrame({"category": ["cup", "tea", "cup"], "title": ["Red cup", "Green tea", None]})
        >>> config = ItemFeatureConfig(buckets=8)
        >>> features = ItemFeatures(known, shared_columns(known, known, config), config)
        >>> features.width, features(pl.DataFrame({"category": ["tea", "?"], "title": ["", ""]}))[:, :2].tolist()
        (10, [[0.0, 1.0], [0.0, 0.0]])
    """

    def __init__(self, known: pl.DataFrame, columns: Columns, config: ItemFeatureConfig) -> None:
        self.columns = columns
        self._buckets = config.buckets if columns.texts else 0
        self._names = {name: _frequent(known[name], config.most_categories) for name in columns.categories}
        self._vectors = {name: _Centred(known[name]) for name in columns.vectors}
        self.width: int = sum(map(len, self._names.values())) + self._buckets + sum(map(len, self._vectors.values()))
        """F."""

    def __call__(self, items: pl.DataFrame) -> NDArray[np.float64]:
        """Return ``[X, F]``; a row is 0 where nothing that the known items share is known of an item."""
        parts = [np.empty((items.height, 0))]
        if self._names:
            parts.append(_unit_rows(self._categories(items)))
        if self._buckets:
            parts.append(_unit_rows(self._words(items)))
        parts += [centred(items[name]) for name, centred in self._vectors.items()]
        return np.concatenate(parts, axis=1)

    def _categories(self, items: pl.DataFrame) -> NDArray[np.float64]:
        """Return 1 at the places of each item's categories."""
        parts = []
        for name, values in self._names.items():
            out = np.zeros((items.height, len(values)))
            place = pl.DataFrame({"value": values, "place": np.arange(len(values))})
            found = _values(items[name]).join(place, on="value")
            out[found["row"].to_numpy(), found["place"].to_numpy()] = 1
            parts.append(out)
        return np.concatenate(parts, axis=1)

    def _words(self, items: pl.DataFrame) -> NDArray[np.float64]:
        """Return the signed counts of the buckets."""
        pairs = pl.concat([_words_of(items[name]) for name in self.columns.texts]).unique()
        distinct = pairs.select("word").unique()
        bucket_W, sign_W = hash_words(distinct["word"], self._buckets)
        pairs = pairs.join(distinct.with_columns(bucket=bucket_W, sign=sign_W), on="word")
        place = pairs["row"].to_numpy() * self._buckets + pairs["bucket"].to_numpy()
        sign = pairs["sign"].to_numpy()
        counts: NDArray[Any] = np.bincount(place, weights=sign, minlength=items.height * self._buckets)
        return counts.reshape(items.height, self._buckets)


def hash_words(words: pl.Series, buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the bucket and the sign of each word: ``hash mod buckets``, and -1 where the hash's top bit is set.

    Example:
        >>> bucket, sign = hash_words(pl.Series(["tea", "cup", "tea"]), 1000)
        >>> bucket.tolist(), sign.tolist()
        ([795, 563, 795], [1.0, -1.0, 1.0])
    """
    hash_W = mix(crc32(words), 0, _WORD_SALT)
    return (hash_W % np.uint64(buckets)).astype(np.int64), np.where(hash_W >> np.uint64(63), -1.0, 1.0)


class _Centred:
    """Given vectors, minus their mean over the known items and over the root of their mean squared length."""

    def __init__(self, known: pl.Series) -> None:
        table, given = _matrix(known, None)
        if not given.any():
            raise DataError(
                f"no known item has a vector in {known.name!r}", got="nulls alone", fix="leave the column out"
            )
        self._mean_V = table[given].mean(axis=0)
        self._scale = float(np.sqrt(np.mean(np.sum((table[given] - self._mean_V) ** 2, axis=1)))) or 1.0

    def __len__(self) -> int:
        return len(self._mean_V)

    def __call__(self, values: pl.Series) -> NDArray[np.float64]:
        """Return ``[X, V]``; 0 where there is no vector."""
        table, given = _matrix(values, len(self))
        return np.where(given[:, None], (table - self._mean_V) / self._scale, 0.0)


def _matrix(values: pl.Series, width: int | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a column of lists as ``[X, V]``, and which rows have one."""
    dtype: Any = values.dtype
    if not isinstance(dtype, (pl.List, pl.Array)) or not dtype.inner.is_numeric():
        raise DataError(
            f"the column {values.name!r} holds no vectors", got=dtype, fix="give a list of numbers for every item"
        )
    lists = values.cast(pl.List(pl.Float64))
    given = lists.is_not_null().to_numpy()
    length = lists.list.len().filter(pl.Series(given))
    width = width or (length[0] if len(length) else 0)
    if len(length) and (length.min() != width or length.max() != width):
        raise DataError(
            f"the vectors in {values.name!r} are not equally long",
            got=f"{length.filter(length != width)[0]} numbers, {width} in others",
            fix="give vectors of one width, null where an item has none",
        )
    flat = lists.filter(pl.Series(given)).explode().fill_null(float("nan")).to_numpy()
    if not np.isfinite(flat).all():
        raise DataError(
            f"the vectors in {values.name!r} are not finite",
            got=f"{int((~np.isfinite(flat)).sum())} numbers are NaN, null or infinite",
            fix="mend them, or give null in place of the whole vector",
        )
    out = np.zeros((len(values), width))
    out[given] = flat.reshape(int(given.sum()), width)
    return out, given


def _values(column: pl.Series) -> pl.DataFrame:
    """Return ``row`` and ``value`` (a text) of a column of categories or of lists of categories; nulls left out."""
    pairs = pl.DataFrame({"row": np.arange(len(column)), "value": column})
    if isinstance(column.dtype, pl.Array):
        pairs = pairs.with_columns(pl.col("value").arr.to_list())
    if isinstance(column.dtype, (pl.List, pl.Array)):
        pairs = pairs.explode("value")
    if isinstance(pairs["value"].dtype, (pl.List, pl.Array, pl.Struct, pl.Object)):
        raise DataError(
            f"the column {column.name!r} holds no categories", got=column.dtype, fix="give texts or numbers"
        )
    return pairs.with_columns(as_id(pairs["value"], pl.String()).alias("value")).drop_nulls().unique()


def _frequent(column: pl.Series, most: int) -> pl.Series:
    """Return the values that most items have, ties by value."""
    counts = _values(column).group_by("value").agg(n=pl.len()).sort(["n", "value"], descending=[True, False])
    return counts["value"].head(most)


def _words_of(column: pl.Series) -> pl.DataFrame:
    """Return ``row`` and ``word`` of a column of texts."""
    if column.dtype.is_nested():
        raise DataError(
            f"the column {column.name!r} holds no texts", got=column.dtype, fix="give strings, or list it in categories"
        )
    words = column.cast(pl.String).str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")
    return pl.DataFrame({"row": np.arange(len(column)), "word": words}).explode("word").drop_nulls()


def _unit_rows(x_XF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide every row by its Euclidean length; rows of zeros stay."""
    length_X1 = np.linalg.norm(x_XF, axis=1, keepdims=True)
    unit: NDArray[np.float64] = x_XF / np.where(length_X1 > 0, length_X1, 1.0)
    return unit
