"""A model behind a store says what it says alone: found, missed, out of date, or with the store away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.components.selection import Selected
from gemirec.config import merge
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ArtifactError, ConfigError, StorageError
from gemirec.experiments.cache import CacheConfig, UserBlock, cache_info, select_block
from gemirec.models.base import Histories, Interests, RetrievalModel
from gemirec.models.catalog import MODELS
from gemirec.models.dmi import DMI
from gemirec.models.dmi.config import SHARED
from gemirec.models.gemirec import GemiRec
from gemirec.retrieval.cached import SOURCES, CachedInterests, Served
from gemirec.retrieval.interest_cache import InterestCache, write_cache
from gemirec.retrieval.roads import store_info
from gemirec.retrieval.stores import (
    InterestStore,
    StoreUnavailableError,
    bulk_of_cache,
    fill_store,
    memory_store,
    open_store,
)
from gemirec.retrieval.stores.base import Raw
from gemirec.retrieval.versions import model_version
from support_models import TINY, held_out, ready, shake
from support_stores import Clock

LEARNT = sorted(set(MODELS) - {"popularity"})


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


@pytest.fixture(scope="module")
def histories(planted: Dataset) -> Histories:
    """20 users, the last two without a history."""
    found = held_out(planted, 12)
    item_BL = found.item_BL[:20].clone()
    item_BL[18:] = 0
    features = (part if part is None else part[:20] for part in (found.user_categorical_BF, found.user_numeric_BG))
    return Histories(item_BL, *features)


IDS: list[object] = [f"u{number}" for number in range(20)]
SOME = 18


def model_of(name: str, spec: DataSpec, **over: Any) -> RetrievalModel:
    """A tiny model; ``dmi_gemirec`` is DMI over GemiRec."""
    if name == "dmi_gemirec":
        base = {"model": "gemirec", **{key: value for key, value in TINY["gemirec"].items() if key not in SHARED}}
        name, over = "dmi", merge({"base": base, "loss": TINY["gemirec"]["loss"]}, over)
    model = ready(name, spec, **over)
    shake(model, 0.1)
    for part in model.modules():
        if isinstance(part, GemiRec):
            part.refresh()
    return model.eval()


def sources(served: Served) -> list[str]:
    return [SOURCES[source] for source in served.source_B]


def assert_says(found: Interests, wanted: Interests, rows: slice = slice(0, SOME), atol: float = 1e-5) -> None:
    """The same interests of some users; models with fewer interests than the store has room for come first."""
    torch.testing.assert_close(found.vector_BKD[rows], wanted.vector_BKD[rows], rtol=1e-4, atol=atol)
    assert torch.equal(found.mask_BK[rows], wanted.mask_BK[rows])
    for name in ("weight_BK", "code_BKC"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a[rows], b[rows], rtol=1e-5, atol=1e-6)


def grown(histories: Histories) -> Histories:
    """The same users with one event more: the oldest leaves the window where it is full."""
    item_BL = histories.item_BL.clone()
    for row, length in enumerate(histories.length_B.tolist()[:SOME]):
        items = [*item_BL[row, :length].tolist(), 1 + row][-item_BL.shape[1] :]
        item_BL[row, : len(items)] = torch.tensor(items)
    return replace(histories, item_BL=item_BL)


@pytest.mark.parametrize("name", [*LEARNT, "dmi_gemirec"])
def test_every_model_is_served_as_it_is(
    name: str, spec: DataSpec, histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missed, then found without its generator (or the whole model), then with another history."""
    model = model_of(name, spec)
    with torch.no_grad():
        wanted, later = model.interests(histories), model.interests(grown(histories))
    cached = CachedInterests(model, memory_store(store_info(model)))
    first = cached.serve(histories, IDS)
    assert sources(first) == ["miss"] * SOME + ["nothing"] * 2
    assert not first.interests.mask_BK[SOME:].any()
    dictionary = name in ("gemirec", "dmi_gemirec")
    with monkeypatch.context() as patch:
        for silent in ("state", "select") if dictionary else ("interests",):
            owner = model.base if isinstance(model, DMI) and dictionary else model
            patch.setattr(owner, silent, None)
        second = cached.serve(histories, IDS)
    assert sources(second) == ["hit"] * SOME + ["nothing"] * 2
    for served in (first, second):
        assert_says(served.interests, wanted)
    assert torch.equal(first.interests.vector_BKD[:SOME], second.interests.vector_BKD[:SOME])
    third = cached.serve(grown(histories), IDS)
    if not dictionary:
        assert sources(third)[:SOME] == ["stale"] * SOME
        assert_says(third.interests, later)
    counts = cached.counts()
    assert (counts.misses, counts.nothing) == (SOME, 6)
    assert (counts.hits, counts.stale) == ((2 * SOME, 0) if dictionary else (SOME, SOME))
    assert counts.written == counts.misses + counts.stale


