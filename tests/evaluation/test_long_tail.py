"""Recall by the popularity of the targets."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemirec.data.dataset import Dataset
from gemirec.evaluation.evaluate import evaluate
from gemirec.evaluation.long_tail import GROUPS, group_recall, popularity_groups
from gemirec.evaluation.metrics import rank_targets
from gemirec.models.catalog import build_model

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@given(count=st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_groups_carry_a_third_of_the_events_each(count: list[int]) -> None:
    """Walking down from the most popular item, the group changes where the events before it pass a third."""
    group_N = popularity_groups(np.array([0, *count]))
    assert group_N[0] == -1
    before, total = 0, sum(count)
    for item in sorted(range(len(count)), key=lambda i: (-count[i], i)):
        expected = 2 if count[item] == 0 else min(2, 3 * before // total)
        assert group_N[1 + item] == expected
        before += count[item]


def test_the_worked_example_is_that_of_the_docs() -> None:
    group_N = popularity_groups(np.array([0, 6, 3, 2, 1]))
    ranks = rank_targets(np.array([[1, 3, 2]]), np.array([[1.0, 0.98, 0.96]]), np.array([1, 3, 4, 3]), np.array([0, 4]))
    found = group_recall(ranks, group_N, [3])
    said = dict(re.findall(r"^\| `(recall_\w+@n)` \| ([\d.]+|-) \|", DOCS.read_text(), flags=re.MULTILINE))
    for name in GROUPS:
        value = found[f"recall_{name}@3"][0]
        assert said[f"recall_{name}@n"] == ("-" if math.isnan(value) else f"{value:.4f}")


def test_an_evaluation_has_it_per_user_and_on_average(planted: Dataset) -> None:
    """A popularity list of 20 lies in the head."""
    spec = planted.spec()
    result = evaluate(build_model("popularity", {}, spec), planted)
    assert int((popularity_groups(spec.train_count_N) == 0).sum()) > 20
    assert result.metrics["recall_head@20"] > 0.3
    assert result.metrics["recall_middle@20"] == result.metrics["recall_tail@20"] == 0
    for name in GROUPS:
        column = result.users[f"recall_{name}@20"]
        assert result.metrics[f"recall_{name}@20"] == pytest.approx(column.drop_nulls().mean())
        assert f"recall_{name}@20" in result.intervals
