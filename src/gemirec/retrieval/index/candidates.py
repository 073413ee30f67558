"""Approximate search in two steps: a structure proposes rows, float32 inner products decide.

The structure is built once and never changed, so that it can stay in a mapped file: items that come later are searched
exactly beside it, removed and replaced ones are masked. Where the structure proposes too few rows for a full list (most
are excluded, or it cannot see further), it is asked for more, and in the end the rest is searched exactly: a list is
never short while items are left.

Axes: Q queries, N rows of the structure, D embedding, K list length, F proposed rows, E excluded pairs, C scored pairs,
A items of a list of ids.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gemirec.artifacts import save_tensors
from gemirec.errors import ConfigError
from gemirec.retrieval.index.base import VECTORS, ItemIndex, check_items, check_queries, read_vectors
from gemirec.retrieval.index.exact import ExactIndex
from gemirec.retrieval.topk import EMPTY, decode, score_pairs, sort_key, sort_rows

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_SPARE = 16
"""Rows proposed beyond a list, for those that rounding has swapped at its end."""
_PAIRS = 2**18
"""Proposed rows held at once."""
_EXACT_SHARE = 4
"""A selection of at most one in so many rows is searched exactly: the structure would have to look as far."""


class Excluded(NamedTuple):
    """Pairs that must not be returned, by ascending query.

    Attributes:
        row_E: ``[E]`` int64 query numbers.
        id_E: ``[E]`` int64 item ids.
    """

    row_E: Tensor
    id_E: Tensor

    def take(self, row_Q: Tensor) -> Excluded:
        """Return the pairs of some queries, ascending, numbered by their place in ``row_Q``."""
        if not len(self.row_E):
            return self
        place_E = torch.searchsorted(row_Q, self.row_E).clamp_max(max(0, len(row_Q) - 1))
        keep_E = row_Q[place_E] == self.row_E if len(row_Q) else torch.zeros_like(self.row_E, dtype=torch.bool)
        return Excluded(place_E[keep_E], self.id_E[keep_E])

    def ragged(self, queries: int) -> dict[str, Any]:
        """Return the arguments of :meth:`ItemIndex.search`."""
        size_Q = torch.bincount(self.row_E, minlength=queries)
        return {"exclude_E": self.id_E, "exclude_offset_Q1": torch.cat([size_Q.new_zeros(1), size_Q.cumsum(0)])}

    def most(self) -> int:
        """Return the most pairs of one query."""
        return int(torch.bincount(self.row_E).max()) if len(self.row_E) else 0


class CandidateIndex(ItemIndex):
    """An approximate structure over ``store``'s rows; a subclass proposes rows.

    Args:
        store: The float32 vectors.
    """

    def __init__(self, store: ExactIndex) -> None:
        self._store = store
        self._fresh = store.restrict(torch.zeros(0, dtype=torch.int64))
        self._keep_N: Tensor | None = None
        self._exact: ExactIndex | None = None
        self._is_view = False

    @abstractmethod
    def _propose(self, query_QD: Tensor, fetch: int, deeper: int) -> Tensor:
        """Return ``[Q, fetch]`` int64 rows of the store, distinct in a line; -1 where there are no more.

        Rows outside :attr:`_keep_N` may be among them. ``deeper`` says how many times as far to look as the search
        parameters do.
        """

    def _sees_all(self, deeper: int) -> bool:
        """Whether a search so much deeper would see no other rows."""
        return True

    def _depth(self, k: int) -> int:
        """Return how many rows to propose for a list of ``k``."""
        return k + _SPARE

    @property
    def _share(self) -> float:
        """Share of the rows that can be returned."""
        return 1.0 if self._keep_N is None else max(1, int(self._keep_N.sum())) / max(1, len(self._store))

    def __len__(self) -> int:
        """Items that can be returned."""
        kept = len(self._store) if self._keep_N is None else int(self._keep_N.sum())
        return kept + len(self._fresh)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._store.dim

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
        excluded = Excluded(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        if exclude_E is not None and exclude_offset_Q1 is not None:
            row_E = torch.repeat_interleave(torch.arange(len(query_QD)), exclude_offset_Q1.diff().cpu())
            excluded = Excluded(row_E, exclude_E.to("cpu", torch.int64))
        step = max(1, _PAIRS // self._depth(k))
        parts = []
        for first in range(0, len(query_QD), step):
            row_Q = torch.arange(first, min(first + step, len(query_QD)))
            parts.append(self._search_block(query_QD[row_Q], k, excluded.take(row_Q), item_chunk))
        return decode(torch.cat(parts) if parts else torch.full((0, k), EMPTY))

    def _search_block(self, query_QD: Tensor, k: int, excluded: Excluded, item_chunk: int) -> Tensor:
        """Return the sorted keys ``[Q, k]`` of a block of queries."""
        best_QK = torch.full((len(query_QD), k), EMPTY)
        row_Q, fetch, deeper = torch.arange(len(query_QD)), self._depth(k) + min(k, excluded.most()), 1
        while len(row_Q) and fetch < len(self._store):
            position_QF = self._propose(query_QD[row_Q], fetch, deeper)
            key_QF, dropped_Q = self._keys(query_QD[row_Q], position_QF, excluded.take(row_Q))
            best_QK[row_Q] = key_QF[:, :k]
            # of k items behind as many that are excluded, no more than of 2 k items are missed
            more_Q = dropped_Q > (deeper - 0.5) * k
            short_Q = key_QF[:, k - 1] == EMPTY
            more_Q |= short_Q & ((position_QF >= 0).all(dim=1) | (not self._sees_all(deeper)))
            self._search_exactly(query_QD, best_QK, row_Q[short_Q & ~more_Q], excluded, item_chunk)
            row_Q, fetch, deeper = row_Q[more_Q], 2 * fetch, 2 * deeper
        self._search_exactly(query_QD, best_QK, row_Q, excluded, item_chunk)
        if not len(self._fresh):
            return best_QK
        fresh_QK = _keys_of(self._fresh.search(query_QD, k, **excluded.ragged(len(query_QD))))
        return sort_rows(torch.cat([best_QK, fresh_QK], dim=1))[:, :k]

    def _keys(self, query_QD: Tensor, position_QF: Tensor, excluded: Excluded) -> tuple[Tensor, Tensor]:
        """Return ``[Q, F]`` sorted keys of the proposed rows by float32 score, and ``[Q]`` how many are excluded."""
        row_C, place_C = (position_QF >= 0).nonzero(as_tuple=True)
        position_C = position_QF[row_C, place_C]
        id_C = self._store.ids_at(position_C)
        keep_C = torch.ones_like(row_C, dtype=torch.bool) if self._keep_N is None else self._keep_N[position_C]
        dropped_Q = torch.zeros(len(query_QD), dtype=torch.int64)
        if len(excluded.id_E):
            pair_E = (excluded.row_E << 32) | excluded.id_E.clamp(0, 2**32 - 1)
            # torch.isin takes twice as long: it sorts both sides together.
            pair_E, pair_C = pair_E.sort().values, (row_C << 32) | id_C
            out_C = pair_E[torch.searchsorted(pair_E, pair_C).clamp_max(len(pair_E) - 1)] == pair_C
            dropped_Q, keep_C = torch.bincount(row_C[out_C], minlength=len(query_QD)), keep_C & ~out_C
        if not bool(keep_C.all()):
            row_C, place_C, position_C, id_C = (part[keep_C] for part in (row_C, place_C, position_C, id_C))
        key_QF = torch.full(position_QF.shape, EMPTY)
        key_QF[row_C, place_C] = sort_key(score_pairs(query_QD, self._store.vectors, row_C, position_C), id_C)
        return sort_rows(key_QF), dropped_Q

    def _search_exactly(
        self, query_QD: Tensor, best_QK: Tensor, row_Q: Tensor, excluded: Excluded, item_chunk: int
    ) -> None:
        """Fill in the lists of some queries by a search of all rows."""
        if not len(row_Q):
            return
        if self._exact is None:
            kept_N = self._keep_N
            self._exact = self._store if kept_N is None else self._store.restrict(self._store.ids[kept_N])
        pairs = excluded.take(row_Q).ragged(len(row_Q))
        found = self._exact.search(query_QD[row_Q], best_QK.shape[1], item_chunk=item_chunk, **pairs)
        best_QK[row_Q] = _keys_of(found)

    def restrict(self, allow_ids: Tensor) -> ItemIndex:
        """See :meth:`ItemIndex.restrict`."""
        keep_N = torch.zeros(len(self._store), dtype=torch.bool)
        row_A = self._store.rows_of(allow_ids.to("cpu", torch.int64))
        keep_N[row_A[row_A >= 0]] = True
        return self._view(keep_N, self._fresh.restrict(allow_ids.cpu()))

    def without(self, deny_ids: Tensor) -> ItemIndex:
        """See :meth:`ItemIndex.without`."""
        return self._view(self._others(deny_ids), self._fresh.without(deny_ids.cpu()))

    def _others(self, ids: Tensor) -> Tensor:
        """Return ``[N]`` bool, false for the rows of ``ids``."""
        keep_N = torch.ones(len(self._store), dtype=torch.bool)
        row_A = self._store.rows_of(ids.to("cpu", torch.int64))
        keep_N[row_A[row_A >= 0]] = False
        return keep_N

    def _view(self, keep_N: Tensor, fresh: ExactIndex) -> ItemIndex:
        """Return the index of some rows and fresh items."""
        if self._keep_N is not None:
            keep_N = keep_N & self._keep_N
        if int(keep_N.sum()) * _EXACT_SHARE <= len(self._store):
            part = self._store.restrict(self._store.ids[keep_N])
            if len(fresh):
                part.add(fresh.ids, fresh.vectors)
            part.version = self.version
            return part
        view = copy.copy(self)
        view._fresh, view._is_view = fresh, True
        view._set_keep(keep_N)
        return view

    def _set_keep(self, keep_N: Tensor | None) -> None:
        """Say which rows can be returned."""
        self._keep_N, self._exact = keep_N, None

    def add(self, ids: Tensor, vector_AD: Tensor) -> None:
        """See :meth:`ItemIndex.add`; added items are searched exactly beside the structure.

        Raises:
            ConfigError: This is a selection of another index.
        """
        self._check_whole()
        ids, vector_AD = check_items(ids, vector_AD, self.dim)
        self._mask(ids)
        self._fresh.add(ids, vector_AD)
        self.changed += len(ids)

    def remove(self, ids: Tensor) -> None:
        """See :meth:`ItemIndex.remove`.

        Raises:
            ConfigError: This is a selection of another index.
        """
        self._check_whole()
        before = len(self)
        self._mask(ids)
        self._fresh.remove(ids.cpu())
        self.changed += before - len(self)

    def _mask(self, ids: Tensor) -> None:
        """Take items out of the structure."""
        if bool((self._store.rows_of(ids.to("cpu", torch.int64)) >= 0).any()):
            keep_N = self._others(ids)
            self._set_keep(keep_N if self._keep_N is None else keep_N & self._keep_N)

    def _check_whole(self) -> None:
        """Raise if this is a view."""
        if self._is_view:
            fix = "change or save the index that it was made of, and make it again"
            raise ConfigError("a selection of an index cannot be changed or saved", got=f"{len(self)} items", fix=fix)

    def _write(self, folder: Path) -> None:
        self._check_whole()
        tensors = self._store.tensors()
        if self._keep_N is not None:
            tensors["keep"] = self._keep_N.to(torch.uint8)
        if len(self._fresh):
            tensors |= {f"fresh_{name}": tensor for name, tensor in self._fresh.tensors().items()}
        save_tensors(folder / VECTORS, tensors)

    def _read_rows(self, tensors: dict[str, Tensor], where: str) -> None:
        """Take over what changed since the structure was built."""
        fresh = {name.removeprefix("fresh_"): tensor for name, tensor in tensors.items() if name.startswith("fresh_")}
        if fresh:
            self._fresh = ExactIndex.of(fresh, where)
        self._set_keep(tensors["keep"].bool() if "keep" in tensors else None)


def read_store(folder: Path, mmap: bool) -> tuple[ExactIndex, dict[str, Tensor]]:
    """Return the float32 vectors of a folder, and all of its tensors."""
    tensors = read_vectors(folder, ("vector", "facts"), mmap)
    store = {name: tensor for name, tensor in tensors.items() if name in ("vector", "facts", "id")}
    return ExactIndex.of(store, str(folder)), tensors


def _keys_of(found: tuple[Tensor, Tensor]) -> Tensor:
    """Return the keys of ids and scores."""
    id_QK, score_QK = found
    return sort_key(score_QK, id_QK.clamp_min(0)).masked_fill(id_QK < 0, EMPTY)