def test_cached_indices_are_fused_with_the_history_of_now(spec: DataSpec, histories: Histories) -> None:
    model = model_of("gemirec", spec)
    assert isinstance(model, GemiRec)
    store = memory_store(store_info(model))
    CachedInterests(model, store).interests(histories, IDS)
    fresh = grown(histories)
    with torch.no_grad():
        old = model.select(model.state(histories))
        wanted, anew = model.fused(fresh, old), model.interests(fresh)
    served = CachedInterests(model, store).serve(fresh, IDS)
    assert sources(served)[:SOME] == ["hit"] * SOME
    assert_says(served.interests, wanted)
    assert not torch.equal(wanted.code_BKC, anew.code_BKC)  # type: ignore[arg-type]
    changed = CachedInterests(model, store, refresh="changed").serve(fresh, IDS)
    assert sources(changed)[:SOME] == ["stale"] * SOME
    assert_says(changed.interests, anew)
    assert_says(CachedInterests(model, store).interests(fresh, IDS), anew)  # it was written back


def test_a_mark_makes_one_user_s_interests_anew(spec: DataSpec, histories: Histories) -> None:
    clock = Clock()
    model = model_of("gemirec", spec)
    store = memory_store(store_info(model), clock=clock)
    cached = CachedInterests(model, store)
    cached.interests(histories, IDS)
    clock.sleep(1)
    store.mark_stale([IDS[3]])
    clock.sleep(1)
    fresh = grown(histories)
    with torch.no_grad():
        anew = model.interests(fresh)
    late = cached.serve(fresh, IDS, as_of=clock.micros - 1_500_000)  # its history was read before the mark
    assert [i for i, source in enumerate(sources(late)) if source == "stale"] == [3]
    for expected in ("stale", "hit"):
        served = cached.serve(fresh, IDS)
        assert sources(served)[3] == expected
        assert_says(served.interests, anew, slice(3, 4))


def test_features_belong_to_a_history(spec: DataSpec, histories: Histories) -> None:
    model = model_of("gemirec", spec)
    cached = CachedInterests(model, memory_store(store_info(model)), refresh="changed")
    cached.interests(histories, IDS)
    categorical = histories.user_categorical_BF
    assert categorical is not None
    other = categorical.clone()
    other[5] = (other[5] + 1) % 2
    served = cached.serve(replace(histories, user_categorical_BF=other), IDS)
    assert [i for i, source in enumerate(sources(served)) if source == "stale"] == [5]
    short = histories.length_B <= 11
    narrow = replace(histories, item_BL=histories.item_BL[:, :11])
    hit = [source == "hit" for source in sources(cached.serve(narrow, IDS))]
    assert hit[:SOME] == short[:SOME].tolist()
    assert sum(hit) > 0


class Away:
    """A shelf that can be told to fail."""

    def __init__(self, shelf: Any) -> None:
        self.shelf, self.reads, self.writes = shelf, True, True

    def read(self, keys: Any) -> Raw:
        if not self.reads:
            raise StoreUnavailableError("away", got="", fix="")
        return self.shelf.read(keys)  # type: ignore[no-any-return]

    def write(self, keys: Any, record_B: Any) -> None:
        if not self.writes:
            raise StorageError("full", got="", fix="")
        self.shelf.write(keys, record_B)


