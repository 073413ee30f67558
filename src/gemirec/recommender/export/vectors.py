"""Item vectors and users' interest vectors as Parquet, streamed block by block.

Axes: N items, D width of a vector as searched for, X rows of a block.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import polars as pl

from gemirec.artifacts import translate_os_errors
from gemirec.errors import ArtifactError
from gemirec.recommender.histories import DatasetHistories, Encoded, ParquetHistories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from gemirec.recommender.face import Recommender
    from gemirec.recommender.histories import HistoryStore

METADATA_KEY = "gemirec.export"
"""Key of the JSON with model, versions and fingerprint, in the schema of each Parquet file and in each graph."""
ROWS = 65_536
"""Rows of a row group."""


class Users(NamedTuple):
    """What was written of the users.

    Attributes:
        users: With at least one known item.
        interests: Rows of the file.
        without_history: Users who have none.
    """

    users: int
    interests: int
    without_history: int


class ParquetStream:
    """Writes a Parquet file row group by row group; the schema is that of the first block.

    Args:
        path: The file.
        facts: Goes into the schema's metadata, as JSON.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        self._metadata = {METADATA_KEY: json.dumps(facts, ensure_ascii=False)}
        self._writer: Any = None

    def write(self, block: pa.Table) -> None:
        """Append rows."""
        import pyarrow.parquet as pq

        block = block.replace_schema_metadata(self._metadata)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, block.schema, compression="zstd")
        self._writer.write_table(block)

    def __enter__(self) -> ParquetStream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a Parquet file that an export wrote.

    Raises:
        ArtifactError: It is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        raw = (pq.read_schema(path).metadata or {})[METADATA_KEY.encode()]
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise ArtifactError(
            "this is no file of an export", got=f"{path}: {error}", fix="write it with gemirec export"
        ) from error
    return cast("dict[str, Any]", json.loads(raw))


def write_items(path: Path, recommender: Recommender, item_ND: NDArray[np.float32], facts: Mapping[str, Any]) -> None:
    """Write ``item_id`` and ``vector`` (fixed-size list of float32) of all items, new ones last.

    Args:
        path: The file.
        recommender: Whose items they are.
        item_ND: ``[N + 1, D]`` float32 vectors as they are compared at serving; row 0 is padding and not written.
        facts: For the schema's metadata.
    """
    import pyarrow as pa

    ids = recommender.catalog.items["item_id"]
    with translate_os_errors(path), ParquetStream(path, facts) as stream:
        for start in range(0, len(ids), ROWS):
            vector_XD = item_ND[start + 1 : start + 1 + ROWS]
            column = pa.FixedSizeListArray.from_arrays(pa.array(vector_XD.reshape(-1)), vector_XD.shape[1])
            stream.write(pa.table({"item_id": ids[start : start + ROWS].to_arrow(), "vector": column}))


def write_users(
    path: Path,
    recommender: Recommender,
    facts: Mapping[str, Any],
    *,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Users:
    """Write ``user_id, interest, weight, vector`` of all users with stored histories, one row an interest.

    Rows are those of :meth:`gemirec.recommender.face.Recommender.interests`. Memory holds a row group.

    Args:
        path: The file.
        recommender: Whose users they are.
        facts: For the schema's metadata.
        batch_size: Users of one pass through the model.
        progress: Called with (users done, users in all).

    Raises:
        ArtifactError: There are no stored histories.
    """
    total, blocks = stored_users(recommender._histories, batch_size)
    done = known = rows = held = 0
    tables: list[pl.DataFrame] = []
    with translate_os_errors(path), ParquetStream(path, facts) as stream:
        for block in blocks:
            tables.append(recommender._search.interests(block, 0, exclude_seen=True, allow=None))
            done, known = done + len(block), known + int(block.known_B.sum())
            rows, held = rows + tables[-1].height, held + tables[-1].height
            if held >= ROWS or done == total:
                stream.write(pl.concat(tables).to_arrow())
                tables, held = [], 0
            if progress is not None:
                progress(done, total)
    return Users(known, rows, total - known)


def stored_users(store: HistoryStore, size: int) -> tuple[int, Iterator[Encoded]]:
    """Return how many users have a stored history, and their histories in blocks of at most ``size``.

    Raises:
        ArtifactError: There are none, or users cannot be listed.
    """
    if isinstance(store, DatasetHistories):
        user_ids = store.dataset.users["user_id"]
        starts = range(0, len(user_ids), size)
        return len(user_ids), (store.lookup(user_ids[start : start + size]) for start in starts)
    if not isinstance(store, ParquetHistories) or not store.path.exists():
        raise ArtifactError(
            "the artifact keeps no histories, so its users are not known",
            got=getattr(store, "path", type(store).__name__),
            fix="save it with histories, or leave the users out: --which items,map,onnx",
        )
    import pyarrow.parquet as pq

    file = pq.ParquetFile(store.path)
    return file.metadata.num_rows, (_encoded(batch) for batch in file.iter_batches(batch_size=size))


def _encoded(batch: pa.RecordBatch) -> Encoded:
    """Return rows of ``histories.parquet`` as histories."""
    length_B = batch["items"].value_lengths().to_numpy()
    features: list[Any] = []
    for name, dtype in (("categorical", np.int64), ("numeric", np.float32)):
        known = name in batch.schema.names
        features.append(batch[name].flatten().to_numpy().reshape(len(batch), -1).astype(dtype) if known else None)
    return Encoded(
        cast("pl.Series", pl.from_arrow(batch["user_id"])),
        batch["items"].flatten().to_numpy().astype(np.int64),
        np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64),
        np.zeros(len(batch), dtype=np.int64),
        *features,
    )
