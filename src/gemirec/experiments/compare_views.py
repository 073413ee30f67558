"""Looks at one trained model: fewer of its interests, more diverse lists, and how alike its interests are.

Nothing is trained. A model served with its first k interests is not a model that was trained with k: the sweep says how
much of what it learned lies in how many of its vectors, no more.

Axes: B users of a block, K interests, D embedding, N places of a list.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from gemirec.config import MergeConfig
from gemirec.data.batches import evaluation_batches
from gemirec.evaluation.collapse import unit_interests
from gemirec.evaluation.evaluate import evaluate
from gemirec.evaluation.ranking import TIE_PLACES, catalogue, rank_block, served, serving
from gemirec.evaluation.table import BlockTable
from gemirec.models.base import Histories, Interests, LossTerms, RetrievalModel, TrainBatch
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import searched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gemirec.config import EvaluationConfig
    from gemirec.data.batches import EvalWindows
    from gemirec.data.dataset import Dataset
    from gemirec.experiments.watch import Watcher

USERS = 5000
"""Most users that a look is over: a fixed part of the split."""
STRENGTHS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""ComiRec's lambda, in units of the mean gap between a list's first and last score: models' own units differ."""


def views(model: RetrievalModel, dataset: Dataset, config: EvaluationConfig, watcher: Watcher) -> dict[str, Any]:
    """Look at a trained model from three sides.

    Args:
        model: The model.
        dataset: The data that it was trained on.
        config: What the comparison measures; at most :data:`USERS` users are taken.
        watcher: Shows progress.

    Returns:
        ``users``; ``cosine_KK`` (:func:`similarity`); ``first_k``: rows of metrics with the first k interests, k the
        powers of two below K and K itself, none for a single interest; ``trade_off`` (:func:`trade_off`).
    """
    few = msgspec.structs.replace(config, users=USERS, bootstrap=0)
    watcher.note("  first interests, diversity, similarity")
    cosine_KK = similarity(model, dataset, few)
    count = len(cosine_KK)
    sizes = sorted({2**power for power in range(count.bit_length()) if 2**power < count} | {count})
    wanted = [f"{name}@{max(few.top_n)}" for name in ("recall", "ndcg", "exclusive", "diversity", "cur")]
    first_k = []
    for k in sizes if count > 1 else []:
        found = evaluate(FirstInterests(model, k), dataset, few).metrics
        first_k.append({"k": k, **{name: found.get(name) for name in wanted}})
    users = min(len(dataset.users_in(few.split)), USERS)
    return {"users": users, "cosine_KK": cosine_KK, "first_k": first_k, "trade_off": trade_off(model, dataset, few)}


class FirstInterests(RetrievalModel):
    """A trained model of which only the first ``k`` existing interests of each user are served.

    Args:
        model: The trained model; shared, not copied.
        k: Interests kept.
    """

    def __init__(self, model: RetrievalModel, k: int) -> None:
        super().__init__(model.config, model.spec)
        self.model, self.k = model, k

    @property
    def max_length(self) -> int:
        """Most recent events that the model reads."""
        return self.model.max_length

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return the model's item vectors."""
        return self.model.item_vectors(item_ids)

    def interests(self, histories: Histories) -> Interests:
        """Return the model's interests, all but the first ``k`` masked out."""
        found = self.model.interests(histories)
        return replace(found, mask_BK=found.mask_BK & (found.mask_BK.cumsum(dim=1) <= self.k))

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the model's losses."""
        return self.model.losses(batch, stage)


