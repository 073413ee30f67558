"""The interest cache against a plain greedy loop, and the cached road against the model's own."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.components.selection import Selected, largest_k
from gemirec.config import merge
from gemirec.data.dataset import DataSpec
from gemirec.errors import ArtifactError, ConfigError, DataError
from gemirec.experiments.cache import CacheConfig, UserBlock, cache_info, select_block
from gemirec.models.base import Histories, Interests
from gemirec.models.catalog import build_model
from gemirec.models.gemirec import GemiRec
from gemirec.retrieval.interest_cache import (
    CacheInfo,
    CacheRows,
    InterestCache,
    cached_interests,
    take_users,
    write_cache,
)
from gemirec.retrieval.versions import dictionary_version, model_version

ITEMS = 30
BASE: dict[str, Any] = {
    "dim": 8, "max_length": 5, "num_interests": 1, "quantizer": {"code_dim": 4, "sizes": [4, 3]},
    "decoder": {"layers": 1, "heads": 2, "hidden": 8},
}  # fmt: skip
INFO = CacheInfo(
    k=2, epsilon=3, levels=[1], sizes=[9], dictionary_version="d", model_version="m", model="gemirec",
    dataset_fingerprint="f", history="all",
)  # fmt: skip


def build(seed: int = 0, **over: Any) -> GemiRec:
    """A model with random weights, as after its last stage; the generator's opinions are strong."""
    torch.manual_seed(seed)
    count_N = np.random.default_rng(seed).integers(1, 9, ITEMS + 1)
    count_N[0] = 0
    spec = DataSpec(ITEMS, count_N, np.arange(ITEMS + 1, dtype=np.int32) % 6, 5)
    model = build_model("gemirec", merge(BASE, over), spec)
    assert isinstance(model, GemiRec)
    with torch.no_grad():
        model.start_dictionary()
        model.start_joint()
        if model.decoder is not None:
            for weight in model.decoder.head.parameters():
                weight.mul_(8)
    return model.eval()


def users(count: int, seed: int = 0) -> UserBlock:
    """Random histories of 0 to 5 items; ids are strings in no order."""
    rng = np.random.default_rng(seed)
    item_BL = rng.integers(1, ITEMS + 1, (count, 5)) * (np.arange(5) < rng.integers(0, 6, (count, 1)))
    names = pl.Series([f"u{number}" for number in rng.permutation(10**6)[:count]])
    return UserBlock(names, Histories(torch.from_numpy(item_BL)), (item_BL > 0).sum(axis=1))


def info_of(model: GemiRec, **config: Any) -> CacheInfo:
    return cache_info(model, CacheConfig(**config), name="gemirec", fingerprint="f", history="all")


def cached(model: GemiRec, block: UserBlock, path: Path, *, batch_size: int = 512, **config: Any) -> InterestCache:
    """The users of a block, through the file."""
    info = info_of(model, **config)
    write_cache(path, info, [select_block(model, block, info, batch_size)])
    return InterestCache.open(path)


def opinions(model: GemiRec, histories: Histories) -> list[list[float]]:
    """Each user's log-probability of every interest, plainly."""
    state_BX = model.state(histories)
    if model.decoder is None or model.config.decoder.head == "flat":
        return list(model.log_probs(state_BX).tolist())
    index_BM, logp_BM = model.decoder.top(state_BX, model.num_interests, model.num_interests)
    return list(torch.empty_like(logp_BM).scatter(1, index_BM, logp_BM).tolist())


def greedy(logp_M: list[float], sizes: tuple[int, ...], levels: list[int], k: int, epsilon: int | None) -> list[int]:
    """METHODS 1.7, as it is written."""
    tuples = list(itertools.product(*map(range, sizes)))
    count = [[0] * size for size in sizes]
    kept: list[int] = []
    for m in sorted(range(len(tuples)), key=lambda m: (-logp_M[m], m)):
        admitted = all(count[c - 1][tuples[m][c - 1]] < (epsilon or math.inf) for c in levels)
        if logp_M[m] > -math.inf and admitted and len(kept) < k:
            kept.append(m)
            for c in levels:
                count[c - 1][tuples[m][c - 1]] += 1
    return kept + [-1] * (k - len(kept))


