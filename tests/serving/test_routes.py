"""What the routes answer: the same as the library, and each in its words what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import polars as pl
import pytest

from gemirec import MergeConfig
from gemirec.recommender import Recommender
from gemirec.serving import wire
from gemirec.serving.routes import ROUTES
from support_serving import Client

HISTORY = ["item-1", "item-7", "item-20", "item-3", "item-9"]
Settings = Callable[..., Client]


def rows(table: pl.DataFrame) -> list[tuple[Any, ...]]:
    """What the library says of one user, in the wire's terms."""
    return [(row["item_id"], row["rank"], row["interest"]) for row in table.iter_rows(named=True)]


def places(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(item["item_id"], item["rank"], item["interest"]) for item in answer["items"]]


@pytest.mark.parametrize(
    ("ask", "library"),
    [
        ({}, {}),
        ({"k": 7, "exclude_seen": False}, {"k": 7, "exclude_seen": False}),
        ({"k": 500}, {"k": 500}),
        ({"allow": ["item-4", "item-11", "nothing", "item-1"]}, {"allow": ["item-4", "item-11", "item-1"]}),
        ({"lambda": 0.3, "k": 9}, {"merge": MergeConfig(kind="diverse", diversity=0.3), "k": 9}),
        ({"quota": "equal"}, {"merge": MergeConfig(kind="quota")}),
        ({"quota": [2, 1], "k": 6}, {"merge": MergeConfig(kind="quota", quota=(2.0, 1.0)), "k": 6}),
    ],
)
def test_the_library_and_the_server_give_the_same_list(
    reading: Client, recommender: Recommender, ask: dict[str, Any], library: dict[str, Any]
) -> None:
    whom: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"history": HISTORY}, {"histories": [HISTORY]}),
        ({"user_id": "user-17"}, {"users": ["user-17"]}),
    ]
    for asked, named in whom:
        answer = reading.post("/recommend", {**asked, **ask}).json()
        expected = recommender.recommend(**named, **library)
        assert places(answer) == rows(expected)
        found = [item["score"] for item in answer["items"]]
        assert found == pytest.approx(expected["score"].to_list(), rel=1e-5)
        assert answer["source"] == "model"


def test_users_in_a_batch_get_what_each_gets_alone(reading: Client, recommender: Recommender) -> None:
    asks: list[dict[str, Any]] = [
        {"user_id": "user-3", "k": 4},
        {"history": ["item-9", "no-such"], "k": 300, "exclude_seen": False},
        {"user_id": "nobody"},
        {"user_id": "user-3", "lambda": 0.2, "k": 8},
        {"user_id": "user-9", "allow": ["item-1", "item-2"]},
        {"history": HISTORY, "per_interest": 3, "quota": "equal"},
        {"user_id": "user-11", "max_interests": 1},
    ]
    together = reading.post("/recommend:batch", {"requests": asks * 9}).json()["answers"]
    alone = [reading.post("/recommend", ask).json() for ask in asks]
    for number, answer in enumerate(together):
        expected = alone[number % len(asks)]
        assert places(answer) == places(expected)
        assert {**answer, "items": 0, "interests": 0} == {**expected, "items": 0, "interests": 0}
    assert [answer["source"] for answer in alone] == ["model", "model", "popularity", *["model"] * 4]
    assert alone[1]["skipped"] == 1


def test_a_user_of_whom_nothing_is_known_gets_the_fallback(client: Client, recommender: Recommender) -> None:
    popular = rows(recommender.recommend(histories=[[]], k=5))
    for ask in ({"user_id": "nobody"}, {}, {"history": ["no-such-item"]}, {"user_id": 99999999}):
        answer = client.post("/recommend", {**ask, "k": 5}).json()
        assert places(answer) == popular
        assert answer["source"] == "popularity"
    allowed = client.post("/recommend", {"allow": ["item-5", "item-77"]}).json()
    assert {item["item_id"] for item in allowed["items"]} == {"item-5", "item-77"}
    assert client.counted('gemirec_answers_total{source="popularity"}') == 5


def test_each_interest_s_own_list_leads_to_the_merged_one(reading: Client) -> None:
    answer = reading.post("/recommend", {"history": HISTORY, "k": 8, "per_interest": 8}).json()
    own = {interest["interest"]: interest["items"] for interest in answer["interests"]}
    for item in answer["items"]:
        there = own[item["interest"]][item["interest_rank"] - 1]
        assert (there["item_id"], there["score"]) == (item["item_id"], item["score"])
    fewer = reading.post("/recommend", {"history": HISTORY, "k": 8, "max_interests": 1, "per_interest": 8}).json()
    assert len(fewer["interests"]) == 1
    assert [item["item_id"] for item in fewer["items"]] == [item["item_id"] for item in fewer["interests"][0]["items"]]


