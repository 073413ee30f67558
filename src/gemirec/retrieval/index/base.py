"""What every index of items can do, and the folder that it is kept in.

Layout of a folder::

    index.json            kind, configuration, search parameters, measured recall, the model's version, files
    vectors.safetensors   float32 vectors and ids (none for a vector database at a URL)
    faiss.index           the structure, for faiss

Axes: Q queries, D embedding, K list length, E excluded pairs, A items of a list of ids.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import msgspec
import torch

from gemirec.artifacts import atomic_dir, check_format, load_tensors, read_json, translate_os_errors, write_json
from gemirec.errors import ArtifactError, ConfigError, DataError, RetrievalError
from gemirec.retrieval.index.config import IndexConfig, IndexInfo, IndexKind, Measured, StoredFile
from gemirec.retrieval.topk import MAX_ITEMS

if TYPE_CHECKING:
    from torch import Tensor

INFO = "index.json"
VECTORS = "vectors.safetensors"


class Knob(NamedTuple):
    """A search parameter: a larger value finds more and takes longer.

    Attributes:
        name: Key in :attr:`ItemIndex.params`.
        low: Least value.
        high: Value beyond which nothing is gained.
    """

    name: str
    low: int
    high: int


class ItemIndex(ABC):
    """Search by inner product over item vectors.

    Ids are positive integers below 2^31. Every score that is returned is the float32 inner product of the query and the
    item's float32 vector; lists are ordered by score, equal scores by ascending id.

    An index may be searched from several threads, not while another adds or removes.

    Attributes:
        config: How it was built.
        params: Search parameters, by name (:meth:`knobs`).
        measured: Recall and cost, if it was measured (:func:`gemirec.retrieval.index.build_index`).
        version: Version of the model whose vectors these are, if known.
        changed: Items added, replaced or removed since it was built.
    """

    kinds: ClassVar[tuple[IndexKind, ...]]
    """The kinds of configuration that a class builds."""
    is_exact: ClassVar[bool] = False
    """Whether it returns the exact list always."""
    config: IndexConfig
    params: dict[str, int]
    measured: Measured | None = None
    version: str | None = None
    changed: int = 0

    @classmethod
    @abstractmethod
    def build(cls, item_ND: Tensor, config: IndexConfig) -> Self:
        """Build from item vectors as a model gives them.

        Args:
            item_ND: ``[N + 1, D]``, row i is item i, row 0 is padding and is never returned.
            config: How.

        Raises:
            DataError: A value is not finite, or there are too few items for this kind.
            MissingExtraError: The engine is not installed.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Items that can be returned."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a vector."""

    @abstractmethod
    def search(
        self,
        query_QD: Tensor,
        k: int,
        *,
        exclude_E: Tensor | None = None,
        exclude_offset_Q1: Tensor | None = None,
        item_chunk: int = 2**20,
    ) -> tuple[Tensor, Tensor]:
        """Return the ``k`` best items of each query.

        Args:
            query_QD: ``[Q, D]`` float32, finite.
            k: List length; may exceed the number of items.
            exclude_E: Item ids that a query must not get, one query after the other; ids that this index does not
                hold do no harm.
            exclude_offset_Q1: ``[Q + 1]`` int64, start of each query's part of ``exclude_E``.
            item_chunk: Most items scored at once, where all are scored.

        Returns:
            ``([Q, k] int64 item ids, [Q, k] float32 scores)``: higher score first, equal scores by ascending id; -1 and
            -inf where fewer than ``k`` items are left, and only there.

        Raises:
            DataError: A query is not finite or has another width than the items.
            RetrievalError: The index is a database, and does not answer.
        """

    @abstractmethod
    def restrict(self, allow_ids: Tensor) -> ItemIndex:
        """Return an index over ``allow_ids`` alone (any order, duplicates and unknown ids do no harm).

        Make it once for a selection that is used often. It shows the index as it is now; an approximate one needs
        a deeper search for the same recall and does that, or searches a short selection exactly.
        """

    @abstractmethod
    def without(self, deny_ids: Tensor) -> ItemIndex:
        """Return an index over all items but ``deny_ids``; otherwise as :meth:`restrict`."""

    @abstractmethod
    def add(self, ids: Tensor, vector_AD: Tensor) -> None:
        """Add items, or replace the vectors of those that are there.

        Args:
            ids: ``[A]`` distinct ids from 1.
            vector_AD: ``[A, D]`` finite.

        Raises:
            DataError: An id is repeated or out of range, a value is not finite, or the width is another.
        """

    @abstractmethod
    def remove(self, ids: Tensor) -> None:
        """Remove items; unknown ids do no harm."""

    def close(self) -> None:
        """Let go of a connection; nothing for an index of files."""
        return

    def knobs(self, k: int) -> tuple[Knob, ...]:
        """Return the search parameters for lists of ``k``, the one to turn first in front; none if exact."""
        return ()

    def save(self, folder: str | Path, *, overwrite: bool = False, allow_low_recall: bool = False) -> Path:
        """Write the index as a folder, whole or not at all.

        Args:
            folder: Where.
            overwrite: Replace a folder that is there.
            allow_low_recall: Save an index whose recall is below the configuration's, or was not measured.

        Raises:
            RetrievalError: Its recall is too low, or was not measured.
            StorageError: The folder exists, or the disk refuses.
        """
        if not (self.is_exact or allow_low_recall):
            self._check_recall()
        folder = Path(folder)
        with atomic_dir(folder, overwrite=overwrite) as tmp:
            self._write(tmp)
            files = {file.name: _stored(file) for file in sorted(tmp.iterdir())}
            info = IndexInfo(
                config=self.config,
                items=len(self),
                dim=self.dim,
                params=self.params,
                measured=self.measured,
                version=self.version,
                changed=self.changed,
                files=files,
            )
            write_json(tmp / INFO, msgspec.to_builtins(info))
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = True) -> Self:
        """Open a folder that :meth:`save` wrote.

        Args:
            folder: Where.
            mmap: Map the files: opening takes no time, and processes share the memory. Sizes of files are checked.
                Otherwise they are read into memory, and their hashes are checked too.

        Raises:
            ArtifactError: A file is missing, cut, damaged, of another format version or another kind of index.
        """
        folder = Path(folder)
        info = read_info(folder)
        if info.config.kind not in cls.kinds:
            fix = "open it with gemirec.retrieval.index.load_index"
            raise ArtifactError("this is another kind of index", got=f"{folder}: {info.config.kind}", fix=fix)
        for name, stored in info.files.items():
            _check_file(folder / name, stored, whole=not mmap)
        index = cls._read(folder, info, mmap)
        index.config, index.params, index.measured = info.config, dict(info.params), info.measured
        index.version, index.changed = info.version, info.changed
        return index

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write all files but ``index.json``."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path, info: IndexInfo, mmap: bool) -> Self:
        """Read what :meth:`_write` wrote; the caller fills in the attributes."""

    def _check_recall(self) -> None:
        """Raise if the index has not been shown to find what it must."""
        want, found = self.config, self.measured
        if found is None:
            raise RetrievalError(
                "the recall of this index was not measured, so it is not saved",
                got=f"kind {want.kind} without query vectors",
                fix="build it with build_index and query vectors, or save it with allow_low_recall=True",
            )
        if found.recall < want.recall:
            raise RetrievalError(
                "the recall of this index is too low, so it is not saved",
                got=f"recall@{found.k} {found.recall:.4f}, wanted {want.recall}, with {self.params}",
                fix="choose another kind or a lower recall, or save it with allow_low_recall=True",
            )


