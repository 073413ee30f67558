"""``Recommender.explain``: what formed an interest, what describes it, what it retrieves."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.recommender import Recommender
from gemirec.recommender.explain import Words, history_shares


def test_an_interest_names_its_history_its_category_and_its_items(recommender: Recommender) -> None:
    """Histories of clusters 2 and 5: every interest is of one of them, and says so by the category's lift."""
    two, five = [f"item-{i}" for i in (3, 9, 15, 21)], [f"item-{i}" for i in (6, 12, 18, 24)]
    found = recommender.explain(histories={"a": two + five, "b": two}, items=10, history_items=3, words=2)
    interests = recommender.interests(histories={"a": two + five, "b": two}, items=10, exclude_seen=False)
    assert found["user_id"].to_list() == interests["user_id"].to_list()
    assert found["items"].to_list() == interests["items"].to_list()
    assert found.group_by("user_id").agg(pl.col("history_share").sum())["history_share"].to_list() == pytest.approx(
        [1, 1]
    )
    assert set(found["weights_from"]) == {"model"}
    for row in found.filter(pl.col("user_id") == "b").iter_rows(named=True):
        assert set(row["history"]) <= set(two)
        assert row["history_weights"] == sorted(row["history_weights"], reverse=True)
        clusters = [(int(item.removeprefix("item-")) - 1) % 6 for item in row["items"]]
        best = row["words"][0]
        common = max(set(clusters), key=clusters.count)
        assert best["share"] == clusters.count(common) / 10
        assert best["lift"] > 3


def test_the_weights_are_the_attention_of_the_history(recommender: Recommender) -> None:
    history = ["item-3", "item-40", "item-77"]
    found = recommender.explain(histories=[history], history_items=9)
    index_L = torch.from_numpy(recommender.catalog.encode(pl.Series(history)))[None]
    model = recommender.model
    with torch.no_grad():
        weight_KL = model.attention.attention(model.item_table(index_L), index_L > 0)[0].numpy()  # type: ignore[operator, union-attr]
    for k, row in enumerate(found.iter_rows(named=True)):
        order = np.argsort(-weight_KL[k], kind="stable")
        assert row["history"] == [history[i] for i in order]
        assert row["history_weights"] == pytest.approx(weight_KL[k][order].tolist(), rel=1e-4)


def test_a_model_without_weights_is_explained_by_nearness(planted: Dataset) -> None:
    quick = ["model.dim=8", "training.steps=2", "training.eval_every=0"]
    recommender = Recommender.fit(planted, model="item_mean", overrides=quick)
    found = recommender.explain(histories=[["item-1", "item-2"], ["nothing known"]])
    assert found["user_id"].to_list() == [0]
    assert found["weights_from"].to_list() == ["nearness"]
    assert sum(found["history_weights"][0]) == pytest.approx(1)
    assert found["history_share"].to_list() == [1.0]


def test_shares_divide_events_by_their_weights() -> None:
    weight = np.array([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]]])
    mask_BL, mask_BK = np.array([[True, True, False]]), np.array([[True, True, False]])
    assert history_shares(weight, mask_BL, mask_BK)[0].tolist() == pytest.approx([(1 + 1 / 3) / 2, (2 / 3) / 2, 0])
    nothing = np.zeros((1, 2, 2))
    assert history_shares(nothing, np.ones((1, 2), bool), np.ones((1, 2), bool)).tolist() == [[0.5, 0.5]]


def test_lift_is_the_share_over_that_of_all_training_events() -> None:
    items = pl.DataFrame(
        {
            "item_id": [1, 2, 3, 4],
            "category": ["tea", "tea", "cup", None],
            "title": ["Green tea", "Black tea", "Blue cup", "a tea cup"],
        }
    )
    words = Words(items, np.array([0, 10, 10, 20, 60]))
    common = dict(words.common.iter_rows())
    assert common == pytest.approx({"tea": 0.8, "cup": 0.8, "green": 0.1, "black": 0.1, "blue": 0.2})
    listed = pl.DataFrame({"group": [0, 0, 1, 1, 2], "item": [1, 2, 1, 3, 4]})
    found = words.telling(listed, 9)
    # group 0: both items are tea; group 1: no word is shared; group 2: one item shares nothing
    assert found["group"].to_list() == [0]
    (tea,) = found["words"][0]
    assert (tea["word"], tea["share"], tea["lift"]) == ("tea", 1.0, pytest.approx(1 / 0.8))
    thrice = Words(items, np.array([0, 50, 30, 20, 0])).telling(pl.DataFrame({"group": [0] * 3, "item": [1, 3, 4]}), 9)
    lifts = {word["word"]: word["lift"] for word in thrice["words"][0]}
    assert lifts == {"cup": pytest.approx((2 / 3) / 0.2)}  # tea: 2/3 over .8 is below 1


def test_wrong_input_is_refused(recommender: Recommender) -> None:
    with pytest.raises(ConfigError):
        recommender.explain(histories=[["item-1"]], items=0)
    with pytest.raises(ConfigError, match="either users or histories"):
        recommender.explain()
