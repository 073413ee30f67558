"""A batch of requests on its way: histories, interests, and each interest's own list.

Axes: B users of a batch, K interests, R places of a list, G users of a part of the batch.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gemirec.errors import GemirecError, RetrievalError
from gemirec.models.base import Interests
from gemirec.retrieval.retrieve import retrieve_lists

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from torch import Tensor

    from gemirec.recommender.histories import Encoded
    from gemirec.recommender.search import Searcher
    from gemirec.serving import wire
    from gemirec.serving.interest_source import InterestSource
    from gemirec.serving.metrics import Metrics
    from gemirec.serving.users import Users

    ListsRequest = wire.RecommendRequest | wire.InterestsRequest

SHORT_LISTS = 256
"""Requests for lists up to this length are searched together; longer ones apart, lest all pay for the longest."""
Answers = list[Any]
"""An answer or an error for each request of a batch."""


@dataclass(frozen=True)
class Batch:
    """Requests and what is known of their users.

    Attributes:
        requests: As they came.
        asked: Their histories.
        known: Places of those with a known item.
        found: Their interests, in the order of ``known``; ``None`` if there are none.
        cache: Outcome of the interest cache for each request.
        fallen: Places of those that get the fallback because the index is away.
    """

    requests: Sequence[Any]
    asked: Encoded
    known: list[int]
    found: Interests | None
    cache: list[str]
    fallen: set[int] = field(default_factory=set)

    def from_model(self, row: int) -> bool:
        """Return whether the model answers this request, not the fallback."""
        return bool(self.asked.known_B[row]) and row not in self.fallen

    def first_interests(self) -> Batch:
        """Return the batch with all but each user's weightiest interests masked, where a request asks for few."""
        if self.found is None:
            return self
        return replace(
            self, found=first_interests(self.found, [self.requests[row].max_interests for row in self.known])
        )


@dataclass(frozen=True)
class Part:
    """The users of a batch that are searched together.

    Attributes:
        rows: Their places in the batch.
        found: Their interests.
        id_GKR: ``[G, K, R]`` items of each interest's own list, -1 where missing.
        score_GKR: ``[G, K, R]`` their scores.
        unknown: Places in the batch of the users who get the fallback.
        allow_ids: The only items that may be returned, or ``None``.
    """

    rows: list[int]
    found: Interests
    id_GKR: Tensor
    score_GKR: Tensor
    unknown: list[int]
    allow_ids: Tensor | None


