"""The exact index: item vectors, searched whole.

Axes: Q queries, N items (row 0 is padding), D embedding, K list length, E excluded pairs, A items of a list of ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch

from gemirec.artifacts import save_tensors
from gemirec.errors import ArtifactError, DataError
from gemirec.retrieval.index.base import VECTORS, ItemIndex, check_items, read_vectors
from gemirec.retrieval.index.config import IndexConfig
from gemirec.retrieval.topk import Rounded, canonical_score, exact_topk, largest_norm

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gemirec.retrieval.index.config import IndexInfo, IndexKind

_ROUND_ROWS = 65_536
"""Items rounded at once."""


class ExactIndex(ItemIndex):
    """Exact inner-product search over item vectors, on the device where they lie.

    Args:
        item_ND: ``[N + 1, D]`` float32 item vectors as a model gives them: row i is item i, row 0 is padding and is
            never returned. The tensor is kept, not copied.
        int8: Also keep the vectors in 8 bits with one scale per item, and select candidates from these. The result is
            the same, bit for bit: every item that rounding could have hidden is scored in float32. The float32 vectors
            are then read for candidates alone, and can stay in a mapped file.

    Raises:
        DataError: A value is not finite.

    Example:
        >>> index = ExactIndex(torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> index.search(torch.tensor([[1.0, 0.5]]), 3)[0].tolist()
        [[1, 2, -1]]
    """

    kinds: ClassVar[tuple[IndexKind, ...]] = ("exact", "exact_int8")
    is_exact = True

    def __init__(self, item_ND: Tensor, *, int8: bool = False) -> None:
        self.config = IndexConfig(kind="exact_int8" if int8 else "exact")
        self.params = {}
        vector_ND = item_ND.detach().to(torch.float32)
        self._vector_ND = vector_ND[1:].contiguous()
        self._id_N: Tensor | None = None
        self._size = len(vector_ND)
        self._max_norm = largest_norm(self._vector_ND)
        if not self._max_norm < float("inf"):
            bad_N = ~torch.isfinite(self._vector_ND).all(dim=1)
            raise DataError(
                "item vectors must be finite",
                got=f"{int(bad_N.sum())} of {len(bad_N)} items, the first is item {int(bad_N.nonzero()[0, 0]) + 1}",
                fix="look for a training that diverged; lower its learning rate",
            )
        self._rounded = round_items(self._vector_ND) if int8 else None

    @classmethod
    def build(cls, item_ND: Tensor, config: IndexConfig) -> Self:
        """See :meth:`ItemIndex.build`."""
        index = cls(item_ND, int8=config.kind == "exact_int8")
        index.config = config
        return index

    def __len__(self) -> int:
        """Items that can be returned."""
        return len(self._vector_ND)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._vector_ND.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the vectors lie and the search runs."""
        return self._vector_ND.device

    @property
    def vectors(self) -> Tensor:
        """``[N, D]`` float32, by ascending id."""
        return self._vector_ND

    @property
    def ids(self) -> Tensor:
        """``[N]`` int64 ids, ascending."""
        return torch.arange(1, self._size, device=self.device) if self._id_N is None else self._id_N

    def restrict(self, allow_ids: Tensor) -> ExactIndex:
        """Return an index over ``allow_ids`` alone (any order, duplicates and unknown ids do no harm).

        Example:
            >>> index = ExactIndex(torch.eye(4)).restrict(torch.tensor([3, 1, 3, 99]))
            >>> index.search(torch.tensor([[0.0, 1.0, 2.0, 0.0]]), 3)[0].tolist()
            [[1, 3, -1]]
        """
        row_A = self.rows_of(torch.unique(allow_ids.to(self.device, torch.int64)))
        return self._part(row_A[row_A >= 0])

    def without(self, deny_ids: Tensor) -> ExactIndex:
        """Return an index over all items but ``deny_ids``.

        Example:
            >>> ExactIndex(torch.eye(4)).without(torch.tensor([2, 99])).ids.tolist()
            [1, 3]
        """
        keep_N = torch.ones(len(self), dtype=torch.bool, device=self.device)
        row_A = self.rows_of(deny_ids.to(self.device))
        keep_N[row_A[row_A >= 0]] = False
        return self._part(keep_N.nonzero()[:, 0])

    def add(self, ids: Tensor, vector_AD: Tensor) -> None:
        """See :meth:`ItemIndex.add`; takes a copy of all vectors.

        Example:
            >>> index = ExactIndex(torch.eye(3))
            >>> index.add(torch.tensor([7, 1]), torch.tensor([[0.0, 5.0, 0.0], [0.0, 2.0, 0.0]]))
            >>> index.search(torch.tensor([[0.0, 1.0, 0.0]]), 2)
            (tensor([[7, 1]]), tensor([[5., 2.]]))
        """
        ids, vector_AD = check_items(ids, vector_AD, self.dim)
        changed = self.changed + len(ids)
        kept = self.without(ids)
        id_N, order_N = torch.cat([kept.ids, ids.to(self.device)]).sort()
        vector_ND = torch.cat([kept.vectors, vector_AD.to(self.device)])[order_N]
        max_norm = max(self._max_norm, largest_norm(vector_AD))
        rounded = None if self._rounded is None else round_items(vector_ND)
        self._set(vector_ND, id_N, max(self._size, int(ids.max()) + 1 if len(ids) else 0), max_norm, rounded)
        self.changed = changed

    def remove(self, ids: Tensor) -> None:
        """See :meth:`ItemIndex.remove`; takes a copy of the others' vectors."""
        before, rest = len(self), self.without(ids)
        self._set(rest.vectors, rest.ids, self._size, self._max_norm, rest._rounded)
        self.changed += before - len(self)

    def search(
        self,
        query_QD: Tensor,
        k: int,
        *,
        exclude_E: Tensor | None = None,
        exclude_offset_Q1: Tensor | None = None,
        item_chunk: int = 2**20,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`ItemIndex.search`; the same bits for every Q, ``item_chunk`` and kind of exact index."""
        position_QK, score_QK = exact_topk(
            query_QD.detach().to(self.device, torch.float32).contiguous(),
            self._vector_ND,
            k,
            exclude_E=None if exclude_E is None else self.rows_of(exclude_E.to(self.device)),
            exclude_offset_Q1=None if exclude_offset_Q1 is None else exclude_offset_Q1.to(self.device),
            item_chunk=item_chunk,
            max_norm=self._max_norm,
            rounded=self._rounded,
        )
        if self._id_N is None:
            return torch.where(position_QK >= 0, position_QK + 1, position_QK), score_QK
        if len(self._id_N) == 0:
            return position_QK, score_QK
        return torch.where(position_QK >= 0, self._id_N[position_QK.clamp_min(0)], position_QK), score_QK

    def score(self, query_QD: Tensor, item_Q: Tensor) -> Tensor:
        """Return the ``[Q]`` scores of given pairs, bit-equal to those of :meth:`search`."""
        vector_QD = self._vector_ND[self.rows_of(item_Q.to(self.device))]
        return canonical_score(query_QD.detach().to(self.device, torch.float32), vector_QD)

    def rows_of(self, item_ids: Tensor) -> Tensor:
        """Return the row of each item id, -1 for ids that are not held."""
        if self._id_N is None:
            known = (item_ids > 0) & (item_ids < self._size)
            return torch.where(known, item_ids.to(torch.int64) - 1, -1)
        if len(self._id_N) == 0:
            return torch.full_like(item_ids, -1, dtype=torch.int64)
        place = torch.searchsorted(self._id_N, item_ids.to(torch.int64)).clamp_max(len(self._id_N) - 1)
        return torch.where(self._id_N[place] == item_ids, place, -1)

    def ids_at(self, row_C: Tensor) -> Tensor:
        """Return the item ids of rows."""
        return row_C + 1 if self._id_N is None else self._id_N[row_C]

    def _part(self, row_A: Tensor) -> ExactIndex:
        """Return an index over some rows, ascending."""
        part = object.__new__(ExactIndex)
        rounded = self._rounded
        if rounded is not None:
            rounded = Rounded(rounded.code_ND[row_A], rounded.scale_N[row_A], rounded.error)
        part._set(self._vector_ND[row_A], self.ids_at(row_A), self._size, self._max_norm, rounded)
        part.config, part.params, part.version, part.changed = self.config, {}, self.version, self.changed
        return part

    def _set(self, vector_ND: Tensor, id_N: Tensor | None, size: int, norm: float, rounded: Rounded | None) -> None:
        """Take over rows that are checked already."""
        self._vector_ND, self._id_N, self._size, self._max_norm, self._rounded = vector_ND, id_N, size, norm, rounded

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written to a file."""
        facts = [self._size, self._max_norm, 0.0 if self._rounded is None else self._rounded.error]
        out = {"vector": self._vector_ND, "facts": torch.tensor(facts, dtype=torch.float64)}
        if self._id_N is not None:
            out["id"] = self._id_N
        if self._rounded is not None:
            out |= {"code": self._rounded.code_ND, "scale": self._rounded.scale_N}
        return out

    @classmethod
    def of(cls, tensors: dict[str, Tensor], where: str) -> Self:
        """Build from :meth:`tensors`, without reading the vectors.

        Raises:
            ArtifactError: They do not fit each other.
        """
        vector_ND, id_N, code_ND, scale_N = (tensors.get(name) for name in ("vector", "id", "code", "scale"))
        facts = tensors.get("facts", torch.zeros(0))
        fits = vector_ND is not None and vector_ND.ndim == 2 and vector_ND.dtype == torch.float32 and len(facts) == 3
        if (
            not fits
            or vector_ND is None
            or any(len(t) != len(vector_ND) for t in (id_N, code_ND, scale_N) if t is not None)
        ):
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            raise ArtifactError("the tensors of an index do not fit", got=f"{where}: {shapes}", fix="build it again")
        size, norm, error = facts.tolist()
        rounded = None if code_ND is None or scale_N is None else Rounded(code_ND, scale_N, error)
        index = object.__new__(cls)
        index._set(vector_ND, id_N, int(size), norm, rounded)
        index.config, index.params = IndexConfig(kind="exact" if rounded is None else "exact_int8"), {}
        return index

    def _write(self, folder: Path) -> None:
        save_tensors(folder / VECTORS, self.tensors())

    @classmethod
    def _read(cls, folder: Path, info: IndexInfo, mmap: bool) -> Self:
        names = ("vector", "facts", *(("code", "scale") if info.config.kind == "exact_int8" else ()))
        return cls.of(read_vectors(folder, names, mmap), str(folder))


def round_items(vector_ND: Tensor) -> Rounded:
    """Round vectors to 8 bits, each with a scale that its largest number sets.

    Example:
        >>> rounded = round_items(torch.tensor([[1.27, -0.5], [0.0, 0.0]]))
        >>> rounded.code_ND.tolist(), round(rounded.error, 3)
        ([[127, -50], [0, 0]], 0.0)
    """
    code_ND = torch.empty(vector_ND.shape, dtype=torch.int8, device=vector_ND.device)
    scale_N, error = torch.empty(len(vector_ND), device=vector_ND.device), 0.0
    for at in range(0, len(vector_ND), _ROUND_ROWS):
        part_XD = vector_ND[at : at + _ROUND_ROWS]
        scale_X = part_XD.abs().amax(dim=1) / 127
        scale_X = scale_X.clamp_min(torch.finfo(torch.float32).tiny)
        code_XD = (part_XD / scale_X[:, None]).round().clamp(-127, 127)
        off_XD = code_XD.double() * scale_X[:, None].double() - part_XD.double()
        error = max(error, float(torch.linalg.vector_norm(off_XD, dim=1).max()))
        code_ND[at : at + _ROUND_ROWS], scale_N[at : at + _ROUND_ROWS] = code_XD.to(torch.int8), scale_X
    return Rounded(code_ND, scale_N, error)
