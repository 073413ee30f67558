"""Events: on the disk before the answer, in the history of the next request, once each."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from gemirec.errors import ArtifactError, StorageError
from gemirec.recommender import Recommender
from gemirec.serving.events import EventLog, EventWriter, read_events
from gemirec.serving.wire import Event
from support_serving import Client


def event(user: int | str, item: int | str, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, **more}


def listed(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def test_the_next_request_knows_the_event(client: Client, recommender: Recommender) -> None:
    before = recommender.known_histories(["user-8"])[0]
    assert client.post("/events", {"events": [event("user-8", "item-40"), event("user-8", "item-46")]}).json() == {
        "stored": 2,
        "duplicates": 0,
        "last": 2,
    }
    expected = recommender.recommend(histories=[[*before, "item-40", "item-46"]])["item_id"].to_list()
    assert listed(client.post("/recommend", {"user_id": "user-8"})) == expected
    assert not {"item-40", "item-46"} & set(expected)
    given = client.post("/recommend", {"user_id": "user-8", "history": before})  # the request's own history stands
    assert listed(given) == recommender.recommend(histories=[before])["item_id"].to_list()


def test_a_new_user_becomes_known_by_events(client: Client, recommender: Recommender) -> None:
    assert client.post("/recommend", {"user_id": 77}).json()["source"] == "popularity"
    client.post("/events", {"events": [event("77", "item-5"), event(77, "no such item"), event(77, "item-11")]})
    answer = client.post("/recommend", {"user_id": 77})
    assert (answer.json()["source"], answer.json()["skipped"]) == ("model", 1)
    assert listed(answer) == recommender.recommend(histories=[["item-5", "item-11"]])["item_id"].to_list()


def test_an_event_is_stored_once_by_its_id(client: Client, tmp_path: Path) -> None:
    events = [event(1, "item-1", event_id="a"), event(1, "item-2", event_id="b"), event(1, "item-1", event_id="a")]
    first = client.post("/events", {"events": events}).json()
    again = client.post("/events", {"events": events}).json()
    assert (first["stored"], first["duplicates"]) == (2, 1)
    assert (again["stored"], again["duplicates"], again["last"]) == (0, 3, first["last"])
    table = read_events(tmp_path / "events.sqlite")
    assert table["event_id"].to_list() == ["a", "b"]
    assert client.counted('gemirec_events_total{outcome="duplicate"}') == 4


def test_impressions_are_stored_but_are_no_history(client: Client, tmp_path: Path) -> None:
    shown = [event("new", "item-1", event="impression", timestamp=5), event("new", "item-2", event="impression")]
    client.post("/events", {"events": shown})
    assert client.post("/recommend", {"user_id": "new"}).json()["source"] == "popularity"
    table = read_events(tmp_path / "events.sqlite")
    assert table["event"].to_list() == ["impression"] * 2
    assert table["timestamp"][0] == 5
    assert table["timestamp"][1] == int(table["received"][1])


def test_an_artifact_trained_on_events_does_not_read_them_twice(
    client: Client, recommender: Recommender, other_artifact: Path, artifact: Path
) -> None:
    old = recommender.known_histories(["user-2"])[0]
    last = client.post("/events", {"events": [event("user-2", "item-30"), event("user-2", "item-60")]}).json()["last"]
    newer = Recommender.from_pretrained(other_artifact)

    def lists(of: Recommender, *new: str) -> list[str]:
        found: list[str] = of.recommend(histories=[[*old, *new]])["item_id"].to_list()
        return found

    ask = {"user_id": "user-2"}
    client.post("/reload", {"artifact": str(other_artifact), "events_after": last - 1})
    assert listed(client.post("/recommend", ask)) == lists(newer, "item-60")
    client.post("/reload", {"artifact": str(artifact)})  # the old one has its own number
    assert listed(client.post("/recommend", ask)) == lists(recommender, "item-30", "item-60")
    client.post("/reload", {"artifact": str(other_artifact)})
    assert listed(client.post("/recommend", ask)) == lists(newer, "item-60")


def test_calls_that_wait_share_a_commit_and_none_is_lost(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.sqlite")
    commits: list[int] = []
    append = log.append

    def counted(calls: Any) -> Any:
        commits.append(len(calls))
        return append(calls)

    log.append = counted  # type: ignore[method-assign]
    writer = EventWriter(log, group=40)

    async def story() -> list[Any]:
        calls = [[Event(user_id=user, item_id=place) for place in range(3)] for user in range(50)]
        found = await asyncio.gather(*map(writer.store, calls))
        await writer.stop()
        return list(found)

    stored = asyncio.run(story())
    assert [result.stored for result in stored] == [3] * 50
    assert len(commits) == 4  # 13 calls fit in one
    assert max(commits) * 3 <= 40
    assert log.recent(["7", "none"]) == [["0", "1", "2"], []]


def test_what_was_committed_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    log = EventLog(path)
    log.append([[Event(user_id=1, item_id=number) for number in range(100)]])
    other = EventLog(path)  # a second server on the same file
    other.append([[Event(user_id=1, item_id=100)]])
    assert log.recent(["1"])[0] == [str(number) for number in range(101)]
    assert log.recent(["1"], after=99)[0] == ["99", "100"]
    log.close()
    other.close()
    assert read_events(path).height == 101


def test_a_full_disk_refuses_events_and_nothing_else(client: Client, tmp_path: Path) -> None:
    assert client.post("/events", {"events": [event(1, "item-1")]}).status_code == 200
    pages = client.app._log._write.execute("PRAGMA page_count").fetchone()[0]
    client.app._log._write.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite answers when a disk is full
    many = {"events": [event(number, "item-1") for number in range(1000)]}
    refused = client.post("/events", many)
    assert refused.status_code == 503
    assert "full" in refused.json()["got"]
    assert client.post("/recommend", {"user_id": 1}).json()["source"] == "model"
    client.app._log._write.execute("PRAGMA max_page_count = 1000000")
    assert client.post("/events", many).json()["stored"] == 1000
    assert read_events(tmp_path / "events.sqlite").height == 1001  # nothing of the refused call


def test_too_many_waiting_events_are_refused(make_client: Callable[..., Client]) -> None:
    client = make_client()
    client.app._writer._most = 10

    async def story(http: Any) -> list[int]:
        bodies = [{"events": [event(user, "item-1") for _ in range(6)]} for user in range(4)]
        answers = await asyncio.gather(*(http.post("/events", json=body) for body in bodies))
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        return [answer.status_code for answer in answers]

    codes = client.run(story)
    assert sorted(codes) == [200, 429, 429, 429]


@pytest.mark.parametrize("spoilt", [b"no database at all, but long enough to be read as one" * 50, b"x"])
def test_a_file_that_is_no_event_log_is_refused(tmp_path: Path, spoilt: bytes) -> None:
    path = tmp_path / "events.sqlite"
    path.write_bytes(spoilt)
    with pytest.raises(ArtifactError, match="damaged, or is no event log"):
        EventLog(path)
    with pytest.raises(ArtifactError, match="missing"):
        read_events(tmp_path / "none.sqlite")


def test_a_log_of_another_format_or_place_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "events.sqlite") as other:
        other.execute("CREATE TABLE something (a)")
    with pytest.raises(ArtifactError, match="format version"):
        EventLog(tmp_path / "events.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        EventLog(tmp_path / "file" / "events.sqlite")


def test_the_table_of_events_can_be_trained_on(client: Client, tmp_path: Path) -> None:
    client.post("/events", {"events": [event("u", "item-1", timestamp=7), event("u", "item-2", timestamp=9)]})
    table = read_events(tmp_path / "events.sqlite")
    assert table.select("user_id", "item_id", "timestamp").equals(
        pl.DataFrame({"user_id": ["u", "u"], "item_id": ["item-1", "item-2"], "timestamp": [7, 9]})
    )
