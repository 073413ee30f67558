"""Vectors for items without interactions: a ridge regression from side features to the trained items' vectors.

A trained item has a vector e_i as it is served and side features x_i (:mod:`gemirec.retrieval.item_features`). With
weights ``w_i = n_i / (n_i + half_count)`` for its n_i training events (0 at none: such a vector is still the random one
that training began with) the closed form is::

    B = (X' W X + strength I)^-1 X' W E        X, E less their weighted means x, e
    e(new) = e + B' (x(new) - x)

The intercept is not penalised. An item of which nothing is known gets the mean vector e. With categories alone, equally
large and w = 1, a category of n items lies n / (n + strength) of the way from the mean to the category's own mean. Sums
are taken block by block, so memory is that of a block and of F^2 numbers.

A prediction is shorter than a trained vector, by as much as features leave open, and inner products would hide new
items behind trained ones; so it is stretched to the length of trained vectors (``length``, ``boost``). A new item
stands behind the model's last one. No model can read it in a history, because no model was trained on it: there its
*stand-in* is read, the trained item with the largest cosine. Coordinates behind the model's own width (cells,
:mod:`gemirec.components.cells`) are the stand-in's.

The method is content-based cold start by linear maps (Gantner et al. 2010, "Learning attribute-to-feature mappings for
cold-start recommendations", least squares in place of BPR).

Axes: N items of the model (row 0 is padding), C new items, X items of a block, F features (G: and the intercept),
D embedding, E events.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta
from torch.nn import functional as F

from gemirec.errors import ArtifactError, DataError
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.item_features import Columns, ItemFeatureConfig, ItemFeatures, shared_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import polars as pl
    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger("gemirec")

_BLOCK = 1024
"""Items whose features are held at once."""


class ColdStartConfig(ItemFeatureConfig, frozen=True, kw_only=True):
    """How items without interactions get a vector."""

    strength: Annotated[float, Meta(gt=0)] = 3.0
    """Ridge penalty, in items: a category of so many items is believed half."""
    half_count: Annotated[float, Meta(ge=0)] = 5.0
    """Training events at which a trained item weighs half of one with many; 0 weighs all the same."""
    length: Literal["features", "mean"] = "features"
    """Length of a new vector: what the same regression says of the lengths, or the trained items' mean. Equal where
    the model normalises its vectors."""
    boost: Annotated[float, Meta(gt=0)] = 1.0
    """Factor on that length: below 1 new items are retrieved less, above 1 more, in place of trained ones."""
    existing: Literal["refuse", "skip"] = "refuse"
    """What happens to items that the model was trained on: an error, or they keep their vector."""


@dataclass(frozen=True)
class Ridge:
    """A linear map with an intercept.

    Attributes:
        weight_FD: float64.
        intercept_D: What it says of features of 0.
        mean_D: Weighted mean of the targets that it was learnt from.
    """

    weight_FD: NDArray[np.float64]
    intercept_D: NDArray[np.float64]
    mean_D: NDArray[np.float64]

    def __call__(self, x_XF: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``[X, D]`` predictions."""
        predicted: NDArray[np.float64] = x_XF @ self.weight_FD + self.intercept_D
        return predicted


Block = tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]"]


def fit_ridge(blocks: Iterable[Block], strength: float) -> Ridge:
    """Solve the weighted ridge regression of the module docstring.

    Args:
        blocks: ``([X, F] features, [X, D] targets, [X] weights)``, float64; weights not all 0.
        strength: Penalty, above 0.

    Example:
        >>> x, y = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.0], [0.0], [1.0], [1.0]])
        >>> fit_ridge([(x, y, np.ones(4))], strength=1.0)(np.array([[0.0], [1.0]])).round(9).tolist()
        [[0.25], [0.75]]
    """
    left, right = np.zeros((1, 1)), np.zeros((1, 1))
    for x_XF, y_XD, w_X in blocks:
        one_XG = np.column_stack([x_XF, np.ones(len(x_XF))])  # the last feature is the intercept
        weighted_GX = (one_XG * w_X[:, None]).T
        left, right = left + weighted_GX @ one_XG, right + weighted_GX @ y_XD
    mean_D = right[-1] / left[-1, -1]
    left[np.diag_indices(len(left) - 1)] += strength
    solved_GD: NDArray[Any] = np.linalg.solve(left, right)
    return Ridge(solved_GD[:-1], solved_GD[-1], mean_D)


