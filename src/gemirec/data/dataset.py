"""The prepared dataset: a folder of memory-mapped flat arrays, written once, read without a copy.

Layout::

    dataset.json                 schema, counts, split, filters, fingerprint, feature vocabularies
    items.parquet                row r holds item r + 1 (0 is padding): item_id, count, train_count, category_index, ...
    users.parquet                row u holds user u: user_id, ...
    user_categorical.npy         [U, F] int32, 0 = unknown            (only with categorical user features)
    user_numeric.npy             [U, G] float32, standardised, 0 = unknown   (only with numeric user features)
    shards/00000/events.npy      [E] int32 item indices, users one after the other, oldest first
    shards/00000/times.npy       [E] int64
    shards/00000/offsets.npy     [U_s + 1] int64 first event of each user
    shards/00000/bounds.npy      [U_s, 5] int32: train_end, valid_start, valid_end, test_start, test_end
    shards/00000/weights.npy     [E] float32                           (only if the log had weights)

``bounds`` says everything about the split, in positions of the user's own sequence: training targets lie in
``[0, train_end)``; the history of a validation user is ``[0, valid_start)`` and its targets are
``[valid_start, valid_end)``; likewise for test. An empty range means that the user is not in that part.

Axes: U users, E events, N items, F categorical and G numeric user features.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from gemirec.artifacts import FORMAT_VERSION, check_format, read_json
from gemirec.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

Split = Literal["train", "valid", "test"]
TRAIN_END, VALID_START, VALID_END, TEST_START, TEST_END = range(5)


class FeatureInfo(msgspec.Struct, frozen=True):
    """One user feature: its name, kind, and what is needed to encode a new user the same way."""

    name: str
    kind: Literal["categorical", "numeric"]
    vocabulary: list[str] = []
    """Categorical: the values, code i + 1 for entry i; 0 is unknown."""
    mean: float = 0.0
    std: float = 1.0


class DatasetInfo(msgspec.Struct, frozen=True):
    """Content of ``dataset.json``."""

    format_version: int
    name: str
    num_users: int
    num_items: int
    num_events: int
    users_per_split: dict[str, int]
    user_id_type: Literal["integer", "string"]
    item_id_type: Literal["integer", "string"]
    shard_users: list[int]
    """Users in each shard, in order: shard s holds the user indices after those of the shards before it."""
    fingerprint: str
    """SHA-256 over ids, events, times, weights and bounds: equal for equal data, whatever engine wrote it."""
    prepare: dict[str, Any] = {}
    """The preparation's configuration."""
    raw: dict[str, Any] = {}
    """Counts before and after each step of the preparation."""
    categories: list[str] = []
    """Category names; ``category_index`` i + 1 of an item means entry i, 0 unknown."""
    user_features: list[FeatureInfo] = []


class Shard:
    """Memory-mapped arrays of one shard; see the module docstring for their meaning."""

    def __init__(self, path: Path, first_user: int) -> None:
        self.first_user = first_user
        self.events: NDArray[np.int32] = _map(path / "events.npy")
        self.times: NDArray[np.int64] = _map(path / "times.npy")
        self.offsets: NDArray[np.int64] = _map(path / "offsets.npy")
        self.bounds: NDArray[np.int32] = _map(path / "bounds.npy")
        weights = path / "weights.npy"
        self.weights: NDArray[np.float32] | None = _map(weights) if weights.exists() else None
        if not (len(self.events) == len(self.times) == int(self.offsets[-1]) and len(self.bounds) == self.num_users):
            raise ArtifactError(
                "a dataset shard is damaged: its arrays disagree", got=path, fix="prepare the dataset again"
            )

    @property
    def num_users(self) -> int:
        """Users in this shard."""
        return len(self.offsets) - 1


class DataSpec(msgspec.Struct, frozen=True):
    """What a model must know of the data to be built: sizes, popularity, categories. No ids, no events."""

    num_items: int
    train_count_N: Any
    """``[N + 1]`` int64, training events per item; entry 0 (padding) is 0."""
    category_N: Any = None
    """``[N + 1]`` int32 category index per item, 0 = unknown; ``None`` without categories."""
    num_categories: int = 0
    user_categorical_sizes: tuple[int, ...] = ()
    """Number of codes of each categorical user feature, the unknown code 0 included."""
    num_user_numeric: int = 0


