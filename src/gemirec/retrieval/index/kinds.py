"""From the name of a kind to its class, and from a folder to an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemirec.retrieval.index.base import read_info
from gemirec.retrieval.index.exact import ExactIndex
from gemirec.retrieval.index.faiss_index import FaissIndex
from gemirec.retrieval.index.qdrant import QdrantIndex

if TYPE_CHECKING:
    from gemirec.retrieval.index.base import ItemIndex
    from gemirec.retrieval.index.config import IndexKind

CLASSES: dict[str, type[ItemIndex]] = {kind: cls for cls in (ExactIndex, FaissIndex, QdrantIndex) for kind in cls.kinds}
"""The class of each kind."""


def index_class(kind: IndexKind) -> type[ItemIndex]:
    """Return the class that builds a kind of index.

    Example:
        >>> index_class("ivf_sq8").__name__
        'FaissIndex'
    """
    return CLASSES[kind]


def load_index(folder: str | Path, *, mmap: bool = True) -> ItemIndex:
    """Open the folder of any index; arguments and errors as in :meth:`ItemIndex.load`."""
    return index_class(read_info(Path(folder)).config.kind).load(folder, mmap=mmap)
