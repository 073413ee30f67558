"""From a block of users to ranked lists: what :mod:`~gemirec.evaluation.evaluate` and the planted scores share.

Axes: B users of a block, L window length, K interests, D embedding, R places of one interest's list, N places of the
merged list, E places behind it, X candidates (``item_ND``: items, row 0 is padding; ``category_I``: likewise).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gemirec.errors import DataError
from gemirec.models.base import Histories
from gemirec.retrieval.merge import Merged, merge
from gemirec.retrieval.retrieve import merged_as, needed_weights, retrieve_lists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gemirec.config import MergeConfig
    from gemirec.data.batches import EvalWindows
    from gemirec.data.dataset import Dataset
    from gemirec.models.base import Interests, RetrievalModel
    from gemirec.retrieval.index import ExactIndex

TIE_PLACES = 8
"""Places behind the longest list that are looked at, to see the items that tie with it."""


@dataclass(frozen=True)
class Ranked:
    """One block of users, searched once.

    Attributes:
        interests: What the model said of B users; interests that cannot be searched are masked out.
        id_BKR: ``[B, K, R]`` int64, the list of each interest; -1 for missing places and absent interests.
        score_BKR: ``[B, K, R]`` float32, their scores; -inf likewise.
        merged: The list of each user: as :func:`rank_block` makes it by best score, N = R places.
    """

    interests: Interests
    id_BKR: Tensor
    score_BKR: Tensor
    merged: Merged


@contextmanager
def serving(model: RetrievalModel, device: torch.device | str | None) -> Iterator[torch.device]:
    """Put the model into ``eval`` mode on ``device`` without gradient; put everything back afterwards."""
    tensor = next((t for source in (model.parameters(), model.buffers()) for t in source), None)
    home = tensor.device if tensor is not None else torch.device("cpu")
    place = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        if place != home:
            model.to(place)
        model.eval()
        with torch.no_grad():
            yield place
    finally:
        for module, training in modes:
            module.training = training
        if place != home:
            model.to(home)


def catalogue(model: RetrievalModel, dataset: Dataset) -> Tensor:
    """Return all item vectors, padding row included.

    Raises:
        DataError: The model and the dataset have different catalogues.
    """
    item_ND = model.item_vectors()
    if len(item_ND) != dataset.num_items + 1:
        raise DataError(
            "the model and the dataset have different catalogues",
            got=f"{len(item_ND) - 1} items in the model, {dataset.num_items} in {dataset.path}",
            fix="evaluate on the dataset that the model was trained on",
        )
    return item_ND


def rank_block(
    model: RetrievalModel,
    index: ExactIndex,
    windows: EvalWindows,
    n: int,
    place: torch.device,
    *,
    exclude_seen: bool = False,
    item_chunk: int = 65_536,
) -> Ranked:
    """Return the lists of one block of users, ``n`` items for each interest and for each user."""
    histories = Histories(windows.item_BL, windows.user_categorical_BF, windows.user_numeric_BG).to(place)
    interests = _readable(model.interests(histories), histories)
    id_BKR, score_BKR = retrieve_lists(
        interests,
        index,
        n,
        seen_E=windows.seen_E.to(place) if exclude_seen else None,
        seen_offset_B1=windows.seen_offset_B1.to(place) if exclude_seen else None,
        item_chunk=item_chunk,
    )
    merged = merge(id_BKR, score_BKR, n, mask_BK=interests.mask_BK.to(id_BKR.device))
    return Ranked(interests, id_BKR, score_BKR, merged)


def served(ranked: Ranked, n: int, how: MergeConfig, category_I: Tensor | None) -> Ranked:
    """Return the block with the lists of ``n`` items that serving makes, and :data:`TIE_PLACES` others behind them.

    Args:
        ranked: The block, with at least :func:`~gemirec.retrieval.retrieve.searched` places and the tie places.
        n: Length of the lists.
        how: How they are merged.
        category_I: ``[I]`` category of every item, for ``diverse``.

    Raises:
        ConfigError: The merge needs categories or weights that are not there, or names too many interests.
    """
    if how.kind == "max":
        return replace(ranked, merged=ranked.merged.first(n + TIE_PLACES))
    lists, mask_BK = (ranked.id_BKR, ranked.score_BKR), ranked.interests.mask_BK.to(ranked.id_BKR.device)
    chosen = merged_as(how, ranked.interests, *lists, n, category_I, best=ranked.merged)
    # under a quota any interest's items can be chosen, so that any can be tied with
    if how.kind == "weighted":
        weight_BK = needed_weights(ranked.interests, "a weighted merge", "max")
        others = merge(*lists, lists[0][0].numel(), mask_BK=mask_BK, kind="weighted", weight_BK=weight_BK)
    else:
        others = ranked.merged if how.kind == "diverse" else merge(*lists, lists[0][0].numel(), mask_BK=mask_BK)
    return replace(ranked, merged=_with_others(chosen, others))


def _with_others(chosen: Merged, others: Merged) -> Merged:
    """Put :data:`TIE_PLACES` of the others behind the chosen: those that tie with a chosen one first, best first."""
    same_BXN = others.id_BN[:, :, None] == chosen.id_BN[:, None, :]
    tied_BX = (others.score_BN[:, :, None] == chosen.score_BN[:, None, :]).any(dim=2)
    out_BX = same_BXN.any(dim=2) | (others.id_BN < 0)
    order_BX = (2 * out_BX.to(torch.int8) + (~tied_BX).to(torch.int8)).argsort(dim=1, stable=True)
    ends = others.take(order_BX[:, :TIE_PLACES])
    gone_BE = out_BX.gather(1, order_BX[:, :TIE_PLACES])

    def joined(own_BN: Tensor, more_BE: Tensor, missing: float) -> Tensor:
        return torch.cat([own_BN, more_BE.masked_fill(gone_BE, missing)], dim=1)

    return Merged(
        joined(chosen.id_BN, ends.id_BN, -1),
        joined(chosen.score_BN, ends.score_BN, float("-inf")),
        joined(chosen.interest_BN, ends.interest_BN, -1),
        joined(chosen.rank_BN, ends.rank_BN, -1),
    )


def _readable(interests: Interests, histories: Histories) -> Interests:
    """Take away the interests of users without history that are not finite: attention over nothing gives NaN."""
    empty_B = histories.length_B == 0
    if not bool(empty_B.any()):
        return interests
    broken_BK = empty_B[:, None] & ~torch.isfinite(interests.vector_BKD).all(dim=2)
    return replace(interests, mask_BK=interests.mask_BK & ~broken_BK)