def read_info(folder: Path) -> IndexInfo:
    """Return the facts of an index's folder.

    Raises:
        ArtifactError: It is missing, damaged or of another format version.
    """
    path = folder / INFO
    values = read_json(path)
    check_format("index", values.get("format_version") if isinstance(values, dict) else None, path)
    try:
        return msgspec.convert(values, IndexInfo)
    except msgspec.ValidationError as error:
        raise ArtifactError("an index's facts are damaged", got=f"{path}: {error}", fix="build it again") from error


def read_vectors(folder: Path, names: tuple[str, ...], mmap: bool) -> dict[str, Tensor]:
    """Return the tensors of ``vectors.safetensors``, mapped or in memory.

    Raises:
        ArtifactError: The file is damaged, or one of ``names`` is not in it.
    """
    tensors = load_tensors(folder / VECTORS)
    missing = sorted(set(names) - set(tensors))
    if missing:
        raise ArtifactError("an index lacks a tensor", got=f"{folder / VECTORS}: no {missing}", fix="build it again")
    return tensors if mmap else {name: tensor.clone() for name, tensor in tensors.items()}


def check_queries(query_QD: Tensor, dim: int, k: int) -> Tensor:
    """Return queries as finite float32 rows on the CPU.

    Raises:
        ConfigError: ``k`` is below 1.
        DataError: A query is not finite or has another width than the items.
    """
    if k < 1:
        raise ConfigError("a list must hold at least one item", got=f"k = {k}", fix="ask for k of 1 or more")
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise DataError(
            "queries and items have different widths",
            got=f"{tuple(query_QD.shape)} against items of width {dim}",
            fix="take both from the same model",
        )
    query_QD = query_QD.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(query_QD).all()):
        bad = int((~torch.isfinite(query_QD).all(dim=1)).sum())
        fix = "look for a training that diverged; lower its learning rate or normalise the vectors"
        raise DataError("a query vector is not finite", got=f"{bad} of {len(query_QD)} queries", fix=fix)
    return query_QD


