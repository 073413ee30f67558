"""The engine over a :class:`~gemirec.recommender.Recommender`: its interests, search and merge, in batches.

What it answers is what ``Recommender.recommend`` answers for the same history; a test holds them equal.

Axes: G users of a part of the batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemirec.config import MergeConfig
from gemirec.errors import ArtifactError, ConfigError, GemirecError
from gemirec.recommender.explain import Words, explained
from gemirec.recommender.search import Searcher
from gemirec.retrieval.retrieve import merged_as, searched
from gemirec.serving import wire
from gemirec.serving.answers import AnswerWriter, explained_interest
from gemirec.serving.batch_search import Answers, Batch, BatchSearch, Part, groups, take
from gemirec.serving.explorer import Explorer
from gemirec.serving.interest_source import InterestSource
from gemirec.serving.opening import Opened, open_served
from gemirec.serving.users import StoredHistories, Users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemirec.serving.events import EventLog
    from gemirec.serving.metrics import Metrics
    from gemirec.serving.wire_explorer import Explored


class RecommenderEngine:
    """Answers with a recommender that was loaded from an artifact; make one with :meth:`load`.

    Args:
        opened: The model with its items, index and cache.
        users: Where histories come from.
        metrics: Where the stages' times go.
    """

    def __init__(self, opened: Opened, users: Users, metrics: Metrics) -> None:
        recommender = opened.recommender
        self._users = users
        self._version = opened.version
        self._metrics = metrics
        self._close = opened.close
        self._fall_back = recommender.info.fallback != "none"
        self._catalog = recommender.catalog
        self._searcher = Searcher(recommender.model, recommender.catalog, recommender.cold, opened.index)
        self._source = InterestSource(self._searcher, opened.cached, metrics)
        self._batches = BatchSearch(users, self._source, self._searcher, metrics)
        self._categories = self._searcher.categories
        self._words = Words(recommender.catalog.items, recommender.catalog.count_N)
        self._write = AnswerWriter(recommender.catalog, users.item_ids, opened.version, recommender.info.fallback)
        self._explorer = Explorer(recommender, self._searcher, users, opened.artifact, opened.version)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        events: EventLog | None,
        metrics: Metrics,
        after: int | None = None,
        index: Path | None = None,
        redis_url: str | None = None,
    ) -> RecommenderEngine:
        """Load what is to be served and answer one question with it.

        Args:
            path: An artifact's folder, or a folder of releases.
            events: What users did since.
            metrics: Where the stages' times go.
            after: Number of the last event that the artifact was trained on; ``None`` takes what the log has noted.
            index: An index of the artifact's items.
            redis_url: Where the caches of releases in Redis are.

        Raises:
            ArtifactError: A file is missing, cut or damaged, parts do not fit, or the model gives no finite answer.
        """
        opened = open_served(path, index=index, redis_url=redis_url)
        try:
            if after is None:
                after = 0 if events is None else events.trained_on(opened.version)
            stored = StoredHistories.open(opened.artifact / "histories.parquet")
            engine = cls(opened, Users(opened.recommender.catalog, stored, events, after), metrics)
            engine.check()
        except BaseException:
            opened.close()
            raise
        if events is not None:
            events.set_trained_on(opened.version, after)
            engine.mark_stale(events.lately())  # a killed server may have stored an event and not marked its user
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
        batch = self._batches.read(requests)
        out: Answers = [None] * len(requests)
        for part in self._batches.parts(batch, [max(1, ask.items) for ask in requests], out):
            for row in part.unknown:
                out[row] = wire.InterestsAnswer(**self._write.about(batch, row), interests=[])
            for at, row in enumerate(part.rows):
                ask = requests[row]
                listed = self._write.interests(
                    part.found, at, part.id_GKR, part.score_GKR, ask.items, vectors=ask.vectors
                )
                out[row] = wire.InterestsAnswer(**self._write.about(batch, row), interests=listed)
        return self._counted(out)

    def explain(self, requests: Sequence[wire.ExplainRequest]) -> Answers:
        """See :class:`~gemirec.serving.engine.Engine`."""
        asked, off = self._users.read(requests), ["off"] * len(requests)  # what forms an interest is the model's to say
        batch = Batch(requests, asked, np.flatnonzero(asked.known_B).tolist(), None, off)
        out = []
        for row, (ask, one) in enumerate(zip(requests, asked.blocks(1), strict=True)):
            limits = {"items": ask.items, "history_items": ask.history_items, "most_words": ask.words}
            rows = explained(self._searcher, self._words, one, **limits).to_dicts() if one.known_B[0] else []
            interests = [explained_interest(each) for each in rows]
            out.append(wire.ExplainAnswer(**self._write.about(batch, row), interests=interests))
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

    @property
    def has_cache(self) -> bool:
        """See :class:`~gemirec.serving.engine.Engine`."""
        return self._source.has_cache

    def mark_stale(self, users: Sequence[str]) -> None:
        """See :class:`~gemirec.serving.engine.Engine`."""
        self._source.mark_stale(users)

    def close(self) -> None:
        """See :class:`~gemirec.serving.engine.Engine`; the memory goes with the last reference."""
        self._close()

    def _recommend(self, requests: Sequence[wire.RecommendRequest]) -> Answers:
        """Return :meth:`recommend`, uncounted."""
        hows = [_how(ask) for ask in requests]
        counts = [min(ask.k, len(self._catalog)) for ask in requests]
        places = [
            max(_places(*each), ask.per_interest)
            for each, ask in zip(zip(hows, counts, strict=True), requests, strict=True)
        ]
        batch = self._batches.read(requests).first_interests()
        out: Answers = [None] * len(requests)
        for part in self._batches.parts(batch, places, out, fall_back=self._fall_back):
            for row in part.unknown:
                how, about = hows[row], self._write.about(batch, row)
                items = self._write.popular(counts[row], part.allow_ids)
                out[row] = how if isinstance(how, GemirecError) else wire.RecommendAnswer(**about, items=items)
            with self._metrics.timed("merge"):
                for (how, k), at_G in groups((hows[row], counts[row]) for row in part.rows):
                    self._merge(batch, part, how, k, at_G, out)
        return out

    def _merge(
        self, batch: Batch, part: Part, how: MergeConfig | ConfigError, k: int, at_G: list[int], out: Answers
    ) -> None:
        """Fill in the answers of users of a part whose lists are merged alike."""
        try:
            if isinstance(how, ConfigError):
                raise how
            lists = (part.id_GKR[at_G], part.score_GKR[at_G])
            merged = merged_as(how, take(part.found, at_G), *lists, k, self._categories)
        except GemirecError as error:
            for at in at_G:
                out[part.rows[at]] = error
            return
        for place, at in enumerate(at_G):
            row = part.rows[at]
            each = batch.requests[row].per_interest
            out[row] = wire.RecommendAnswer(
                **self._write.about(batch, row),
                items=self._write.merged(merged, place),
                interests=self._write.interests(part.found, at, part.id_GKR, part.score_GKR, each) if each else None,
            )

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
