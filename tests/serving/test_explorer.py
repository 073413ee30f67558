"""What the explorer page asks beside recommendations: users, items, the map, the dictionary, two artifacts."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.components.codes import unflatten
from gemirec.errors import ConfigError
from gemirec.recommender import Recommender
from gemirec.serving.catalogue_map import projected
from gemirec.serving.config import ServeConfig, ServePlan
from gemirec.serving.impressions import read_impressions
from gemirec.serving.recommender_engine import RecommenderEngine
from gemirec.serving.run import build_app
from gemirec.serving.split import Split
from support_serving import Client


@pytest.fixture
def two(dictionary_artifact: Path, artifact: Path, tmp_path: Path) -> Client:
    """GemiRec, and ComiRec-SA to look at beside it."""
    client = Client(dictionary_artifact, tmp_path / "events.sqlite")
    plan = ServePlan(artifact=dictionary_artifact, compare=artifact, events=tmp_path / "two.sqlite")
    client.app = build_app(plan, ServeConfig(), None)
    return client


def test_the_map_s_axes_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(3)
    item_ND = rng.normal(size=(300, 5)) * [5, 1, 3, 0.2, 0.1] + [9, 0, -2, 0, 1]
    centred_ND = item_ND - item_ND.mean(axis=0)
    axis_DD = np.linalg.svd(centred_ND, full_matrices=False)[2][:2]
    axis_DD *= np.sign(axis_DD[np.arange(2), np.abs(axis_DD).argmax(axis=1)])[:, None]
    expected_N2 = centred_ND @ axis_DD.T
    found_N2 = projected(torch.from_numpy(item_ND).float())
    assert found_N2 == pytest.approx(expected_N2 / np.abs(expected_N2).max(), abs=1e-5)
    assert projected(torch.ones(4, 3)).tolist() == [[0.0, 0.0]] * 4


def test_the_map_is_an_even_sample_and_items_lie_where_it_says(two: Client) -> None:
    answer = two.get("/map?count=7").json()
    counts = [item["count"] for item in answer["items"]]
    assert (len(counts), answer["total"], answer["source"]) == (7, 120, "principal components")
    some = answer["items"][3]
    asked = two.post("/items", {"item_ids": [some["item_id"], "none", 12]}).json()
    assert asked["items"] == [some]
    assert asked["unknown"] == ["none", 12]


def test_an_exported_map_is_taken(dictionary_artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dictionary_artifact, tmp_path / "artifact")
    ids = pl.read_parquet(copy / "items.parquet")["item_id"]
    table = pl.DataFrame({"item_id": ids, "x": np.linspace(-1, 1, len(ids)), "y": np.zeros(len(ids))})
    table[::-1].head(100).write_parquet(copy / "map.parquet")
    answer = Client(copy, tmp_path / "events.sqlite").get("/map?count=20000").json()
    assert answer["source"] == "export"
    at = {item["item_id"]: item["x"] for item in answer["items"]}
    assert at == pytest.approx(dict(zip(ids[-100:], table["x"][-100:], strict=True)), abs=1e-5)
    (copy / "map.parquet").write_bytes(b"PAR1 cut")
    refused = Client(copy, tmp_path / "events.sqlite").get("/map")
    assert refused.status_code == 422
    assert "map.parquet" in refused.json()["got"]


def test_the_tree_holds_every_item_once_at_each_level(two: Client, dictionary_artifact: Path) -> None:
    model: Any = Recommender.from_pretrained(dictionary_artifact).model
    code_NC = unflatten(model.item_interests()[1:], (6, 3)).numpy()
    root = two.get("/dictionary").json()
    assert root["sizes"] == [6, 3]
    first = {tuple(code["path"]): code["items"] for code in root["codes"]}
    assert first == {
        (code,): int(size) for code, size in zip(*np.unique(code_NC[:, 0], return_counts=True), strict=True)
    }
    assert list(first.values()) == sorted(first.values(), reverse=True)
    code = root["codes"][0]
    below = two.get(f"/dictionary?path={code['path'][0]}&items=100").json()
    assert sum(each["items"] for each in below["codes"]) == below["here"]["items"] == code["items"]
    for each in below["codes"]:
        assert all(item["codes"] == each["path"] for item in each["top"])
        assert len(each["top"]) == each["items"]
    assert two.get("/dictionary?path=5.2.1").status_code == 422
    assert two.get("/dictionary?path=x").status_code == 422
    assert two.get("/dictionary?path=99").json()["here"] is None


def test_users_are_found_by_a_part_of_their_id_and_with_what_they_did_since(two: Client) -> None:
    found = two.get("/users?query=user-39&count=4").json()
    assert found["users"][0]["user_id"] == "user-39"
    assert {user["user_id"][:7] for user in found["users"]} == {"user-39"}
    assert (len(found["users"]), found["total"]) == (4, 400)
    assert two.get("/users?query=r-17&count=1").json()["users"][0]["user_id"].startswith("user-17")
    before = found["users"][0]
    events = [{"user_id": "user-39", "item_id": "item-5"}, {"user_id": "new", "item_id": "item-7"}]
    assert two.post("/events", {"events": events}).status_code == 200
    after = two.get("/users?query=user-39").json()["users"][0]
    assert after["history"] == [*before["history"], "item-5"][-50:]
    assert two.get("/users?query=new").json()["users"] == [{"user_id": "new", "events": 1, "history": ["item-7"]}]


def test_each_artifact_answers_by_its_name(two: Client, client: Client) -> None:
    facts = two.get("/artifacts").json()["artifacts"]
    assert [(each["variant"], each["model"], each["sizes"]) for each in facts] == [
        ("A", "gemirec", [6, 3]),
        ("B", "comirec_sa", []),
    ]
    ask = {"user_id": "user-8", "k": 6}
    assert two.post("/recommend?variant=B", ask).json() == client.post("/recommend", ask).json()
    assert two.post("/recommend?variant=A", ask).json() == two.post("/recommend", ask).json()
    assert client.post("/recommend?variant=B", ask).status_code == 422
    assert client.get("/map?variant=C").status_code == 422
    assert client.get("/map?colour=red").status_code == 422


def test_who_only_looks_leaves_no_impression(dictionary_artifact: Path, artifact: Path, tmp_path: Path) -> None:
    plan = ServePlan(artifact=dictionary_artifact, split=Split(artifact=artifact), events=tmp_path / "events.sqlite")
    client = Client(dictionary_artifact, tmp_path / "unused.sqlite")
    client.app = build_app(plan, ServeConfig(), None)
    for path in ("/recommend?variant=A", "/recommend?variant=B"):
        assert client.post(path, {"user_id": "user-3"}).status_code == 200
    client.post("/recommend", {"user_id": "user-4"})
    client.run(lambda http: client.app.stop())
    logged = read_impressions(tmp_path / "events.sqlite").lists
    assert logged["user_id"].to_list() == ["user-4"]
    with pytest.raises(ConfigError, match="at most two"):
        ServePlan(artifact=artifact, split=Split(artifact=artifact), compare=artifact)


def test_recommendations_do_not_wait_for_the_explorer(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = threading.Event(), threading.Event()

    def slow(self: RecommenderEngine, requests: list[Any]) -> list[Any]:
        begun.set()
        assert done.wait(20)
        return [ConfigError("late", got="a question of the page", fix="none")]

    monkeypatch.setattr(RecommenderEngine, "explore", slow)

    async def story(http: Any) -> tuple[int, int]:
        page = asyncio.create_task(http.get("/map", headers={"X-Deadline-Ms": "30000"}))
        assert await asyncio.to_thread(begun.wait, 20)
        answer = await http.post("/recommend", json={"user_id": "user-1"})
        done.set()
        return answer.status_code, (await page).status_code

    assert client.run(story) == (200, 422)
