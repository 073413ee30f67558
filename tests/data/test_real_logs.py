"""The real logs, where they are there: counts that the sources state, and every split."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from data_support import plain_k_core
from gemirec.data.prepare import PrepareConfig, prepare


@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [
        ("amazon-beauty", 22_363, 12_101, 198_502),  # 5-core already: METHODS 9 and the published files
        ("amazon-sports", 35_598, 18_357, 296_337),
        ("kuairand-pure", 20_998, 5_081, 445_136),
        ("ml-1m", 6_040, 3_416, 999_611),
        ("globo", 126_827, 12_019, 2_018_601),
    ],
)
def test_one_pass_rule(name: str, users: int, items: int, events: int, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / name
    given_users = folder / "users.parquet"
    dataset = prepare(
        folder / "interactions.parquet",
        tmp_path / "d",
        items=folder / "items.parquet",
        users=given_users if given_users.exists() else None,
    )
    assert (dataset.num_users, dataset.num_items, dataset.info.num_events) == (users, items, events)
    train, valid = int(users * 0.8), int(users * 0.9) - int(users * 0.8)
    assert dataset.info.users_per_split == {"train": train, "valid": valid, "test": users - train - valid}
    log = pl.scan_parquet(folder / "interactions.parquet")
    item_count = pl.len().over("item_id")
    frequent = log.filter(item_count >= 5)
    assert frequent.filter(pl.len().over("user_id") >= 5).select(pl.len()).collect().item() == events
    assert dataset.items["category_index"].max() == len(dataset.info.categories)
    assert bool(dataset.info.user_features) == given_users.exists()


def test_global_time_on_news(shared_data: Path, tmp_path: Path) -> None:
    dataset = prepare(
        shared_data / "globo" / "interactions.parquet", tmp_path / "d", config=PrepareConfig(split="global_time")
    )
    share = {k: n / dataset.info.num_events for k, n in dataset.info.raw["events_per_split"].items()}
    assert share["train"] == pytest.approx(0.8, abs=0.01)
    assert share["valid"] == pytest.approx(0.1, abs=0.01)
    assert all(dataset.info.users_per_split.values())


def test_k_core_on_beauty(shared_data: Path, tmp_path: Path) -> None:
    log = pl.read_parquet(shared_data / "amazon-beauty" / "interactions.parquet").head(3000)
    config = PrepareConfig(filter="k_core", min_user=5, min_item=3)
    expected = plain_k_core(log.select("user_id", "item_id", "timestamp").rows(), 3, 5)
    assert prepare(log, tmp_path / "d", config=config).info.num_events == len(expected)
