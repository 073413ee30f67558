"""The exact top-k equals a full sort, ties included, whatever the batch and the tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.errors import ConfigError, DataError
from gemirec.retrieval import topk
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.topk import canonical_score, exact_topk, sort_key

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tree_sum(values: NDArray[np.float32]) -> float:
    """The canonical order of additions, in NumPy: the head takes the tail, half by half."""
    while len(values) > 1:
        half = (len(values) + 1) // 2
        values = np.concatenate([values[: len(values) - half] + values[half:], values[len(values) - half : half]])
    return float(values[0])


def brute(
    query_QD: torch.Tensor, item_ND: torch.Tensor, k: int, excluded: list[NDArray[Any]] | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """Score every pair in the canonical order and sort by (score descending, position ascending)."""
    positions, scores = [], []
    for row, query in enumerate(query_QD.numpy()):
        score_N = np.array([tree_sum(query * item) for item in item_ND.numpy()], dtype=np.float32)
        if excluded is not None:
            score_N[excluded[row]] = -np.inf
        order = [int(i) for i in np.lexsort((np.arange(len(score_N)), -score_N)) if score_N[i] > -np.inf][:k]
        positions.append(order + [-1] * (k - len(order)))
        scores.append([float(score_N[i]) for i in order] + [float("-inf")] * (k - len(order)))
    return positions, scores


def sample(seed: int, queries: int, items: int, dim: int, tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Random vectors; ``tied`` takes small integers, so that most scores are shared."""
    generator = torch.Generator().manual_seed(seed)
    if tied:
        return (
            torch.randint(-1, 2, (queries, dim), generator=generator).float(),
            torch.randint(-1, 2, (items, dim), generator=generator).float(),
        )
    return torch.randn(queries, dim, generator=generator), torch.randn(items, dim, generator=generator)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 6),
    items=st.integers(1, 150),
    dim=st.sampled_from([1, 2, 3, 5, 8, 64]),
    k=st.integers(1, 40),
    tied=st.booleans(),
    item_chunk=st.sampled_from([1, 7, 64, 1000]),
    exclude=st.booleans(),
)
def test_equals_a_full_sort(
    seed: int, queries: int, items: int, dim: int, k: int, tied: bool, item_chunk: int, exclude: bool
) -> None:
    query_QD, item_ND = sample(seed, queries, items, dim, tied)
    rng = np.random.default_rng(seed)
    excluded = [rng.integers(0, items, rng.integers(0, 2 * items)) for _ in range(queries)] if exclude else None
    offsets = torch.tensor([0, *np.cumsum([len(e) for e in excluded])]) if excluded is not None else None
    position_QK, score_QK = exact_topk(
        query_QD,
        item_ND,
        k,
        exclude_E=None if excluded is None else torch.from_numpy(np.concatenate(excluded)),
        exclude_offset_Q1=offsets,
        item_chunk=item_chunk,
    )
    positions, scores = brute(query_QD, item_ND, k, excluded)
    assert position_QK.tolist() == positions
    assert score_QK.tolist() == scores


