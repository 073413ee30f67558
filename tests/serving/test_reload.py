"""A new artifact under load: loaded beside the old one, checked, swapped; no request fails."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from gemirec.recommender import Recommender
from gemirec.serving.recommender_engine import RecommenderEngine
from support_serving import Client

ASK: dict[str, Any] = {"history": ["item-1", "item-8"], "k": 5}


def test_no_request_fails_while_artifacts_roll(client: Client, artifact: Path, other_artifact: Path) -> None:
    both = {path: Recommender.from_pretrained(path) for path in (artifact, other_artifact)}
    lists = {path: each.recommend(histories=[ASK["history"]], k=5)["item_id"].to_list() for path, each in both.items()}
    assert lists[artifact] != lists[other_artifact]

    async def story(http: httpx.AsyncClient) -> tuple[list[httpx.Response], list[str]]:
        answers: list[httpx.Response] = []
        done = False

        async def ask() -> None:
            while not done:
                answers.append(await http.post("/recommend", json=ASK))

        load = [asyncio.create_task(ask()) for _ in range(8)]
        versions = [client.app.version]
        for turn in range(4):
            path = (other_artifact, artifact)[turn % 2]
            answer = await http.post("/reload", json={"artifact": str(path)})
            assert answer.status_code == 200
            versions.append(answer.json()["version"])
        done = True
        await asyncio.gather(*load)
        return answers, versions

    answers, versions = client.run(story)
    assert versions[0] == versions[2] == versions[4]
    assert versions[1] == versions[3] != versions[0]
    by_version = {versions[0]: lists[artifact], versions[1]: lists[other_artifact]}
    seen = set()
    for answer in answers:
        assert answer.status_code == 200
        body = answer.json()
        assert [item["item_id"] for item in body["items"]] == by_version[body["version"]]
        seen.add(body["version"])
    assert seen == set(by_version)
    assert client.counted('gemirec_reloads_total{outcome="done"}') == 4
    assert client.counted(f'gemirec_version{{version="{versions[0]}"}}') == 1
    assert client.counted(f'gemirec_version{{version="{versions[1]}"}}') == 0


def test_requests_in_flight_finish_with_the_old_model_which_is_closed_after_them(
    client: Client, other_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, closed = threading.Event(), []
    recommend = RecommenderEngine.recommend
    old = client.app._served.engine

    def slow(self: RecommenderEngine, requests: Sequence[Any]) -> list[Any]:
        if self is old:
            gate.wait(10)
        return recommend(self, requests)

    monkeypatch.setattr(RecommenderEngine, "recommend", slow)
    monkeypatch.setattr(RecommenderEngine, "close", lambda self: closed.append(self))

    async def story(http: httpx.AsyncClient) -> tuple[str, str, str]:
        before = client.app.version
        flying = asyncio.create_task(http.post("/recommend", json=ASK))
        await asyncio.sleep(0.05)
        await http.post("/reload", json={"artifact": str(other_artifact)})
        assert closed == []
        gate.set()
        after = await http.post("/recommend", json=ASK)
        return before, (await flying).json()["version"], after.json()["version"]

    before, flying, after = client.run(story)
    assert before == flying != after
    assert closed == [old]


def cut(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def another_version(folder: Path) -> None:
    file = folder / "artifact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 7}))


def flipped(folder: Path) -> None:
    file = folder / "histories.parquet"
    raw = bytearray(file.read_bytes())
    raw[4:400] = bytes(396)
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "spoil",
    [
        cut("model.safetensors"),
        cut("items.parquet"),
        cut("artifact.json"),
        cut("histories.parquet"),
        lambda folder: (folder / "model.safetensors").unlink(),
        shutil.rmtree,
        another_version,
        flipped,
    ],
    ids=["model", "items", "json", "histories", "no model", "nothing", "version", "flipped"],
)
def test_an_artifact_that_is_not_whole_is_refused_and_the_old_one_goes_on(
    client: Client, other_artifact: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(other_artifact, half)
    spoil(half)
    before = client.post("/recommend", ASK).json()
    refused = client.post("/reload", {"artifact": str(half)})
    assert refused.status_code == 422
    assert str(half) in refused.json()["got"]
    assert client.post("/recommend", ASK).json() == before
    assert client.counted('gemirec_reloads_total{outcome="refused"}') == 1


def test_a_model_that_diverged_is_refused(client: Client, artifact: Path, tmp_path: Path) -> None:
    from gemirec.artifacts import load_tensors, save_tensors

    spoilt = tmp_path / "spoilt"
    shutil.copytree(artifact, spoilt)
    tensors = load_tensors(spoilt / "model.safetensors")
    save_tensors(spoilt / "model.safetensors", {name: value * float("nan") for name, value in tensors.items()})
    facts = json.loads((spoilt / "artifact.json").read_text())
    facts["files"]["model.safetensors"] = (spoilt / "model.safetensors").stat().st_size
    (spoilt / "artifact.json").write_text(json.dumps(facts))
    assert client.post("/reload", {"artifact": str(spoilt)}).status_code == 422
    assert client.post("/recommend", ASK).status_code == 200


def test_one_reload_at_a_time_and_the_same_place_by_default(client: Client) -> None:
    async def story(http: httpx.AsyncClient) -> list[int]:
        answers = await asyncio.gather(*(http.post("/reload", json={}) for _ in range(3)))
        return sorted(answer.status_code for answer in answers)

    before = client.app._served
    assert client.run(story) == [200, 409, 409]
    assert client.app._served is not before
    assert client.app.version == before.engine.version
