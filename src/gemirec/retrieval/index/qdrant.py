"""Search by Qdrant, a vector database: for catalogues past one machine's memory, and for many readers.

Filters (allow-lists, deny-lists, seen items) are Qdrant's own, so that its lists are as long as they can be. Scores are
its dot products of float32 vectors; ties are ordered here.

Axes: Q queries, N items, D embedding, K list length, E excluded pairs, A items of a list of ids.
"""

from __future__ import annotations

import contextlib
import copy
import os
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from gemirec.artifacts import save_tensors
from gemirec.errors import ArtifactError, ConfigError, DataError, MissingExtraError, RetrievalError
from gemirec.retrieval.index.base import VECTORS, ItemIndex, Knob, check_items, check_queries, read_vectors
from gemirec.retrieval.topk import EMPTY, decode, largest_norm, sort_key, sort_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from gemirec.retrieval.index.config import IndexConfig, IndexInfo, IndexKind

API_KEY = "GEMIREC_QDRANT_API_KEY"
_SPARE = 16
"""Items asked for beyond a list, so that ties at its end are ordered here."""
_BATCH = 1024
"""Items sent in one request."""
_MEMORY = ":memory:"


class QdrantIndex(ItemIndex):
    """A collection of a Qdrant server, or of qdrant-client's local mode.

    Search parameter: ``hnsw_ef``, candidates kept while the server's graph is walked. A query that gets fewer items
    than it could is asked again with Qdrant's exact search.

    Args:
        client: A ``QdrantClient``.
        config: Location and name of the collection, time limit.
        dim: Width of a vector.
    """

    kinds: ClassVar[tuple[IndexKind, ...]] = ("qdrant",)

    def __init__(self, client: Any, config: IndexConfig, dim: int) -> None:
        self.config = config
        self.params = {"hnsw_ef": config.k}
        self._client = client
        self._dim = dim
        self._allow: Tensor | None = None
        self._deny: Tensor | None = None

    @classmethod
    def build(cls, item_ND: Tensor, config: IndexConfig) -> Self:
        """See :meth:`ItemIndex.build`.

        Raises:
            RetrievalError: The server does not answer, or the collection exists already.
        """
        if not largest_norm(item_ND[1:]) < float("inf"):
            bad_N = ~torch.isfinite(item_ND[1:]).all(dim=1)
            fix = "look for a training that diverged; lower its learning rate"
            raise DataError("item vectors must be finite", got=f"{int(bad_N.sum())} of {len(bad_N)} items", fix=fix)
        client = _connect(config)
        index = cls(client, config, item_ND.shape[1])
        index._create()
        index._upsert(torch.arange(1, len(item_ND)), item_ND[1:].detach().to("cpu", torch.float32))
        return index

    def __len__(self) -> int:
        """Items that can be returned."""
        with _answering(self.config):
            return int(self._client.count(self.config.collection, count_filter=self._filter(None), exact=True).count)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._dim

    def knobs(self, k: int) -> tuple[Knob, ...]:
        """See :meth:`ItemIndex.knobs`; the local mode searches exactly and has none."""
        return () if _is_local(self.config) else (Knob("hnsw_ef", k, max(k, len(self))),)

    def search(
        self,
        query_QD: Tensor,
        k: int,
        *,
        exclude_E: Tensor | None = None,
        exclude_offset_Q1: Tensor | None = None,
        item_chunk: int = 2**20,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`ItemIndex.search`."""
        query_QD = check_queries(query_QD, self.dim, k)
        excluded: list[list[int]] = [[]] * len(query_QD)
        if exclude_E is not None and exclude_offset_Q1 is not None:
            size = exclude_offset_Q1.diff().tolist()
            excluded = [part.tolist() for part in torch.split(exclude_E.cpu(), size)]
        key_QK = torch.full((len(query_QD), k), EMPTY)
        if not len(query_QD) or (self._allow is not None and not len(self._allow)):
            return decode(key_QK)
        self._fill(key_QK, query_QD, excluded, list(range(len(query_QD))), exact=False)
        short = (key_QK[:, -1] == EMPTY).nonzero()[:, 0].tolist()
        if short and not _is_local(self.config):
            self._fill(key_QK, query_QD, excluded, short, exact=True)
        return decode(key_QK)

    def _fill(
        self, key_QK: Tensor, query_QD: Tensor, excluded: list[list[int]], rows: list[int], *, exact: bool
    ) -> None:
        """Ask for the lists of some queries, and write their keys."""
        from qdrant_client import models

        local = _is_local(self.config)
        params = None if local else models.SearchParams(hnsw_ef=self.params["hnsw_ef"], exact=exact)
        k = key_QK.shape[1]
        requests = [
            models.QueryRequest(
                query=query_QD[row].tolist(), limit=k + _SPARE, filter=self._filter(excluded[row]), params=params
            )
            for row in rows
        ]
        with _answering(self.config):
            answers = self._client.query_batch_points(self.config.collection, requests=requests)
        for row, answer in zip(rows, answers, strict=True):
            score = torch.tensor([point.score for point in answer.points], dtype=torch.float32)
            ids = torch.tensor([point.id for point in answer.points], dtype=torch.int64)
            key = sort_rows(sort_key(score + 0.0, ids))[:k]
            key_QK[row, : len(key)] = key

    def _filter(self, excluded: list[int] | None) -> Any:
        """Return Qdrant's filter of a query: the selection, less what it must not get."""
        from qdrant_client import models

        denied = [*(excluded or ()), *(() if self._deny is None else self._deny.tolist())]
        must: list[Any] | None = None if self._allow is None else [models.HasIdCondition(has_id=self._allow.tolist())]
        must_not: list[Any] | None = [models.HasIdCondition(has_id=[i for i in denied if i > 0])] if denied else None
        return None if must is None and must_not is None else models.Filter(must=must, must_not=must_not)

    def restrict(self, allow_ids: Tensor) -> QdrantIndex:
        """See :meth:`ItemIndex.restrict`; the ids travel with every query."""
        allow = torch.unique(allow_ids.to("cpu", torch.int64))
        allow = allow[allow > 0]
        view = copy.copy(self)
        view._allow = allow if self._allow is None else allow[torch.isin(allow, self._allow)]
        return view

    def without(self, deny_ids: Tensor) -> QdrantIndex:
        """See :meth:`ItemIndex.without`; the ids travel with every query."""
        deny = deny_ids.to("cpu", torch.int64)
        view = copy.copy(self)
        view._deny = torch.unique(deny if self._deny is None else torch.cat([deny, self._deny]))
        return view

    def add(self, ids: Tensor, vector_AD: Tensor) -> None:
        """See :meth:`ItemIndex.add`; every reader of the collection sees it."""
        ids, vector_AD = check_items(ids, vector_AD, self.dim)
        self._upsert(ids, vector_AD)
        self.changed += len(ids)

    def remove(self, ids: Tensor) -> None:
        """See :meth:`ItemIndex.remove`; every reader of the collection sees it."""
        from qdrant_client import models

        before = len(self)
        with _answering(self.config):
            selector = models.PointIdsList(points=[i for i in ids.tolist() if i > 0])
            self._client.delete(self.config.collection, points_selector=selector, wait=True)
        self.changed += before - len(self)

    def close(self) -> None:
        """See :meth:`ItemIndex.close`."""
        self._client.close()

    def _create(self) -> None:
        """Make the empty collection."""
        from qdrant_client import models

        name = self.config.collection
        with _answering(self.config):
            if self._client.collection_exists(name):
                fix = "choose another name with collection=NAME, or delete it in Qdrant"
                raise RetrievalError("the collection exists already", got=f"{name} at {self.config.location}", fix=fix)
            params = models.VectorParams(size=self.dim, distance=models.Distance.DOT)
            self._client.create_collection(name, vectors_config=params)

    def _upsert(self, ids: Tensor, vector_AD: Tensor) -> None:
        """Send vectors, batch by batch."""
        from qdrant_client import models

        for at in range(0, len(ids), _BATCH):
            part = slice(at, at + _BATCH)
            batch = models.Batch(ids=ids[part].tolist(), vectors=vector_AD[part].tolist())
            with _answering(self.config):
                self._client.upsert(self.config.collection, points=batch, wait=True)

    def _write(self, folder: Path) -> None:
        """A server keeps its vectors; those of a collection in memory are written."""
        if self._allow is not None or self._deny is not None:
            fix = "save the index that it was made of, and make it again"
            raise ConfigError("a selection of an index cannot be saved", got=f"{len(self)} items", fix=fix)
        if self.config.location == _MEMORY:
            ids, vector_ND = self._all()
            save_tensors(folder / VECTORS, {"id": ids, "vector": vector_ND})

    def _all(self) -> tuple[Tensor, Tensor]:
        """Return all ids, ascending, and their vectors."""
        with _answering(self.config):
            points, _ = self._client.scroll(self.config.collection, limit=2**31 - 1, with_vectors=True)
        points = sorted(points, key=lambda point: point.id)
        vectors = torch.tensor([point.vector for point in points], dtype=torch.float32).reshape(-1, self.dim)
        return torch.tensor([point.id for point in points], dtype=torch.int64), vectors

    @classmethod
    def _read(cls, folder: Path, info: IndexInfo, mmap: bool) -> Self:
        index = cls(_connect(info.config), info.config, info.dim)
        if info.config.location == _MEMORY:
            tensors = read_vectors(folder, ("id", "vector"), mmap)
            index._create()
            index._upsert(tensors["id"], tensors["vector"])
            return index
        with _answering(info.config):
            there = index._client.collection_exists(info.config.collection)
        if not there or len(index) < info.items:
            got = f"{info.config.collection} at {info.config.location}: {len(index) if there else 'no such collection'}"
            fix = "build the index again, under another name"
            raise ArtifactError(f"the collection does not hold the index's {info.items} items", got=got, fix=fix)
        return index


def _is_local(config: IndexConfig) -> bool:
    return "://" not in config.location


def _connect(config: IndexConfig) -> Any:
    """Return a client.

    Raises:
        MissingExtraError: qdrant-client is not installed.
        RetrievalError: A local folder is in use.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise MissingExtraError("qdrant", "qdrant_client") from None
    with _answering(config):
        if config.location == _MEMORY:
            return QdrantClient(location=_MEMORY)
        if _is_local(config):
            return QdrantClient(path=config.location)
        timeout = max(1, round(config.timeout))
        key = os.environ.get(API_KEY) or None
        return QdrantClient(url=config.location, api_key=key, timeout=timeout, check_compatibility=False)


@contextlib.contextmanager
def _answering(config: IndexConfig) -> Iterator[None]:
    """Turn what a server that is gone, slow or of another mind raises into an error that names it.

    Raises:
        RetrievalError: Any such error.
    """
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except (ApiException, OSError, RuntimeError, ValueError) as error:
        text = f"{type(error).__name__}: {error}".strip()[:300]
        fix = f"start the server, or check location, collection, timeout and the key in {API_KEY}"
        raise RetrievalError("Qdrant does not answer", got=f"{config.location}: {text}", fix=fix) from error
