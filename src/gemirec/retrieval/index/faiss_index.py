"""Approximate search with faiss: flat, inverted lists, product quantisation with re-ranking, graph.

faiss proposes rows; their scores are float32 inner products (:mod:`gemirec.retrieval.index.candidates`), so that every
kind is re-ranked as faiss' own ``RFlat`` does, without a second copy of the vectors for it.

Axes: Q queries, N rows, D embedding, F proposed rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from gemirec.errors import ArtifactError, DataError, MissingExtraError
from gemirec.retrieval.index.base import Knob
from gemirec.retrieval.index.candidates import CandidateIndex, read_store
from gemirec.retrieval.index.exact import ExactIndex

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gemirec.retrieval.index.config import IndexConfig, IndexInfo, IndexKind

FILE = "faiss.index"
_RERANK = {"ivf_sq8": 1, "ivf_pq": 4, "pq": 4}
"""Rows proposed per place of a list, to begin with: the coarser the codes, the more."""
_DEEPEST = 8
"""Most times as many inverted lists to read as the search parameters say; beyond it all rows are searched exactly."""
_LONGEST_WALK = 20
"""Largest ``ef_search`` in lengths of a list: a graph that needs more is slower than an exact search."""
_PER_LIST = 39
"""Fewest items per inverted list that faiss' k-means takes without a warning."""
_PQ_CODES = 16
"""Codes of a sub-quantiser of 4 bits; training needs as many items."""


