"""The diversity rule against a plain greedy loop over all interests, and its bounds against every possible set."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.components.codes import all_codes
from gemirec.components.selection import (
    Selected,
    check_selection,
    largest_k,
    limited_top_k,
    limited_top_k_of,
    ordered_top_k,
)
from gemirec.errors import ConfigError

Case = tuple[tuple[int, ...], torch.Tensor, int, int | None, tuple[int, ...] | None]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Sizes, log-probabilities with ties and -inf, k (often too large), epsilon and levels."""
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    users, interests = draw(st.integers(1, 5)), math.prod(sizes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    distinct = draw(st.sampled_from([1, 3, 10, 10**6]))
    logp_BM = -torch.randint(0, distinct, (users, interests), generator=generator).float() / 7
    gone = draw(st.sampled_from([0.0, 0.0, 0.3, 0.9, 1.0]))
    logp_BM[torch.rand(users, interests, generator=generator) < gone] = -math.inf
    if draw(st.booleans()):  # one code of the first level has nearly all the mass, as in real predictions
        logp_BM[:, : interests // sizes[0]] += 100
    levels = draw(st.none() | st.sets(st.integers(1, len(sizes))).map(lambda chosen: tuple(sorted(chosen))))
    return sizes, logp_BM, draw(st.integers(1, 9)), draw(st.none() | st.integers(1, 4)), levels


def greedy(case: Case) -> Selected:
    """The rule as METHODS writes it."""
    sizes, logp_BM, k, epsilon, levels = case
    tuples = list(itertools.product(*map(range, sizes)))
    limited = range(len(sizes)) if levels is None else [level - 1 for level in levels]
    rows: list[list[int]] = []
    for logp_M in logp_BM.tolist():
        taken: list[int] = []
        for m in sorted(range(len(tuples)), key=lambda m: (-logp_M[m], m)):
            used = [sum(tuples[other][c] == tuples[m][c] for other in taken) for c in limited]
            if len(taken) < k and logp_M[m] > -math.inf and (epsilon is None or all(u < epsilon for u in used)):
                taken.append(m)
        rows.append(taken + [-1] * (k - len(taken)))
    index_Bk = torch.tensor(rows)
    return Selected(index_Bk, logp_BM.gather(1, index_Bk.clamp(min=0)).masked_fill(index_Bk < 0, -math.inf))


def assert_equal(found: Selected, expected: Selected) -> None:
    assert torch.equal(found.index_Bk, expected.index_Bk)
    assert torch.equal(found.logp_Bk, expected.logp_Bk)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([None, 1, 4, 16]))
def test_equals_the_greedy_loop(case: Case, candidates: int | None) -> None:
    sizes, logp_BM, k, epsilon, levels = case
    code_MC = all_codes(sizes)
    found = limited_top_k(logp_BM, code_MC, k, epsilon, candidates=candidates, levels=levels)
    assert_equal(found, greedy(case))


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 3))
def test_a_full_list_of_candidates_gives_the_same(case: Case, missing: int) -> None:
    sizes, logp_BM, k, epsilon, levels = case
    logp_BX, index_BX = ordered_top_k(logp_BM, logp_BM.shape[1])
    nothing_BY = torch.full((len(index_BX), missing), -1)
    index_BX = torch.cat([index_BX, nothing_BY], dim=1)
    logp_BX = torch.cat([logp_BX, torch.full(nothing_BY.shape, 50.0)], dim=1)  # what stands beside -1 does not count
    assert_equal(limited_top_k_of(index_BX, logp_BX, sizes, k, epsilon, levels=levels), greedy(case))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_ordered_top_k_is_the_stable_sort(case: Case) -> None:
    _, logp_BM, k, _, _ = case
    value_BM, column_BM = torch.sort(logp_BM, dim=1, descending=True, stable=True)
    value_Bk, column_Bk = ordered_top_k(logp_BM, k)
    assert torch.equal(value_Bk, value_BM[:, :k])
    assert torch.equal(column_Bk, column_BM[:, :k])


