"""The catalogue for the eye: where each item lies in two dimensions, and where in the model's dictionary.

Axes: N items, D embedding, A principal axes, C levels of the dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import polars as pl
import torch

from gemirec.components.codes import unflatten
from gemirec.errors import ArtifactError
from gemirec.recommender.projection import principal_axes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from gemirec.models.base import RetrievalModel

FILE = "map.parquet"
"""Written by ``gemirec export``."""
SAMPLE = 20_000
"""Most items that the principal components are computed from."""
_BLOCK = 65_536


class Places(NamedTuple):
    """Where items lie.

    Attributes:
        xy_N2: ``[N, 2]`` float32, -1 to 1; NaN for an item that the map does not have.
        source: Where the map comes from.
    """

    xy_N2: NDArray[np.float32]
    source: Literal["export", "principal components"]


def places(artifact: Path, items: pl.DataFrame, vectors: Callable[[], Tensor]) -> Places:
    """Return the artifact's map, or the principal components of its item vectors if it has none.

    Args:
        artifact: The folder.
        items: The item table.
        vectors: Gives the item vectors ``[N, D]``, rows as in ``items``; not called if there is a map.

    Raises:
        ArtifactError: The map is damaged, or of other items.
    """
    path = artifact / FILE
    if not path.exists():
        return Places(projected(vectors()), "principal components")
    key = pl.col("item_id").cast(pl.String)
    try:
        drawn = pl.read_parquet(path, columns=["item_id", "x", "y"]).with_columns(key).unique("item_id")
        found = items.select(key).join(drawn, on="item_id", how="left", maintain_order="left").select("x", "y")
        xy_N2 = found.cast(pl.Float32).fill_null(float("nan")).to_numpy()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            "the map is damaged", got=f"{path}: {error}", fix="export it again, or delete it"
        ) from error
    if np.isnan(xy_N2).all():
        raise ArtifactError("the map is of other items", got=path, fix="export it again from this artifact")
    return Places(np.ascontiguousarray(xy_N2), "export")


def projected(item_ND: Tensor) -> NDArray[np.float32]:
    """Return the first two principal components ``[N, 2]`` of item vectors, between -1 and 1.

    The axes (:func:`~gemirec.recommender.projection.principal_axes`) come from an even sample of at most
    :data:`SAMPLE` items.

    Example:
        >>> projected(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])).tolist()
        [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    """
    mean_D, axis_AD = principal_axes(item_ND[torch.from_numpy(evenly(len(item_ND), SAMPLE))])
    mean_D, axis_AD = mean_D.float(), axis_AD.float()
    xy_N2 = torch.zeros(len(item_ND), 2)
    for start in range(0, len(item_ND), _BLOCK):
        part_XD = item_ND[start : start + _BLOCK].float() - mean_D
        xy_N2[start : start + _BLOCK, : len(axis_AD)] = part_XD @ axis_AD.T
    out: NDArray[np.float32] = (xy_N2 / xy_N2.abs().max().clamp(min=1e-12) + 0.0).numpy()
    return out


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the rows 0 to ``count - 1``, evenly spread, the first and the last among them.

    Example:
        >>> evenly(9, 3).tolist(), evenly(2, 3).tolist()
        ([0, 4, 8], [0, 1])
    """
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)


def dictionary_codes(model: RetrievalModel, count: int) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Return the codes ``[N, C]`` of all items and the sizes of the levels; no level for a model without a dictionary.

    A refiner over GemiRec has its base's dictionary. Items that came after training have no codes: -1.

    Args:
        model: The trained model.
        count: N, those that came after training included.
    """
    from gemirec.models.gemirec.core import ServedGemiRec

    own = model if isinstance(model, ServedGemiRec) else getattr(model, "base", None)
    if not isinstance(own, ServedGemiRec):
        return np.empty((count, 0), np.int32), ()
    sizes = tuple(own.dictionary.sizes)
    code_NC = np.full((count, len(sizes)), -1, np.int32)
    known_NC = unflatten(own.item_interests()[1:], sizes).numpy()
    code_NC[: len(known_NC)] = known_NC
    return code_NC, sizes