def test_a_store_that_fails_costs_the_work_of_a_miss(spec: DataSpec, histories: Histories) -> None:
    model = model_of("gemirec", spec)
    with torch.no_grad():
        wanted = model.interests(histories)
    inner = memory_store(store_info(model))
    shelf = Away(inner._shelf)
    cached = CachedInterests(model, InterestStore(shelf, inner.info))  # type: ignore[arg-type]
    shelf.reads = False
    for _ in range(2):
        served = cached.serve(histories, IDS)
        assert sources(served)[:SOME] == ["miss"] * SOME
        assert_says(served.interests, wanted)
    assert (cached.counts().errors, cached.counts().written) == (2, 0)
    shelf.reads, shelf.writes = True, False
    assert_says(cached.interests(histories, IDS), wanted)
    assert (cached.counts().errors, cached.counts().written) == (3, 0)
    shelf.writes = True
    cached.interests(histories, IDS)
    assert sources(cached.serve(histories, IDS))[:SOME] == ["hit"] * SOME
    for name, value in list(inner._shelf.values.items())[:4]:  # type: ignore[attr-defined]
        inner._shelf.values[name] = value[:-9] + b"123456789"  # type: ignore[attr-defined]
    served = cached.serve(histories, IDS)
    assert sources(served).count("miss") == 4
    assert_says(served.interests, wanted)
    assert cached.counts().corrupt == 4


def test_nobody_in_particular_is_served_and_not_kept(spec: DataSpec, histories: Histories) -> None:
    model = model_of("comirec_sa", spec)
    store = memory_store(store_info(model))
    cached = CachedInterests(model, store)
    with torch.no_grad():
        wanted = model.interests(histories)
    for _ in range(2):
        served = cached.serve(histories, [None] * 20)
        assert sources(served)[:SOME] == ["miss"] * SOME
        assert_says(served.interests, wanted)
    assert cached.counts().written == 0
    assert sources(cached.serve(histories, pl.Series([None, *IDS[1:]])))[1] == "miss"
    assert sources(cached.serve(histories, IDS))[:3] == ["miss", "hit", "hit"]


def test_half_precision_is_as_near_as_it_says(spec: DataSpec, histories: Histories) -> None:
    for name in ("comirec_sa", "gemirec"):
        model = model_of(name, spec)
        with torch.no_grad():
            wanted = model.interests(histories)
        whole, half = store_info(model), store_info(model, precision="float16")
        assert half.codec().dtype.itemsize < whole.codec().dtype.itemsize
        cached = CachedInterests(model, memory_store(half))
        for _ in range(2):
            found = cached.interests(histories, IDS)
            torch.testing.assert_close(found.vector_BKD[:SOME], wanted.vector_BKD[:SOME], rtol=1e-3, atol=1e-3)
            assert torch.equal(found.mask_BK[:SOME], wanted.mask_BK[:SOME])


def test_a_store_of_another_model_is_refused(spec: DataSpec) -> None:
    model, other = model_of("comirec_sa", spec), model_of("comirec_sa", spec, seed=1)
    store = memory_store(store_info(other))
    with pytest.raises(ArtifactError, match="another model version") as caught:
        CachedInterests(model, store)
    assert model_version(model) in caught.value.got
    assert model_version(other) in caught.value.got
    early = ready("gemirec", spec)
    assert isinstance(early, GemiRec)
    early.phase.fill_(1)
    with pytest.raises(ConfigError, match="nothing to cache"):
        store_info(early)


@pytest.mark.parametrize("name", ["gemirec", "dmi_gemirec"])
def test_from_the_streamed_file_to_a_hit(name: str, spec: DataSpec, histories: Histories, tmp_path: Any) -> None:
    """What ``gemirec cache`` does, for a model and for one that refines it: the file's users are hits."""
    model = model_of(name, spec)
    base = model.base if isinstance(model, DMI) else model
    assert isinstance(base, GemiRec)
    info = cache_info(model, CacheConfig(), name=name, fingerprint="f", history="all")
    block = UserBlock(pl.Series(IDS), histories, histories.length_B.numpy())
    write_cache(tmp_path / "cache", info, [select_block(base, block, info, 7)])
    InterestCache.open(tmp_path / "cache").check(model, whole=True)
    fill_store(tmp_path / "store", bulk_of_cache(tmp_path / "cache"))
    store = open_store(tmp_path / "store")
    assert store.info == replace_generation(store_info(model), store)
    cached = CachedInterests(model, store)
    served = cached.serve(histories, IDS)
    assert sources(served) == ["hit"] * SOME + ["nothing"] * 2
    with torch.no_grad():
        assert_says(served.interests, model.interests(histories))
    found = store.get_many(IDS).record_B
    assert isinstance(store.codec.indices(found), Selected)
    assert np.unique(found["index"]).size > 3


def replace_generation(info: Any, store: InterestStore) -> Any:
    """The facts of a store that was filled from a file: the file's name of the model, and its generation."""
    import msgspec

    return msgspec.structs.replace(info, generation=store.info.generation, model=store.info.model)
