"""What travels over HTTP: the bodies of requests and answers, strict structs with their limits.

A body that breaks a limit, names an unknown field or has a value of another type is refused before any work is done.
The OpenAPI schema is made from these structs (:mod:`gemirec.serving.openapi`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MOST_HISTORY = 1000
"""Most items of a history in a request."""
MOST_ITEMS = 1000
"""Longest list of items in an answer."""
MOST_ALLOWED = 10_000
"""Most ids of an allow-list."""
MOST_REQUESTS = 256
"""Most requests of one batch."""
MOST_EVENTS = 1000
"""Most events of one call."""

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[str, Meta(min_length=1, max_length=256)]
"""An id of the log, a number or a text; 12 and "12" are the same one."""
Count = Annotated[int, Meta(ge=1, le=MOST_ITEMS)]
CountOrNone = Annotated[int, Meta(ge=0, le=MOST_ITEMS)]
History = Annotated[list[Id], Meta(max_length=MOST_HISTORY)]
Allowed = Annotated[list[Id], Meta(min_length=1, max_length=MOST_ALLOWED)]
Share = Annotated[float, Meta(ge=0, le=1e6)]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Base of every body of a request: unknown fields are refused."""


class UserRequest(Body, kw_only=True, frozen=True):
    """Whom a request is about."""

    user_id: Id | None = None
    """A user. Without ``history`` the stored history and the events sent since are read; a user of whom nothing is
    known gets the artifact's fallback."""
    history: History | None = None
    """Item ids, oldest first, in place of what is stored; unknown ones are skipped and counted."""


class RecommendRequest(UserRequest, kw_only=True, frozen=True):
    """``POST /recommend``."""

    k: Count = 20
    """Items in the answer."""
    diversity: Annotated[float, Meta(ge=0, le=1e6)] = msgspec.field(default=0.0, name="lambda")
    """Penalty for each earlier item of the same category, in units of the scores (ComiRec's controllable diversity)."""
    quota: Literal["equal", "weight"] | Annotated[list[Share], Meta(min_length=1, max_length=64)] | None = None
    """Places for every interest: the same number, by the model's weights, or a share for each. Not with lambda."""
    exclude_seen: bool = True
    """Leave out the items of the history."""
    allow: Allowed | None = None
    """The only items that may be returned."""
    max_interests: Annotated[int, Meta(ge=1, le=64)] | None = None
    """Search only so many interests, the weightiest first (the first ones if the model has no weights)."""
    per_interest: CountOrNone = 0
    """Items of each interest's own list to return beside the merged one."""


class InterestsRequest(UserRequest, kw_only=True, frozen=True):
    """``POST /interests``."""

    items: CountOrNone = 10
    """Items that each interest retrieves on its own."""
    exclude_seen: bool = True
    """Leave out the items of the history."""
    allow: Allowed | None = None
    """The only items that may be retrieved."""
    vectors: bool = False
    """Return the interest vectors too."""


class ExplainRequest(UserRequest, kw_only=True, frozen=True):
    """``POST /explain``."""

    items: Annotated[int, Meta(ge=1, le=200)] = 20
    """Items that each interest retrieves; seen ones are not left out."""
    history_items: Annotated[int, Meta(ge=1, le=50)] = 5
    """Most items of the history to name for each interest."""
    words: Annotated[int, Meta(ge=0, le=50)] = 5
    """Most categories and title words to name."""


class SimilarRequest(Body, kw_only=True, frozen=True):
    """``POST /similar``."""

    item_ids: Annotated[list[Id], Meta(min_length=1, max_length=100)]
    """Items whose neighbours are asked for."""
    k: Count = 10
    """Neighbours of each."""


class BatchRequest(Body, kw_only=True, frozen=True):
    """``POST /recommend:batch``."""

    requests: Annotated[list[RecommendRequest], Meta(min_length=1, max_length=MOST_REQUESTS)]
    """Each as for ``/recommend``; the answers come in this order, all from one version of the model."""


class Event(Body, kw_only=True, frozen=True):
    """Something that a user did."""

    user_id: Id
    item_id: Id
    event_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """Your id of the event: sent again, it is stored once."""
    event: Annotated[str, Meta(min_length=1, max_length=64)] = "click"
    """What was done. ``impression`` (shown, not acted upon) is stored but is not part of a history."""
    timestamp: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    """When, in your log's unit. Stored as it is; histories go by the order of arrival."""


