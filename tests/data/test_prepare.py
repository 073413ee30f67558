from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_support import (
    Event,
    as_frame,
    logs,
    plain_duplicates,
    plain_hash,
    plain_k_core,
    plain_one_pass,
    plain_sequences,
    stored_bounds,
    stored_sequences,
)
from gemirec.data import definition
from gemirec.data.dataset import Dataset
from gemirec.data.hashing import crc32, mix
from gemirec.data.prepare import Columns, PrepareConfig, prepare
from gemirec.errors import DataError

EASY = {"filter": "none", "split": "leave_one_out"}


def run(log: Any, *, items: Any = None, users: Any = None, **config: Any) -> Dataset:
    return prepare(
        log, Path(tempfile.mkdtemp()) / "d", items=items, users=users, config=PrepareConfig(**(EASY | config))
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=logs(text=True),
    duplicates=st.sampled_from(["keep", "drop_exact", "keep_first", "keep_last"]),
    rule=st.sampled_from(["none", "one_pass", "k_core"]),
    minimum=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_dataset_equals_plain_python(rows: list[Event], duplicates: str, rule: str, minimum: int, seed: int) -> None:
    expected = rows if duplicates == "keep" else plain_duplicates(rows, duplicates)
    if rule != "none":
        expected = (plain_one_pass if rule == "one_pass" else plain_k_core)(expected, minimum, minimum)
    config = {"duplicates": duplicates, "filter": rule, "min_item": minimum, "min_user": minimum, "seed": seed}
    if not expected:
        with pytest.raises(DataError, match="frequency filter removes every event"):
            run(as_frame(rows), **config)
        return
    dataset = run(as_frame(rows), **config)
    assert stored_sequences(dataset) == plain_sequences(expected)
    users = dataset.users["user_id"].to_list()
    assert users == sorted(users, key=lambda user: (plain_hash(user, seed, 0), user))
    count = pl.DataFrame({"item_id": [row[1] for row in expected]}).group_by("item_id").len()
    by_rank = count.sort(["len", "item_id"], descending=[True, False])
    assert dataset.items.select("item_id", "count").rows() == by_rank.rows()


@settings(max_examples=15, deadline=None)
@given(
    rows=logs(),
    duplicates=st.sampled_from(["keep", "drop_exact", "keep_first", "keep_last"]),
    rule=st.sampled_from(["none", "one_pass", "k_core"]),
)
def test_dataset_equals_the_dataframe_definition(rows: list[Event], duplicates: str, rule: str) -> None:
    config = PrepareConfig(duplicates=duplicates, filter=rule, min_item=2, min_user=2, split="leave_one_out")  # type: ignore[arg-type]
    frame = as_frame(rows).with_row_index("row")
    crc = crc32(frame["user_id"])
    frame = frame.with_columns(user_hash=pl.Series(mix(crc, 1, 0)), split_hash=pl.Series(mix(crc, 1, 1)))
    table = definition.reference(nw.from_native(frame.lazy()), config).collect().to_native().sort("user", "position")
    if not table.height:
        return
    dataset = prepare(as_frame(rows), Path(tempfile.mkdtemp()) / "d", config=config)
    shard = dataset.shards[0]
    assert table["item"].to_list() == shard.events.tolist()
    assert table["timestamp"].to_list() == shard.times.tolist()
    assert table.group_by("user").len().sort("user")["len"].to_list() == np.diff(shard.offsets).tolist()
    train = int(dataset.num_users * 0.8)
    trained = table.filter(pl.col("split_rank") < train)["user_id"].unique().sort().to_list()
    if train:
        by_users = prepare(
            as_frame(rows),
            Path(tempfile.mkdtemp()) / "d",
            config=PrepareConfig(duplicates=duplicates, filter=rule, min_item=2, min_user=2),  # type: ignore[arg-type]
        )
        assert by_users.users.filter(split="train")["user_id"].sort().to_list() == trained


@pytest.mark.parametrize("duplicates", ["keep", "drop_exact", "keep_first", "keep_last"])
@pytest.mark.parametrize("rule", ["none", "one_pass", "k_core"])
def test_a_second_engine_runs_the_same_definition(duplicates: str, rule: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    config = PrepareConfig(duplicates=duplicates, filter=rule, min_item=10, min_user=8)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({name: rng.integers(0, high, 600) for name, high in (("user_id", 40), ("item_id", 30))})
    frame = frame.with_columns(timestamp=rng.integers(0, 50, 600)).with_row_index("row")
    crc = crc32(frame["user_id"])
    frame = frame.with_columns(user_hash=pl.Series(mix(crc, 1, 0)), split_hash=pl.Series(mix(crc, 1, 1)))
    columns = ["user", "position", "item", "timestamp", "split_rank"]
    found = []
    for native in (frame.lazy(), duckdb.from_arrow(frame.to_arrow())):
        table = definition.reference(nw.from_native(native), config).select(columns).collect("polars").to_native()
        found.append(table.cast(pl.Int64).sort(columns))
    assert found[0].height > 100
    assert found[0].equals(found[1])


def big_log(users: int = 300, seed: int = 0) -> pl.DataFrame:
    """Distinct times, so that the content alone decides the order."""
    rng = np.random.default_rng(seed)
    events = users * 12
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, users, events)],
            "item_id": rng.zipf(1.6, events) % 80,
            "timestamp": rng.permutation(events) * 10,
            "weight": rng.uniform(0, 2, events),
        }
    )


