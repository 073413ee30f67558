"""Releases behind the server: the index that is searched, the cache of interests, both rolled with the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, RetrievalError
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from gemirec.recommender.artifact import new_artifact_info
from gemirec.recommender.histories import DatasetHistories
from gemirec.recommender.release import ReleaseFolder
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.roads import store_info
from gemirec.retrieval.stores import Bulk, InterestStore, StoreUnavailableError
from gemirec.serving.metrics import Metrics
from gemirec.serving.opening import open_served
from gemirec.serving.recommender_engine import RecommenderEngine
from support_models import ready, shake
from support_serving import Client


def made(planted: Dataset, folder: ReleaseFolder, name: str, home: Path, seed: int) -> Recommender:
    """Add a release of a GemiRec model with an index and an empty cache."""
    model = ready("gemirec", planted.spec(), seed=seed)
    assert isinstance(model, GemiRec)
    shake(model, 0.1 * (seed + 1))
    model.refresh()
    model.eval()
    info = new_artifact_info("gemirec", model, planted, training={"profile": name})
    recommender = Recommender(info, model, planted.items, DatasetHistories(planted), planted)
    artifact = recommender.save_pretrained(home / name / "artifact")
    vectors, version = recommender.served_items()
    index = ExactIndex(vectors)
    index.version = version
    saved = index.save(home / name / "index")
    folder.add(name, artifact, index=saved, cache=Bulk(store_info(model), 100, ()))
    return recommender


@pytest.fixture(scope="module")
def releases(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Recommender]]:
    home = tmp_path_factory.mktemp("releases")
    folder = ReleaseFolder(home / "root")
    models = {name: made(planted, folder, name, home, seed) for seed, name in enumerate(("monday", "tuesday"))}
    folder.switch("monday")
    return folder.root, models


@pytest.fixture
def served(releases: tuple[Path, dict[str, Recommender]], tmp_path: Path) -> Any:
    ReleaseFolder(releases[0]).switch("monday")
    client = Client(releases[0], tmp_path / "events.sqlite")
    yield client
    client.app._served.engine.close()


def listed(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def test_the_cache_answers_what_the_model_would(served: Client, releases: tuple[Path, dict[str, Recommender]]) -> None:
    model = releases[1]["monday"]
    expected = model.recommend(users=["user-40"])["item_id"].to_list()
    for outcome in ("miss", "hit", "hit"):
        answer = served.post("/recommend", {"user_id": "user-40"})
        assert listed(answer) == expected
        assert answer.json()["cache"] == outcome
    assert served.post("/interests", {"user_id": "user-40"}).json()["cache"] == "hit"
    given = served.post("/recommend", {"user_id": "user-40", "history": model.known_histories(["user-40"])[0]})
    assert given.json()["cache"] == "off"
    assert listed(given) == expected
    other = served.post("/recommend", {"user_id": "user-40", "history": ["item-1"]})
    assert listed(other) != expected
    again = served.post("/recommend", {"user_id": "user-40"})
    assert (again.json()["cache"], listed(again)) == ("hit", expected)  # the other history spoilt nothing
    assert served.counted('gemirec_cache_total{outcome="hit"}') == 4
    assert served.counted('gemirec_cache_total{outcome="miss"}') == 1


def test_an_event_makes_the_cached_interests_stale(
    served: Client, releases: tuple[Path, dict[str, Recommender]]
) -> None:
    model = releases[1]["monday"]
    history = model.known_histories(["user-41"])[0]
    served.post("/recommend", {"user_id": "user-41"})
    shown = {"events": [{"user_id": "user-41", "item_id": "item-9", "event": "impression"}]}
    served.post("/events", shown)
    assert served.post("/recommend", {"user_id": "user-41"}).json()["cache"] == "hit"
    served.post("/events", {"events": [{"user_id": "user-41", "item_id": "item-9"}]})
    expected = listed(served.post("/recommend", {"user_id": "user-41", "history": [*history, "item-9"]}))
    for outcome in ("stale", "hit"):
        answer = served.post("/recommend", {"user_id": "user-41"})
        assert (answer.json()["cache"], listed(answer)) == (outcome, expected)


def test_model_index_and_cache_roll_together(served: Client, releases: tuple[Path, dict[str, Recommender]]) -> None:
    root, models = releases
    before = served.app.version
    assert served.post("/recommend", {"user_id": "user-42"}).json()["cache"] == "miss"
    ReleaseFolder(root).switch("tuesday")
    assert served.post("/reload", {}).json()["version"] == served.app.version != before
    answer = served.post("/recommend", {"user_id": "user-42"})
    assert listed(answer) == models["tuesday"].recommend(users=["user-42"])["item_id"].to_list()
    assert answer.json()["cache"] == "miss"
    assert answer.json()["version"] == served.app.version


def test_a_cache_that_is_away_costs_a_miss_and_no_event_is_forgotten(
    served: Client, releases: tuple[Path, dict[str, Recommender]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [served.post("/recommend", {"user_id": "user-43"}).json()["cache"] for _ in range(2)] == ["miss", "hit"]

    def away(*_: Any) -> Any:
        raise StoreUnavailableError("the store is away", got="nothing", fix="wait")

    with monkeypatch.context() as patched:
        for name in ("get_many", "set_many", "mark_stale"):
            patched.setattr(InterestStore, name, away)
        answer = served.post("/recommend", {"user_id": "user-43"}).json()
        assert (answer["cache"], answer["source"]) == ("miss", "model")
        event = {"events": [{"user_id": "user-43", "item_id": "item-20"}]}
        assert served.post("/events", event).status_code == 200
        assert served.counted('gemirec_cache_trouble_total{what="unreachable"}') >= 2
    # It is back, with what it knew before the event: that is not what the user gets.
    codes = [served.post("/recommend", {"user_id": "user-43"}).json()["cache"] for _ in range(3)]
    assert "item-20" not in listed(served.post("/recommend", {"user_id": "user-43", "k": 120}))
    assert codes == ["miss", "stale", "hit"]


def test_a_user_with_an_event_is_marked_when_the_server_starts_again(
    releases: tuple[Path, dict[str, Recommender]], served: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.post("/recommend", {"user_id": "user-44"})
    with monkeypatch.context() as patched:  # killed between the commit and the mark
        patched.setattr(InterestStore, "mark_stale", lambda *_: None)
        served.post("/events", {"events": [{"user_id": "user-44", "item_id": "item-20"}]})
    again = Client(releases[0], served.plan.events or Path())
    assert again.post("/recommend", {"user_id": "user-44"}).json()["cache"] == "stale"
    again.app._served.engine.close()


def test_an_index_is_searched_and_of_this_model(
    artifact: Path, other_artifact: Path, recommender: Recommender, tmp_path: Path, make_client: Callable[..., Client]
) -> None:
    vectors, version = recommender.served_items()
    index = ExactIndex(vectors[:50])  # the first 49 items alone, so that it shows who is asked
    index.version = version
    saved = index.save(tmp_path / "index")
    client = make_client(index=saved)
    items = client.post("/recommend", {"history": ["item-1"], "k": 100}).json()["items"]
    assert {item["item_id"] for item in items} == {f"item-{number}" for number in range(2, 50)}
    assert client.app.version != make_client().app.version
    with pytest.raises(ArtifactError, match="index is of another model"):
        RecommenderEngine.load(other_artifact, events=None, metrics=Metrics(), index=saved)


def test_an_index_that_is_away_leaves_the_fallback(
    make_client: Callable[..., Client], recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client()

    def away(*_: Any, **__: Any) -> Any:
        raise RetrievalError("the index does not answer", got="nothing", fix="wait")

    popular = recommender.recommend(histories=[[]])["item_id"].to_list()
    with monkeypatch.context() as patched:
        patched.setattr(ExactIndex, "search", away)
        answer = client.post("/recommend", {"user_id": "user-3"})
        assert (listed(answer), answer.json()["source"]) == (popular, "popularity")
        assert client.post("/interests", {"user_id": "user-3"}).status_code == 503
        assert client.counted("gemirec_index_trouble_total") == 2
    back = client.post("/recommend", {"user_id": "user-3"})
    assert (listed(back), back.json()["source"]) == (
        recommender.recommend(users=["user-3"])["item_id"].to_list(),
        "model",
    )


def test_a_release_is_refused_whole(
    releases: tuple[Path, dict[str, Recommender]], served: Client, tmp_path: Path
) -> None:
    root = releases[0]
    with pytest.raises(ConfigError, match="its own index"):
        open_served(root, index=tmp_path)
    file = root / "releases" / "tuesday" / "artifact" / "artifact.json"
    whole = file.read_text()
    (root / "current.json").write_text((root / "current.json").read_text().replace("monday", "tuesday"))
    try:
        file.write_text(whole + " ")
        before = served.app.version
        refused = served.post("/reload", {})
        assert refused.status_code == 422
        assert "exchanged" in refused.json()["error"]
        assert served.post("/recommend", {"user_id": "user-1"}).json()["version"] == before
    finally:
        file.write_text(whole)
