"""The routes of the server: what each takes, gives, and who may ask; the OpenAPI schema is made of this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gemirec.serving import wire
from gemirec.serving import wire_explorer as explorer
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
        query: Struct of the query, or ``None`` for a route that reads none.
        file: Name of the page's file that is the answer.
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
    query: type | None = None
    file: str | None = None


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
_FACTS = {"item_id": "cup-4", "title": "Blue cup", "category": "kitchen", "count": 31, "x": 0.2, "y": -0.1}
_ITEM = {**_FACTS, "codes": [3, 1]}
_CODE = {"path": [3], "items": 40, "share": 0.1, "categories": [{"category": "kitchen", "share": 0.9}], "top": [_ITEM]}
ROUTES = (
    Route(
        "POST",
        "/recommend",
        "recommend",
        "read",
        "The best items of a user or a history, over all interests",
        query=explorer.VariantQuery,
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
        query=explorer.VariantQuery,
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
        query=explorer.VariantQuery,
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
        query=explorer.VariantQuery,
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
        "POST",
        "/items",
        "items",
        "read",
        "What is known of items, and where they lie on the map",
        query=explorer.VariantQuery,
        body=explorer.ItemsRequest,
        answer=explorer.ItemsAnswer,
        example={"item_ids": ["cup-4"]},
        example_answer={"items": [_ITEM], "unknown": [], "version": _VERSION},
    ),
    Route(
        "GET",
        "/map",
        "map",
        "read",
        "The catalogue in two dimensions, an even sample of it",
        query=explorer.MapQuery,
        answer=explorer.MapAnswer,
        example_answer={"items": [_ITEM], "total": 400, "source": "export", "version": _VERSION},
    ),
    Route(
        "GET",
        "/dictionary",
        "dictionary",
        "read",
        "The model's dictionary, level by level: what each code holds",
        query=explorer.DictionaryQuery,
        answer=explorer.DictionaryAnswer,
        example_answer={"sizes": [16, 8], "here": None, "codes": [_CODE], "version": _VERSION},
    ),
    Route(
        "GET",
        "/users",
        "users",
        "read",
        "Users whose history is stored, found by a part of the id",
        query=explorer.UsersQuery,
        answer=explorer.UsersAnswer,
        example_answer={
            "users": [{"user_id": "u17", "events": 2, "history": ["tea-1", "cup-2"]}],
            "total": 900,
            "version": _VERSION,
        },
    ),
    Route(
        "GET",
        "/artifacts",
        "artifacts",
        "read",
        "What is served, and what can be asked of it",
        query=explorer.ArtifactsQuery,
        answer=explorer.ArtifactsAnswer,
        example_answer={
            "artifacts": [
                {
                    "variant": "A",
                    "version": _VERSION,
                    "model": "comirec_sa",
                    "data": "shop",
                    "items": 400,
                    "users": 900,
                    "categories": True,
                    "titles": True,
                    "sizes": [],
                }
            ]
        },
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
    *(
        Route("GET", f"/{'' if name == 'index.html' else name}", name, None, summary, answer=kind, file=name)
        for name, kind, summary in (
            ("index.html", "text/html", "The explorer page"),
            ("app.js", "text/javascript", "Its program"),
            ("panel.js", "text/javascript", "Its program: one artifact's answers"),
            ("map.js", "text/javascript", "Its program: the map"),
            ("dictionary.js", "text/javascript", "Its program: the dictionary"),
            ("kit.js", "text/javascript", "Its program: requests and elements"),
            ("style.css", "text/css", "Its looks"),
        )
    ),
)
