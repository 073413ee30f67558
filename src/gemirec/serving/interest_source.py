"""Where the interests of a batch come from: the model, or a cache of what it said before.

The cache is asked for users whose history is the server's own; a history that comes with the request is read by the
model, and neither answered from the cache nor kept in it. A user with new events is marked, so that the next request
works the interests out anew. A mark that the cache cannot take (it is away) is kept until it can, and that user goes
past the cache meanwhile.

Axes: B users of a batch.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from gemirec.errors import StorageError
from gemirec.retrieval.cached import SOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemirec.models.base import Interests
    from gemirec.recommender.histories import Encoded
    from gemirec.recommender.search import Searcher
    from gemirec.retrieval.cached import CachedInterests
    from gemirec.serving.metrics import Metrics
    from gemirec.serving.wire import UserRequest


class Sourced(NamedTuple):
    """Interests of a batch.

    Attributes:
        interests: Of B users.
        cache_B: ``hit``, ``miss``, ``stale`` or ``off`` for each.
    """

    interests: Interests
    cache_B: list[str]


class InterestSource:
    """Gives interests to batches of users with a known item.

    Args:
        searcher: The model.
        cached: The model behind its cache, or ``None``.
        metrics: Where the cache's troubles are counted.
    """

    def __init__(self, searcher: Searcher, cached: CachedInterests | None, metrics: Metrics) -> None:
        self._searcher = searcher
        self._cached = cached
        self._metrics = metrics
        self._unmarked: set[str] = set()
        self._lock = threading.Lock()

    @property
    def has_cache(self) -> bool:
        """Whether there is a cache."""
        return self._cached is not None

    def now(self) -> int:
        """Return the time before histories are read, in the cache's unit; 0 without a cache."""
        return 0 if self._cached is None else self._cached.store.now()

    def interests(self, asks: Sequence[UserRequest], known: Encoded, as_of: int) -> Sourced:
        """Return the interests of users.

        Args:
            asks: Their requests.
            known: Their histories, each with a known item.
            as_of: What :meth:`now` said before the histories were read.
        """
        if self._cached is None:
            return Sourced(self._searcher.users_interests(known), ["off"] * len(asks))
        with self._lock:
            gone = set(self._unmarked)
        names = [None if ask.user_id is None or ask.history is not None else str(ask.user_id) for ask in asks]
        names = [None if name in gone else name for name in names]
        before = self._cached.counts()
        served = self._cached.serve(self._searcher.windows(known), names, as_of=as_of)
        after = self._cached.counts()
        self._metrics.cache_trouble("unreachable", after.errors - before.errors)
        self._metrics.cache_trouble("corrupt", after.corrupt - before.corrupt)
        if gone and after.errors == before.errors:  # it is back
            self.mark_stale(())
        said = zip(asks, served.source_B.tolist(), strict=True)
        return Sourced(
            served.interests, ["off" if ask.history is not None else SOURCES[source] for ask, source in said]
        )

    def mark_stale(self, users: Sequence[str]) -> None:
        """Say that users have new events; where the cache is away, they go past it until it is told."""
        if self._cached is None:
            return
        with self._lock:
            self._unmarked.update(users)
            waiting = list(self._unmarked)
        try:
            self._cached.store.mark_stale(waiting)
        except StorageError:
            self._metrics.cache_trouble("unreachable", 1)
        else:
            with self._lock:
                self._unmarked.difference_update(waiting)
