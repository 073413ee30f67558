"""Why a user has an interest, and what it brings: shares, forming items, telling categories and words, retrieved items.

Axes: B users, K interests, L history length, N items (row 0 is padding), E events of all users, G groups (categories or
words), X listed items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from gemirec.data.batches import pad_histories
from gemirec.retrieval.retrieve import retrieve_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from gemirec.models.base import Histories, Interests, RetrievalModel
    from gemirec.recommender.histories import Encoded
    from gemirec.recommender.search import Searcher

_LEAST_LISTED = 2
"""Items of an interest that must share a word or category before it is called telling."""


def attributions(model: RetrievalModel, histories: Histories, interests: Interests) -> tuple[NDArray[Any], str]:
    """Return how much each item of a history forms each interest, ``[B, K, L]``, and where the numbers come from.

    The model's own weights (:meth:`~gemirec.models.base.RetrievalModel.attribution`) where it has any. Otherwise
    nearness: the softmax, over the history, of ten times the cosine between item and interest.
    """
    with torch.no_grad():
        own_BKL = model.attribution(histories)
        if own_BKL is not None:
            return own_BKL.cpu().numpy(), "model"
        item_BLD: Tensor = F.normalize(model.item_vectors(histories.item_BL), dim=2)
        nearness_BKL = F.normalize(interests.vector_BKD, dim=2) @ item_BLD.transpose(1, 2)
        nearness_BKL = (10 * nearness_BKL).masked_fill(~histories.mask_BL[:, None], -torch.inf)
        return torch.softmax(nearness_BKL, dim=2).nan_to_num(0.0).cpu().numpy(), "nearness"


def history_shares(weight_BKL: NDArray[Any], mask_BL: NDArray[np.bool_], mask_BK: NDArray[np.bool_]) -> NDArray[Any]:
    """Return ``[B, K]`` the share of the history that belongs to each interest; shares of a user sum to 1.

    An event is divided among the interests that exist in proportion to their weights on it.

    Example:
        >>> weight = np.array([[[0.9, 0.1], [0.3, 0.7]]])
        >>> history_shares(weight, np.ones((1, 2), bool), np.ones((1, 2), bool)).tolist()
        [[0.4375, 0.5625]]
    """
    weight_BKL = np.where(mask_BK[:, :, None] & mask_BL[:, None], weight_BKL, 0.0)
    total_B1L = weight_BKL.sum(axis=1, keepdims=True)
    even_BKL = np.broadcast_to(
        mask_BK[:, :, None] / np.maximum(mask_BK.sum(axis=1), 1)[:, None, None], weight_BKL.shape
    )
    part_BKL = np.where(total_B1L > 0, weight_BKL / np.where(total_B1L > 0, total_B1L, 1.0), even_BKL)
    part_BKL = part_BKL * mask_BL[:, None]
    share_BK: NDArray[Any] = part_BKL.sum(axis=2) / np.maximum(mask_BL.sum(axis=1), 1)[:, None]
    return share_BK


class Words:
    """The categories and title words of a catalogue, and how common each is among the training events.

    Args:
        items: The item table; ``category`` and ``title`` are used where they are there.
        count_N: ``[N + 1]`` training events of each item.
    """

    def __init__(self, items: pl.DataFrame, count_N: NDArray[np.int64]) -> None:
        pairs = []
        row = pl.int_range(1, items.height + 1, dtype=pl.Int64).alias("item")
        if "category" in items.columns:
            pairs.append(items.select(row, word=pl.col("category").cast(pl.String)))
        if "title" in items.columns:
            words = pl.col("title").cast(pl.String).str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]{3,}")
            pairs.append(items.select(row, word=words).explode("word"))
        empty = pl.DataFrame(schema={"item": pl.Int64, "word": pl.String})
        self.pairs = pl.concat(pairs).drop_nulls().unique(maintain_order=True) if pairs else empty
        total = max(1, int(count_N.sum()))
        events = self.pairs.with_columns(events=pl.Series(count_N[self.pairs["item"].to_numpy()] / total))
        self.common = events.group_by("word").agg(common=pl.col("events").sum())

    def telling(self, listed: pl.DataFrame, most: int) -> pl.DataFrame:
        """Return the most over-represented words of each group of items.

        Args:
            listed: ``group`` and ``item`` (index), distinct.
            most: Words per group.

        Returns:
            ``group`` and ``words``, a list of structs ``word``, ``lift`` (share of the group's items that have it over
            the share of all training events whose item has it) and ``share``. A word counts from two items on. Ordered
            by the information that the word's items give, ``share x log(lift)``.
        """
        size = listed.group_by("group").agg(size=pl.len())
        counted = listed.join(self.pairs, on="item").group_by("group", "word").agg(items=pl.len())
        found = counted.filter(pl.col("items") >= _LEAST_LISTED).join(size, on="group").join(self.common, on="word")
        found = found.with_columns(share=pl.col("items") / pl.col("size"))
        found = found.with_columns(lift=pl.col("share") / pl.col("common").clip(1e-9))
        found = found.filter(pl.col("lift") > 1).with_columns(gain=pl.col("share") * pl.col("lift").log())
        found = found.sort("group", "gain", "word", descending=[False, True, False])
        return found.group_by("group", maintain_order=True).agg(words=pl.struct("word", "lift", "share").head(most))


def explained(
    searcher: Searcher, words: Words, asked: Encoded, *, items: int, history_items: int, most_words: int
) -> pl.DataFrame:
    """Return the table of :meth:`gemirec.recommender.face.Recommender.explain` for one block of users."""
    asked = asked.with_known_items()
    histories, catalog = searcher.windows(asked), searcher.catalog
    with torch.no_grad():
        found = searcher.model.interests(histories)
    weight_BKL, source = attributions(searcher.model, histories, found)
    mask_BL, mask_BK = histories.mask_BL.numpy(), found.mask_BK.numpy()
    row_X, interest_X = np.nonzero(mask_BK)
    id_BKR, _ = retrieve_lists(found, searcher.index, min(items, len(catalog)))
    listed_XR = id_BKR.numpy()[mask_BK]
    group_XR = np.broadcast_to(np.arange(len(row_X))[:, None], listed_XR.shape)
    listed = pl.DataFrame({"group": group_XR[listed_XR > 0], "item": listed_XR[listed_XR > 0]})
    telling = words.telling(listed, most_words)
    # the history's items that form each interest, most first
    weight_XL = np.where(mask_BL[row_X], weight_BKL[row_X, interest_X], -1.0)
    best_XP = np.argsort(-weight_XL, axis=1, kind="stable")[:, :history_items]
    part_XP = np.take_along_axis(weight_XL, best_XP, axis=1)
    item_BL = pad_histories(asked.item_E, asked.offset_B1, searcher.model.max_length).numpy()  # not their stand-ins
    forming_XP = np.where(part_XP >= 0, np.take_along_axis(item_BL[row_X], best_XP, axis=1), -1)
    parts = [row[row >= 0].tolist() for row in part_XP.astype(np.float64)]
    weight = [None] * len(row_X) if found.weight_BK is None else found.weight_BK.numpy()[mask_BK]
    table = pl.DataFrame(
        {
            "group": np.arange(len(row_X)),
            "user_id": asked.label.gather(row_X),
            "interest": interest_X.astype(np.int32),
            "weight": pl.Series(weight, dtype=pl.Float32),
            "history_share": history_shares(weight_BKL, mask_BL, mask_BK)[mask_BK],
            "history": searcher.lists(forming_XP),
            "history_weights": pl.Series(parts, dtype=pl.List(pl.Float64)),
            "weights_from": pl.Series([source] * len(row_X), dtype=pl.String),
            "items": searcher.lists(listed_XR),
        }
    )
    no_words = pl.lit([], dtype=telling.schema["words"])
    joined = table.join(telling, on="group", how="left", maintain_order="left").drop("group")
    return joined.with_columns(words=pl.col("words").fill_null(no_words))