class EventsRequest(Body, kw_only=True, frozen=True):
    """``POST /events``."""

    events: Annotated[list[Event], Meta(min_length=1, max_length=MOST_EVENTS)]
    """All are stored, or none."""


class ReloadRequest(Body, kw_only=True, frozen=True):
    """``POST /reload``."""

    artifact: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Folder on the server's disk; without it the one that is served is read again."""
    events_after: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    """Last event (number ``last`` of ``POST /events``) that the new artifact was trained on: only later ones are added
    to histories. Without it the number noted for this artifact, or else for the others, holds."""
    variant: Literal["A", "B"] | None = None
    """With a traffic split: whose place the artifact takes."""


class ListedItem(msgspec.Struct, kw_only=True, frozen=True):
    """An item of one list."""

    item_id: int | str
    score: float
    """Inner product with the interest; training events in the popularity fallback; cosine for similar items."""


class RecommendedItem(ListedItem, kw_only=True, frozen=True):
    """An item of the merged list."""

    rank: int
    """Place in the list, from 1."""
    interest: int | None
    """The interest that won, from 0; null in a fallback."""
    interest_rank: int | None
    """Place in that interest's own list, from 1."""


class InterestList(msgspec.Struct, kw_only=True, frozen=True):
    """One interest of a user."""

    interest: int
    """Number, from 0."""
    weight: float | None
    """The model's own weight of it, if it has any."""
    codes: list[int] | None = None
    """Path in the model's dictionary, if it has one."""
    vector: list[float] | None = None
    """The interest vector, if asked for."""
    items: list[ListedItem] = []
    """What it retrieves on its own, best first."""


class UserAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """What every answer about a user says."""

    user_id: int | str | None
    source: Literal["model", "popularity", "none"]
    """``model``, or the fallback of a user of whom no item is known."""
    cache: Literal["hit", "miss", "stale", "off"]
    """Whether the interests came from the interest cache; ``stale``: worked out anew, for the user did more since."""
    skipped: int
    """Items of the history that the model does not know."""
    version: str
    """The model that answered."""
    variant: Literal["A", "B"] | msgspec.UnsetType = msgspec.UNSET
    """With a traffic split: which of the two models this user has."""


class RecommendAnswer(UserAnswer, kw_only=True, frozen=True):
    """Answer of ``/recommend``."""

    items: list[RecommendedItem]
    interests: list[InterestList] | None = None
    """With ``per_interest``: each interest's own list."""


class BatchAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/recommend:batch``."""

    answers: list[RecommendAnswer]


class InterestsAnswer(UserAnswer, kw_only=True, frozen=True):
    """Answer of ``/interests``."""

    interests: list[InterestList]


class FormingItem(msgspec.Struct, kw_only=True, frozen=True):
    """An item of the history that forms an interest."""

    item_id: int | str
    weight: float


class TellingWord(msgspec.Struct, kw_only=True, frozen=True):
    """A category or title word that an interest's items have more often than the catalogue."""

    word: str
    lift: float
    share: float


class ExplainedInterest(msgspec.Struct, kw_only=True, frozen=True):
    """Why a user has an interest, and what it brings."""

    interest: int
    weight: float | None
    history_share: float
    """Share of the history that belongs to it; shares of a user sum to 1."""
    history: list[FormingItem]
    weights_from: str
    """``model``: its attention; ``nearness``: cosines."""
    items: list[int | str]
    words: list[TellingWord]


class ExplainAnswer(UserAnswer, kw_only=True, frozen=True):
    """Answer of ``/explain``."""

    interests: list[ExplainedInterest]


class Neighbours(msgspec.Struct, kw_only=True, frozen=True):
    """The items nearest to one."""

    item_id: int | str
    items: list[ListedItem]


class SimilarAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/similar``."""

    similar: list[Neighbours]
    unknown: list[int | str]
    """Items that the model does not know."""
    version: str


class EventsAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/events``: the events are on the disk."""

    stored: int
    duplicates: int
    """Events whose ``event_id`` was stored before."""
    last: int
    """Number of the last event stored."""


Status = Literal["alive", "ready", "reloaded"]


class StateAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/healthz``, ``/readyz`` and ``/reload``."""

    status: Status
    version: str
    variants: dict[Literal["A", "B"], str] | msgspec.UnsetType = msgspec.UNSET
    """With a traffic split: the version of each variant."""


class ErrorBody(msgspec.Struct, kw_only=True, frozen=True):
    """Every error: what is wrong, what was got, how to mend it."""

    error: str
    got: str
    fix: str