@pytest.mark.parametrize("tied", [False, True])
def test_many_tiles_and_blocks_equal_float64_truth(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which blocks are wide and later tiles are mostly skipped; integer scores are exact in float32."""
    monkeypatch.setitem(topk._TILE_ITEMS, "cpu", 4096)
    monkeypatch.setitem(topk._TILE_SCORES, "cpu", 4096 * 16)
    generator = torch.Generator().manual_seed(3)
    high = 3 if tied else 10_000
    query_QD = torch.randint(-high, high + 1, (40, 4), generator=generator).float()
    item_ND = torch.randint(-high // 2, high + 1, (30_000, 4), generator=generator).float() / (1 if tied else 512)
    truth_QN = query_QD.double().numpy() @ item_ND.double().numpy().T
    position_QK, score_QK = exact_topk(query_QD, item_ND, 50)
    if tied:
        expected = np.stack([np.lexsort((np.arange(30_000), -row))[:50] for row in truth_QN])
        assert (position_QK.numpy() == expected).all()
    np.testing.assert_allclose(score_QK.numpy(), -np.sort(-truth_QN, axis=1)[:, :50], rtol=1e-5)
    assert topk._block_size(4096, 50) > 1


def test_bits_do_not_depend_on_batch_or_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    query_QD, item_ND = sample(5, 300, 5000, 64, tied=False)
    position_QK, score_QK = exact_topk(query_QD, item_ND, 30)
    for item_chunk, batch, tile_scores in ((5000, 1, 2**22), (700, 37, 2**12), (64, 300, 2**16)):
        monkeypatch.setitem(topk._TILE_SCORES, "cpu", tile_scores)
        parts = [exact_topk(part, item_ND, 30, item_chunk=item_chunk) for part in torch.split(query_QD, batch)]
        assert torch.equal(torch.cat([position for position, _ in parts]), position_QK)
        assert torch.equal(torch.cat([score for _, score in parts]), score_QK)


@pytest.mark.parametrize("item_chunk", [40, 333, 1000])
def test_scores_a_rounding_apart_are_ordered_exactly(item_chunk: int) -> None:
    """One vector, its coordinates moved by a last bit: the product's rounding is larger than the differences."""
    query_QD, item_ND = sample(11, 6, 1000, 64, tied=False)
    bits_ND = item_ND[:1].view(torch.int32) + torch.randint(
        0, 2, (1000, 64), generator=torch.Generator().manual_seed(2)
    )
    item_ND = bits_ND.to(torch.int32).view(torch.float32)
    position_QK, score_QK = exact_topk(query_QD, item_ND, 25, item_chunk=item_chunk)
    positions, scores = brute(query_QD, item_ND, 25)
    assert score_QK.tolist() == scores
    assert position_QK.tolist() == positions
    assert len({score for row in scores for score in row}) > len(scores)  # neither all equal nor all apart


def test_the_accelerator_path_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches that other devices take (torch's product, sort and top-k), run here on the CPU."""
    query_QD, item_ND = sample(12, 50, 4000, 64, tied=False)
    expected = exact_topk(query_QD, item_ND, 30, item_chunk=1100)
    monkeypatch.setattr(topk, "_on_cpu", lambda tensor: False)
    found = exact_topk(query_QD, item_ND, 30, item_chunk=1100)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_equal_vectors_tie_wherever_they_lie() -> None:
    """One vector at many places: the product may round them apart, the canonical score must not."""
    query_QD, item_ND = sample(6, 20, 3001, 64, tied=False)
    best_D = query_QD.sum(0)
    item_ND[torch.arange(5, 3001, 97)] = best_D
    position_QK, score_QK = exact_topk(best_D[None], item_ND, 20)
    assert position_QK[0].tolist() == list(range(5, 3001, 97))[:20]
    assert len(set(score_QK[0].tolist())) == 1


def test_zero_query_and_negative_zero() -> None:
    item_ND = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    position_QK, score_QK = exact_topk(torch.zeros(1, 2), item_ND, 3)
    assert position_QK.tolist() == [[0, 1, 2]]
    assert score_QK.tolist() == [[0.0, 0.0, 0.0]]


def test_canonical_score_is_the_inner_product() -> None:
    query_PD, item_PD = torch.randn(50, 37, dtype=torch.float32), torch.randn(50, 37, dtype=torch.float32)
    truth_P = (query_PD.double() * item_PD.double()).sum(1).numpy()
    np.testing.assert_allclose(canonical_score(query_PD, item_PD).numpy(), truth_P, rtol=1e-4, atol=1e-5)
    own = [tree_sum(q * i) for q, i in zip(query_PD.numpy(), item_PD.numpy(), strict=True)]
    assert canonical_score(query_PD, item_PD).tolist() == own


@given(st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**31 - 2)), min_size=1, max_size=30))
def test_sort_key_orders_by_score_then_position(pairs: list[tuple[float, int]]) -> None:
    score = torch.tensor([score for score, _ in pairs], dtype=torch.float32) + 0.0
    low = torch.tensor([low for _, low in pairs], dtype=torch.int64)
    key = sort_key(score, low)
    order = sorted(range(len(pairs)), key=lambda i: (-float(score[i]), pairs[i][1]))
    assert key.sort().values.tolist() == [int(key[i]) for i in order]