class Dataset:
    """A prepared dataset, opened read-only.

    Example:
        >>> Dataset.open("no/such/folder")
        Traceback (most recent call last):
        gemirec.errors.ArtifactError: a file is missing
          got: no/such/folder/dataset.json
          fix: point at the folder that gemirec wrote, whole
    """

    def __init__(self, path: Path, info: DatasetInfo, shards: tuple[Shard, ...]) -> None:
        self.path = path
        self.info = info
        self.shards = shards
        self._items: pl.DataFrame | None = None
        self._users: pl.DataFrame | None = None

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open the folder ``path``.

        Raises:
            ArtifactError: The folder is missing, incomplete, damaged or of another format version.
        """
        path = Path(path)
        raw = read_json(path / "dataset.json")
        check_format("dataset", raw.get("format_version") if isinstance(raw, dict) else None, path)
        try:
            info = msgspec.convert(raw, DatasetInfo)
        except msgspec.ValidationError as error:
            raise ArtifactError(
                "dataset.json is damaged", got=f"{path}: {error}", fix="prepare the dataset again"
            ) from error
        shards, first = [], 0
        for number, users in enumerate(info.shard_users):
            shard = Shard(path / "shards" / f"{number:05d}", first)
            if shard.num_users != users:
                raise ArtifactError(
                    "a dataset shard has another size", got=f"shard {number} of {path}", fix="prepare the dataset again"
                )
            shards.append(shard)
            first += users
        return cls(path, info, tuple(shards))

    @property
    def num_users(self) -> int:
        """Users, over all shards."""
        return self.info.num_users

    @property
    def num_items(self) -> int:
        """Items, padding not counted; item indices run from 1 to this."""
        return self.info.num_items

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ids, events, times, weights and split."""
        return self.info.fingerprint

    @property
    def items(self) -> pl.DataFrame:
        """The item table; row r is item r + 1."""
        if self._items is None:
            self._items = _read_parquet(self.path / "items.parquet")
        return self._items

    @property
    def users(self) -> pl.DataFrame:
        """The user table; row u is user u."""
        if self._users is None:
            self._users = _read_parquet(self.path / "users.parquet")
        return self._users

    def bounds_of(self, user_B: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return ``[B, 5]`` split bounds of user indices ``user_B``."""
        out_B5 = np.empty((len(user_B), 5), dtype=np.int32)
        for shard, rows, local in self.by_shard(user_B):
            out_B5[rows] = shard.bounds[local]
        return out_B5

    def by_shard(self, user_B: NDArray[np.int64]) -> list[tuple[Shard, Any, NDArray[np.int64]]]:
        """Group user indices by shard: ``(shard, rows of user_B, user index inside the shard)``."""
        if len(self.shards) == 1:
            return [(self.shards[0], slice(None), user_B)]
        first_S = np.array([shard.first_user for shard in self.shards])
        shard_B = np.searchsorted(first_S, user_B, side="right") - 1
        groups = []
        for number in np.unique(shard_B):
            rows = np.flatnonzero(shard_B == number)
            groups.append((self.shards[number], rows, user_B[rows] - first_S[number]))
        return groups

    def users_in(self, split: Split) -> NDArray[np.int64]:
        """Return the indices of users with something to do in ``split``, ascending."""
        found = []
        for shard in self.shards:
            bounds = np.asarray(shard.bounds)
            if split == "train":
                mask = bounds[:, TRAIN_END] > 0
            elif split == "valid":
                mask = bounds[:, VALID_END] > bounds[:, VALID_START]
            elif split == "test":
                mask = bounds[:, TEST_END] > bounds[:, TEST_START]
            else:
                raise ConfigError("no such split", got=split, fix="choose train, valid or test")
            found.append(np.flatnonzero(mask) + shard.first_user)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def user_features(self) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
        """Return memory-mapped ``([U, F] categorical codes, [U, G] numbers)``, ``None`` where there are none."""
        cat, num = self.path / "user_categorical.npy", self.path / "user_numeric.npy"
        return (_map(cat) if cat.exists() else None), (_map(num) if num.exists() else None)

    def spec(self) -> DataSpec:
        """Return what a model must know of this dataset."""
        sizes = tuple(len(f.vocabulary) + 1 for f in self.info.user_features if f.kind == "categorical")
        numeric = sum(f.kind == "numeric" for f in self.info.user_features)
        return data_spec(self.items, len(self.info.categories), sizes, numeric)


def data_spec(
    items: pl.DataFrame, num_categories: int, user_categorical_sizes: tuple[int, ...], num_user_numeric: int
) -> DataSpec:
    """Return the spec of an item table (row r is item r + 1) and the sizes of everything else."""
    count_N = np.zeros(items.height + 1, dtype=np.int64)
    count_N[1:] = items["train_count"].to_numpy()
    category_N = None
    if "category_index" in items.columns:
        category_N = np.zeros(items.height + 1, dtype=np.int32)
        category_N[1:] = items["category_index"].to_numpy()
    return DataSpec(
        num_items=items.height,
        train_count_N=count_N,
        category_N=category_N,
        num_categories=num_categories,
        user_categorical_sizes=user_categorical_sizes,
        num_user_numeric=num_user_numeric,
    )


def new_info(**values: Any) -> DatasetInfo:
    """Return a :class:`DatasetInfo` of this release's format version."""
    return DatasetInfo(format_version=FORMAT_VERSION, **values)


def _map(path: Path) -> Any:
    """Memory-map one ``.npy`` file; pickled content is refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ArtifactError("a dataset file is missing", got=path, fix="prepare the dataset again") from error
    except ValueError as error:  # an empty array cannot be mapped; a cut file cannot either
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as inner:
            raise ArtifactError(
                "a dataset file is damaged or cut", got=f"{path}: {inner}", fix="prepare the dataset again"
            ) from error
        return array


def _read_parquet(path: Path) -> pl.DataFrame:
    """Read a table of the dataset folder."""
    import polars as pl

    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            "a dataset table is missing or damaged", got=f"{path}: {error}", fix="prepare the dataset again"
        ) from error