def similarity(model: RetrievalModel, dataset: Dataset, config: EvaluationConfig) -> list[list[float | None]]:
    """Return the mean cosine of every pair of interests over users with a history, ``[K][K]``.

    An entry is over the users that have both interests; ``None`` if nobody has.

    Args:
        model: The model.
        dataset: Whose held-out users are taken.
        config: Split, block size and most users.
    """
    sum_KK, count_KK = np.zeros(1), np.zeros(1)
    with serving(model, None) as place:
        for windows in _windows(model, dataset, config):
            histories = Histories(windows.item_BL, windows.user_categorical_BF, windows.user_numeric_BG).to(place)
            interests = model.interests(histories)
            mask_BK = (interests.mask_BK & (histories.length_B > 0)[:, None]).cpu().numpy()
            unit_BKD = unit_interests(interests.vector_BKD.float().cpu().numpy(), mask_BK)
            both_BKK = mask_BK[:, :, None] & mask_BK[:, None, :]
            cosine_BKK = np.where(both_BKK, unit_BKD @ unit_BKD.transpose(0, 2, 1), 0.0)
            sum_KK, count_KK = sum_KK + cosine_BKK.sum(axis=0), count_KK + both_BKK.sum(axis=0)
    mean_KK = np.divide(sum_KK, count_KK, out=np.full(sum_KK.shape, np.nan), where=count_KK > 0)
    return [[None if np.isnan(value) else float(value) for value in row] for row in mean_KK]


def trade_off(model: RetrievalModel, dataset: Dataset, config: EvaluationConfig) -> list[dict[str, float]]:
    """Trade recall for diversity of categories by ComiRec's greedy aggregation, for several lambdas.

    Args:
        model: The model.
        dataset: Whose held-out users are ranked.
        config: Split, list lengths, seen items, block size and most users.

    Returns:
        Per lambda ``strength`` (:data:`STRENGTHS`), ``lambda`` in the unit of the model's scores, ``recall@n``,
        ``ndcg@n`` and ``diversity@n`` at the longest list: what an evaluation with ``merge.kind=diverse`` and
        ``merge.diversity=lambda`` measures. Nothing for data without categories.

    Reference:
        ComiRec, arXiv 2005.09347, section 3.4. Difference: the candidates are the best items over all interests, as
        many for every model (``merge.pool`` lengths of the list), and not the K lists of n.
    """
    category_N = dataset.spec().category_N
    if category_N is None:
        return []
    category_I, n, how = torch.as_tensor(category_N), max(config.top_n), MergeConfig(kind="diverse")
    tables = [BlockTable(dataset, (n,)) for _ in STRENGTHS]
    unit = 0.0
    with serving(model, None) as place:
        index, depth = ExactIndex(catalogue(model, dataset)), searched(how, n) + TIE_PLACES
        for windows in _windows(model, dataset, config):
            ranked = rank_block(
                model, index, windows, depth, place, exclude_seen=config.exclude_seen, item_chunk=config.item_chunk
            )
            unit = unit or _gap(ranked.merged.score_BN[:, :n])
            for table, strength in zip(tables, STRENGTHS, strict=True):
                stronger = msgspec.structs.replace(how, diversity=strength * unit)
                table.add(windows, [((n,), served(ranked, n, stronger, category_I), {})])
    wanted = [f"{name}@{n}" for name in ("recall", "ndcg", "diversity")]
    rows = []
    for table, strength in zip(tables, STRENGTHS, strict=True):
        found = table.means()
        kept = {name: found[name] for name in wanted if name in found}
        rows.append({"strength": strength, "lambda": strength * unit, **kept})
    return rows


def _gap(score_BN: Tensor) -> float:
    """Return the mean over users of the first score minus the last one that is there; 0 without any."""
    there_BN = torch.isfinite(score_BN)
    last_B = score_BN.masked_fill(~there_BN, float("inf")).amin(dim=1)
    gap_B = (score_BN[:, 0] - last_B)[there_BN.any(dim=1)]
    return float(gap_B.mean()) if len(gap_B) else 0.0


def _windows(model: RetrievalModel, dataset: Dataset, config: EvaluationConfig) -> Iterator[EvalWindows]:
    """Return the users of a look in blocks: at most ``config.users``, evenly spaced."""
    users_U = dataset.users_in(config.split)
    step = -(-len(users_U) // config.users)
    return evaluation_batches(
        dataset, config.split, batch_size=config.batch_size, max_length=model.max_length, users=users_U[::step]
    )
