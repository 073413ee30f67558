from __future__ import annotations

import polars as pl
import pytest

from gemirec.recommender.catalog import Catalog


@pytest.mark.parametrize(
    ("known", "asked", "found"),
    [
        ([5, 7, 9], ["7", 5, "x", None], [2, 1, 0, 0]),
        (["5", "7", "9"], [7, 5], [2, 1]),
        (["a", "b"], ["b", "b", "c"], [2, 2, 0]),
        ([2**62, 1], [2**62], [1]),
        ([1, 2], [], []),
        ([1, 2], [None, None], [0, 0]),
    ],
)
def test_ids_are_read_in_the_catalogues_own_type(known: list[object], asked: list[object], found: list[int]) -> None:
    catalog = Catalog(pl.DataFrame({"item_id": known, "train_count": [1] * len(known)}))
    assert catalog.encode(pl.Series(asked, strict=False)).tolist() == found


def test_popularity_ties_go_to_the_earlier_item() -> None:
    catalog = Catalog(pl.DataFrame({"item_id": ["a", "b", "c", "d"], "train_count": [2, 5, 5, 2]}))
    assert catalog.ids(catalog.most_popular).to_list() == ["b", "c", "a", "d"]
