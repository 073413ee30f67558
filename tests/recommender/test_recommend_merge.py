"""``recommend`` under every merge: whole lists, of each interest its places, and what ``evaluate`` measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec import MergeConfig
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset
    from gemirec.recommender import Recommender

ITEMS = [f"item-{i}" for i in range(1, 121)]
HOW = st.one_of(
    st.just(MergeConfig()),
    st.builds(
        MergeConfig, kind=st.just("diverse"), diversity=st.floats(0, 5, allow_subnormal=False), pool=st.integers(1, 9)
    ),
    st.builds(
        MergeConfig,
        kind=st.just("quota"),
        quota=st.one_of(st.just("equal"), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)),
    ),
)


def categories(items: list[str]) -> list[int]:
    """Item i is in category (i - 1) % 6."""
    return [(int(item.removeprefix("item-")) - 1) % 6 for item in items]


@settings(max_examples=25, deadline=None)
@given(history=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=20), k=st.integers(1, 130), how=HOW)
def test_lists_are_whole_whatever_the_merge(
    recommender: Recommender, history: list[str], k: int, how: MergeConfig
) -> None:
    """As many items as there can be, none twice, none seen; a diverse list begins as the default one."""
    table = recommender.recommend(histories=[history, []], k=k, merge=how)
    mine, other = table.filter(pl.col("user_id") == 0), table.filter(pl.col("user_id") == 1)
    items = mine["item_id"].to_list()
    assert len(items) == len(set(items)) == min(k, 120 - len(set(history)))
    assert not set(items) & set(history)
    assert mine["score"].is_sorted(descending=True) or how.kind == "diverse"
    plain = recommender.recommend(histories=[history, []], k=k)
    assert other.equals(plain.filter(pl.col("user_id") == 1))  # the fallback has no interests to merge
    if how.kind == "diverse":
        assert items[0] == plain["item_id"][0]


@settings(max_examples=15, deadline=None)
@given(history=st.lists(st.sampled_from(ITEMS), min_size=4, max_size=12), k=st.integers(4, 20))
def test_a_quota_gives_every_interest_its_places(recommender: Recommender, history: list[str], k: int) -> None:
    """An interest gets its share, or every item that stands highest in its own list if these are fewer."""
    own = recommender.interests(histories=[history], items=k)["items"].to_list()
    place: dict[str, tuple[int, int]] = {}
    for interest, items in enumerate(own):
        for rank, item in enumerate(items):
            place[item] = min(place.get(item, (k, 9)), (rank, interest))
    owned = [sum(owner == interest for _, owner in place.values()) for interest in range(4)]
    table = recommender.recommend(histories=[history], k=k, merge=MergeConfig(kind="quota"))
    won = [table.filter(pl.col("interest") == interest).height for interest in range(4)]
    for interest in range(4):
        assert won[interest] >= min(k // 4, owned[interest])
    assert [place[item][1] for item in table["item_id"]] == table["interest"].to_list()


def test_a_penalty_spreads_the_list_over_the_categories(recommender: Recommender) -> None:
    history = [f"item-{i}" for i in (3, 9, 15, 21, 27)]  # one category
    lists = [
        recommender.recommend(histories=[history], k=12, merge=MergeConfig(kind="diverse", diversity=d, pool=10))
        for d in (0.0, 100.0)
    ]
    spread = [categories(table["item_id"].to_list()) for table in lists]
    assert len(set(spread[0][:6])) < 6
    assert all(len(set(spread[1][first : first + 6])) == 6 for first in (0, 6))


def test_a_user_alone_and_in_a_crowd_gets_the_same_list(recommender: Recommender, planted: Dataset) -> None:
    how = MergeConfig(kind="diverse", diversity=1.0)
    crowd = recommender.recommend(users=planted.users["user_id"], k=5, merge=how)
    alone = recommender.recommend(users=["user-200"], k=5, merge=how)
    assert alone.equals(crowd.filter(pl.col("user_id") == "user-200"))


def test_evaluate_takes_the_merge_as_recommend_does(recommender: Recommender) -> None:
    how = MergeConfig(kind="quota", quota=(1, 1))
    found = recommender.evaluate(merge=how, bootstrap=0)
    assert found.metrics == recommender.evaluate(merge={"kind": "quota", "quota": [1, 1]}, bootstrap=0).metrics
    assert found.metrics != recommender.evaluate(bootstrap=0).metrics
    with pytest.raises(ConfigError, match="belongs to the kind quota"):
        recommender.evaluate(merge={"quota": [1, 1]})
