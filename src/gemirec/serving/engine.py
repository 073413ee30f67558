"""What a server asks of a model: the only thing that it knows of models, indices and caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from gemirec.errors import GemirecError
from gemirec.serving.wire import (
    ExplainAnswer,
    ExplainRequest,
    InterestsAnswer,
    InterestsRequest,
    RecommendAnswer,
    RecommendRequest,
    SimilarAnswer,
    SimilarRequest,
)
from gemirec.serving.wire_explorer import Explored

Kind = Literal["recommend", "interests", "explain", "similar", "explore"]
"""The questions of an engine, by the names of its methods."""


class Engine(Protocol):
    """A version of the model with its items, index, cache and histories, ready to answer.

    Every question takes the requests of a batch and gives an answer or an error for each, in their order; what one
    request does wrong does not touch the others. A batch is asked on one thread at a time; :meth:`explore` has a
    thread of its own. After :meth:`close` nothing is asked.
    """

    @property
    def version(self) -> str:
        """Which model answers; two engines of equal version give equal answers."""

    def recommend(self, requests: Sequence[RecommendRequest]) -> Sequence[RecommendAnswer | GemirecError]:
        """Return the best items of each user."""

    def interests(self, requests: Sequence[InterestsRequest]) -> Sequence[InterestsAnswer | GemirecError]:
        """Return the interests of each user."""

    def explain(self, requests: Sequence[ExplainRequest]) -> Sequence[ExplainAnswer | GemirecError]:
        """Return why each user has the interests."""

    def similar(self, requests: Sequence[SimilarRequest]) -> Sequence[SimilarAnswer | GemirecError]:
        """Return the neighbours of items."""

    def explore(self, requests: Sequence[Explored]) -> Sequence[Any]:
        """Return what the explorer page asks for, each by the kind of its request."""

    @property
    def has_cache(self) -> bool:
        """Whether interests are cached, so that users must be marked."""

    def mark_stale(self, users: Sequence[str]) -> None:
        """Say that users have new events: what is cached of them is out of date. On any thread; it does not fail."""

    def close(self) -> None:
        """Let go of files and connections."""
