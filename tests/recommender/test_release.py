"""Artifact, index and cache roll together or not at all, and a request never sees a mix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemirec.artifacts import read_json, write_json
from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, StorageError
from gemirec.models.base import Histories
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from gemirec.recommender.artifact import new_artifact_info
from gemirec.recommender.histories import DatasetHistories
from gemirec.recommender.release import Release, ReleaseFolder
from gemirec.recommender.release_reader import ReleaseReader
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.roads import store_info
from gemirec.retrieval.stores import Bulk, StoreUnavailableError, fill_store
from support_models import held_out, ready, shake
from support_stores import RedisServer, need_redis

NAMES = ("monday", "tuesday", "sunday")
IDS: list[object] = [f"user-{number}" for number in range(8)]


class Parts:
    """What one release is made of, tagged with its name in the artifact's facts."""

    def __init__(self, name: str, seed: int, planted: Dataset, home: Path) -> None:
        self.name = name
        model = ready("gemirec", planted.spec(), seed=seed)
        assert isinstance(model, GemiRec)
        shake(model, 0.1 * (seed + 1))
        model.refresh()
        self.model = model.eval()
        info = new_artifact_info("gemirec", model, planted, training={"profile": name})
        recommender = Recommender(info, model, planted.items, DatasetHistories(planted), planted)
        self.artifact = recommender.save_pretrained(home / name / "artifact", histories=False)
        items_ND, version = recommender.served_items()
        index = ExactIndex(items_ND)
        index.version = version
        self.index = index.save(home / name / "index")
        wide = held_out(planted, model.max_length)
        features = (part if part is None else part[:8] for part in (wide.user_categorical_BF, wide.user_numeric_BG))
        self.histories = Histories(wide.item_BL[:8], *features)
        with torch.no_grad():
            self.vector_BKD = model.interests(self.histories).vector_BKD

    @property
    def bulk(self) -> Bulk:
        return Bulk(store_info(self.model), 100, ())

    def says(self, release: Release) -> None:
        """Hold every part of a release against this one's."""
        assert release.cached is not None
        assert release.store is not None
        assert release.index is not None
        assert release.name == self.name
        assert release.recommender.info.training["profile"] == self.name
        assert {release.version, release.store.version, release.index.version, release.info.items_version} == {
            release.version
        }
        found = release.cached.interests(self.histories, IDS)
        torch.testing.assert_close(found.vector_BKD, self.vector_BKD, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def parts(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    home = tmp_path_factory.mktemp("parts")
    return {name: Parts(name, seed, planted, home) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def made(parts: dict[str, Parts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = ReleaseFolder(tmp_path_factory.mktemp("releases"))
    for name, part in parts.items():
        found.add(name, part.artifact, index=part.index, cache=part.bulk)
    found.switch(NAMES[0])
    return found.root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> ReleaseFolder:
    """Three releases, the first of which is served."""
    shutil.copytree(made, tmp_path / "releases")
    return ReleaseFolder(tmp_path / "releases")


def test_a_release_is_its_parts(folder: ReleaseFolder, parts: dict[str, Parts]) -> None:
    assert folder.names == sorted(NAMES)
    for name in (*NAMES, None):
        release = folder.open(name)
        parts[name or folder.current].says(release)
        release.close()
    release = folder.open()
    rows = release.recommender.recommend(histories=[["item-1", "item-2"]], k=5)
    alone = Recommender.from_pretrained(parts[NAMES[0]].artifact).recommend(histories=[["item-1", "item-2"]], k=5)
    assert rows.equals(alone)
    release.close()
    with pytest.raises(StorageError, match="cannot be removed"):
        folder.remove(NAMES[0])
    folder.remove(NAMES[2])
    assert folder.names == sorted(NAMES[:2])


def test_a_request_never_sees_a_mix(folder: ReleaseFolder, parts: dict[str, Parts]) -> None:
    """Three threads ask while releases are switched as fast as they open; every request's parts are of one release."""
    reader = ReleaseReader(folder)
    seen: set[str] = set()
    failures: list[BaseException] = []
    served = [0]
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with reader.use() as release:
                    parts[release.name].says(release)
                    time.sleep(0.001)  # others switch
                    parts[release.name].says(release)
                    seen.add(release.name)
                    served[0] += 1
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(15):
        folder.switch(NAMES[(turn + 1) % 3])
        assert reader.refresh()
        assert not reader.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert seen == set(NAMES)
    assert served[0] >= 15
    reader.close()


def test_what_is_replaced_is_closed_when_its_last_request_ends(folder: ReleaseFolder) -> None:
    reader = ReleaseReader(folder)
    with reader.use() as first, reader.use() as again:
        assert first is again
        folder.switch(NAMES[1])
        reader.refresh()
        with reader.use() as second:
            assert second.name == NAMES[1]
        assert first.store is not None
        first.store.get_many(IDS)  # still open
    with pytest.raises(AttributeError):
        first.store.get_many(IDS)
    reader.close()


def test_a_refilled_cache_is_taken_up(folder: ReleaseFolder, parts: dict[str, Parts]) -> None:
    """The nightly refill of a release's cache: the same model, a new generation; marks outlive it."""
    part = parts[NAMES[0]]
    reader = ReleaseReader(folder)
    with reader.use() as old:
        assert old.store is not None
        old.cached.interests(part.histories, IDS)  # type: ignore[union-attr]
        fill_store(folder.root / "releases" / NAMES[0] / "cache", part.bulk, marks=folder.root / "marks.bin")
        assert reader.refresh()
        with reader.use() as new:
            assert new.store is not None
            assert new.store.info.generation > old.store.info.generation
            assert not new.store.get_many(IDS).found_B.any()
            before = new.store.now()
            old.store.mark_stale(IDS[:2])
            new.cached.interests(part.histories, IDS, as_of=before)  # type: ignore[union-attr]
            assert new.store.get_many(IDS).stale_B.tolist() == [True, True] + [False] * 6
    reader.close()


Change = Callable[[Path, Path], object]


def swap(part: str) -> Change:
    """Take a part from another release."""

    def change(folder: Path, other: Path) -> None:
        shutil.rmtree(folder / part)
        shutil.copytree(other / part, folder / part)

    return change


def write(part: str, content: bytes | None) -> Change:
    def change(folder: Path, _: Path) -> None:
        (folder / part).unlink() if content is None else (folder / part).write_bytes(content)

    return change


def other_model(folder: Path, other: Path) -> None:
    shutil.copy(other / "artifact/model.safetensors", folder / "artifact/model.safetensors")


def cut(part: str) -> Change:
    return lambda folder, _: os.truncate(folder / part, (folder / part).stat().st_size - 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap("artifact"), "exchanged"),
        (swap("index"), "exchanged"),
        (swap("cache"), r"different versions[\s\S]*cache"),
        (other_model, r"different versions[\s\S]*artifact"),
        (cut("artifact/model.safetensors"), "missing or cut"),
        (cut("index/vectors.safetensors"), "cut"),
        (write("artifact/items.parquet", None), "missing or cut"),
        (write("artifact/artifact.json", None), "missing"),
        (write("index/index.json", None), "missing"),
        (write("cache/current.json", None), "missing"),
        (write("release.json", b"{}"), "format version"),
        (write("release.json", b'{"format_version": 1}'), "damaged"),
        (write("release.json", None), "missing"),
    ],
)
def test_a_mix_or_half_a_copy_is_refused_and_the_old_release_serves_on(
    folder: ReleaseFolder, parts: dict[str, Parts], change: Change, said: str
) -> None:
    reader = ReleaseReader(folder)
    change(folder.root / "releases" / NAMES[1], folder.root / "releases" / NAMES[2])
    for call in (lambda: folder.open(NAMES[1]), lambda: folder.switch(NAMES[1])):
        with pytest.raises(ArtifactError, match=said):
            call()
    assert folder.current == NAMES[0]
    write_json(folder.root / "current.json", {"format_version": 1, "release": NAMES[1]})  # by another hand
    with pytest.raises(ArtifactError):
        reader.refresh()
    with reader.use() as release:
        parts[NAMES[0]].says(release)
    reader.close()


def test_parts_of_different_models_make_no_release(folder: ReleaseFolder, parts: dict[str, Parts]) -> None:
    one, two = parts[NAMES[0]], parts[NAMES[1]]
    wrong: list[dict[str, Any]] = [{"index": two.index}, {"cache": two.bulk}]
    for given in wrong:
        with pytest.raises(ArtifactError, match="different versions"):
            folder.add("mixed", one.artifact, **given)
    with pytest.raises(StorageError, match="exists already"):
        folder.add(NAMES[0], one.artifact)
    for name in ("../up", ".hidden", ""):
        with pytest.raises(ArtifactError, match="no name of a release"):
            folder.add(name, one.artifact)
    assert folder.names == sorted(NAMES)
    assert sorted(path.name for path in (folder.root / "releases").iterdir()) == sorted(NAMES)
    folder.add("bare", one.artifact)
    bare = folder.open("bare")
    assert (bare.index, bare.store, bare.cached) == (None, None, None)
    bare.close()


SLOW_ADD = """
import sys, time
from pathlib import Path
from gemirec.recommender import Recommender
from gemirec.recommender.release import ReleaseFolder
from gemirec.retrieval.roads import store_info
from gemirec.retrieval.stores import Bulk

def blocks():
    print("filling", flush=True)
    time.sleep(60)
    yield

root, artifact, index = sys.argv[1:]
info = store_info(Recommender.from_pretrained(artifact).model)
ReleaseFolder(root).add("late", artifact, index=index, cache=Bulk(info, 10, blocks()))
"""


def test_killed_while_a_release_is_put_together(folder: ReleaseFolder, parts: dict[str, Parts]) -> None:
    part = parts[NAMES[1]]
    words = [sys.executable, "-c", SLOW_ADD, *map(str, (folder.root, part.artifact, part.index))]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filling\n"
        process.kill()
    assert folder.names == sorted(NAMES)
    assert folder.current == NAMES[0]
    with pytest.raises(ArtifactError):
        folder.switch("late")
    folder.add("late", part.artifact, index=part.index, cache=part.bulk)
    assert sorted(path.name for path in (folder.root / "releases").iterdir()) == sorted([*NAMES, "late"])
    folder.switch("late")
    assert folder.current == "late"


def test_a_cache_in_redis_rolls_along_and_may_be_gone(parts: dict[str, Parts], tmp_path: Path) -> None:
    need_redis()
    server = RedisServer(tmp_path)
    try:
        folder = ReleaseFolder(tmp_path / "releases", redis_url=server.url)
        for name in NAMES:
            folder.add(name, parts[name].artifact, index=parts[name].index, cache=parts[name].bulk, redis_prefix="shop")
        assert server.url not in "".join(str(read_json(path)) for path in tmp_path.glob("**/release.json"))
        held = [folder.open(name) for name in NAMES]
        for name, release in zip(NAMES, held, strict=True):
            parts[name].says(release)
            assert release.cached is not None
            assert release.cached.counts().errors == 0
            parts[name].says(release)
            assert release.cached.counts().hits == 8
        with pytest.raises(ConfigError, match="URL is not known"):
            ReleaseFolder(tmp_path / "releases").open(NAMES[0])
        server.kill()
        for name in NAMES:
            late = folder.open(name)  # a release opens while its cache is away
            parts[name].says(late)
            assert late.cached is not None
            assert late.cached.counts().errors == 1
            assert late.store is not None
            with pytest.raises(StoreUnavailableError):
                late.store.mark_stale(IDS)
            late.close()
        for release in held:
            release.close()
    finally:
        server.kill()