@pytest.mark.parametrize("split", ["users", "leave_one_out", "global_time"])
def test_shards_change_neither_content_nor_fingerprint(split: str) -> None:
    one, many = run(big_log(), split=split), run(big_log(), split=split, shards=7)
    assert len(many.shards) == 7
    assert one.fingerprint == many.fingerprint
    assert stored_sequences(one) == stored_sequences(many)
    assert stored_bounds(one) == stored_bounds(many)
    assert one.items.equals(many.items)
    assert np.concatenate([s.weights for s in many.shards]).tolist() == one.shards[0].weights.tolist()  # type: ignore[union-attr]


def test_fingerprint_is_of_the_content() -> None:
    log = big_log()
    base = run(log).fingerprint
    assert run(log.sample(fraction=1.0, shuffle=True, seed=1)).fingerprint == base  # times are distinct
    assert run(log.rename({"user_id": "who"}), columns=Columns(user="who")).fingerprint == base
    changed = {
        "time": log.with_columns(pl.col("timestamp") * 2),
        "item": log.with_columns(pl.col("item_id") + 1),
        "user": log.with_columns(pl.col("user_id") + "x"),
        "type": log.with_columns(pl.col("item_id").cast(pl.String)),
        "weight": log.with_columns(pl.col("weight") * 2),
        "no weight": log.drop("weight"),
        "one event fewer": log.head(-1),
    }
    found = {name: run(table).fingerprint for name, table in changed.items()}
    found |= {"split": run(log, split="users").fingerprint, "seed": run(log, seed=2).fingerprint}
    assert len({base, *found.values()}) == len(found) + 1


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    base = run(big_log(), filter="k_core", min_item=3, min_user=3, duplicates="keep_first", split="users")
    monkeypatch.setattr("gemirec.data.coded.BLOCK_EVENTS", 50)
    monkeypatch.setattr("gemirec.data.sources.BATCH_ROWS", 100)
    small = run(big_log(), filter="k_core", min_item=3, min_user=3, duplicates="keep_first", split="users")
    assert small.fingerprint == base.fingerprint
    assert small.items.equals(base.items)


def test_one_heavy_user_among_many() -> None:
    log = pl.concat(
        [
            big_log(),
            pl.DataFrame(
                {"user_id": "heavy", "item_id": [1] * 5000, "timestamp": range(5000)},
                schema_overrides={"item_id": pl.Int64},
            ).with_columns(weight=pl.lit(1.0)),
        ]
    )
    dataset = run(log, shards=3)
    assert len(stored_sequences(dataset)["heavy"]) == 5000


def test_train_counts_are_of_training_events_only() -> None:
    dataset = run(big_log(), split="global_time")
    expected: dict[Any, int] = {}
    bounds = stored_bounds(dataset)
    for user, events in stored_sequences(dataset).items():
        for item, _ in events[: bounds[user][0]]:
            expected[item] = expected.get(item, 0) + 1
    found = dict(dataset.items.select("item_id", "train_count").iter_rows())
    assert {item: n for item, n in found.items() if n} == expected
    assert dataset.info.raw["events_per_split"]["train"] == sum(expected.values())


