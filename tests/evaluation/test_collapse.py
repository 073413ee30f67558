"""Every collapse metric against plain loops over items and pairs of interests; the worked example of the docs."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.evaluation.collapse import collapse, item_norms
from gemirec.evaluation.ranking import Ranked
from gemirec.models.base import Interests
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.merge import merge
from gemirec.retrieval.retrieve import retrieve_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def searched(
    vector_BKD: torch.Tensor, mask_BK: torch.Tensor, item_ND: torch.Tensor, n: int, seen: list[list[int]] | None = None
) -> Ranked:
    interests, index = Interests(vector_BKD, mask_BK), ExactIndex(item_ND)
    seen = seen or [[] for _ in vector_BKD]
    offset = torch.tensor([0, *np.cumsum([len(row) for row in seen])])
    flat = torch.tensor([item for row in seen for item in row], dtype=torch.int64)
    ids, scores = retrieve_lists(interests, index, n, seen_E=flat, seen_offset_B1=offset)
    return Ranked(interests, ids, scores, merge(ids, scores, n, mask_BK=mask_BK))


def measured(ranked: Ranked, item_ND: torch.Tensor, top_n: list[int]) -> dict[str, NDArray[np.float64]]:
    return collapse(ranked, item_ND, item_norms(item_ND), top_n)


def cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / scale if scale else 0.0


def entropy(shares: list[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share > 1e-12)


def brute(queries: NDArray[np.float64], items: NDArray[np.float64], seen: set[int], n: int) -> dict[str, float]:
    """The table of the module for one user whose interests all exist; items[0] is padding."""
    count = len(queries)
    names = [f"{name}@{n}" for name in ("amr", "exclusive", "list_div", "win_share", "win_entropy")]
    names += ["int_cos", "effective_rank"]
    if count < 2:
        return dict.fromkeys(names, math.nan)
    pairs = list(itertools.combinations(range(count), 2))
    singular = np.linalg.svd(np.stack([q / (np.linalg.norm(q) or 1.0) for q in queries]), compute_uv=False)
    spread = [
        float(np.mean([cosine(queries[k], queries[j]) for k, j in pairs])),
        math.exp(entropy(list(singular / singular.sum()))) if singular.sum() else math.nan,
    ]
    allowed = [i for i in range(1, len(items)) if i not in seen]
    lists = [sorted(allowed, key=lambda i: (-float(q @ items[i]), i))[:n] for q in queries]
    best = {i: max(float(q @ items[i]) for q in queries) for i in set().union(*lists)}
    merged = sorted(best, key=lambda i: (-best[i], i))[:n]
    if not merged:
        return dict(zip(names, [*[math.nan] * 5, *spread], strict=True))
    margins = []
    for i in merged:
        first, second = sorted((cosine(q, items[i]) for q in queries), reverse=True)[:2]
        margins.append(first - second)
    winner = [min(k for k in range(count) if float(queries[k] @ items[i]) == best[i]) for i in merged]
    shares = [winner.count(k) / len(merged) for k in range(count)]
    jaccard = [len(set(lists[k]) & set(lists[j])) / len(set(lists[k]) | set(lists[j])) for k, j in pairs]
    values = [
        float(np.mean(margins)),
        sum(sum(i in one for one in lists) == 1 for i in merged) / len(merged),
        1 - float(np.mean(jaccard)),
        max(shares),
        entropy(shares) / math.log(count),
    ]
    return dict(zip(names, [*values, *spread], strict=True))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 4),
    interests=st.integers(1, 5),
    items=st.integers(1, 14),
    top_n=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
)
def test_equals_plain_loops(seed: int, users: int, interests: int, items: int, top_n: list[int]) -> None:
    """Small whole numbers as vectors: ties, zero vectors and equal interests are common, and sums are exact."""
    rng, dim = np.random.default_rng(seed), 3
    item_ND = rng.integers(-2, 3, (items + 1, dim)).astype(np.float32)
    vector_BKD = rng.integers(-2, 3, (users, interests, dim)).astype(np.float32)
    mask_BK = rng.random((users, interests)) < 0.8
    mask_BK[np.arange(users), rng.integers(interests, size=users)] = True
    vector_BKD[~mask_BK] = np.nan  # an absent interest may hold anything
    seen = [rng.integers(1, items + 1, rng.integers(0, items + 3)).tolist() for _ in range(users)]
    tensor_ND = torch.from_numpy(item_ND)
    ranked = searched(torch.from_numpy(vector_BKD), torch.from_numpy(mask_BK), tensor_ND, max(top_n) + 2, seen)
    found = measured(ranked, tensor_ND, sorted(top_n))
    for row in range(users):
        queries = vector_BKD[row, mask_BK[row]].astype(np.float64)
        for n in top_n:
            for name, value in brute(queries, item_ND.astype(np.float64), set(seen[row]), n).items():
                assert found[name][row] == pytest.approx(value, abs=2e-6, nan_ok=True), (name, row)


def test_the_worked_example_is_that_of_the_docs() -> None:
    item_ND = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    user = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    ranked = searched(user, torch.ones(1, 2, dtype=torch.bool), item_ND, 3)
    assert ranked.id_BKR.tolist() == [[[1, 2, 3], [3, 2, 4]]]
    assert ranked.merged.id_BN.tolist() == [[1, 3, 2]]
    found = {name: f"{value[0]:.4f}" for name, value in measured(ranked, item_ND, [3]).items()}
    said = dict(re.findall(r"^\| `(\w+(?:@n)?)` \| ([\d.]+) \|", DOCS.read_text(), flags=re.MULTILINE))
    assert {name: said[name.replace("@3", "@n")] for name in found} == found


def test_the_extremes() -> None:
    """Orthogonal interests with lists of their own, and interests that are all the same."""
    item_ND = torch.cat([torch.zeros(1, 4), torch.eye(4).repeat_interleave(5, dim=0)])
    apart, equal = torch.eye(4)[None], torch.ones(1, 4, 4)
    both = searched(torch.cat([apart, equal]), torch.ones(2, 4, dtype=torch.bool), item_ND, 5)
    found = {name: value.round(6).tolist() for name, value in measured(both, item_ND, [5]).items()}
    assert found == {
        "amr@5": [1.0, 0.0],
        "exclusive@5": [1.0, 0.0],
        "list_div@5": [1.0, 0.0],
        "win_share@5": [1.0, 1.0],  # five items, all first by their number
        "win_entropy@5": [0.0, 0.0],
        "int_cos": [0.0, 1.0],
        "effective_rank": [4.0, 1.0],
    }
    spread = searched(apart, torch.ones(1, 4, dtype=torch.bool), item_ND, 20)
    assert measured(spread, item_ND, [20])["win_share@20"].tolist() == [0.25]
    assert measured(spread, item_ND, [20])["win_entropy@20"].tolist() == [1.0]


def test_lengths_of_vectors_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    item_ND, vector_BKD = (
        torch.randn(31, 8, generator=generator),
        torch.randn(6, 3, 8, generator=generator),
    )
    mask_BK = torch.ones(6, 3, dtype=torch.bool)
    plain = measured(searched(vector_BKD, mask_BK, item_ND, 30), item_ND, [30])
    scaled_ND = item_ND * torch.linspace(0.5, 3.0, 31)[:, None]
    scaled_BKD = vector_BKD * torch.tensor([0.1, 1.0, 7.0])[:, None]
    other = measured(searched(scaled_BKD, mask_BK, scaled_ND, 30), scaled_ND, [30])
    for name in ("amr@30", "int_cos", "effective_rank"):  # with all items listed, the order is of no matter
        np.testing.assert_allclose(other[name], plain[name], rtol=1e-5)


def test_any_block_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    item_ND, vector_BKD = (
        torch.randn(301, 48, generator=generator),
        torch.randn(64, 5, 48, generator=generator),
    )
    mask_BK = torch.rand(64, 5, generator=generator) < 0.7
    mask_BK[:, 0] = True
    whole = measured(searched(vector_BKD, mask_BK, item_ND, 40), item_ND, [7, 40])
    for size in (1, 2, 9):
        parts = [
            measured(searched(vector_BKD[i : i + size], mask_BK[i : i + size], item_ND, 40), item_ND, [7, 40])
            for i in range(0, 64, size)
        ]
        for name, value in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), value, equal_nan=True), (name, size)