@dataclass(frozen=True)
class ColdItems:
    """Items without interactions and what is served of them.

    Attributes:
        index_C: ``[C]`` int64 item indices, ascending: items behind the model's last one, or its own untrained ones.
        vector_CD: ``[C, D]`` float32, as served.
        stand_in_C: ``[C]`` int64, the trained item that is read in its place in a history.
    """

    index_C: Tensor
    vector_CD: Tensor
    stand_in_C: Tensor

    def served(self, item_ND: Tensor) -> Tensor:
        """Return the model's item vectors, padding row included, with these in their places."""
        size = max(len(item_ND), int(self.index_C[-1]) + 1)
        out_ND = item_ND.new_zeros(size, item_ND.shape[1])
        out_ND[: len(item_ND)] = item_ND.detach()
        out_ND[self.index_C] = self.vector_CD.to(item_ND)
        return out_ND

    def read(self, item_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return item indices as the model may read them: each of these items as its stand-in.

        Example:
            >>> cold = ColdItems(torch.tensor([4, 5]), torch.zeros(2, 8), torch.tensor([1, 3]))
            >>> cold.read(np.array([5, 2, 4])).tolist()
            [3, 2, 1]
        """
        index_C = self.index_C.numpy()
        place_E = np.searchsorted(index_C, item_E).clip(max=len(index_C) - 1)
        return np.where(index_C[place_E] == item_E, self.stand_in_C.numpy()[place_E], item_E)

    def merged(self, newer: ColdItems) -> ColdItems:
        """Return both; where an item is in both, as ``newer`` has it."""
        keep_C = ~torch.isin(self.index_C, newer.index_C)
        index_C, order_C = torch.cat([self.index_C[keep_C], newer.index_C]).sort()
        vector_CD = torch.cat([self.vector_CD[keep_C], newer.vector_CD])[order_C]
        return ColdItems(index_C, vector_CD, torch.cat([self.stand_in_C[keep_C], newer.stand_in_C])[order_C])

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written to a file."""
        return {"index": self.index_C, "vector": self.vector_CD, "stand_in": self.stand_in_C}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], *, width: int, trained: int, items: int) -> ColdItems:
        """Build from :meth:`tensors`, checked against a model of ``trained`` items and ``width``, ``items`` in all.

        Raises:
            ArtifactError: They do not fit.
        """
        try:
            index_C, vector_CD, stand_in_C = (tensors[name] for name in ("index", "vector", "stand_in"))
            fits = len(index_C) == len(vector_CD) == len(stand_in_C) > 0 and vector_CD.shape[1:] == (width,)
            fits = fits and bool((index_C.diff() > 0).all()) and int(index_C[0]) > 0 and int(index_C[-1]) <= items
            fits = fits and int((index_C > trained).sum()) == items - trained
            fits = fits and int(stand_in_C.min()) > 0 and int(stand_in_C.max()) <= trained
        except KeyError:
            fits = False
        if not fits:
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            raise ArtifactError(
                "the new items do not fit the model",
                got=f"{shapes} for {trained} items of width {width} and {items - trained} more",
                fix="add them again to the artifact without them",
            )
        return cls(index_C, vector_CD.float(), stand_in_C)


def cold_items(
    item_ND: Tensor,
    width: int,
    known: pl.DataFrame,
    count_N: NDArray[np.int64],
    new: pl.DataFrame,
    index_C: NDArray[np.int64],
    config: ColdStartConfig,
) -> ColdItems:
    """Give new items a vector and a stand-in.

    Args:
        item_ND: ``[N + 1, D]`` float32, the model's item vectors as served.
        width: Coordinates that are the vector itself; those behind are cells.
        known: ``[N]`` rows, side features of the model's items.
        count_N: ``[N + 1]`` training events of each.
        new: ``[C]`` rows, side features of the new items.
        index_C: ``[C]`` distinct item indices that they shall have.
        config: How.

    Raises:
        ConfigError: A column is missing.
        DataError: A column is of the wrong kind, no item was trained, or nothing is known of any new item.
    """
    trained = np.flatnonzero(count_N[1:] > 0)
    if not len(trained):
        raise DataError("no item has training events", got=f"{len(count_N) - 1} items", fix="train on another log")
    columns = shared_columns(known, new, config)
    learnt_from = known[trained]
    features = ItemFeatures(learnt_from, columns, config)
    item_ND = item_ND.detach().cpu().float()
    target_ND = item_ND[trained + 1, :width].double().numpy()
    length_N = np.linalg.norm(target_ND, axis=1)
    both_N = np.column_stack([target_ND, length_N])
    weight_N = count_N[trained + 1] / (count_N[trained + 1] + config.half_count)
    parts = _blocks(len(trained))
    ridge = fit_ridge(((features(learnt_from[part]), both_N[part], weight_N[part]) for part in parts), config.strength)
    said_C = _predicted(ridge, features, new, columns)
    length_C = np.full(new.height, np.average(length_N, weights=weight_N))
    if config.length == "features":
        length_C = said_C[:, -1].clip(length_N.min(), length_N.max())
    direction_CD = F.normalize(torch.from_numpy(said_C[:, :-1]), dim=1)
    length_C1 = torch.from_numpy(config.boost * length_C)[:, None]
    nearest = ExactIndex(F.normalize(item_ND[:, :width], dim=1)).restrict(torch.from_numpy(trained + 1))
    query_CD = direction_CD.float()
    stand_in_C = torch.cat([nearest.search(query_CD[part], 1)[0][:, 0] for part in _blocks(len(query_CD))])
    vector_CD = torch.cat([(direction_CD * length_C1).float(), item_ND[stand_in_C, width:]], dim=1)
    sorted_C, order_C = torch.from_numpy(index_C).sort()
    return ColdItems(sorted_C, vector_CD[order_C], stand_in_C[order_C])


def _blocks(items: int) -> Iterator[slice]:
    """Cut ``items`` rows into blocks."""
    return (slice(at, at + _BLOCK) for at in range(0, items, _BLOCK))


def _predicted(ridge: Ridge, features: ItemFeatures, new: pl.DataFrame, columns: Columns) -> NDArray[np.float64]:
    """Return ``[C, D + 1]`` what the ridge says of new items, the mean where nothing is known; say how many."""
    found, known = [], 0
    for part in _blocks(new.height):
        x_XF = features(new[part])
        known_X = (x_XF != 0).max(axis=1)
        found.append(np.where(known_X[:, None], ridge(x_XF), ridge.mean_D))
        known += int(known_X.sum())
    if not known:
        names = [name for kind in columns for name in kind]
        raise DataError(
            "nothing that is said of the new items is said of a trained item too",
            got=f"columns {', '.join(names)}, for example {new.select(names).head(1).to_dicts()}",
            fix="give features in the words of the known items, or name other columns",
        )
    if known < new.height:
        missing = new.height - known
        logger.warning(
            "%d of %d new items share no feature with a trained item: they get the mean", missing, new.height
        )
    return np.concatenate(found)