@st.composite
def cases(draw: st.DrawFn) -> tuple[GemiRec, CacheConfig, int, int]:
    """A model, K and epsilon of its cache, a seed of users and how many go through the generator at once."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    limit = draw(st.sampled_from(["all", "first"]))
    epsilon = draw(st.integers(0, 4))
    levels = (1,) if limit == "first" else None
    over = {
        "quantizer": {"sizes": sizes},
        "limit_levels": limit,
        "generator": draw(st.sampled_from(["decoder", "history"])),
        "decoder": {"head": draw(st.sampled_from(["flat", "factorised"]))},
        "beam": 125,
    }
    k = draw(st.integers(1, min(8, largest_k(sizes, epsilon or None, levels))))
    seed, batch = draw(st.integers(0, 999)), draw(st.sampled_from([1, 3, 64]))
    return build(seed, **over), CacheConfig(k=k, epsilon=epsilon, batch_size=batch), seed, batch


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_file_holds_what_the_plain_loop_keeps(case: tuple[GemiRec, CacheConfig, int, int]) -> None:
    model, config, seed, batch = case
    block = users(7, seed)
    with tempfile.TemporaryDirectory() as folder:
        info = cache_info(model, config, name="gemirec", fingerprint="f", history="all")
        write_cache(f"{folder}/c", info, (select_block(model, block, info, batch) for _ in range(1)))
        found = InterestCache.open(f"{folder}/c").get_many(block.user_id)
    assert found.found_B.tolist() == (block.length_B > 0).tolist()
    for row_X in torch.split(torch.nonzero(found.found_B)[:, 0], batch):
        for row, logp_M in zip(row_X.tolist(), opinions(model, take_users(block.histories, row_X)), strict=True):
            kept = greedy(logp_M, model.dictionary.sizes, info.levels, info.k, info.epsilon)
            assert found.index_BK[row].tolist() == kept
            assert found.logp_BK[row].tolist() == [logp_M[m] if m >= 0 else -math.inf for m in kept]


def assert_same(found: Interests, expected: Interests, *, exactly: bool) -> None:
    """Vectors, mask and codes bit for bit; the weights too, or up to rounding."""
    assert torch.equal(found.vector_BKD, expected.vector_BKD)
    assert torch.equal(found.mask_BK, expected.mask_BK)
    assert found.code_BKC is not None
    assert expected.code_BKC is not None
    assert torch.equal(found.code_BKC, expected.code_BKC)
    assert found.weight_BK is not None
    assert expected.weight_BK is not None
    torch.testing.assert_close(found.weight_BK, expected.weight_BK, rtol=0, atol=0 if exactly else 1e-6)


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"keep_user_vector": True, "num_interests": 4, "fusion": {"kind": "residual"}},
        {"generator": "history", "dictionary": "categories"},
        {"decoder": {"head": "factorised"}, "loss": {"normalize": True}},
    ],
    ids=["paper", "user vector", "categories", "factorised"],
)
def test_the_cached_road_is_the_model_s_own(over: dict[str, Any], tmp_path: Path) -> None:
    model, block = build(3, **merge({"num_interests": 3}, over)), users(40, seed=3)
    known = torch.from_numpy(np.flatnonzero(block.length_B > 0))
    assert len(known) < 40
    own = model.interests(take_users(block.histories, known))
    everyone = cached(model, block, tmp_path / "cache")
    assert len(everyone) == len(known)
    names = block.user_id.gather(known.numpy())
    assert_same(cached_interests(model, everyone, take_users(block.histories, known), names), own, exactly=True)
    half = UserBlock(block.user_id[:20], take_users(block.histories, torch.arange(20)), block.length_B[:20])
    some = cached(model, half, tmp_path / "half")
    whole = model.interests(block.histories)
    assert_same(cached_interests(model, some, block.histories, block.user_id), whole, exactly=False)


def test_the_interests_are_yesterday_s_and_the_user_is_today_s(tmp_path: Path) -> None:
    model, before, today = build(5, num_interests=3), users(30, seed=5), users(30, seed=6)
    cache = cached(model, before, tmp_path / "cache")
    found = cached_interests(model, cache, today.histories, before.user_id)
    kept = cache.get_many(before.user_id)
    chosen = model.select(model.state(today.histories))
    known_B1 = kept.found_B[:, None]
    index_BK = torch.where(known_B1, kept.index_BK, chosen.index_Bk)
    mixed = Selected(index_BK, torch.where(known_B1, kept.logp_BK, chosen.logp_Bk))
    assert_same(found, model.fused(today.histories, mixed), exactly=False)
    assert not torch.equal(index_BK, chosen.index_Bk)


def test_another_dictionary_is_refused_and_both_are_named(tmp_path: Path) -> None:
    model = build(1)
    cache = cached(model, users(5), tmp_path / "cache", k=2)
    cache.check(build(1), whole=True)
    other = build(2)
    for whole in (False, True):
        with pytest.raises(ArtifactError, match="from another dictionary version") as caught:
            cache.check(other, whole=whole)
        for part in (dictionary_version(model), dictionary_version(other), str(tmp_path / "cache")):
            assert part in caught.value.got


def test_what_changes_a_version() -> None:
    for over in ({}, {"dictionary": "categories"}):
        model = build(1, **over)
        dictionary, whole = dictionary_version(model), model_version(model)
        assert (dictionary, whole) == (dictionary_version(build(1, **over)), model_version(build(1, **over)))
        assert len(dictionary) == len(whole) == 64
        with torch.no_grad():
            model.fusion.outer.bias[0] += 1
            assert dictionary_version(model) == dictionary
            assert model_version(model) != whole
            book = next(
                p for name, p in model.dictionary.named_parameters() if "codebooks.1" in name or "table" in name
            )
            book[0, 0] = torch.nextafter(book[0, 0], torch.tensor(9.0))
        assert dictionary_version(model) != dictionary
    model = build(1)
    before = dictionary_version(model)
    with torch.no_grad():
        next(model.dictionary.quantizer.encoder.parameters()).add_(1)  # type: ignore[union-attr]
    assert dictionary_version(model) != before  # the same codes, of other items
    twin = {"quantizer": {"sizes": [2, 6]}}
    assert dictionary_version(build(1, **twin)) != dictionary_version(build(1))
    with pytest.raises(ConfigError, match=r"no dictionary of interests[\s\S]*ItemMean[\s\S]*: gemirec"):
        dictionary_version(build_model("item_mean", {"dim": 8}, model.spec))


def test_another_generator_is_refused_only_where_the_whole_model_is_wanted(tmp_path: Path) -> None:
    model = build(1)
    cache = cached(model, users(5), tmp_path / "cache", k=2)
    assert model.decoder is not None
    with torch.no_grad():
        model.decoder.position_LH.add_(1)
    cache.check(model)
    with pytest.raises(ArtifactError, match="from another model version"):
        cache.check(model, whole=True)


def rows(ids: pl.Series, seed: int = 0) -> CacheRows:
    """Users with made-up interests."""
    generator = torch.Generator().manual_seed(seed)
    index_BK = torch.randint(-1, 9, (len(ids), 2), generator=generator)
    logp_BK = torch.randn(len(ids), 2, generator=generator).masked_fill(index_BK < 0, -math.inf)
    return CacheRows(ids, Selected(index_BK, logp_BK), np.arange(len(ids)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-(2**62), 2**62), max_size=6), min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.integers(-3, 40) | st.none(), max_size=9),
)
def test_look_ups_equal_a_dictionary(blocks: list[list[int]], text: bool, asked: list[int | None]) -> None:
    flat = list(dict.fromkeys(number for block in blocks for number in block))
    cuts = np.array_split(np.arange(len(flat)), len(blocks))
    dtype = pl.String if text else pl.Int64
    parts = [rows(pl.Series([flat[i] for i in cut], dtype=pl.Int64).cast(dtype), n) for n, cut in enumerate(cuts)]
    with tempfile.TemporaryDirectory() as folder:
        if not flat:
            with pytest.raises(DataError, match="no users to cache"):
                write_cache(f"{folder}/c", INFO, parts)
            assert os.listdir(folder) == []  # noqa: PTH208
            return
        assert write_cache(f"{folder}/c", INFO, parts) == len(flat)
        cache = InterestCache.open(f"{folder}/c")
    truth = {
        name: (index, logp)
        for part in parts
        for name, index, logp in zip(
            part.user_id.to_list(), part.chosen.index_Bk.tolist(), part.chosen.logp_Bk.tolist(), strict=True
        )
    }
    wanted = [flat[a % len(flat)] if a is not None and a % 3 else a for a in asked]
    found = cache.get_many(pl.Series(wanted, dtype=pl.Int64))  # numbers find texts
    for row, number in enumerate(wanted):
        key = str(number) if text and number is not None else number
        expected = truth.get(key, ([-1, -1], [-math.inf, -math.inf]))
        assert (found.index_BK[row].tolist(), found.logp_BK[row].tolist()) == expected
        assert bool(found.found_B[row]) == (key in truth)
    assert found.index_BK.dtype == torch.int64


def test_equal_input_gives_equal_bytes_and_each_block_is_a_row_group(tmp_path: Path) -> None:
    parts = [rows(pl.Series(np.arange(first, first + 50)), first) for first in (0, 50, 100)]

    def blocks() -> Iterator[CacheRows]:
        for part in parts:
            assert not (tmp_path / "a").exists()  # a reader never sees a part
            yield part

    for name in ("a", "b"):
        write_cache(tmp_path / name, INFO, blocks() if name == "a" else parts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    file = pq.ParquetFile(tmp_path / "a")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [50, 50, 50]
    table = pl.read_parquet(tmp_path / "a")  # other readers see plain columns
    assert table["interest"].to_list() == torch.cat([part.chosen.index_Bk for part in parts]).tolist()
    assert table["history_length"].to_list() == list(range(50)) * 3
    assert InterestCache.open(tmp_path / "a").info == INFO


def test_a_build_that_breaks_leaves_the_old_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write_cache(path, INFO, [rows(pl.Series([1, 2]))])
    old = path.read_bytes()

    def broken() -> Iterator[CacheRows]:
        yield rows(pl.Series([1, 2, 3]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(path, INFO, broken())
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


def test_wrong_files_are_refused_by_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="is missing"):
        InterestCache.open(tmp_path / "none")
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "other")
    with pytest.raises(ArtifactError, match="not an interest cache"):
        InterestCache.open(tmp_path / "other")
    path = tmp_path / "cache"
    write_cache(path, INFO, [rows(pl.Series(np.arange(1000)))])
    whole = path.read_bytes()
    for size in (0, 3, 2000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match="damaged or cut"):
            InterestCache.open(path)
    middle = bytearray(whole)
    middle[200:260] = b"\xff" * 60
    path.write_bytes(middle)
    with pytest.raises(ArtifactError, match="damaged or cut"):
        InterestCache.open(path)
    write_cache(path, msgspec.structs.replace(INFO, format_version=99), [rows(pl.Series([1]))])
    with pytest.raises(ArtifactError, match=r"this interest cache has another format version[\s\S]*99"):
        InterestCache.open(path)
    monkeypatch.setattr(msgspec.json, "encode", lambda _: b'{"format_version": 1, "k": 2}')
    write_cache(path, INFO, [rows(pl.Series([1]))])
    with pytest.raises(ArtifactError, match=r"damaged[\s\S]*epsilon"):
        InterestCache.open(path)


def test_what_a_model_cannot_give_is_refused() -> None:
    assert info_of(build(0, num_interests=4, epsilon=2)).k == 4
    assert info_of(build(0, num_interests=4, epsilon=2), epsilon=0).epsilon is None
    assert info_of(build(0, num_interests=4, keep_user_vector=True)).k == 3
    assert info_of(build(0, limit_levels="first")).levels == [1]
    with pytest.raises(ConfigError, match=r"admits fewer interests[\s\S]*level 2 has 3 codes"):
        info_of(build(0), k=10, epsilon=3)
    with pytest.raises(ConfigError, match="own vector alone"):
        info_of(build(0, keep_user_vector=True))
    early = build(0)
    early.phase.fill_(1)
    with pytest.raises(ConfigError, match="before its generator was trained"):
        info_of(early)