def check_items(ids: Tensor, vector_AD: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return ids in ascending order and their vectors, float32.

    Raises:
        DataError: An id is repeated or out of range, a value is not finite, or the width is another.
    """
    ids, order = ids.to("cpu", torch.int64).sort()
    fix = "give distinct ids from 1, and one row of a vector for each, from the model that the index is of"
    if vector_AD.shape != (len(ids), dim):
        raise DataError(
            "ids and vectors do not fit the index", got=f"{len(ids)} ids, {tuple(vector_AD.shape)}", fix=fix
        )
    if len(ids) and (int(ids[0]) < 1 or int(ids[-1]) > MAX_ITEMS or not bool((ids.diff() > 0).all())):
        raise DataError("ids must be distinct and from 1", got=f"{int(ids[0])} to {int(ids[-1])}", fix=fix)
    vector_AD = vector_AD.detach().to("cpu", torch.float32)[order].contiguous()
    if not bool(torch.isfinite(vector_AD).all()):
        bad_A = ~torch.isfinite(vector_AD).all(dim=1)
        raise DataError("item vectors must be finite", got=f"{int(bad_A.sum())} of {len(ids)} items", fix=fix)
    return ids, vector_AD


def _stored(path: Path) -> StoredFile:
    """Return size and hash of a file."""
    return StoredFile(bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(path: Path, stored: StoredFile, *, whole: bool) -> None:
    """Raise if a file is missing, cut, or (``whole``) not the one that was written."""
    fix = "copy the index's folder again, whole, or build it again"
    with translate_os_errors(path):
        size = path.stat().st_size if path.exists() else None
        if size is None:
            raise ArtifactError("a file of the index is missing", got=path, fix=fix)
        if size != stored.bytes:
            raise ArtifactError("a file of the index is cut", got=f"{path}: {size} of {stored.bytes} bytes", fix=fix)
        if whole and _sha256(path) != stored.sha256:
            raise ArtifactError("a file of the index is damaged", got=f"{path}: its SHA-256 is another", fix=fix)
