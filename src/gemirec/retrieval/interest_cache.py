"""The interest cache: which interests each user is served, worked out before the request (GemiRec, 2510.14626).

The generator of interests is slow and stays off the serving path: offline, the top K interests of every user go into
one file, no code of a sub-dictionary taken more than epsilon times; online, a request reads K indices, looks up their
embeddings and fuses them with the user as the user is now (METHODS 1.7). How the paper's list is filled is not
published: see :mod:`gemirec.components.selection`.

The file is Parquet, one row a user, with :class:`CacheInfo` as JSON in the schema's metadata::

    user_id           integer or string, as in the log
    interest          K int32: flat indices of the dictionary, most probable first, -1 where missing
    log_probability   K float32, -inf where missing
    history_length    int32: events of the user when the row was made, however few of them the model read

Axes: B users, K interests, L history length, U users of the file.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
import numpy as np
import polars as pl
import torch
from torch import Tensor

from gemirec.artifacts import FORMAT_VERSION, atomic_file, check_format
from gemirec.components.selection import Selected
from gemirec.errors import ArtifactError, DataError
from gemirec.models.base import Histories
from gemirec.retrieval.versions import dictionary_version, model_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gemirec.models.base import Interests, RetrievalModel
    from gemirec.models.gemirec import GemiRec

_METADATA = b"gemirec.interest_cache"
_BUILD_AGAIN = "build the cache again with the artifact that serves it: gemirec cache ARTIFACT --out FILE"


class CacheInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a cache was made with; nothing that differs between two equal runs, so that equal input gives equal files.

    Attributes:
        k: K, interests of a user.
        epsilon: Most uses of one code of one level; ``None`` for no limit.
        levels: Levels under that limit, counted from 1.
        sizes: Codes of each level.
        dictionary_version: :func:`~gemirec.retrieval.versions.dictionary_version` of the model.
        model_version: :func:`~gemirec.retrieval.versions.model_version` of the model.
        model: Its name in the catalogue.
        dataset_fingerprint: Fingerprint of the prepared data.
        history: Events that were read: ``all``, or those before the cut of ``valid`` or ``test``.
        format_version: Of the file.
    """

    k: int
    epsilon: int | None
    levels: list[int]
    sizes: list[int]
    dictionary_version: str
    model_version: str
    model: str
    dataset_fingerprint: str
    history: str
    format_version: int = FORMAT_VERSION


class CacheRows(NamedTuple):
    """Some users of a cache.

    Attributes:
        user_id: ``[B]`` ids, integers or strings.
        chosen: Their interests, ``[B, K]``.
        length_B: ``[B]`` events of each.
    """

    user_id: pl.Series
    chosen: Selected
    length_B: np.ndarray[Any, np.dtype[np.int64]]


class Cached(NamedTuple):
    """What a cache knows of some users.

    Attributes:
        index_BK: ``[B, K]`` int64 flat indices, -1 where missing and for users who are not in the cache.
        logp_BK: ``[B, K]`` float32 log-probabilities, -inf likewise.
        found_B: ``[B]`` bool, true for users who are in the cache.
    """

    index_BK: Tensor
    logp_BK: Tensor
    found_B: Tensor


def write_cache(path: str | Path, info: CacheInfo, blocks: Iterable[CacheRows]) -> int:
    """Write a cache, one row group a block; no more than one block is held. The file appears when it is whole.

    Args:
        path: The file; one that is there is replaced.
        info: What the cache is made with.
        blocks: The users, each once, at least one block that is not empty.

    Returns:
        The number of users.

    Raises:
        DataError: There are no users.
        StorageError: The disk refuses.
    """
    import pyarrow.parquet as pq

    users, writer = 0, None
    with atomic_file(path) as tmp:
        try:
            for rows in blocks:
                if not len(rows.user_id):
                    continue
                table = _table(rows, info)
                writer = writer or pq.ParquetWriter(tmp, table.schema, compression="zstd", write_page_checksum=True)
                writer.write_table(table, row_group_size=table.num_rows)
                users += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        if not users:
            raise DataError(
                "there are no users to cache", got="no user with a history", fix="give a log with events, or no --split"
            )
    return users


