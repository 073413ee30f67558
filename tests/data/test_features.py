from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_support import as_frame
from gemirec.data.dataset import Dataset
from gemirec.data.prepare import PrepareConfig, prepare
from gemirec.errors import ConfigError, DataError

LOG = as_frame([(user, item, time) for user in range(10) for time, item in enumerate((1, 2, 3, 4, 5)[: 3 + user % 3])])


def run(log: Any = LOG, *, items: Any = None, users: Any = None, **config: Any) -> Dataset:
    return prepare(
        log,
        Path(tempfile.mkdtemp()) / "d",
        items=items,
        users=users,
        config=PrepareConfig(**({"filter": "none"} | config)),
    )


def test_item_columns_are_carried_and_the_category_is_indexed() -> None:
    items = pl.DataFrame(
        {
            "item_id": ["5", "4", "3", "1", "99", "1"],
            "category": ["b", "a", "b", None, "z", "again"],
            "tags": [["x"], ["y", "z"], [], None, ["q"], None],
            "count": [1, 2, 3, 4, 5, 6],
        }
    )
    dataset = run(items=items)
    table = dataset.items.sort("item_id")
    assert table["category"].to_list() == [None, None, "b", "a", "b"]  # the first row of an id counts; 2 is missing
    assert dataset.info.categories == ["b", "a"]
    assert table["category_index"].to_list() == [0, 0, 1, 2, 1]
    assert table["tags"].to_list() == [None, None, [], ["y", "z"], ["x"]]
    assert table["count_given"].to_list() == [4, None, 3, 2, 1]
    assert table["count"].to_list() == [10, 10, 10, 6, 3]
    assert dataset.info.raw["tables"]["items"] == {"rows": 6, "repeated_ids": 1, "missing_ids": 1, "categories": 2}
    spec = dataset.spec()
    assert spec.num_categories == 2
    assert spec.category_N.shape == (6,)


@pytest.mark.parametrize(
    ("values", "names"),
    [([["a", "b"], ["c"], [], None, ["a"]], ["a", "c"]), ([2.0, 2.0, float("nan"), None, 1.0], ["2", "1"])],
)
def test_category_of_a_list_or_a_float(values: list[Any], names: list[str]) -> None:
    dataset = run(items=pl.DataFrame({"item_id": [1, 2, 3, 4, 5], "kind": values}, strict=False), category="kind")
    assert dataset.info.categories == names
    assert dataset.items.sort("item_id")["category_index"].to_list()[2:4] == [0, 0]


def test_user_features_are_picked_encoded_and_carried() -> None:
    rng = np.random.default_rng(0)
    users = pl.DataFrame(
        {
            "user_id": range(9),
            "sex": list("mfmfmfmfm"),
            "age": [1.0, 18, 25, None, 1, 18, 25, 35, 1],
            "score": rng.normal(size=9),
            "days": np.arange(9) * 1000 + rng.integers(0, 9, 9),
            "constant": 1,
            "tags": [["a"]] * 9,
        }
    )
    dataset = run(users=users, user_numeric=("score", "days"))
    kinds = {feature.name: feature.kind for feature in dataset.info.user_features}
    assert kinds == {"sex": "categorical", "age": "categorical", "score": "numeric", "days": "numeric"}
    assert set(users.columns) <= set(dataset.users.columns)
    categorical, numeric = dataset.user_features()
    assert categorical is not None
    assert numeric is not None
    ids = dataset.users["user_id"].to_list()
    by_name = {feature.name: feature for feature in dataset.info.user_features}
    for row, user in enumerate(ids):
        if user == 9:  # not in the table: unknown
            assert categorical[row].tolist() == [0, 0]
            assert numeric[row].tolist() == [0.0, 0.0]
            continue
        age = users["age"][user]
        age_code = 0 if age is None else by_name["age"].vocabulary.index(str(int(age))) + 1
        assert categorical[row].tolist() == [by_name["sex"].vocabulary.index(users["sex"][user]) + 1, age_code]
        expected = [(users[n][user] - by_name[n].mean) / by_name[n].std for n in ("score", "days")]
        assert numeric[row].tolist() == pytest.approx(expected, abs=1e-6)
    train = [user for user in dataset.users.filter(split="train")["user_id"] if user < 9]
    assert by_name["score"].mean == pytest.approx(float(np.mean([users["score"][user] for user in train])))
    assert dataset.spec().user_categorical_sizes == (3, len(by_name["age"].vocabulary) + 1)


def test_vocabulary_is_of_training_users_and_limited() -> None:
    users = pl.DataFrame({"user_id": range(10), "city": [f"c{n}" for n in range(10)]})
    full, short = run(users=users), run(users=users, max_vocabulary=3)
    train = full.users.filter(split="train")["city"].to_list()
    assert sorted(full.info.user_features[0].vocabulary) == sorted(train)
    assert short.info.user_features[0].vocabulary == sorted(train)[:3]


def test_whole_numbers_of_many_values_are_quantities() -> None:
    log = as_frame([(user, item, item) for user in range(400) for item in range(3)])
    users = pl.DataFrame({"user_id": range(400), "steps": range(400), "region": [n % 20 for n in range(400)]})
    kinds = {f.name: f.kind for f in run(log, users=users).info.user_features}
    assert kinds == {"steps": "numeric", "region": "categorical"}


def test_errors_of_tables() -> None:
    with pytest.raises(DataError, match="no id of the item table occurs"):
        run(items=pl.DataFrame({"item_id": ["x"], "category": ["a"]}))
    with pytest.raises(DataError, match="the item table has no column 'item_id'"):
        run(items=pl.DataFrame({"id": [1]}))
    with pytest.raises(DataError, match="the user table is empty"):
        run(users=pl.DataFrame({"user_id": []}))
    with pytest.raises(ConfigError, match="no such feature"):
        run(users=pl.DataFrame({"user_id": [1], "a": [1]}), user_numeric=("b",))
    with pytest.raises(DataError, match="'a' is not numeric"):
        run(users=pl.DataFrame({"user_id": [1, 2], "a": ["x", "y"]}), user_numeric=("a",))
