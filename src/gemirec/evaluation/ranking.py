"""From a block of users to ranked lists: what :mod:`~gemirec.evaluation.evaluate` and the planted scores share.

Axes: B users of a block, L window length, K interests, D embedding, R places of one interest's list, N places of the
merged list (``item_ND``: items, row 0 is padding).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gemirec.errors import DataError
from gemirec.models.base import Histories
from gemirec.retrieval.merge import Merged, merge
from gemirec.retrieval.retrieve import retrieve_lists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gemirec.data.batches import EvalWindows
    from gemirec.data.dataset import Dataset
    from gemirec.models.base import Interests, RetrievalModel
    from gemirec.retrieval.index import ExactIndex


@dataclass(frozen=True)
class Ranked:
    """One block of users, searched once.

    Attributes:
        interests: What the model said of B users; interests that cannot be searched are masked out.
        id_BKR: ``[B, K, R]`` int64, the list of each interest; -1 for missing places and absent interests.
        merged: The list of each user, N = R places.
    """

    interests: Interests
    id_BKR: Tensor
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
    return Ranked(interests, id_BKR, merge(id_BKR, score_BKR, n, mask_BK=interests.mask_BK.to(id_BKR.device)))


def _readable(interests: Interests, histories: Histories) -> Interests:
    """Take away the interests of users without history that are not finite: attention over nothing gives NaN."""
    empty_B = histories.length_B == 0
    if not bool(empty_B.any()):
        return interests
    broken_BK = empty_B[:, None] & ~torch.isfinite(interests.vector_BKD).all(dim=2)
    return replace(interests, mask_BK=interests.mask_BK & ~broken_BK)
