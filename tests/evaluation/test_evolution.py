"""Recall in new categories against a plain loop; the worked example of the docs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.evaluation.evolution import new_category_recall
from gemirec.evaluation.metrics import rank_targets

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def offsets(rows: list[list[int]]) -> np.ndarray:
    return np.array([0, *np.cumsum([len(row) for row in rows])], dtype=np.int64)


def flat(rows: list[list[int]]) -> np.ndarray:
    return np.array([item for row in rows for item in row], dtype=np.int64)


ITEM = st.integers(1, 12)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(ITEM, min_size=6, max_size=6, unique=True),
            st.integers(0, 6),
            st.lists(ITEM, max_size=5),
            st.lists(ITEM, min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=4,
    ),
    categories=st.lists(st.integers(0, 5), min_size=13, max_size=13),
)
def test_equals_a_plain_loop(rows: list[tuple[list[int], int, list[int], list[int]]], categories: list[int]) -> None:
    listed = np.array([[*items[:size], *[-1] * (6 - size)] for items, size, _, _ in rows])
    scores = np.where(listed > 0, np.arange(6, 0, -1.0), -np.inf)
    targets, seen = [row[3] for row in rows], [row[2] for row in rows]
    ranks = rank_targets(listed, scores, flat(targets), offsets(targets))
    new = new_category_recall(ranks, flat(seen), offsets(seen), np.array(categories), [2, 6])
    recall = new.recall()
    for row, (_, _, history, wanted) in enumerate(rows):
        met = {categories[item] for item in history}
        fresh = {item for item in wanted if categories[item] > 0 and categories[item] not in met}
        assert new.targets_B[row] == len(fresh)
        for n in (2, 6):
            hits = len(fresh & set(listed[row, :n].tolist()))
            assert new.hits[n][row] == hits
            expected = hits / len(fresh) if fresh else math.nan
            assert recall[f"cur@{n}"][row] == pytest.approx(expected, nan_ok=True)


def test_the_worked_example_is_that_of_the_docs() -> None:
    """The lists a c b and a c b again; the second user has four new targets, none of which is listed."""
    category = np.array([0, 1, 1, 2, 3, 4, 4, 5, 5])
    targets = [[1, 3, 4, 3], [5, 6, 7, 8]]
    ranks = rank_targets(np.array([[1, 3, 2]] * 2), np.array([[1.0, 0.98, 0.96]] * 2), flat(targets), offsets(targets))
    new = new_category_recall(ranks, np.array([2, 2]), np.array([0, 1, 2]), category, [3])
    assert new.targets_B.tolist() == [2, 4]
    recall = new.recall()["cur@3"]
    assert recall.tolist() == [0.5, 0.0]
    said = dict(re.findall(r"^\| `(\w+@n)` \| ([\d.]+) \|", DOCS.read_text(), flags=re.MULTILINE))
    assert said["cur@n"] == f"{recall.mean():.4f}"
    assert said["cur_micro@n"] == f"{new.hits[3].sum() / new.targets_B.sum():.4f}"


def test_a_tie_does_not_help() -> None:
    """Item 2 shares its score with item 3, which is no target: it counts as second."""
    ranks = rank_targets(
        np.array([[2, 3, 1]]), np.array([[5.0, 5.0, 1.0]]), np.array([2]), np.array([0, 1]), complete=True
    )
    new = new_category_recall(ranks, np.array([1]), np.array([0, 1]), np.array([0, 1, 2, 2]), [1, 2])
    assert {name: value.tolist() for name, value in new.recall().items()} == {"cur@1": [0.0], "cur@2": [1.0]}
