"""Indices of items: exact, faiss, Qdrant, behind one interface, with their recall stated and guaranteed."""

from gemirec.retrieval.index.base import ItemIndex, Knob
from gemirec.retrieval.index.config import IndexConfig, IndexInfo, IndexKind, Measured
from gemirec.retrieval.index.exact import ExactIndex
from gemirec.retrieval.index.kinds import index_class, load_index
from gemirec.retrieval.index.report import build_index, recall_at, summary

__all__ = [
    "ExactIndex",
    "IndexConfig",
    "IndexInfo",
    "IndexKind",
    "ItemIndex",
    "Knob",
    "Measured",
    "build_index",
    "index_class",
    "load_index",
    "recall_at",
    "summary",
]
