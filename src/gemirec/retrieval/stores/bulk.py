"""From the streamed file of cached interests to what fills a store."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gemirec.errors import ArtifactError
from gemirec.retrieval.interest_cache import read_cache
from gemirec.retrieval.stores.base import Bulk, StoreInfo
from gemirec.retrieval.stores.codec import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gemirec.retrieval.stores.base import Block


def bulk_of_cache(
    path: str | Path, *, as_of: float | None = None, precision: Literal["float16", "float32"] = "float32"
) -> Bulk:
    """Return the users of a file that ``gemirec cache`` wrote, to be filled into a store.

    Args:
        path: The Parquet file.
        as_of: Seconds since 1970 up to which the histories were read: users marked later are stale. ``None`` takes the
            time of the file, which is right if its log was whole when the file was built.
        precision: Of the log-probabilities.

    Raises:
        ArtifactError: The file is missing, damaged or of another format version; of damage to users the blocks tell.
    """
    path = Path(path)
    facts, users, rows = read_cache(path)
    written = round(1e6 * min(path.stat().st_mtime if as_of is None else as_of, time.time()))
    info = StoreInfo(
        version=facts.model_version,
        layout=Layout(kind="indices", k=facts.k, entries=prod(facts.sizes), precision=precision),
        dictionary_version=facts.dictionary_version,
        epsilon=facts.epsilon,
        model=facts.model,
    )
    codec = info.codec()

    def blocks() -> Iterator[Block]:
        for block in rows:
            low, high = int(block.chosen.index_Bk.min()), int(block.chosen.index_Bk.max())
            if low < -1 or high >= info.layout.entries:
                raise ArtifactError(
                    "the interest cache holds indices that its dictionary does not have",
                    got=f"{path}: {low} to {high}, {info.layout.entries} interests",
                    fix="build it again: gemirec cache ARTIFACT --out FILE",
                )
            yield block.user_id, codec.pack_indices(block.chosen, written)

    return Bulk(info, users, blocks())
