"""The routes of the server: what each takes, gives, and who may ask; the OpenAPI schema is made of this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gemirec.serving import wire
from gemirec.serving.keys import Permission


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        method: HTTP method; ``GET`` answers ``HEAD`` too.
        path: Without parameters.
        name: Name of the method of :class:`~gemirec.serving.app.App` that answers, and of the operation in the schema.
        scope: What a key must allow; ``None`` needs no key.
        summary: One line.
        body: Struct of the request, or ``None``.
        answer: Struct of the answer, or its content type.
        example: A request for the schema.
        example_answer: Its answer.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    scope: Permission | None
    summary: str
    answer: type | str
    body: type | None = None
    example: dict[str, Any] | None = None
    example_answer: dict[str, Any] | None = None


_VERSION = "comirec_sa-3f2a90c1d7be"
_USER = {"user_id": "u17", "source": "model", "cache": "off", "skipped": 0, "version": _VERSION}
_PLACE = {"item_id": "cup-4", "rank": 1, "score": 0.71, "interest": 2, "interest_rank": 1}
_LIST = {"interest": 0, "weight": None, "items": [{"item_id": "cup-4", "score": 0.71}]}
_WHY = {
    "interest": 0,
    "weight": None,
    "history_share": 0.6,
    "history": [{"item_id": "tea-1", "weight": 0.8}],
    "weights_from": "model",
    "items": ["cup-4"],
    "words": [{"word": "kitchen", "lift": 4.2, "share": 0.9}],
}
ROUTES = (
    Route(
        "POST",
        "/recommend",
        "recommend",
        "read",
        "The best items of a user or a history, over all interests",
        body=wire.RecommendRequest,
        answer=wire.RecommendAnswer,
        example={"history": ["tea-1", "cup-2"], "k": 5, "lambda": 0.1},
        example_answer={**_USER, "user_id": None, "items": [_PLACE]},
    ),
    Route(
        "POST",
        "/recommend:batch",
        "recommend_batch",
        "read",
        "The same for several users at once",
        body=wire.BatchRequest,
        answer=wire.BatchAnswer,
        example={"requests": [{"user_id": "u17", "k": 5}, {"history": ["tea-1"]}]},
        example_answer={"answers": [{**_USER, "items": [_PLACE]}]},
    ),
    Route(
        "POST",
        "/interests",
        "interests",
        "read",
        "The interests of a user, and what each retrieves",
        body=wire.InterestsRequest,
        answer=wire.InterestsAnswer,
        example={"user_id": "u17", "items": 3},
        example_answer={**_USER, "interests": [_LIST]},
    ),
    Route(
        "POST",
        "/explain",
        "explain",
        "read",
        "Why a user has the interests: the history behind each, and what it is about",
        body=wire.ExplainRequest,
        answer=wire.ExplainAnswer,
        example={"user_id": "u17", "items": 5},
        example_answer={**_USER, "interests": [_WHY]},
    ),
    Route(
        "POST",
        "/similar",
        "similar",
        "read",
        "The items nearest to items, by the cosine of their vectors",
        body=wire.SimilarRequest,
        answer=wire.SimilarAnswer,
        example={"item_ids": ["tea-1"], "k": 3},
        example_answer={
            "similar": [{"item_id": "tea-1", "items": [{"item_id": "tea-2", "score": 0.93}]}],
            "unknown": [],
            "version": _VERSION,
        },
    ),
    Route(
        "POST",
        "/events",
        "events",
        "events",
        "What users did: on the disk when this answers, in the history of the next request",
        body=wire.EventsRequest,
        answer=wire.EventsAnswer,
        example={"events": [{"user_id": "u17", "item_id": "cup-4", "event_id": "e-1"}]},
        example_answer={"stored": 1, "duplicates": 0, "last": 1},
    ),
    Route(
        "POST",
        "/reload",
        "reload",
        "admin",
        "Load an artifact beside the one that is served, check it, and serve it",
        body=wire.ReloadRequest,
        answer=wire.StateAnswer,
        example={},
        example_answer={"status": "reloaded", "version": _VERSION},
    ),
    Route(
        "GET",
        "/healthz",
        "healthz",
        None,
        "Whether the process answers",
        answer=wire.StateAnswer,
        example_answer={"status": "alive", "version": _VERSION},
    ),
    Route(
        "GET",
        "/readyz",
        "readyz",
        None,
        "Whether it can serve: a model is loaded and the event log can be read",
        answer=wire.StateAnswer,
        example_answer={"status": "ready", "version": _VERSION},
    ),
    Route("GET", "/metrics", "prometheus", "read", "Counters for Prometheus", answer="text/plain"),
    Route("GET", "/openapi.json", "schema", None, "This description", answer="application/json"),
)
