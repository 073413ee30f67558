from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError, DataError
from gemirec.recommender import Recommender
from gemirec.recommender.histories import DatasetHistories


def raw_history(dataset: Dataset, user: str) -> list[str]:
    """The user's events, read straight from the shards."""
    row = dataset.users["user_id"].to_list().index(user)
    for shard in dataset.shards:
        if row < shard.first_user + shard.num_users:
            start, stop = shard.offsets[row - shard.first_user : row - shard.first_user + 2]
            return [dataset.items["item_id"][int(i) - 1] for i in shard.events[start:stop]]
    raise AssertionError(user)


def lists(table: pl.DataFrame) -> list[list[str]]:
    """The items of each user, best first."""
    return table.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()


def test_known_users_and_their_raw_histories_get_identical_lists(recommender: Recommender, planted: Dataset) -> None:
    users = ["user-3", "user-399", "user-0", "user-211"]  # both shards, not in order
    known = recommender.recommend(users=users, k=7)
    raw = recommender.recommend(histories={user: raw_history(planted, user) for user in users}, k=7)
    assert known["user_id"].unique(maintain_order=True).to_list() == users
    assert known.equals(raw)


def test_a_user_alone_and_in_a_crowd_gets_the_same_list(recommender: Recommender, planted: Dataset) -> None:
    crowd = recommender.recommend(users=planted.users["user_id"], k=5)
    for user in ("user-0", "user-200", "user-399"):
        assert recommender.recommend(users=[user], k=5).equals(crowd.filter(pl.col("user_id") == user))


def test_lists_are_the_best_items_by_inner_product_over_interests(recommender: Recommender, planted: Dataset) -> None:
    history = raw_history(planted, "user-17")
    vectors = recommender.model.item_vectors().detach().numpy()[1:]
    interests = np.array(recommender.interests(histories=[history])["vector"].to_list())
    score = (vectors @ interests.T).max(axis=1)
    ids = planted.items["item_id"].to_list()
    expected = [ids[i] for i in np.argsort(-score, kind="stable") if ids[i] not in history][:10]
    table = recommender.recommend(histories=[history], k=10)
    assert table["item_id"].to_list() == expected
    won = (vectors @ interests.T).argmax(axis=1)
    assert table["interest"].to_list() == [won[ids.index(item)] for item in expected]
    np.testing.assert_allclose(table["score"], [score[ids.index(item)] for item in expected], rtol=1e-5)


def test_a_trained_model_recommends_from_the_planted_clusters(recommender: Recommender) -> None:
    cluster_two = [f"item-{i}" for i in (3, 9, 15, 21, 27)]  # item i is in cluster (i - 1) % 6
    items = recommender.recommend(histories=[cluster_two], k=10)["item_id"].to_list()
    assert sum((int(item.removeprefix("item-")) - 1) % 6 == 2 for item in items) >= 9


