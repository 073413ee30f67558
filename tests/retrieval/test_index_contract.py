"""What every index must do, one suite for all kinds: against brute force, through selections, changes and files.

Vectors are small integers, so that every inner product is exact in float32 and ties are many.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gemirec.errors import ArtifactError, ConfigError, DataError, RetrievalError
from gemirec.retrieval.index import (
    ExactIndex,
    IndexConfig,
    IndexKind,
    ItemIndex,
    build_index,
    index_class,
    load_index,
    recall_at,
)

N, D, K, Q = 600, 16, 20, 24
KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
MEASURED = 0.97
CHANGED = 0.9
"""Least recall where the stated one does not hold: other queries, selections, excluded items."""

rng = np.random.default_rng(7)
centre = rng.normal(size=(25, D)) * 4


def vectors(count: int) -> NDArray[np.float32]:
    return np.round(centre[rng.integers(0, 25, count)] + rng.normal(size=(count, D)) * 2).astype(np.float32)


ITEMS = np.concatenate([np.full((1, D), 99, dtype=np.float32), vectors(N)])  # the padding row would win everything
QUERIES = torch.from_numpy(vectors(Q))


def config(kind: IndexKind) -> IndexConfig:
    return IndexConfig(kind=kind, k=K, neighbours=16, construction=64)


def build(kind: IndexKind) -> ItemIndex:
    if kind == "qdrant":
        pytest.importorskip("qdrant_client")
    elif not kind.startswith("exact"):
        pytest.importorskip("faiss")
    return build_index(torch.from_numpy(ITEMS), config(kind), QUERIES, version="v1")


BUILT: dict[str, ItemIndex] = {}


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    for index in BUILT.values():
        index.close()
    BUILT.clear()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> IndexKind:
    kind: IndexKind = request.param
    return kind


@pytest.fixture
def index(kind: IndexKind) -> ItemIndex:
    """An index that is only read."""
    if kind not in BUILT:
        BUILT[kind] = build(kind)
    return BUILT[kind]


Held = dict[int, NDArray[np.float32]]
ALL: Held = {item: ITEMS[item] for item in range(1, N + 1)}


def brute(held: Held, query: torch.Tensor, k: int, out: set[int]) -> list[tuple[int, float]]:
    """``(id, score)``, best first, of one query over the items that are held."""
    scored = [(item, float(query.numpy() @ vector)) for item, vector in held.items() if item not in out]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


def check(index: ItemIndex, held: Held, k: int, least: float, excluded: list[list[int]] | None = None) -> None:
    """Search, and hold every list against brute force."""
    ragged: dict[str, Any] = {}
    if excluded is not None:
        size = torch.tensor([0, *map(len, excluded)])
        ragged = {
            "exclude_E": torch.tensor([i for part in excluded for i in part], dtype=torch.int64),
            "exclude_offset_Q1": size.cumsum(0),
        }
    id_QK, score_QK = index.search(QUERIES, k, **ragged)
    assert (id_QK.shape, id_QK.dtype, score_QK.dtype) == ((Q, k), torch.int64, torch.float32)
    found = 0.0
    for row in range(Q):
        out = set(excluded[row]) if excluded is not None else set()
        truth = brute(held, QUERIES[row], k, out)
        ids, scores = id_QK[row].tolist(), score_QK[row].tolist()
        real = len(truth)
        assert ids[real:] == [-1] * (k - real)
        assert scores[real:] == [float("-inf")] * (k - real)
        got = list(zip(ids[:real], scores[:real], strict=True))
        assert -1 not in ids[:real]  # no list is short while items are left
        assert len(set(ids[:real])) == real
        assert not out & set(ids)
        assert all(score == float(QUERIES[row].numpy() @ held[item]) for item, score in got)
        assert got == sorted(got, key=lambda pair: (-pair[1], pair[0]))
        if index.is_exact:
            assert got == truth
        found += 1.0 if not truth else sum(score >= truth[-1][1] for _, score in got) / real
    assert found / Q >= least


def test_search_reaches_the_stated_recall(index: ItemIndex) -> None:
    check(index, ALL, K, MEASURED)
    assert len(index) == N
    assert index.measured is not None
    exact = ExactIndex(torch.from_numpy(ITEMS))
    assert index.measured.recall == recall_at(index, exact, QUERIES, exact.search(QUERIES, K)[1]) >= MEASURED
    assert index.measured.at.keys() == {"10", "20"}
    for k in (1, 7):
        check(index, ALL, k, CHANGED)


def test_excluded_items_are_replaced_by_the_next(index: ItemIndex) -> None:
    best = [[item for item, _ in brute(ALL, query, 35, set())] for query in QUERIES]
    excluded = [[*ids[: row % 36], 0, -1, N + 50, *ids[: row % 3]] for row, ids in enumerate(best)]
    check(index, ALL, K, CHANGED, excluded)


def test_a_list_is_short_only_where_items_run_out(index: ItemIndex) -> None:
    check(index, ALL, N + 5, 1.0)
    few = [[item for item in ALL if item % 97 != row % 97] for row in range(Q)]  # six or seven are left
    check(index, ALL, K, 1.0, few)
    check(index, ALL, K, 1.0, [list(ALL)] * Q)


@pytest.mark.parametrize("share", [2, 10])
def test_allow_and_deny_lists(index: ItemIndex, share: int) -> None:
    some = torch.tensor([*(i for i in ALL if i % share == 0), share, N + 9, 0, -4])
    allowed = {i: v for i, v in ALL.items() if i % share == 0}
    denied = {i: v for i, v in ALL.items() if i % share}
    check(index.restrict(some), allowed, K, CHANGED)
    check(index.without(some), denied, K, CHANGED)
    assert (len(index.restrict(some)), len(index.without(some))) == (len(allowed), len(denied))
    both = index.without(torch.tensor([share, 2 * share])).restrict(some)
    check(both, {i: v for i, v in allowed.items() if i > 2 * share}, K, CHANGED, [[3 * share]] * Q)
    check(index, ALL, K, MEASURED)  # the whole is as it was


def test_an_empty_allow_list_gives_empty_lists(index: ItemIndex) -> None:
    for none in (index.restrict(torch.tensor([N + 1])), index.without(torch.arange(N + 1))):
        assert len(none) == 0
        check(none, {}, 3, 1.0)
    assert index.search(QUERIES[:0], 4)[0].shape == (0, 4)


def changed(index: ItemIndex) -> Held:
    """Add, replace and remove items; return what the index must hold then."""
    new = vectors(4)
    index.add(torch.tensor([N + 40, N + 2, 5, 17]), torch.from_numpy(new))
    index.remove(torch.tensor([1, 2, 17, N + 99, 0]))
    index.remove(torch.tensor([N + 2]))
    index.add(torch.tensor([2]), torch.from_numpy(new[:1]))
    index.add(torch.zeros(0, dtype=torch.int64), torch.zeros(0, D))
    held = {**ALL, N + 40: new[0], 5: new[2], 2: new[0]}
    return {item: vector for item, vector in held.items() if item not in (1, 17)}


def test_add_replace_remove_save_and_load(kind: IndexKind, tmp_path: Path) -> None:
    index = build(kind)
    held = changed(index)
    assert len(index) == len(held) == N - 1
    assert index.changed == 4 + 3 + 1 + 1
    check(index, held, K, CHANGED, [[5, row] for row in range(Q)])
    check(index.restrict(torch.tensor([5, 2, N + 40, 17, 300])), {i: held[i] for i in (5, 2, N + 40, 300)}, 6, 1.0)
    assert index.save(tmp_path / "index") == tmp_path / "index"
    for mmap in (True, False):
        again = load_index(tmp_path / "index", mmap=mmap)
        assert isinstance(again, index_class(kind))
        for k in (K, N):
            assert all(map(torch.equal, again.search(QUERIES, k), index.search(QUERIES, k)))
        facts = (again.config, again.params, again.measured, again.version, again.changed, len(again), again.dim)
        assert facts == (index.config, index.params, index.measured, "v1", 9, len(held), D)
        held_more = {**held, 1: ITEMS[2]}
        again.add(torch.tensor([1]), torch.from_numpy(ITEMS[2:3]))  # a mapped file is not written to
        check(again, held_more, K, CHANGED)
    check(load_index(tmp_path / "index"), held, K, CHANGED)


def test_a_mapped_index_lies_in_its_files(index: ItemIndex, kind: IndexKind, tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if kind == "qdrant" or not maps.exists():
        pytest.skip("a database holds its own; /proc/self/maps is Linux'")
    folder = index.save(tmp_path / "index")
    read = {"index.json"} | ({"faiss.index"} if kind == "pq" else set())  # faiss cannot map a fast scan's codes
    names = {str(file) for file in folder.iterdir() if file.name not in read}

    def mapped() -> set[str]:
        return {name for name in names if name in maps.read_text()}

    in_memory = load_index(folder, mmap=False)
    assert mapped() == set()
    lazy = load_index(folder)
    assert mapped() == names
    assert all(map(torch.equal, lazy.search(QUERIES, K), in_memory.search(QUERIES, K)))


def test_bad_queries_and_vectors_are_refused(index: ItemIndex, kind: IndexKind) -> None:
    bad = QUERIES.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        index.search(bad, K)
    with pytest.raises(DataError, match="widths"):
        index.search(QUERIES[:, 1:], K)
    with pytest.raises(ConfigError, match="at least one item"):
        index.search(QUERIES, 0)
    with pytest.raises(DataError, match="finite"):
        index.add(torch.tensor([3]), torch.full((1, D), float("inf")))
    with pytest.raises(DataError, match="distinct"):
        index.add(torch.tensor([3, 3]), torch.zeros(2, D))
    with pytest.raises(DataError, match="distinct"):
        index.add(torch.tensor([0]), torch.zeros(1, D))
    with pytest.raises(DataError, match="fit"):
        index.add(torch.tensor([3]), torch.zeros(1, D + 1))
    items = torch.from_numpy(ITEMS).clone()
    items[9, 0] = float("nan")
    with pytest.raises(DataError, match="finite"):
        index_class(kind).build(items, config(kind))
    check(index, ALL, K, MEASURED)


def test_damaged_folders_are_refused(index: ItemIndex, kind: IndexKind, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return index.save(tmp_path / "index", overwrite=True) / name

    for name in [file.name for file in fresh("index.json").parent.iterdir()]:
        fresh(name).unlink()
        with pytest.raises(ArtifactError, match="missing"):
            load_index(tmp_path / "index")
        whole = fresh(name).read_bytes()
        (tmp_path / "index" / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtifactError, match=r"cut|damaged"):
            load_index(tmp_path / "index")
        if name != "index.json":
            middle = len(whole) // 2
            (tmp_path / "index" / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
            with pytest.raises(ArtifactError, match="damaged"):
                load_index(tmp_path / "index", mmap=False)
    facts = fresh("index.json")
    facts.write_text(facts.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ArtifactError, match="format version"):
        load_index(tmp_path / "index")
    fresh("index.json")
    other = index_class("flat" if kind.startswith("exact") else "exact")
    with pytest.raises(ArtifactError, match="another kind"):
        other.load(tmp_path / "index")


def test_an_index_below_the_stated_recall_is_not_saved(index: ItemIndex, kind: IndexKind, tmp_path: Path) -> None:
    if index.is_exact:
        ExactIndex(torch.from_numpy(ITEMS)).save(tmp_path / "exact")  # needs no measurement
        return
    good = index.measured
    assert good is not None
    try:
        index.measured = msgspec.structs.replace(good, recall=MEASURED - 0.001)
        with pytest.raises(RetrievalError, match="too low"):
            index.save(tmp_path / "index")
        index.measured = None
        with pytest.raises(RetrievalError, match="not measured"):
            index.save(tmp_path / "index")
        assert list(tmp_path.iterdir()) == []
        index.save(tmp_path / "index", allow_low_recall=True)
    finally:
        index.measured = good
    assert load_index(tmp_path / "index").measured is None


@pytest.mark.parametrize("kind", ["ivf", "ivf_pq", "hnsw", "pq"])
def test_search_parameters_are_the_least_that_reach_the_recall(kind: IndexKind) -> None:
    pytest.importorskip("faiss")
    # far queries and a wish that is hard to meet, so that there is something to choose
    spread, far = torch.randn(2001, D, generator=torch.manual_seed(1)), torch.randn(60, D)
    wish = IndexConfig(kind=kind, k=K, recall=0.995, neighbours=8, construction=16)
    index = build_index(spread, wish, far)
    knob = index.knobs(K)[0]
    chosen = index.params[knob.name]
    assert knob.low < chosen < knob.high
    exact = ExactIndex(spread)
    truth_QK = exact.search(far, K)[1]
    assert recall_at(index, exact, far, truth_QK) >= 0.995
    index.params[knob.name] = chosen - max(1, chosen // 16)
    assert recall_at(index, exact, far, truth_QK) < 0.995


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf_sq8", "hnsw"])
def test_catalogues_of_one_item_and_of_none(kind: IndexKind) -> None:
    pytest.importorskip("faiss")
    one = index_class(kind).build(torch.eye(2), IndexConfig(kind=kind))
    assert one.search(torch.tensor([[0.0, 3.0]]), 2)[0].tolist() == [[1, -1]]
    none = index_class(kind).build(torch.eye(2)[:1], IndexConfig(kind=kind))
    assert none.search(torch.tensor([[0.0, 3.0]]), 1)[0].tolist() == [[-1]]
    none.add(torch.tensor([8]), torch.ones(1, 2))
    assert none.search(torch.tensor([[0.0, 3.0]]), 2)[0].tolist() == [[8, -1]]


def test_too_few_items_for_product_quantisation() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(DataError, match="too few"):
        index_class("pq").build(torch.zeros(5, 4), IndexConfig(kind="pq"))


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_eight_bits_give_the_bits_of_the_exact_index(dim: int) -> None:
    """Vectors of very different lengths: rounding hides many neighbours, and the margin must bring them all back."""
    torch.manual_seed(dim)
    item_ND = torch.randn(3000, dim) * torch.rand(3000, 1) ** 8 + 0.1 * torch.randn(dim)
    item_ND[50:60] = 0
    query_QD = torch.randn(30, dim) * torch.rand(30, 1) ** 4
    plain, rounded = ExactIndex(item_ND), ExactIndex(item_ND, int8=True)
    for k in (1, 50, 400):
        for chunk in (2**20, 128):
            assert all(map(torch.equal, rounded.search(query_QD, k, item_chunk=chunk), plain.search(query_QD, k)))
    some = torch.arange(0, 3000, 3)
    assert all(map(torch.equal, rounded.restrict(some).search(query_QD, 9), plain.restrict(some).search(query_QD, 9)))


def test_a_database_that_is_gone_is_named(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    gone = IndexConfig(kind="qdrant", location=url, timeout=1)
    with pytest.raises(RetrievalError, match="does not answer") as caught:
        index_class("qdrant").build(torch.from_numpy(ITEMS), gone)
    assert url in caught.value.got


def test_a_database_in_a_folder_keeps_its_items(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    wish = IndexConfig(kind="qdrant", location=str(tmp_path / "base"), k=K)
    index = build_index(torch.from_numpy(ITEMS[:50]), wish, QUERIES)
    expected = index.search(QUERIES, 9)
    folder = index.save(tmp_path / "index")
    assert [file.name for file in folder.iterdir()] == ["index.json"]
    with pytest.raises(RetrievalError, match="already accessed"):
        load_index(folder)
    index.close()
    again = load_index(folder)
    assert all(map(torch.equal, again.search(QUERIES, 9), expected))
    again.remove(torch.tensor([3]))
    again.close()
    with pytest.raises(ArtifactError, match="does not hold"):
        load_index(folder)
    with pytest.raises(RetrievalError, match="exists already"):
        build_index(torch.from_numpy(ITEMS[:50]), wish, QUERIES)
