"""The engine over a :class:`~gemirec.recommender.Recommender`: its interests, search and merge, in batches.

What it answers is what ``Recommender.recommend`` answers for the same history; a test holds them equal.

Axes: B users of a batch, K interests, R places of a list, G users of a part of the batch.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gemirec.config import MergeConfig
from gemirec.errors import ArtifactError, ConfigError, GemirecError
from gemirec.models.base import Interests
from gemirec.recommender import Recommender
from gemirec.recommender.explain import Words, explained
from gemirec.recommender.search import Searcher
from gemirec.retrieval.retrieve import merged_as, retrieve_lists, searched
from gemirec.retrieval.versions import model_version
from gemirec.serving import wire
from gemirec.serving.answers import AnswerWriter, explained_interest
from gemirec.serving.explorer import Explorer
from gemirec.serving.users import StoredHistories, Users

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from torch import Tensor

    from gemirec.recommender.histories import Encoded
    from gemirec.serving.events import EventLog
    from gemirec.serving.metrics import Metrics
    from gemirec.serving.wire_explorer import Explored

SHORT_LISTS = 256
"""Requests for lists up to this length are searched together; longer ones apart, lest all pay for the longest."""
Answers = list[Any]
"""An answer or an error for each request of a batch."""
ListsRequest = wire.RecommendRequest | wire.InterestsRequest


@dataclass(frozen=True)
class Part:
    """The users of a batch that are searched together.

    Attributes:
        rows: Their places in the batch.
        found: Their interests.
        id_GKR: ``[G, K, R]`` items of each interest's own list, -1 where missing.
        score_GKR: ``[G, K, R]`` their scores.
        unknown: Places in the batch of the users of whom no item is known.
        allow_ids: The only items that may be returned, or ``None``.
    """

    rows: list[int]
    found: Interests
    id_GKR: Tensor
    score_GKR: Tensor
    unknown: list[int]
    allow_ids: Tensor | None


class RecommenderEngine:
    """Answers with a recommender that was loaded from an artifact; make one with :meth:`load`.

    Args:
        recommender: The model with its items.
        users: Where histories come from.
        version: Which model this is.
        metrics: Where the stages' times go.
        path: The artifact's folder, for what is read only when it is asked for.
    """

    def __init__(self, recommender: Recommender, users: Users, version: str, metrics: Metrics, path: Path) -> None:
        self._users = users
        self._version = version
        self._metrics = metrics
        self._catalog = recommender.catalog
        self._searcher = Searcher(recommender.model, recommender.catalog, recommender.cold)
        self._index = self._searcher.index
        self._categories = self._searcher.categories
        self._words = Words(recommender.catalog.items, recommender.catalog.count_N)
        self._write = AnswerWriter(recommender.catalog, users.item_ids, version, recommender.info.fallback)
        self._explorer = Explorer(recommender, self._searcher, users, path, version)

    @classmethod
    def load(
        cls, path: Path, *, events: EventLog | None, metrics: Metrics, after: int | None = None
    ) -> RecommenderEngine:
        """Load an artifact and answer one question with it.

        Args:
            path: The artifact's folder.
            events: What users did since.
            metrics: Where the stages' times go.
            after: Number of the last event that the artifact was trained on; ``None`` takes what the log has noted.

        Raises:
            ArtifactError: A file is missing, cut or damaged, or the model gives no finite answer.
        """
        recommender = Recommender.from_pretrained(path)
        version = artifact_version(path, recommender)
        if after is None:
            after = 0 if events is None else events.trained_on(version)
        stored = StoredHistories.open(path / "histories.parquet")
        engine = cls(recommender, Users(recommender.catalog, stored, events, after), version, metrics, path)
        engine.check()
        if events is not None:
            events.set_trained_on(version, after)
        return engine

    @property
    def version(self) -> str:
        """See :class:`~gemirec.serving.engine.Engine`."""
        return self._version

    def check(self) -> None:
        """Answer one question, so that the first request finds everything built.

        Raises:
            ArtifactError: There is no answer.
        """
        some = [self._users.item_ids[index - 1] for index in self._catalog.most_popular[:3]]
        (answer,) = self._recommend([wire.RecommendRequest(history=some, k=1, exclude_seen=False)])
        if isinstance(answer, GemirecError) or not answer.items:
            raise ArtifactError(
                "the model of this artifact gives no answer",
                got=answer if isinstance(answer, GemirecError) else "an empty list",
                fix="look for a training that diverged, and train again",
            )

    def recommend(self, requests: Sequence[wire.RecommendRequest]) -> Answers:
        """See :class:`~gemirec.serving.engine.Engine`."""
        return self._counted(self._recommend(requests))

    def interests(self, requests: Sequence[wire.InterestsRequest]) -> Answers:
        """See :class:`~gemirec.serving.engine.Engine`."""
        asked, found = self._interests(requests)
        out: Answers = [None] * len(requests)
        for part in self._searched(requests, [max(1, ask.items) for ask in requests], asked, found, out):
            for row in part.unknown:
                out[row] = wire.InterestsAnswer(**self._about(requests, asked, row, known=False), interests=[])
            for at, row in enumerate(part.rows):
                ask = requests[row]
                listed = self._write.interests(
                    part.found, at, part.id_GKR, part.score_GKR, ask.items, vectors=ask.vectors
                )
                out[row] = wire.InterestsAnswer(**self._about(requests, asked, row, known=True), interests=listed)
        return self._counted(out)

    def explain(self, requests: Sequence[wire.ExplainRequest]) -> Answers:
        """See :class:`~gemirec.serving.engine.Engine`."""
        asked = self._users.read(requests)
        out = []
        for row, (ask, one) in enumerate(zip(requests, asked.blocks(1), strict=True)):
            known = bool(one.known_B[0])
            limits = {"items": ask.items, "history_items": ask.history_items, "most_words": ask.words}
            rows = explained(self._searcher, self._words, one, **limits).to_dicts() if known else []
            about = self._about(requests, asked, row, known=known)
            out.append(wire.ExplainAnswer(**about, interests=[explained_interest(each) for each in rows]))
        return self._counted(out)

    def similar(self, requests: Sequence[wire.SimilarRequest]) -> Answers:
        """See :class:`~gemirec.serving.engine.Engine`."""
        return [self._similar(ask) for ask in requests]

    def explore(self, requests: Sequence[Explored]) -> Answers:
        """See :class:`~gemirec.serving.engine.Engine`."""
        out: Answers = []
        for asked in requests:
            try:
                out.append(self._explorer.answer(asked))
            except GemirecError as error:
                out.append(error)
        return out

    def close(self) -> None:
        """See :class:`~gemirec.serving.engine.Engine`; the memory goes with the last reference."""

    def _recommend(self, requests: Sequence[wire.RecommendRequest]) -> Answers:
        """Return :meth:`recommend`, uncounted."""
        hows = [_how(ask) for ask in requests]
        counts = [min(ask.k, len(self._catalog)) for ask in requests]
        places = [
            max(_places(*each), ask.per_interest)
            for each, ask in zip(zip(hows, counts, strict=True), requests, strict=True)
        ]
        asked, found = self._interests(requests)
        if found is not None:
            known = np.flatnonzero(asked.known_B).tolist()
            found = _first_interests(found, [requests[row].max_interests for row in known])
        out: Answers = [None] * len(requests)
        for part in self._searched(requests, places, asked, found, out):
            for row in part.unknown:
                how, about = hows[row], self._about(requests, asked, row, known=False)
                items = self._write.popular(counts[row], part.allow_ids)
                out[row] = how if isinstance(how, GemirecError) else wire.RecommendAnswer(**about, items=items)
            with self._metrics.timed("merge"):
                for (how, k), at_G in _groups((hows[row], counts[row]) for row in part.rows):
                    self._merge(requests, asked, part, how, k, at_G, out)
        return out

    def _merge(
        self,
        requests: Sequence[wire.RecommendRequest],
        asked: Encoded,
        part: Part,
        how: MergeConfig | ConfigError,
        k: int,
        at_G: list[int],
        out: Answers,
    ) -> None:
        """Fill in the answers of users of a part whose lists are merged alike."""
        try:
            if isinstance(how, ConfigError):
                raise how
            lists = (part.id_GKR[at_G], part.score_GKR[at_G])
            merged = merged_as(how, _take(part.found, at_G), *lists, k, self._categories)
        except GemirecError as error:
            for at in at_G:
                out[part.rows[at]] = error
            return
        for place, at in enumerate(at_G):
            row = part.rows[at]
            each = requests[row].per_interest
            out[row] = wire.RecommendAnswer(
                **self._about(requests, asked, row, known=True),
                items=self._write.merged(merged, place),
                interests=self._write.interests(part.found, at, part.id_GKR, part.score_GKR, each) if each else None,
            )

    def _interests(self, requests: Sequence[wire.UserRequest]) -> tuple[Encoded, Interests | None]:
        """Return the histories of a batch, and the interests of those users who have a known item."""
        with self._metrics.timed("history"):
            asked = self._users.read(requests)
        known = asked.with_known_items()
        if not len(known):
            return asked, None
        with self._metrics.timed("encode"):
            return asked, self._searcher.users_interests(known)

    def _searched(
        self,
        requests: Sequence[ListsRequest],
        places: list[int],
        asked: Encoded,
        found: Interests | None,
        out: Answers,
    ) -> Iterator[Part]:
        """Yield the parts of a batch, searched; requests with an allow-list that cannot be used get their error."""
        known_B = np.flatnonzero(asked.known_B)
        keys = ((_hashable(ask.allow), _length_class(most)) for ask, most in zip(requests, places, strict=True))
        for (allow, _), rows in _groups(keys):
            try:
                allow_ids = None if allow is None else self._allowed(allow)
            except GemirecError as error:
                for row in rows:
                    out[row] = error
                continue
            known = np.intersect1d(rows, known_B)
            unknown = np.setdiff1d(rows, known).tolist()
            if not len(known):
                nothing = torch.empty(0, 1, 1)
                none = Interests(nothing, torch.empty(0, 1, dtype=torch.bool))
                yield Part([], none, nothing.long(), nothing, unknown, allow_ids)
                continue
            part = _take(found, np.searchsorted(known_B, known))
            most = min(max(places[row] for row in rows), len(self._catalog))
            exclude = [requests[row].exclude_seen for row in known.tolist()]
            lists = self._lists(part, asked, known.tolist(), exclude, allow_ids, most)
            yield Part(known.tolist(), part, *lists, unknown, allow_ids)

    def _lists(
        self,
        found: Interests,
        asked: Encoded,
        rows: list[int],
        exclude: list[bool],
        allow_ids: Tensor | None,
        most: int,
    ) -> tuple[Tensor, Tensor]:
        """Return ``[G, K, R]`` ids and scores of each interest's own list."""
        seen = [
            asked.item_E[asked.offset_B1[row] : asked.offset_B1[row + 1]] if each else asked.item_E[:0]
            for row, each in zip(rows, exclude, strict=True)
        ]
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

    def _about(self, requests: Sequence[wire.UserRequest], asked: Encoded, row: int, *, known: bool) -> dict[str, Any]:
        return self._write.about(requests[row], int(asked.skipped_B[row]), known=known)

    def _similar(self, ask: wire.SimilarRequest) -> wire.SimilarAnswer:
        """Return the neighbours of items, each asked item once."""
        index_of = {item: self._users.index(item) for item in ask.item_ids}
        ids = {index: self._users.item_ids[index - 1] for index in index_of.values() if index}
        near: dict[int | str, list[wire.ListedItem]] = {item: [] for item in ids.values()}
        if near:
            for row in self._searcher.similar(np.array(list(ids)), ask.k).to_dicts():
                near[row["item_id"]].append(wire.ListedItem(item_id=row["similar_item_id"], score=row["score"]))
        return wire.SimilarAnswer(
            similar=[wire.Neighbours(item_id=item, items=items) for item, items in near.items()],
            unknown=[item for item, index in index_of.items() if not index],
            version=self._version,
        )

    def _counted(self, answers: Answers) -> Answers:
        """Count where answers came from."""
        for answer in answers:
            if not isinstance(answer, GemirecError):
                self._metrics.answer(answer.source, answer.cache)
        return answers


