"""The traffic split: who gets which model, what is logged of it, and what it survives."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemirec.errors import ArtifactError, GemirecError
from gemirec.recommender import Recommender
from gemirec.serving.impressions import ImpressionLog, ImpressionWriter, impressions_path, read_impressions
from gemirec.serving.metrics import Metrics
from gemirec.serving.split import Split
from gemirec.serving.wire import RecommendAnswer, RecommendedItem
from support_serving import Client, serving

USERS = [f"user-{number}" for number in range(40)]


@pytest.fixture
def split(other_artifact: Path) -> Split:
    return Split(artifact=other_artifact, share=0.4, salt="test")


@pytest.fixture
def client(make_client: Callable[..., Client], split: Split) -> Client:
    return make_client(split=split)


def items_of(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


@given(st.text(min_size=1), st.floats(0.001, 0.999), st.text())
def test_the_variant_is_a_hash_of_salt_and_user(user: str, share: float, salt: str) -> None:
    raw = f"{salt}\0{user}".encode("utf-8", "surrogatepass")
    place = int(hashlib.blake2b(raw, digest_size=8).hexdigest(), 16) / 2**64
    assert Split(artifact=Path(), share=share, salt=salt).variant(user) == ("B" if place < share else "A")


def test_shares_are_met_a_larger_share_keeps_its_users_and_salts_are_independent() -> None:
    def of(share: float, salt: str) -> Any:
        split = Split(artifact=Path(), share=share, salt=salt)
        return np.array([split.variant(user) == "B" for user in range(20_000)])

    small, large, other = of(0.1, "x"), of(0.3, "x"), of(0.3, "y")
    for found, share in ((small, 0.1), (large, 0.3), (other, 0.3)):
        assert abs(found.mean() - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    assert not (small & ~large).any()
    assert abs((large & other).mean() - 0.09) < 4 * (0.09 * 0.91 / 20_000) ** 0.5


def test_each_user_gets_the_list_of_the_own_variant(
    client: Client, split: Split, artifact: Path, other_artifact: Path
) -> None:
    libraries = {"A": Recommender.from_pretrained(artifact), "B": Recommender.from_pretrained(other_artifact)}
    batch = client.post("/recommend:batch", {"requests": [{"user_id": user, "k": 6} for user in USERS]}).json()
    assert {answer["variant"] for answer in batch["answers"]} == {"A", "B"}
    for user, answer in zip(USERS, batch["answers"], strict=True):
        assert (answer["user_id"], answer["variant"]) == (user, split.variant(user))
        assert items_of(answer) == libraries[answer["variant"]].recommend([user], k=6)["item_id"].to_list()
        assert answer["version"] == client.app.versions[answer["variant"]]
    for route in ("/recommend", "/interests", "/explain"):
        assert [client.post(route, {"user_id": user}).json()["variant"] for user in USERS[:6]] == [
            split.variant(user) for user in USERS[:6]
        ]
    assert client.post("/recommend", {"history": ["item-1"]}).json()["variant"] == "A"


def test_without_a_split_answers_name_no_variant(make_client: Callable[..., Client]) -> None:
    client = make_client()
    assert "variant" not in client.post("/recommend", {"user_id": "user-1"}).json()
    assert not impressions_path(client.app.events_path).exists()
    assert client.post("/reload", {"variant": "B"}).status_code == 422


def test_an_error_in_a_batch_names_the_request_as_the_caller_numbers_it(client: Client, split: Split) -> None:
    wrong = next(place for place, user in enumerate(USERS) if place > 3 and split.variant(user) == "B")
    asks: list[dict[str, Any]] = [{"user_id": user} for user in USERS]
    asks[wrong] |= {"lambda": 0.1, "quota": "equal"}
    refused = client.post("/recommend:batch", {"requests": asks})
    assert refused.status_code == 422
    assert refused.json()["got"].startswith(f"request {wrong}:")


def test_metrics_are_told_apart_by_variant(client: Client, split: Split) -> None:
    asked = Counter(split.variant(user) for user in USERS)
    for user in USERS:
        client.post("/recommend", {"user_id": user})
    strangers = Counter(split.variant(f"stranger-{number}") for number in range(10))
    for number in range(10):
        client.post("/recommend", {"user_id": f"stranger-{number}"})
    for variant in ("A", "B"):
        total = asked[variant] + strangers[variant]
        label = f'variant="{variant}"'
        assert client.counted(f'gemirec_variant_requests_total{{outcome="answered",{label}}}') == total
        assert client.counted(f"gemirec_variant_seconds_count{{{label}}}") == total
        assert client.counted(f'gemirec_variant_answers_total{{source="model",{label}}}') == asked[variant]
        assert client.counted(f'gemirec_variant_answers_total{{source="popularity",{label}}}') == strangers[variant]
        version = client.app.versions[variant]
        assert client.counted(f'gemirec_variant_version{{variant="{variant}",version="{version}"}}') == 1


def test_served_lists_are_logged_as_they_were_served(client: Client, tmp_path: Path) -> None:
    began = time.time()
    single = [client.post("/recommend", {"user_id": user, "k": 4}).json() for user in USERS[:9]]
    batch = client.post("/recommend:batch", {"requests": [{"user_id": user, "k": 3} for user in USERS]}).json()
    client.post("/recommend", {"history": ["item-1"]})  # nobody's
    client.post("/interests", {"user_id": "user-1"})
    asyncio.run(client.app.stop())
    found = read_impressions(tmp_path / "events.sqlite")
    assert (found.share, found.salt, found.lost) == (0.4, "test", 0)
    expected = [*single, *batch["answers"]]
    keys = ("user_id", "variant", "version", "source")
    assert sorted((*map(row.get, keys), *row["items"]) for row in found.lists.iter_rows(named=True)) == sorted(
        (*map(answer.get, keys), *items_of(answer)) for answer in expected
    )
    assert ((found.lists["shown"] >= began) & (found.lists["shown"] <= time.time())).all()
    assert read_impressions(tmp_path / "events.sqlite", top=2).lists["items"].list.len().max() == 2
    with pytest.raises(ArtifactError, match="no impression of this experiment"):
        read_impressions(tmp_path / "events.sqlite", salt="none")


def test_one_variant_is_reloaded_alone(client: Client, artifact: Path, other_artifact: Path) -> None:
    before = client.app.versions
    assert client.post("/reload", {}).status_code == 422  # which?
    answer = client.post("/reload", {"artifact": str(artifact), "variant": "B"}).json()
    assert answer == {"status": "reloaded", "version": before["A"], "variants": {"A": before["A"], "B": before["A"]}}
    client.post("/reload", {"artifact": str(other_artifact), "variant": "A"})
    assert client.get("/readyz").json()["variants"] == {"A": before["B"], "B": before["A"]}
    client.post("/reload", {"variant": "B"})  # from where it was loaded last
    assert client.app.versions == {"A": before["B"], "B": before["A"]}


def answer_of(user: int, items: int = 3) -> RecommendAnswer:
    listed = [
        RecommendedItem(item_id=place, rank=place + 1, score=0.5, interest=0, interest_rank=1) for place in range(items)
    ]
    return RecommendAnswer(user_id=user, source="model", cache="off", skipped=0, version="v", items=listed)


def test_what_the_disk_refuses_or_does_not_fit_is_dropped_counted_and_confessed(tmp_path: Path, split: Split) -> None:
    metrics, events = Metrics(), tmp_path / "events.sqlite"
    log = ImpressionLog(impressions_path(events))
    writer = ImpressionWriter(log, split, metrics, most_waiting=50)
    append, blocked = log.append, True

    def full(*args: Any) -> None:
        if blocked:
            raise sqlite_full
        append(*args)

    sqlite_full = GemirecError("full", got="disk", fix="space")
    log.append = full  # type: ignore[method-assign, assignment]
    start = time.perf_counter()
    for user in range(80):
        writer.add("A" if user % 2 else "B", answer_of(user))
    assert time.perf_counter() - start < 0.15  # nobody waits for a disk
    wait_for(lambda: b'gemirec_impressions_total{outcome="dropped"} 80' in metrics.text())
    blocked = False
    writer.add("A", answer_of(1000))
    writer.stop()
    found = read_impressions(events)
    assert found.lists["user_id"].to_list() == ["1000"]
    assert found.lost == 80


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(200):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError


def test_a_large_list_is_taken_in_far_less_than_a_millisecond(tmp_path: Path, split: Split) -> None:
    writer = ImpressionWriter(ImpressionLog(tmp_path / "x.sqlite"), split, Metrics())
    answer, taken = answer_of(1, items=200), []
    for _ in range(300):
        start = time.perf_counter()
        writer.add("A", answer)
        taken.append(time.perf_counter() - start)
    writer.stop()
    assert np.median(taken) < 0.0005


def test_the_experiment_served_last_is_read_and_another_by_its_salt(tmp_path: Path, split: Split) -> None:
    events = tmp_path / "events.sqlite"
    for salt, user in (("one", 1), ("two", 2), ("one", 3)):
        log = ImpressionLog(impressions_path(events))
        writer = ImpressionWriter(log, Split(artifact=split.artifact, salt=salt), Metrics())
        writer.add("A", answer_of(user))
        writer.stop()
    assert read_impressions(events).lists["user_id"].to_list() == ["1", "3"]
    assert read_impressions(events, salt="two").lists["user_id"].to_list() == ["2"]


def test_a_killed_server_keeps_what_it_wrote(artifact: Path, other_artifact: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        artifact,
        "--split",
        other_artifact,
        "--share",
        "0.5",
        "--events",
        tmp_path / "events.sqlite",
    ]
    with serving(*words) as server:
        assert server.facts["version_A"] != server.facts["version_B"]
        for user in USERS[:10]:
            assert httpx.post(f"{server.url}/recommend", json={"user_id": user, "k": 3}).json()["variant"] in "AB"
        file = impressions_path(tmp_path / "events.sqlite")
        with sqlite3.connect(file) as db:
            wait_for(lambda: db.execute("SELECT count(*) FROM impression").fetchone() == (10,))
        httpx.post(f"{server.url}/recommend", json={"user_id": "late"})
        server.kill()
    assert read_impressions(tmp_path / "events.sqlite").lists.height >= 10


def test_a_file_that_is_no_impression_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.impressions.sqlite").write_bytes(b"no database, but long enough to be taken for one" * 50)
    with pytest.raises(ArtifactError, match="damaged"):
        ImpressionLog(tmp_path / "events.impressions.sqlite")
    with pytest.raises(ArtifactError, match="no impressions beside"):
        read_impressions(tmp_path / "other.sqlite")
