"""gemirec: multi-interest candidate retrieval.

Importing this package is cheap: torch and polars are loaded when the first name that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemirec.config import MergeConfig
    from gemirec.data.dataset import Dataset
    from gemirec.data.prepare import prepare
    from gemirec.recommender import Recommender

__version__ = "0.1.0"

_LAZY = {
    "Dataset": "gemirec.data.dataset",
    "MergeConfig": "gemirec.config",
    "Recommender": "gemirec.recommender",
    "prepare": "gemirec.data.prepare",
}

__all__ = ["Dataset", "MergeConfig", "Recommender", "__version__", "prepare"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'gemirec' has no attribute {name!r}")
