"""How an index is built, and the facts that its folder records."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gemirec.artifacts import FORMAT_VERSION
from gemirec.config import Config

IndexKind = Literal["exact", "exact_int8", "flat", "ivf", "ivf_sq8", "ivf_pq", "hnsw", "pq", "qdrant"]
"""``exact``: every item, float32. ``exact_int8``: the same result, read in 8 bits. faiss: ``flat``, ``ivf`` (inverted
lists), ``ivf_sq8`` (8 bits a number), ``ivf_pq`` and ``pq`` (product quantisation with fast scan, re-ranked), ``hnsw``
(a graph). ``qdrant``: a vector database."""

Count = Annotated[int, Meta(ge=1)]


class IndexConfig(Config, frozen=True, kw_only=True):
    """How an index of items is built and what it must reach."""

    kind: IndexKind = "exact"
    """Which index."""
    recall: Annotated[float, Meta(gt=0, le=1)] = 0.97
    """Least share of the exact list's items that must be found. Search parameters are chosen to reach it, and an index
    below it is not saved."""
    k: Count = 200
    """Length of the lists whose recall is meant; shorter ones have about the same or more."""
    queries: Count = 500
    """Most query vectors that recall is measured with."""
    lists: Annotated[int, Meta(ge=0)] = 0
    """``ivf*``: inverted lists; 0 takes about twice the square root of the number of items."""
    neighbours: Count = 32
    """``hnsw``: neighbours of an item in the graph."""
    construction: Count = 200
    """``hnsw``: candidates per item while the graph is built."""
    threads: Count = 1
    """Threads of faiss, in building and in searching. A server has other requests for the other cores."""
    location: str = ":memory:"
    """``qdrant``: the server's URL (its API key is read from ``GEMIREC_QDRANT_API_KEY``), a folder, or ``:memory:`` for
    qdrant-client's own local mode, which is for trials."""
    collection: str = "gemirec"
    """``qdrant``: name of the collection; it must not exist when an index is built."""
    timeout: Annotated[float, Meta(gt=0)] = 5.0
    """``qdrant``: seconds to wait for an answer."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a build found out."""

    recall: float
    """Share of the exact list of ``k`` that is found, the mean over queries."""
    k: int
    queries: int
    """Query vectors that were measured."""
    at: dict[str, float] = {}
    """Recall of other list lengths."""
    trials: list[dict[str, float]] = []
    """The search parameters that were tried, and the recall of each."""
    build_s: float = 0.0
    """Seconds to build, without measuring."""
    query_ms: float = 0.0
    """Milliseconds of wall time per query vector, in calls of four."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an index."""

    bytes: int
    sha256: str


class IndexInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``index.json``."""

    format_version: int = FORMAT_VERSION
    config: IndexConfig
    items: int
    """Items that can be returned."""
    dim: int
    """Width of a vector."""
    params: dict[str, int] = {}
    """Search parameters."""
    measured: Measured | None = None
    """What was measured when it was built."""
    version: str | None = None
    """Of the model whose vectors these are (:func:`gemirec.retrieval.versions.model_version`)."""
    changed: int = 0
    """Items added, replaced or removed since it was built and measured."""
    files: dict[str, StoredFile] = {}