def artifact_version(path: Path, recommender: Recommender) -> str:
    """Return a name for what an artifact holds: its model, and a hash of all that it says and weighs."""
    facts = (path / "artifact.json").read_bytes() + model_version(recommender.model).encode()
    return f"{recommender.info.model}-{hashlib.sha256(facts).hexdigest()[:12]}"


def _how(ask: wire.RecommendRequest) -> MergeConfig | ConfigError:
    """Return how a request's lists are merged."""
    if ask.diversity and ask.quota is not None:
        got = f"lambda {ask.diversity}, quota {ask.quota}"
        return ConfigError("lambda and quota do not go together", got=got, fix="give one of them")
    try:
        if ask.quota is not None:
            return MergeConfig(kind="quota", quota=ask.quota if isinstance(ask.quota, str) else tuple(ask.quota))
        return MergeConfig(kind="diverse", diversity=ask.diversity) if ask.diversity else MergeConfig()
    except ConfigError as error:
        return error


def _places(how: MergeConfig | ConfigError, k: int) -> int:
    return 1 if isinstance(how, ConfigError) else searched(how, k)


def _length_class(places: int) -> int:
    """Return the class of lists that are searched together: all short ones, and powers of two."""
    return max(SHORT_LISTS, 1 << (places - 1).bit_length())


