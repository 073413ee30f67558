"""A model behind a store of its interests: what a request asks.

A hit is read, a miss or a stale value is worked out on the spot and written back, a user without an id is worked out
from the history at hand. A user of whom there is no history has no interest here, whatever is cached: what such a user
gets is the caller's declared fallback. A store that cannot be reached, or not written, costs the work of a miss and is
counted.

Axes: B users, K interests, R those that are worked out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from gemirec.errors import ArtifactError, StorageError
from gemirec.models.base import Histories, Interests
from gemirec.models.common import widen
from gemirec.retrieval.interest_cache import take_users
from gemirec.retrieval.roads import road_of
from gemirec.retrieval.stores.codec import history_digest
from gemirec.retrieval.versions import model_version

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.models.base import RetrievalModel
    from gemirec.retrieval.stores.base import Ids, InterestStore
    from gemirec.retrieval.stores.codec import Records

HIT, MISS, STALE, NOTHING = 0, 1, 2, 3
SOURCES = ("hit", "miss", "stale", "nothing")
"""Names of the codes in :attr:`Served.source_B`."""


@dataclass(frozen=True)
class CacheCounts:
    """What happened so far, in users; ``errors`` in calls.

    Attributes:
        hits: Read from the store.
        misses: Not in the store, without an id, expired or damaged: worked out.
        stale: In the store but out of date: worked out anew.
        nothing: Without a history.
        written: Written back.
        errors: Calls for which the store could not be reached or not be written.
        corrupt: Values of the store that did not pass their check.
    """

    hits: int = 0
    misses: int = 0
    stale: int = 0
    nothing: int = 0
    written: int = 0
    errors: int = 0
    corrupt: int = 0


class Served(NamedTuple):
    """Interests of a batch, and where they are from.

    Attributes:
        interests: Of B users; where there is nothing, all of the mask is false.
        source_B: ``[B]`` uint8: place in :data:`SOURCES`.
    """

    interests: Interests
    source_B: NDArray[np.uint8]


class CachedInterests:
    """A model and a store of its version.

    May be used from several threads.

    Args:
        model: In ``eval`` mode.
        store: Opened for it. It is closed by whoever opened it.
        refresh: When a value is out of date. ``marked``: when the user was marked since (``InterestStore.mark_stale``);
            ``changed``: also when the history or a feature differs from what the value was worked out from. Cached
            vectors are taken for an unchanged history only, whatever is said here: they are the answer to that history,
            and an old answer is not the model's. Indices are fused with the history as it is now.
        version: :func:`~gemirec.retrieval.versions.model_version` of the model, if it is known already.

    Raises:
        ArtifactError: The store belongs to another version of the model.

    Example:
        >>> from gemirec.data.dataset import DataSpec
        >>> from gemirec.models.catalog import build_model
        >>> from gemirec.retrieval.roads import store_info
        >>> from gemirec.retrieval.stores import memory_store
        >>> model = build_model("item_mean", {"dim": 4}, DataSpec(num_items=9, train_count_N=[0] * 10)).eval()
        >>> cached = CachedInterests(model, memory_store(store_info(model)))
        >>> histories = Histories(torch.tensor([[1, 2], [3, 0], [0, 0]]))
        >>> for _ in range(2):
        ...     print([SOURCES[source] for source in cached.serve(histories, ["eve", None, "new"]).source_B])
        ['miss', 'miss', 'nothing']
        ['hit', 'miss', 'nothing']
        >>> cached.counts().hits, cached.counts().misses
        (1, 3)
    """

    def __init__(
        self,
        model: RetrievalModel,
        store: InterestStore,
        *,
        refresh: Literal["marked", "changed"] = "marked",
        version: str | None = None,
    ) -> None:
        version = version or model_version(model)
        if store.version != version:
            raise ArtifactError(
                "the store of cached interests is from another model version",
                got=f"made with model {store.version}, this artifact has {version}",
                fix="fill the store again with the artifact that serves it",
            )
        self.model = model
        self.store = store
        self._road = road_of(model, store.info)
        self._unchanged = refresh == "changed" or not self._road.follows_history
        self._counts = CacheCounts()
        self._lock = threading.Lock()

    def interests(self, histories: Histories, user_ids: Ids, *, as_of: int | None = None) -> Interests:
        """Return the interests of :meth:`serve`."""
        return self.serve(histories, user_ids, as_of=as_of).interests

    def serve(self, histories: Histories, user_ids: Ids, *, as_of: int | None = None) -> Served:
        """Return the users' interests.

        Args:
            histories: Their histories as they are now.
            user_ids: ``[B]`` ids; ``None`` for a user who is not to be looked up or kept.
            as_of: Microseconds since 1970: when the histories were read. A user who is marked later is stale, also if
                the value is written after the mark. ``None`` takes the time of this call.
        """
        wide = widen(histories, self.model.max_length)
        as_of = self.store.now() if as_of is None else as_of
        some_B = (wide.item_BL != 0).any(dim=1).cpu().numpy()
        digest_B = history_digest(wide) if self._unchanged else None
        record_B, source_B, reached = self._read(user_ids, digest_B, len(some_B))
        source_B[~some_B] = NOTHING
        row_R = np.flatnonzero((source_B == MISS) | (source_B == STALE))
        if len(row_R):
            place_R = torch.from_numpy(row_R).to(wide.item_BL.device)
            made_R = self._road.records(take_users(wide, place_R), as_of)
            record_B[row_R] = made_R
            if reached:
                self._write([user_ids[row] for row in row_R.tolist()], made_R)
        self._count(source_B)
        found = self._road.interests(wide, record_B)
        some_B1 = torch.from_numpy(some_B).to(found.mask_BK.device)[:, None]
        return Served(replace(found, mask_BK=found.mask_BK & some_B1), source_B)

    def counts(self) -> CacheCounts:
        """Return what happened so far."""
        with self._lock:
            return replace(self._counts, corrupt=self.store.corrupt)

    def _read(
        self, user_ids: Ids, digest_B: NDArray[np.uint64] | None, users: int
    ) -> tuple[Records, NDArray[np.uint8], bool]:
        """Return records, sources, and whether the store was reached."""
        try:
            found = self.store.get_many(user_ids)
        except StorageError:
            self._add(errors=1)
            return self.store.codec.empty(users), np.full(users, MISS, dtype=np.uint8), False
        stale_B = found.stale_B
        if digest_B is not None:
            stale_B = stale_B | (found.record_B["digest"] != digest_B)
        source_B = np.where(found.found_B, np.where(stale_B, STALE, HIT), MISS).astype(np.uint8)
        return found.record_B, source_B, True

    def _write(self, ids: list[object], record_R: Records) -> None:
        """Write back; a store that refuses is not the request's concern."""
        known = sum(name is not None for name in ids)
        if not known:
            return
        try:
            self.store.set_many(ids, record_R)
        except StorageError:
            self._add(errors=1)
        else:
            self._add(written=known)

    def _count(self, source_B: NDArray[np.uint8]) -> None:
        hits, misses, stale, nothing = np.bincount(source_B, minlength=4).tolist()
        self._add(hits=hits, misses=misses, stale=stale, nothing=nothing)

    def _add(self, **more: int) -> None:
        with self._lock:
            before = self._counts
            sums = {field.name: getattr(before, field.name) + more.get(field.name, 0) for field in fields(before)}
            self._counts = CacheCounts(**sums)