class BatchSearch:
    """Reads and searches batches.

    Args:
        users: Where histories come from.
        source: Where interests come from.
        searcher: The index and the items.
        metrics: Where the stages' times go.
    """

    def __init__(self, users: Users, source: InterestSource, searcher: Searcher, metrics: Metrics) -> None:
        self._users = users
        self._source = source
        self._catalog = searcher.catalog
        self._index = searcher.index
        self._metrics = metrics

    def read(self, requests: Sequence[wire.UserRequest]) -> Batch:
        """Return the histories of a batch, and the interests of those users who have a known item."""
        as_of = self._source.now()
        with self._metrics.timed("history"):
            asked = self._users.read(requests)
        known, cache = np.flatnonzero(asked.known_B).tolist(), ["off"] * len(requests)
        if not known:
            return Batch(requests, asked, known, None, cache)
        with self._metrics.timed("encode"):
            found, said = self._source.interests([requests[row] for row in known], asked.with_known_items(), as_of)
        for row, outcome in zip(known, said, strict=True):
            cache[row] = outcome
        return Batch(requests, asked, known, found, cache)

    def parts(self, batch: Batch, places: list[int], out: Answers, *, fall_back: bool = False) -> Iterator[Part]:
        """Yield the parts of a batch, searched; requests with an allow-list that cannot be used get their error.

        Args:
            batch: The batch.
            places: Length of each request's lists.
            out: Where errors go.
            fall_back: What an index that is away means: the fallback for its users, or an error.
        """
        requests: Sequence[ListsRequest] = batch.requests
        keys = ((_hashable(ask.allow), _length_class(most)) for ask, most in zip(requests, places, strict=True))
        for (allow, _), rows in groups(keys):
            try:
                allow_ids = None if allow is None else self._allowed(allow)
            except GemirecError as error:
                for row in rows:
                    out[row] = error
                continue
            known = np.intersect1d(rows, batch.known).astype(np.int64)
            unknown = np.setdiff1d(rows, known).tolist()
            if not len(known):
                yield _nobody(unknown, allow_ids)
                continue
            found = take(batch.found, np.searchsorted(batch.known, known))
            most = min(max(places[row] for row in rows), len(self._catalog))
            try:
                lists = self._lists(batch, found, known.tolist(), allow_ids, most)
            except RetrievalError as error:
                self._metrics.index_trouble()
                if not fall_back:
                    for row in rows:
                        out[row] = error
                    continue
                batch.fallen.update(known.tolist())
                yield _nobody(rows, allow_ids)
            else:
                yield Part(known.tolist(), found, *lists, unknown, allow_ids)

    def _lists(
        self, batch: Batch, found: Interests, rows: list[int], allow_ids: Tensor | None, most: int
    ) -> tuple[Tensor, Tensor]:
        """Return ``[G, K, R]`` ids and scores of each interest's own list."""
        item_E, offset_B1 = batch.asked.item_E, batch.asked.offset_B1
        spans = [
            (offset_B1[row], offset_B1[row + 1] if batch.requests[row].exclude_seen else offset_B1[row]) for row in rows
        ]
        seen = [item_E[start:stop] for start, stop in spans]
        seen_E, offset_G1 = np.concatenate(seen), np.cumsum([0, *map(len, seen)])
        with self._metrics.timed("search"):
            index = self._index if allow_ids is None else self._index.restrict(allow_ids)
            return retrieve_lists(
                found, index, most, seen_E=torch.from_numpy(seen_E), seen_offset_B1=torch.from_numpy(offset_G1)
            )

    def _allowed(self, allow: Sequence[object]) -> Tensor:
        """Return an allow-list as sorted indices.

        Raises:
            DataError: None of its items is known.
        """
        known = {index for item in allow if (index := self._users.index(item))}
        if not known:
            self._catalog.allowed([str(item) for item in allow])  # raises
        return torch.tensor(sorted(known))


def groups(keys: Iterable[Hashable]) -> list[tuple[Any, list[int]]]:
    """Return the places of equal keys together, in the order of their first.

    Example:
        >>> groups("abca")
        [('a', [0, 3]), ('b', [1]), ('c', [2])]
    """
    out: dict[Any, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        out[key].append(place)
    return list(out.items())


def take(found: Interests | None, row_G: Any) -> Interests:
    """Return the interests of the users at rows ``[G]``."""
    assert found is not None
    rows = torch.as_tensor(row_G)
    parts = (found.vector_BKD, found.mask_BK, found.weight_BK, found.code_BKC)
    return Interests(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]


def first_interests(found: Interests, most_B: list[int | None]) -> Interests:
    """Return interests with all but each user's weightiest masked; ``None`` keeps all.

    Example:
        >>> two = Interests(torch.ones(1, 3, 2), torch.tensor([[True, False, True]]), torch.tensor([[0.1, 9.0, 0.3]]))
        >>> first_interests(two, [1]).mask_BK.tolist()
        [[False, False, True]]
    """
    if all(most is None for most in most_B):
        return found
    count = found.mask_BK.shape[1]
    weight_BK = found.mask_BK.float() if found.weight_BK is None else found.weight_BK.float()
    order_BK = torch.where(found.mask_BK, weight_BK, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place_BK = order_BK.argsort(dim=1)
    most_B1 = torch.tensor([count if most is None else most for most in most_B])[:, None]
    return Interests(found.vector_BKD, found.mask_BK & (place_BK < most_B1), found.weight_BK, found.code_BKC)


def _nobody(unknown: list[int], allow_ids: Tensor | None) -> Part:
    """Return a part without anybody to search for."""
    nothing = torch.empty(0, 1, 1)
    none = Interests(nothing, torch.empty(0, 1, dtype=torch.bool))
    return Part([], none, nothing.long(), nothing, unknown, allow_ids)


def _length_class(places: int) -> int:
    """Return the class of lists that are searched together: all short ones, and powers of two."""
    return max(SHORT_LISTS, 1 << (places - 1).bit_length())


def _hashable(ids: list[Any] | None) -> tuple[Any, ...] | None:
    return None if ids is None else tuple(ids)