def read_cache(path: str | Path, *, block_users: int = 65_536) -> tuple[CacheInfo, int, Iterator[CacheRows]]:
    """Return what a cache was made with, its number of users, and the users block by block; one block is held.

    Raises:
        ArtifactError: The file is missing, damaged, no interest cache, or of another format version; of damage to users
            the iterator tells when it comes to them.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    with _damage_named(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        info = _read_info(path, file.schema_arrow.metadata or {})

    def blocks() -> Iterator[CacheRows]:
        columns = ["user_id", "interest", "log_probability", "history_length"]
        with _damage_named(path), file:
            for batch in file.iter_batches(batch_size=block_users, columns=columns):
                index, logp = (
                    torch.from_numpy(batch[name].flatten().to_numpy().reshape(len(batch), info.k).astype(dtype))
                    for name, dtype in (("interest", np.int64), ("log_probability", np.float32))
                )
                user_id = cast("pl.Series", pl.from_arrow(batch["user_id"]))
                length_B = batch["history_length"].to_numpy().astype(np.int64)
                yield CacheRows(user_id, Selected(index, logp), length_B)

    return info, file.metadata.num_rows, blocks()


class InterestCache:
    """A cache file, read into memory: 8 K bytes and an id per user.

    Make one with :meth:`open`; hold it against the model with :meth:`check` once, before it serves.

    Args:
        path: Where it came from, for messages.
        info: What it was made with.
        user_id: ``[U]`` ids, ascending.
        index_UK: ``[U, K]`` int32 flat indices.
        logp_UK: ``[U, K]`` float32 log-probabilities.

    Example:
        >>> import tempfile
        >>> info = CacheInfo(
        ...     k=2, epsilon=3, levels=[1], sizes=[4], dictionary_version="d", model_version="m", model="gemirec",
        ...     dataset_fingerprint="f", history="all",
        ... )
        >>> chosen = Selected(torch.tensor([[3, 0], [1, -1]]), torch.tensor([[-0.5, -1.0], [0.0, -torch.inf]]))
        >>> path = Path(tempfile.mkdtemp()) / "cache.parquet"
        >>> write_cache(path, info, [CacheRows(pl.Series(["eve", "bob"]), chosen, np.array([9, 2]))])
        2
        >>> cached = InterestCache.open(path).get_many(["bob", "ann", "eve"])
        >>> cached.index_BK.tolist(), cached.found_B.tolist()
        ([[1, -1], [-1, -1], [3, 0]], [True, False, True])
    """

    def __init__(self, path: Path, info: CacheInfo, user_id: pl.Series, index_UK: Tensor, logp_UK: Tensor) -> None:
        self.path = path
        self.info = info
        self._user_id = user_id
        self._index_UK = index_UK
        self._logp_UK = logp_UK

    @classmethod
    def open(cls, path: str | Path) -> InterestCache:
        """Read a cache.

        Raises:
            ArtifactError: The file is missing, damaged, no interest cache, or of another format version.
        """
        import pyarrow.parquet as pq

        path = Path(path)
        with _damage_named(path):
            info = _read_info(path, pq.read_schema(path).metadata or {})
            table = pq.read_table(
                path, columns=["user_id", "interest", "log_probability"], page_checksum_verification=True
            )
            user_id = cast("pl.Series", pl.from_arrow(table["user_id"]))
            order = user_id.arg_sort()
            place_U = order.to_numpy()
            index_UK, logp_UK = (
                torch.from_numpy(_rows_of_k(table[name], info.k)[place_U]) for name in ("interest", "log_probability")
            )
        return cls(path, info, user_id.gather(order), index_UK, logp_UK)

    def __len__(self) -> int:
        """Users in the cache."""
        return len(self._user_id)

    def check(self, model: RetrievalModel, *, whole: bool = False) -> None:
        """Raise unless the indices mean the same to ``model``.

        Args:
            model: The model that shall serve them.
            whole: Want the very model that made the cache, its generator, tower and fusion included.

        Raises:
            ArtifactError: The dictionary (or with ``whole`` the model) is of another version; both are named.
            ConfigError: The model has no dictionary.
        """
        versions = [("dictionary", self.info.dictionary_version, dictionary_version(model))]
        if whole:
            versions.append(("model", self.info.model_version, model_version(model)))
        for what, made_with, found in versions:
            if made_with != found:
                raise ArtifactError(
                    f"the interest cache is from another {what} version",
                    got=f"{self.path}: made with {what} {made_with}, this artifact has {found}",
                    fix=_BUILD_AGAIN,
                )

    def get_many(self, user_ids: Sequence[object] | pl.Series) -> Cached:
        """Return the interests of users in their order; ids are read in the cache's own type, ``"12"`` finds 12."""
        asked = user_ids if isinstance(user_ids, pl.Series) else pl.Series(list(user_ids), strict=False)
        asked = asked.cast(self._user_id.dtype, strict=False)
        place = self._user_id.search_sorted(asked).clip(upper_bound=len(self) - 1)
        found_B = torch.from_numpy((self._user_id.gather(place) == asked).fill_null(value=False).to_numpy().copy())
        place_B = torch.from_numpy(place.to_numpy().astype(np.int64))
        gone_B1 = ~found_B[:, None]
        index_BK = self._index_UK[place_B].long().masked_fill_(gone_B1, -1)
        return Cached(index_BK, self._logp_UK[place_B].masked_fill_(gone_B1, -torch.inf), found_B)