def test_interests_explanations_and_neighbours_are_the_library_s(reading: Client, recommender: Recommender) -> None:
    found = reading.post("/interests", {"user_id": "user-5", "items": 4, "vectors": True}).json()["interests"]
    expected = recommender.interests(users=["user-5"], items=4)
    assert [[item["item_id"] for item in interest["items"]] for interest in found] == expected["items"].to_list()
    for interest, vector in zip(found, expected["vector"].to_list(), strict=True):
        assert interest["vector"] == pytest.approx(vector, rel=1e-5, abs=1e-6)
    why = reading.post("/explain", {"user_id": "user-5", "items": 6}).json()["interests"]
    table = recommender.explain(users=["user-5"], items=6).to_dicts()
    assert [row["items"] for row in why] == [row["items"] for row in table]
    assert [[item["item_id"] for item in row["history"]] for row in why] == [row["history"] for row in table]
    assert sum(row["history_share"] for row in why) == pytest.approx(1)
    near = reading.post("/similar", {"item_ids": ["item-3", "none", "item-3", 4], "k": 3}).json()
    similar = recommender.similar_items(["item-3"], k=3)
    assert near["unknown"] == ["none", 4]
    assert [[item["item_id"] for item in each["items"]] for each in near["similar"]] == [
        similar["similar_item_id"].to_list()
    ]


def test_nothing_is_known_and_nothing_is_said_of_it(reading: Client) -> None:
    for path in ("/interests", "/explain"):
        answer = reading.post(path, {"user_id": "nobody"}).json()
        assert (answer["interests"], answer["source"]) == ([], "popularity")


WRONG: list[tuple[str, Any, int, str]] = [
    ("/recommend", {"k": 0}, 422, "k: "),
    ("/recommend", {"k": 10**6}, 422, "k: "),
    ("/recommend", {"history": ["a"] * 1001}, 422, "history"),
    ("/recommend", {"history": "item-1"}, 422, "history"),
    ("/recommend", {"history": [1.5]}, 422, "history[0]"),
    ("/recommend", {"histories": []}, 422, "histories"),
    ("/recommend", {"user_id": ""}, 422, "user_id"),
    ("/recommend", {"lambda": -1}, 422, "lambda"),
    ("/recommend", {"lambda": 0.1, "quota": "equal"}, 422, "quota"),
    ("/recommend", {"history": HISTORY, "quota": [0, 0]}, 422, "[0"),
    ("/recommend", {"history": HISTORY, "quota": [1] * 30}, 422, "30 shares"),
    ("/recommend", {"history": HISTORY, "quota": "weight"}, 422, "without weights"),
    ("/recommend", {"history": HISTORY, "allow": ["none"]}, 422, "none"),
    ("/recommend", {"allow": []}, 422, "allow"),
    ("/recommend", [], 422, "body"),
    ("/recommend:batch", {"requests": []}, 422, "requests"),
    ("/recommend:batch", {"requests": [{}, {"allow": ["none"]}]}, 422, "request 1"),
    ("/similar", {}, 422, "item_ids"),
    ("/events", {"events": [{"user_id": 1}]}, 422, "item_id"),
    ("/events", {"events": [{"user_id": 1, "item_id": 2, "timestamp": -1}]}, 422, "timestamp"),
    ("/reload", {"artifact": "/nowhere"}, 422, "/nowhere"),
]


@pytest.mark.parametrize(("path", "body", "status", "names"), WRONG)
def test_what_is_wrong_is_said_in_three_parts(reading: Client, path: str, body: Any, status: int, names: str) -> None:
    answer = reading.post(path, body)
    assert answer.status_code == status
    said = msgspec.json.decode(answer.content, type=wire.ErrorBody)
    assert all([said.error, said.fix])
    assert names in said.got


def test_one_wrong_request_does_not_touch_its_neighbours(reading: Client) -> None:
    async def story(http: Any) -> list[int]:
        import asyncio

        bodies = [
            {"history": HISTORY},
            {"history": HISTORY, "allow": ["none"]},
            {"history": HISTORY, "quota": "weight"},
        ]
        answers = await asyncio.gather(*(http.post("/recommend", json=body) for body in bodies * 5))
        return [answer.status_code for answer in answers]

    assert reading.run(story) == [200, 422, 422] * 5


def test_paths_and_methods(reading: Client) -> None:
    assert reading.get("/nowhere").status_code == 404
    refused = reading.get("/recommend")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert reading.post("/healthz", {}).headers["allow"] == "GET, HEAD"
    assert reading.run(lambda http: http.head("/healthz")).status_code == 200
    for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
        assert reading.get(path).json() == {"status": status, "version": reading.app.version}


def test_the_description_s_examples_are_true(reading: Client) -> None:
    described = reading.get("/openapi.json").json()
    assert {(route.method.lower(), route.path) for route in ROUTES} == {
        (method, path) for path, methods in described["paths"].items() for method in methods
    }
    for route in ROUTES:
        for struct, example in ((route.body, route.example), (route.answer, route.example_answer)):
            if isinstance(struct, type):
                msgspec.convert(example, struct)
    fields = described["components"]["schemas"]["RecommendRequest"]["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []
    assert fields["user_id"]["description"].startswith("A user.")