class FaissIndex(CandidateIndex):
    """faiss over the item vectors, by inner product.

    Search parameters: ``nprobe`` (``ivf*``, inverted lists that are read), ``ef_search`` (``hnsw``, candidates kept
    while the graph is walked), ``rerank`` (``pq``, ``ivf_pq``, ``ivf_sq8``: rows per place of a list that are scored in
    float32). A selection of items (:meth:`restrict`) is passed to faiss as a bitmap, and read as much deeper as it is
    smaller; ``pq``, which takes no selection, proposes as many more.

    Reference: Douze et al. 2024, "The Faiss library" (arXiv 2401.08281).
    """

    kinds: ClassVar[tuple[IndexKind, ...]] = ("flat", "ivf", "ivf_sq8", "ivf_pq", "hnsw", "pq")

    def __init__(self, store: ExactIndex, structure: Any, config: IndexConfig) -> None:
        super().__init__(store)
        self.config = config
        self._structure = structure
        self._bitmap: Any = None
        self.params = {knob.name: knob.low for knob in self.knobs(config.k)}
        if config.kind in _RERANK:
            self.params["rerank"] = _RERANK[config.kind]

    @classmethod
    def build(cls, item_ND: Tensor, config: IndexConfig) -> Self:
        """See :meth:`ItemIndex.build`."""
        faiss = _faiss(config.threads)
        store = ExactIndex(item_ND.cpu())
        if config.kind in ("pq", "ivf_pq") and len(store) < _PQ_CODES:
            fix = "choose exact: so few items need nothing else"
            raise DataError("too few items for product quantisation", got=f"{len(store)} items", fix=fix)
        structure = faiss.index_factory(store.dim, _factory(store, config), faiss.METRIC_INNER_PRODUCT)
        if config.kind == "hnsw":
            structure.hnsw.efConstruction = config.construction
        vector_ND = store.vectors.numpy()
        if len(store):
            structure.train(vector_ND)
            structure.add(vector_ND)
        return cls(store, structure, config)

    def knobs(self, k: int) -> tuple[Knob, ...]:
        """See :meth:`ItemIndex.knobs`."""
        kind, items = self.config.kind, max(1, len(self._store))
        rerank = Knob("rerank", 1, max(1, items // max(1, k)))
        if kind == "hnsw":
            return (Knob("ef_search", min(k, items), min(_LONGEST_WALK * k, items)),)
        if kind == "pq":
            return (rerank,)
        if kind.startswith("ivf"):
            lists = max(1, self._structure.nlist)
            probe = Knob("nprobe", min(lists, _ceil(2 * k * lists / items)), lists)  # lists that hold 2 k items
            return (probe,) if kind == "ivf" else (probe, rerank)
        return ()

    def _depth(self, k: int) -> int:
        """A short list is re-ranked from as many rows as a long one: its recall is then no less."""
        rerank = self.params.get("rerank", 1)
        depth = k if rerank == 1 else max(k, self.config.k) * rerank
        return _ceil(depth / (self._share if self.config.kind == "pq" else 1.0)) + super()._depth(0)

    def _propose(self, query_QD: Tensor, fetch: int, deeper: int) -> Tensor:
        """See :class:`CandidateIndex`."""
        faiss = _faiss(self.config.threads)
        search: dict[str, Any] = {} if self._bitmap is None else {"sel": faiss.IDSelectorBitmap(self._bitmap)}
        kind, times = self.config.kind, deeper / self._share
        if kind.startswith("ivf"):
            nprobe = min(self._structure.nlist, _ceil(self.params["nprobe"] * times))
            params = faiss.SearchParametersIVF(nprobe=nprobe, **search)
        elif kind == "hnsw":
            ef_search = min(len(self._store), max(fetch, _ceil(self.params["ef_search"] * times)))
            params = faiss.SearchParametersHNSW(efSearch=ef_search, **search)
        else:
            params = faiss.SearchParameters(**search) if search and kind == "flat" else None
        _, position_QF = self._structure.search(query_QD.numpy(), fetch, params=params)
        return torch.from_numpy(position_QF)

    def _sees_all(self, deeper: int) -> bool:
        """See :class:`CandidateIndex`."""
        if not self.config.kind.startswith("ivf") or deeper >= _DEEPEST:
            return True
        return self.params["nprobe"] * deeper / self._share >= int(self._structure.nlist)

    def _set_keep(self, keep_N: Tensor | None) -> None:
        super()._set_keep(keep_N)
        self._bitmap = None if keep_N is None else np.packbits(keep_N.numpy(), bitorder="little")

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        _faiss(self.config.threads).write_index(self._structure, str(folder / FILE))

    @classmethod
    def _read(cls, folder: Path, info: IndexInfo, mmap: bool) -> Self:
        faiss = _faiss(info.config.threads)
        store, tensors = read_store(folder, mmap)
        try:
            structure = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        except RuntimeError as error:
            got, fix = f"{folder / FILE}: {str(error)[-200:]}", "copy the folder again, whole, or build it again"
            raise ArtifactError("a faiss file is damaged", got=got, fix=fix) from error
        if structure.ntotal != len(store) or structure.d != store.dim:
            got = f"{structure.ntotal} x {structure.d} in {FILE}, {len(store)} x {store.dim} vectors"
            raise ArtifactError("the files of an index do not belong together", got=got, fix="build it again")
        index = cls(store, structure, info.config)
        index._read_rows(tensors, str(folder))
        return index


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)


def _factory(store: ExactIndex, config: IndexConfig) -> str:
    """Return faiss' own description of a kind of index."""
    lists = config.lists or 2 ** round(math.log2(2 * math.sqrt(max(1, len(store)))))
    lists = max(1, min(lists, len(store) // _PER_LIST))
    subs = -(-store.dim // 2)  # of two numbers each, or of one where the width is odd
    subs = subs if store.dim % 2 == 0 else store.dim
    return {
        "flat": "Flat",
        "ivf": f"IVF{lists},Flat",
        "ivf_sq8": f"IVF{lists},SQ8",
        "ivf_pq": f"IVF{lists},PQ{subs}x4fsr",
        "hnsw": f"HNSW{config.neighbours},Flat",
        "pq": f"PQ{subs}x4fs",
    }[config.kind]


def _faiss(threads: int) -> Any:
    """Return faiss, set to a number of threads; the setting is the calling thread's own.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "faiss") from None
    faiss.omp_set_num_threads(threads)
    return faiss