def test_everything_excluded_leaves_an_empty_list() -> None:
    index = ExactIndex(torch.randn(4, 3))
    ids, scores = index.search(
        torch.randn(2, 3), 2, exclude_E=torch.tensor([1, 2, 3, 9, -4]), exclude_offset_Q1=torch.tensor([0, 5, 5])
    )
    assert ids[0].tolist() == [-1, -1]
    assert scores[0].tolist() == [float("-inf")] * 2
    assert (ids[1] > 0).all()


def test_padding_is_never_returned_and_k_may_exceed_the_catalogue() -> None:
    item_ND = torch.cat([torch.full((1, 3), 100.0), torch.randn(4, 3)])
    ids, scores = ExactIndex(item_ND).search(torch.ones(1, 3), 7)
    assert sorted(ids[0, :4].tolist()) == [1, 2, 3, 4]
    assert ids[0, 4:].tolist() == [-1] * 3
    assert torch.isinf(scores[0, 4:]).all()


def test_restricted_index_equals_excluding_the_rest() -> None:
    query_QD, item_ND = sample(8, 9, 60, 8, tied=True)
    index, allow = ExactIndex(item_ND), torch.tensor([50, 3, 3, 17, 41, 0, 777])
    rest = torch.tensor([i for i in range(60) if i not in {50, 3, 17, 41}])
    expected = index.search(query_QD, 6, exclude_E=rest.repeat(9), exclude_offset_Q1=torch.arange(10) * len(rest))
    found = index.restrict(allow).search(query_QD, 6)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    nested = index.restrict(allow).restrict(torch.tensor([17, 5]))
    assert nested.search(query_QD[:1], 2)[0].tolist() == [[17, -1]]
    without = index.restrict(allow).search(
        query_QD[:1], 6, exclude_E=torch.tensor([17, 4]), exclude_offset_Q1=torch.tensor([0, 2])
    )
    assert set(without[0][0].tolist()) == {3, 41, 50, -1}
    empty = index.restrict(torch.tensor([99]))
    assert empty.search(query_QD[:1], 2)[0].tolist() == [[-1, -1]]


def test_index_score_equals_search() -> None:
    query_QD, item_ND = sample(9, 12, 80, 16, tied=False)
    index = ExactIndex(item_ND)
    ids, scores = index.search(query_QD, 5)
    for place in range(5):
        assert torch.equal(index.score(query_QD, ids[:, place]), scores[:, place])


def test_bad_vectors_are_refused() -> None:
    bad = torch.randn(5, 2)
    bad[3, 1] = float("nan")
    with pytest.raises(DataError, match="item vectors must be finite") as caught:
        ExactIndex(bad)
    assert "the first is item 3" in caught.value.got
    index = ExactIndex(torch.randn(5, 2))
    for value in (float("nan"), float("inf"), 3e38):
        with pytest.raises(DataError, match="not finite"):
            index.search(torch.tensor([[1.0, value]]), 2)
    with pytest.raises(DataError, match="different widths"):
        index.search(torch.randn(1, 3), 2)
    with pytest.raises(ConfigError, match="at least one"):
        index.search(torch.randn(1, 2), 0)


def test_no_queries_and_no_items() -> None:
    assert ExactIndex(torch.randn(5, 2)).search(torch.empty(0, 2), 3)[0].shape == (0, 3)
    assert ExactIndex(torch.randn(1, 2)).search(torch.randn(2, 2), 3)[0].tolist() == [[-1] * 3] * 2
