"""From tensors to the structs of an answer.

Axes: G users of a part of a batch, K interests, R places of a list, N places of the merged list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.serving import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from gemirec.models.base import Interests
    from gemirec.recommender.catalog import Catalog
    from gemirec.retrieval.merge import Merged
    from gemirec.serving.batch_search import Batch


class AnswerWriter:
    """Writes answers with the caller's item ids.

    Args:
        catalog: The items.
        item_ids: Row r is the id of item index r + 1.
        version: Which model answers.
        fallback: What a user of whom no item is known gets.
    """

    def __init__(self, catalog: Catalog, item_ids: Sequence[int | str], version: str, fallback: str) -> None:
        self._ids = item_ids
        self._version = version
        self._fallback = fallback
        self._popular = catalog.most_popular
        self._count_N = catalog.count_N

    def about(self, batch: Batch, row: int) -> dict[str, Any]:
        """Return what every answer about a user says."""
        return {
            "user_id": batch.requests[row].user_id,
            "source": "model" if batch.from_model(row) else self._fallback,
            "cache": batch.cache[row],
            "skipped": int(batch.asked.skipped_B[row]),
            "version": self._version,
        }

    def merged(self, merged: Merged, row: int) -> list[wire.RecommendedItem]:
        """Return one user's merged list."""
        parts = (merged.id_BN[row], merged.score_BN[row], merged.interest_BN[row], merged.rank_BN[row])
        places = zip(*(part.tolist() for part in parts), strict=True)
        return [
            wire.RecommendedItem(
                item_id=self._ids[index - 1], rank=rank, score=score, interest=interest, interest_rank=place + 1
            )
            for rank, (index, score, interest, place) in enumerate(places, 1)
            if index > 0
        ]

    def popular(self, k: int, allow_ids: Tensor | None) -> list[wire.RecommendedItem]:
        """Return the most popular items, or none if the fallback is none."""
        popular = self._popular if self._fallback == "popularity" else self._popular[:0]
        if allow_ids is not None:
            popular = popular[np.isin(popular, allow_ids.numpy())]
        return [
            wire.RecommendedItem(
                item_id=self._ids[index - 1],
                rank=rank,
                score=float(self._count_N[index]),
                interest=None,
                interest_rank=None,
            )
            for rank, index in enumerate(popular[:k].tolist(), 1)
        ]

    def interests(
        self, found: Interests, row: int, id_GKR: Tensor, score_GKR: Tensor, items: int, *, vectors: bool = False
    ) -> list[wire.InterestList]:
        """Return one user's interests, each with ``items`` items of its own list."""
        out = []
        for interest in found.mask_BK[row].nonzero()[:, 0].tolist():
            ids, scores = (part[row, interest, :items].tolist() for part in (id_GKR, score_GKR))
            out.append(
                wire.InterestList(
                    interest=interest,
                    weight=None if found.weight_BK is None else float(found.weight_BK[row, interest]),
                    codes=None if found.code_BKC is None else found.code_BKC[row, interest].tolist(),
                    vector=found.vector_BKD[row, interest].tolist() if vectors else None,
                    items=[
                        wire.ListedItem(item_id=self._ids[index - 1], score=score)
                        for index, score in zip(ids, scores, strict=True)
                        if index > 0
                    ],
                )
            )
        return out


def explained_interest(row: dict[str, Any]) -> wire.ExplainedInterest:
    """Return a row of :meth:`~gemirec.recommender.Recommender.explain` as a struct."""
    forming = zip(row["history"] or [], row["history_weights"] or [], strict=True)
    return wire.ExplainedInterest(
        interest=row["interest"],
        weight=row["weight"],
        history_share=row["history_share"],
        history=[wire.FormingItem(item_id=item, weight=weight) for item, weight in forming],
        weights_from=row["weights_from"],
        items=row["items"] or [],
        words=[wire.TellingWord(**word) for word in row["words"]],
    )
