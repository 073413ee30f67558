"""Codes, flat indices, the items of each interest, and the dictionary's health, against brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemirec.components.codes import (
    InterestItems,
    all_codes,
    collapse_alarm,
    count_interests,
    flat_index,
    health,
    separation,
    unflatten,
)
from gemirec.errors import ConfigError, DataError

Sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(sizes=Sizes)
def test_every_tuple_has_one_index_in_lexicographic_order(sizes: tuple[int, ...]) -> None:
    tuples = list(itertools.product(*map(range, sizes)))  # the first level is the slowest
    code_MC = all_codes(sizes)
    assert [tuple(row) for row in code_MC.tolist()] == tuples
    assert code_MC.dtype == torch.int64
    assert torch.equal(flat_index(code_MC, sizes), torch.arange(len(tuples)))
    assert torch.equal(unflatten(torch.arange(len(tuples)), sizes), code_MC)
    assert count_interests(sizes) == len(tuples)


def test_any_leading_axes_and_indices_past_32_bits() -> None:
    sizes = (2**20, 2**20, 2**20)
    code = torch.tensor([[[2**20 - 1] * 3, [1, 2, 3]], [[0, 0, 0], [0, 1, 0]]])
    index = flat_index(code, sizes)
    assert index.tolist() == [[2**60 - 1, 2**40 + 2 * 2**20 + 3], [0, 2**20]]
    assert torch.equal(unflatten(index, sizes), code)
    assert flat_index(code.to(torch.int32), sizes).tolist() == index.tolist()


@pytest.mark.parametrize("sizes", [(), (4, 0), (2**32, 2**31)])
def test_sizes_that_are_no_dictionary(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"quantizer\.sizes"):
        count_interests(sizes)


def test_codes_of_another_dictionary() -> None:
    with pytest.raises(ConfigError, match="another number of levels"):
        flat_index(torch.zeros(3, 2, dtype=torch.int64), (4, 4, 4))


@given(seed=st.integers(0, 999), items=st.integers(0, 30), interests=st.integers(1, 12), queries=st.integers(0, 9))
def test_items_of_each_interest_equal_brute_force(seed: int, items: int, interests: int, queries: int) -> None:
    rng = np.random.default_rng(seed)
    interest = rng.integers(0, interests, items + 1)
    interest[0] = -7  # padding is not read
    table = InterestItems.build(torch.from_numpy(interest), interests)
    want = [[i for i in range(1, items + 1) if interest[i] == m] for m in range(interests)]
    assert [table.items(m).tolist() for m in range(interests)] == want
    assert table.count_M.tolist() == [len(ids) for ids in want]
    query = rng.integers(0, interests, queries)
    item_E, offset = table.gather(torch.from_numpy(query))
    bounds = offset.tolist()
    got = [item_E[first:last].tolist() for first, last in itertools.pairwise(bounds)]
    assert got == [want[m] for m in query]
    assert bounds[-1] == len(item_E)


@pytest.mark.parametrize("interest", [-1, 4])
def test_an_item_outside_the_dictionary(interest: int) -> None:
    with pytest.raises(DataError, match=f"interest {interest} of 4"):
        InterestItems.build(torch.tensor([0, 1, interest]), 4)


@given(seed=st.integers(0, 999), items=st.integers(1, 30), sizes=Sizes)
def test_health_equals_brute_force(seed: int, items: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    code = np.stack([rng.integers(0, size, items) for size in sizes], axis=1)
    books = [rng.normal(size=(size, 3)).astype(np.float32) for size in sizes]
    got = health(torch.from_numpy(code), [torch.from_numpy(book) for book in books], sizes)
    used, names = [], {"utilisation", "utilisation_tuples", "items_per_interest", "collisions"}
    for c, size in enumerate(sizes, start=1):
        count = Counter(code[:, c - 1].tolist())
        used.append(len(count) / size)
        entropy = -sum(n / items * math.log(n / items) for n in count.values()) / math.log(size) if size > 1 else 1
        pairs = [float(np.linalg.norm(a.astype(float) - b)) for a, b in itertools.combinations(books[c - 1], 2)]
        assert got[f"utilisation_level_{c}"] == pytest.approx(used[-1])
        assert got[f"entropy_level_{c}"] == pytest.approx(entropy, abs=1e-12)
        assert got[f"min_distance_level_{c}"] == pytest.approx(min(pairs, default=math.inf))
        names |= {f"{name}_level_{c}" for name in ("utilisation", "entropy", "min_distance")}
    tuples = Counter(map(tuple, code.tolist()))
    assert got["utilisation"] == pytest.approx(np.mean(used))
    assert got["utilisation_tuples"] == pytest.approx(len(tuples) / math.prod(sizes))
    assert got["items_per_interest"] == pytest.approx(items / len(tuples))
    assert got["collisions"] == pytest.approx(sum(n for n in tuples.values() if n > 1) / items)
    assert set(got) == names


def test_health_of_no_items_is_zero_and_not_an_error() -> None:
    got = health(torch.zeros(0, 2, dtype=torch.int64), [torch.eye(2), torch.eye(4)], (2, 4))
    assert {name: value for name, value in got.items() if "distance" not in name} == dict.fromkeys(
        [name for name in got if "distance" not in name], 0.0
    )


def test_separation_of_equal_and_of_nearly_equal_codes() -> None:
    near = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2**-23], [9.0, 9.0]])
    assert separation([near]) == (2**-23,)
    assert separation([near[[0, 2, 0]], near[:1]]) == (0.0, math.inf)


def test_the_alarm_says_which_level_and_why() -> None:
    books, sizes = [torch.eye(4), torch.eye(4)], (4, 4)
    even = all_codes(sizes)
    assert collapse_alarm(health(even, books, sizes)) is None
    one = torch.stack([torch.zeros(16, dtype=torch.int64), even[:, 1]], dim=1)
    low = collapse_alarm(health(one, books, sizes), least=0.9)
    assert low is not None
    assert "62.5%" in low
    assert "level 1" in low
    uneven = collapse_alarm(health(one, books, sizes))  # well used on average, and yet level 1 is one code
    assert uneven is not None
    assert uneven.startswith("level 1 of the interest dictionary has collapsed: almost all items")
    equal = collapse_alarm(health(even, [books[0], books[1][[0, 1, 2, 0]]], sizes))
    assert equal is not None
    assert equal.startswith("level 2 of the interest dictionary has collapsed: two of its codes are equal")
    diverged = collapse_alarm(health(even, [books[0], books[1] * math.nan], sizes))
    assert diverged is not None
    assert "nan" in diverged


def test_a_dictionary_of_one_interest_raises_no_alarm() -> None:
    report = health(torch.zeros(5, 1, dtype=torch.int64), [torch.ones(1, 2)], (1,))
    assert report["min_distance_level_1"] == math.inf
    assert report["entropy_level_1"] == 1
    assert report["collisions"] == 1
    assert collapse_alarm(report) is None