@torch.no_grad()
def cached_interests(
    model: GemiRec, cache: InterestCache, histories: Histories, user_ids: Sequence[object] | pl.Series
) -> Interests:
    """Return what :meth:`GemiRec.interests` says, without the generator for users who are in the cache.

    The user's own vector is of ``histories``, the interests are the cached ones; those of users who are not in the
    cache are selected on the spot, with the cache's K and epsilon.

    Args:
        model: The model, in ``eval`` mode, that passed :meth:`InterestCache.check`.
        cache: The cache.
        histories: The users' recent events.
        user_ids: ``[B]`` their ids.
    """
    device = histories.item_BL.device
    index_BK, logp_BK, found_B = (part.to(device) for part in cache.get_many(user_ids))
    miss_R = torch.nonzero(~found_B)[:, 0]
    if len(miss_R):
        state_RX = model.state(take_users(histories, miss_R))
        index_BK[miss_R], logp_BK[miss_R] = model.select(state_RX, cache.info.k, cache.info.epsilon)
    return model.fused(histories, Selected(index_BK, logp_BK))


def take_users(histories: Histories, row_R: Tensor) -> Histories:
    """Return the histories of the users at rows ``[R]``.

    Example:
        >>> take_users(Histories(torch.tensor([[7, 0], [8, 9]])), torch.tensor([1])).item_BL.tolist()
        [[8, 9]]
    """
    parts = (histories.item_BL, histories.user_categorical_BF, histories.user_numeric_BG)
    return Histories(*(None if part is None else part[row_R] for part in parts))  # type: ignore[arg-type]


def _table(rows: CacheRows, info: CacheInfo) -> Any:
    """Return a block as an Arrow table."""
    import pyarrow as pa

    index, logp = (
        pa.FixedSizeListArray.from_arrays(pa.array(part.cpu().to(dtype).flatten().numpy()), info.k)
        for part, dtype in zip(rows.chosen, (torch.int32, torch.float32), strict=True)
    )
    columns = {
        "user_id": rows.user_id.to_arrow(),
        "interest": index,
        "log_probability": logp,
        "history_length": pa.array(rows.length_B.astype(np.int32)),
    }
    return pa.table(columns).replace_schema_metadata({_METADATA: msgspec.json.encode(info)})


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in a file into an error that names it."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError("the interest cache is missing", got=path, fix=_BUILD_AGAIN) from error
    except (pa.ArrowException, msgspec.MsgspecError, OSError, KeyError, ValueError) as error:
        raise ArtifactError(
            "the interest cache is damaged or cut", got=f"{path}: {error}", fix="copy the file again, or build it"
        ) from error


def _read_info(path: Path, metadata: dict[bytes, bytes]) -> CacheInfo:
    """Return what a file says of itself."""
    if _METADATA not in metadata:
        raise ArtifactError("this Parquet file is not an interest cache", got=path, fix=_BUILD_AGAIN)
    raw = msgspec.json.decode(metadata[_METADATA])
    check_format("interest cache", raw.get("format_version") if isinstance(raw, dict) else None, path)
    return msgspec.convert(raw, CacheInfo)


def _rows_of_k(column: Any, k: int) -> Any:
    """Return a column of lists of ``k`` as an array ``[U, K]``."""
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks]).reshape(len(column), k)