def test_global_time_cuts_at_the_asked_moments() -> None:
    dataset = run(big_log(), split="global_time", cut_times=(20_000, 30_000))
    times = {0: [], 1: [], 2: []}  # type: dict[int, list[int]]
    bounds = stored_bounds(dataset)
    for user, events in stored_sequences(dataset).items():
        train, valid_start, valid_end, test_start, test_end = bounds[user]
        for part, (low, high) in enumerate([(0, train), (valid_start, valid_end), (test_start, test_end)]):
            times[part] += [time for _, time in events[low:high]]
    assert max(times[0]) < 20_000 <= min(times[1]) <= max(times[1]) < 30_000 <= min(times[2])
    assert dataset.info.raw["cut_times"] == [20_000, 30_000]


def test_a_split_column_wins_over_the_configuration() -> None:
    log = as_frame([("a", 1, 0), ("a", 2, 1), ("a", 3, 2), ("b", 1, 0), ("b", 2, 5)])
    log = log.with_columns(split=pl.Series(["train", "Validation", "test", "train", "train"]))
    dataset = run(log, split="global_time")
    assert stored_bounds(dataset) == {"a": [1, 1, 2, 2, 3], "b": [2, 0, 0, 0, 0]}
    assert dataset.info.raw["split"] == "column"
    assert dict(dataset.users.iter_rows()) == {"a": "train+valid+test", "b": "train"}
    ignored = run(log, columns=Columns(split=None))
    assert ignored.info.raw["split"] == "leave_one_out"


def test_check_time_leak_looks_at_any_split() -> None:
    log = as_frame([("a", 1, 0), ("a", 2, 50), ("a", 3, 60), ("b", 1, 1), ("b", 2, 2), ("b", 3, 3)])
    run(log)
    with pytest.raises(DataError, match="leaks the future"):
        run(log, check_time_leak=True)


def test_events_and_weights_filter_and_are_kept() -> None:
    log = as_frame([("a", n, n) for n in range(6)]).with_columns(
        event=pl.Series(["pv", "buy", "pv", "pv", "pv", "pv"]), weight=pl.Series([1.0, 9.0, 0.5, 2.0, 3.0, 1.5])
    )
    dataset = run(log, events=("pv",), min_weight=1.0)
    assert stored_sequences(dataset)["a"] == [(0, 0), (3, 3), (4, 4), (5, 5)]
    assert dataset.shards[0].weights is not None
    assert dataset.shards[0].weights.tolist() == [1.0, 2.0, 3.0, 1.5]
    assert [step["events"] for step in dataset.info.raw["steps"]] == [6, 5, 4]
    assert run(log, keep_weights=False).shards[0].weights is None


def test_ids_keep_their_type_and_value() -> None:
    big = 2**62
    dataset = run(as_frame([(big, "007", 0), (-1, "7", 1), (big, "é", 2)]))
    assert dataset.users["user_id"].dtype == pl.Int64
    assert dataset.info.user_id_type == "integer"
    assert stored_sequences(dataset) == {big: [("007", 0), ("é", 2)], -1: [("7", 1)]}
    text = run(as_frame([(7, 1, 0), (8, 1, 1)]), id_type="string")
    assert sorted(text.users["user_id"]) == ["7", "8"]


def test_arrays_are_mapped_not_copied() -> None:
    dataset = Dataset.open(run(big_log()).path)
    assert all(isinstance(a, np.memmap) for a in (dataset.shards[0].events, dataset.shards[0].times))
    assert not dataset.shards[0].events.flags.writeable


def test_progress_goes_forward_through_every_stage() -> None:
    seen: list[tuple[str, float]] = []
    out = Path(tempfile.mkdtemp()) / "d"
    prepare(big_log(), out, progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["read", "filter", "order", "write"]
    for name in ("read", "filter", "order", "write"):
        part = [fraction for stage, fraction in seen if stage == name]
        assert part == sorted(part)
        assert part[-1] == 1.0


def test_two_runs_write_the_same_bytes() -> None:
    one, two = run(big_log()), run(big_log())
    for file in sorted(one.path.rglob("*.*")):
        assert file.read_bytes() == (two.path / file.relative_to(one.path)).read_bytes()