@given(
    histories=st.lists(
        st.lists(st.sampled_from([*(f"item-{i}" for i in range(1, 121)), "?", None]), max_size=30), max_size=5
    ),
    k=st.integers(1, 150),
    exclude=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_history_gets_unique_known_items_in_order(
    recommender: Recommender, histories: list[list[str | None]], k: int, exclude: bool
) -> None:
    table = recommender.recommend(histories=histories, k=k, exclude_seen=exclude)
    for row, history in enumerate(histories):
        mine = table.filter(pl.col("user_id") == row)
        known = {item for item in history if item not in {"?", None}}
        assert mine.height == min(k, 120 - (len(known) if exclude else 0))
        assert mine["item_id"].n_unique() == mine.height
        assert mine["rank"].to_list() == list(range(1, mine.height + 1))
        assert mine["score"].is_sorted(descending=True)
        assert not exclude or not known & set(mine["item_id"])
        assert mine["skipped"].to_list() == [history.count("?") + history.count(None)] * mine.height
        assert set(mine["source"]) == ({"model"} if known else {"popularity"})


def test_unknown_items_are_skipped_counted_and_told_once(
    planted: Dataset, recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = Recommender(recommender.info, recommender.model, planted.items, DatasetHistories(planted))
    with caplog.at_level(logging.WARNING, logger="gemirec"):
        table = fresh.recommend(histories=[["item-1", "new", "item-2", "newer"]], k=3)
        fresh.recommend(histories=[["newest"]], k=3)
    assert table["skipped"].to_list() == [2, 2, 2]
    assert lists(table) == lists(fresh.recommend(histories=[["item-1", "item-2"]], k=3))
    assert [record.getMessage() for record in caplog.records] == [
        "2 items are not known to the model and are skipped (said once)"
    ]


def test_users_without_known_items_get_the_most_popular(recommender: Recommender, planted: Dataset) -> None:
    table = recommender.recommend(histories=[[], ["nobody knows this"], ["item-5"]], k=4)
    top = planted.items.sort("train_count", descending=True, maintain_order=True)
    for row in (0, 1):
        mine = table.filter(pl.col("user_id") == row)
        assert mine["item_id"].to_list() == top["item_id"].head(4).to_list()
        assert mine["score"].to_list() == top["train_count"].head(4).to_list()
        assert mine["source"].unique().to_list() == ["popularity"]
        assert mine["interest"].null_count() == 4
    assert table.filter(pl.col("user_id") == 2)["source"].unique().to_list() == ["model"]


def test_the_fallback_none_gives_no_rows(planted: Dataset) -> None:
    quiet = Recommender.fit(planted, model="popularity", fallback="none")
    table = quiet.recommend(histories=[[], ["item-5"]], k=4)
    assert table["user_id"].unique().to_list() == [1]


def test_more_than_the_catalogue_gives_all_items(recommender: Recommender) -> None:
    table = recommender.recommend(histories=[["item-1"]], k=10**6, exclude_seen=False)
    assert sorted(table["item_id"]) == sorted(f"item-{i}" for i in range(1, 121))


def test_allow_restricts_model_and_fallback(recommender: Recommender) -> None:
    allow = ["item-4", "item-8", "item-15", "no such item"]
    table = recommender.recommend(histories=[["item-4"], []], k=10, allow=allow)
    assert set(table.filter(pl.col("user_id") == 0)["item_id"]) == {"item-8", "item-15"}
    assert set(table.filter(pl.col("user_id") == 1)["item_id"]) == {"item-4", "item-8", "item-15"}


def test_histories_come_as_lists_mappings_and_tables(recommender: Recommender) -> None:
    one, two = ["item-9", "item-3"], ["item-77"]
    answer = lists(recommender.recommend(histories=[one, two], k=3))
    long = pl.DataFrame({"user_id": [8, 8, 5], "item_id": [*one, *two]})
    nested = pl.DataFrame({"user_id": [8, 5], "item_id": [one, two]})
    for histories in ({"b": one, "a": two}, long, nested):
        assert lists(recommender.recommend(histories=histories, k=3)) == answer
    assert recommender.recommend(histories=long, k=1)["user_id"].to_list() == [8, 5]


def test_nobody_asked_gives_an_empty_table_of_the_same_form(recommender: Recommender) -> None:
    some, none = recommender.recommend(histories=[["item-1"]]), recommender.recommend(histories=[])
    assert none.height == 0
    assert none.schema == some.schema
    assert recommender.interests(histories=[], items=2).schema == recommender.interests(histories=[[]], items=2).schema


@pytest.mark.parametrize(
    ("ask", "error", "what"),
    [
        ({}, ConfigError, "give either users or histories"),
        ({"users": ["user-1"], "histories": [[]]}, ConfigError, "give either users or histories"),
        ({"users": "user-1"}, ConfigError, "users must be a list"),
        ({"users": ["user-1", "stranger"]}, DataError, "1 of 2 users are not known"),
        ({"histories": ["item-1"]}, DataError, "histories must be a list of lists"),
        ({"histories": "item-1"}, DataError, "histories must be a list of lists"),
        ({"histories": [[]], "k": 0}, ConfigError, "k must be a whole number"),
        ({"histories": [[]], "k": 2.5}, ConfigError, "k must be a whole number"),
        ({"histories": [[]], "allow": ["nothing known"]}, DataError, "no item of the allow-list"),
        ({"histories": [[]], "allow": "item-1"}, DataError, "an allow-list must be a list"),
        ({"histories": pl.DataFrame({"user": [1]})}, DataError, "needs the columns user_id and item_id"),
    ],
)
def test_wrong_questions_say_what_is_wrong(
    recommender: Recommender, ask: dict[str, object], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what) as caught:
        recommender.recommend(**ask)  # type: ignore[arg-type]
    assert "\n  got: " in str(caught.value)
    assert "\n  fix: " in str(caught.value)


def test_interests_say_what_each_retrieves(recommender: Recommender) -> None:
    history = ["item-1", "item-7", "item-2", "item-8"]
    table = recommender.interests(histories=[history, []], items=5)
    assert table["user_id"].unique().to_list() == [0]
    assert table["interest"].to_list() == [0, 1, 2, 3]
    vectors, ids = recommender.model.item_vectors().detach().numpy(), recommender.catalog.items["item_id"].to_list()
    for row in table.to_dicts():
        order = np.argsort(-(vectors[1:] @ np.array(row["vector"])), kind="stable")
        assert row["items"] == [ids[i] for i in order if ids[i] not in history][:5]


def test_similar_items_are_the_nearest_by_cosine(recommender: Recommender) -> None:
    table = recommender.similar_items(["item-10", "unknown", "item-3"], k=4)
    vectors = recommender.model.item_vectors().detach().numpy()[1:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = recommender.catalog.items["item_id"].to_list()
    for item in ("item-10", "item-3"):
        cosine = unit @ unit[ids.index(item)]
        expected = [ids[i] for i in np.argsort(-cosine) if ids[i] != item][:4]
        mine = table.filter(pl.col("item_id") == item)
        assert mine["similar_item_id"].to_list() == expected
    assert table["item_id"].unique(maintain_order=True).to_list() == ["item-10", "item-3"]
    assert recommender.similar_items(["item-3"], k=1000).height == 119


def test_evaluate_gives_the_metrics_of_the_evaluation(recommender: Recommender, planted: Dataset) -> None:
    from gemirec.config import EvaluationConfig
    from gemirec.evaluation.evaluate import evaluate

    config = EvaluationConfig(split="valid", top_n=(5, 10), bootstrap=0)
    assert recommender.evaluate(config=config).metrics == evaluate(recommender.model, planted, config).metrics
    assert recommender.evaluate(split="valid", top_n=[5, 10], bootstrap=0).metrics["recall@10"] > 0
    with pytest.raises(ConfigError, match="unknown key in evaluate"):
        recommender.evaluate(splitt="valid")