def _hashable(ids: list[Any] | None) -> tuple[Any, ...] | None:
    return None if ids is None else tuple(ids)


def _groups(keys: Iterable[Hashable]) -> list[tuple[Any, list[int]]]:
    """Return the places of equal keys together, in the order of their first."""
    out: dict[Any, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        out[key].append(place)
    return list(out.items())


def _take(found: Interests | None, row_G: Any) -> Interests:
    """Return the interests of the users at rows ``[G]``."""
    assert found is not None
    rows = torch.as_tensor(row_G)
    parts = (found.vector_BKD, found.mask_BK, found.weight_BK, found.code_BKC)
    return Interests(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]


def _first_interests(found: Interests, most_B: list[int | None]) -> Interests:
    """Return the interests with all but each user's weightiest masked."""
    if all(most is None for most in most_B):
        return found
    count = found.mask_BK.shape[1]
    weight_BK = found.mask_BK.float() if found.weight_BK is None else found.weight_BK.float()
    order_BK = torch.where(found.mask_BK, weight_BK, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place_BK = order_BK.argsort(dim=1)
    most_B1 = torch.tensor([count if most is None else most for most in most_B])[:, None]
    return Interests(found.vector_BKD, found.mask_BK & (place_BK < most_B1), found.weight_BK, found.code_BKC)