def test_a_user_does_not_depend_on_the_others_nor_on_the_call() -> None:
    sizes = (32, 16, 8, 4)
    code_MC = all_codes(sizes)
    logp_BM = torch.randn(40, len(code_MC), generator=torch.Generator().manual_seed(3))
    logp_BM[::2, :512] += 20  # half the users run out of their first candidates
    logp_BM = logp_BM.log_softmax(1)
    together = limited_top_k(logp_BM, code_MC, 5, 3)
    assert_equal(limited_top_k(logp_BM, code_MC, 5, 3), together)
    order_B = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    assert_equal(
        limited_top_k(logp_BM[order_B], code_MC, 5, 3),
        Selected(together.index_Bk[order_B], together.logp_Bk[order_B]),
    )
    for user in range(40):
        alone = limited_top_k(logp_BM[user, None], code_MC, 5, 3)
        assert_equal(alone, Selected(together.index_Bk[user, None], together.logp_Bk[user, None]))
    assert_equal(limited_top_k(logp_BM, code_MC, 5, 3, candidates=len(code_MC)), together)
    assert bool((together.index_Bk >= 0).all())


@pytest.mark.parametrize("sizes", [(3,), (3, 3), (2, 4), (1, 4), (2, 2, 2), (3, 2, 2), (4, 3)])
@pytest.mark.parametrize("epsilon", [1, 2, 3, None])
def test_largest_k_is_attained_by_some_set_and_no_set_is_larger(sizes: tuple[int, ...], epsilon: int | None) -> None:
    tuples = list(itertools.product(*map(range, sizes)))
    for levels in [None, (1,), (len(sizes),)]:
        limited = range(len(sizes)) if levels is None else [level - 1 for level in levels]

        def admitted(chosen: tuple[tuple[int, ...], ...], limited: tuple[int, ...] = tuple(limited)) -> bool:
            used = [[t[c] for t in chosen].count(code) for c in limited for code in range(sizes[c])]
            return epsilon is None or max(used, default=0) <= epsilon

        sets = (chosen for r in range(len(tuples) + 1) for chosen in itertools.combinations(tuples, r))
        assert max(len(chosen) for chosen in sets if admitted(chosen)) == largest_k(sizes, epsilon, levels)


def test_the_greedy_list_can_end_before_the_largest_set() -> None:
    first = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]
    logp_BM = torch.full((1, 9), -9.0)
    for place, (a, b) in enumerate(first):
        logp_BM[0, 3 * a + b] = -float(place)
    assert largest_k((3, 3), 2) == 6
    assert limited_top_k(logp_BM, all_codes((3, 3)), 6, 2).index_Bk.tolist() == [[0, 1, 3, 4, 8, -1]]


def test_what_cannot_be_filled_is_refused_with_what_can() -> None:
    sizes = (32, 16, 8, 4)
    check_selection(12, 3, sizes)
    check_selection(24, 3, sizes, levels=(1, 2, 3))
    check_selection(10_000, None, sizes)
    with pytest.raises(ConfigError, match=r"level 4 has 4 codes.* 12 interests at most\n.*epsilon of 4 or more"):
        check_selection(13, 3, sizes)
    check_selection(13, 4, sizes)
    with pytest.raises(ConfigError, match="level 1 has 32 codes"):
        check_selection(33, 1, sizes, levels=(1,))
    with pytest.raises(ConfigError, match="k of 6 or less"):
        check_selection(7, None, (3, 2))


@pytest.mark.parametrize(("k", "epsilon", "levels"), [(0, 3, None), (5, 0, None), (5, 3, (5,)), (5, 3, (0,))])
def test_wrong_numbers_are_refused_everywhere(k: int, epsilon: int, levels: tuple[int, ...] | None) -> None:
    sizes = (32, 16, 8, 4)
    logp_BM = torch.zeros(1, 16_384)
    with pytest.raises(ConfigError):
        check_selection(k, epsilon, sizes, levels)
    with pytest.raises(ConfigError):
        limited_top_k(logp_BM, all_codes(sizes), k, epsilon, levels=levels)
    with pytest.raises(ConfigError):
        limited_top_k_of(torch.zeros(1, 1, dtype=torch.int64), logp_BM[:, :1], sizes, k, epsilon, levels=levels)
