"""Every bad log ends in one clear error and leaves nothing behind, or in a documented result."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from data_support import as_frame, stored_bounds, stored_sequences
from gemirec.data.dataset import Dataset
from gemirec.data.prepare import Columns, PrepareConfig, prepare
from gemirec.errors import ConfigError, DataError, GemirecError, StorageError

GOOD = as_frame([(user, item, item) for user in range(12) for item in range(6)])


def run(log: Any, out: Path, **config: Any) -> Dataset:
    return prepare(log, out, config=PrepareConfig(**config))


@contextmanager
def refused(folder: Path, match: str, kind: type[GemirecError] = DataError) -> Iterator[None]:
    """The block must raise with all three parts, and leave the folder as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        yield
    assert caught.value.what
    assert caught.value.got
    assert caught.value.fix
    assert sorted(folder.rglob("*")) == before


def test_empty_log(tmp_path: Path) -> None:
    empty = as_frame([])
    with refused(tmp_path, "the log is empty"):
        run(empty, tmp_path / "d")
    for kind in ("csv", "parquet", "jsonl", "inter", "txt"):
        path = tmp_path / f"none.{kind}"
        path.touch()
        with refused(tmp_path, "empty|cut, damaged"):
            run(path, tmp_path / "d")
    (tmp_path / "head.csv").write_text("user_id,item_id,timestamp\n")
    with refused(tmp_path, "the log is empty"):
        run(tmp_path / "head.csv", tmp_path / "d")
    empty.write_parquet(tmp_path / "head.parquet")
    with refused(tmp_path, "the log is empty"):
        run(tmp_path / "head.parquet", tmp_path / "d")


def test_one_event(tmp_path: Path) -> None:
    one = as_frame([("a", "x", 1)])
    with refused(tmp_path, r"frequency filter removes every event\n  got: 1 events of 1 users and 1 items"):
        run(one, tmp_path / "d")
    with refused(tmp_path, "no user is left to train on"):
        run(one, tmp_path / "d", filter="none")
    dataset = run(one, tmp_path / "d", filter="none", split="leave_one_out")  # documented: it trains
    assert stored_bounds(dataset) == {"a": [1, 0, 0, 0, 0]}


def test_one_user(tmp_path: Path) -> None:
    one = as_frame([("a", n % 3, n) for n in range(20)])
    with refused(tmp_path, r"no user is left to train on\n  got: users per part: {'train': 0, 'valid': 0, 'test': 1}"):
        run(one, tmp_path / "d")
    assert stored_bounds(run(one, tmp_path / "d", split="leave_one_out")) == {"a": [18, 18, 19, 19, 20]}


def test_nobody_trains(tmp_path: Path) -> None:
    with refused(tmp_path, "no user is left to train on"):
        run(GOOD, tmp_path / "d", split="global_time", cut_times=(-5, 3), allow_negative_times=True)
    with refused(tmp_path, "no user is left to train on"):
        run(GOOD.with_columns(split=pl.lit("test")), tmp_path / "d")


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "polars", "pandas"])
def test_null_or_nan(column: str, kind: str, tmp_path: Path) -> None:
    values = GOOD[column].to_list()
    values[7] = None
    broken: Any = GOOD.with_columns(pl.Series(column, values))
    if kind == "pandas":
        broken = pd.DataFrame(broken.to_dict(as_series=False))  # integers with a gap: floats with NaN
        assert broken[column].isna().sum() == 1
    elif kind != "polars":
        writer = {"parquet": broken.write_parquet, "csv": broken.write_csv, "jsonl": broken.write_ndjson}[kind]
        broken = tmp_path / f"log.{kind}"
        writer(broken)
    with refused(tmp_path, rf"events without '{column}'\n  got: .*row 7"):
        run(broken, tmp_path / "d")
    dataset = run(broken, tmp_path / "d", nulls="drop")
    assert dataset.info.num_events == GOOD.height - 1
    assert [step["events"] for step in dataset.info.raw["steps"]] == [72, 71, 71]


def test_nan_among_floats_and_empty_text_are_missing(tmp_path: Path) -> None:
    nan = GOOD.with_columns(pl.col("user_id").cast(pl.Float64).replace(3.0, float("nan")))
    with refused(tmp_path, "events without 'user_id'"):
        run(nan, tmp_path / "d")
    text = GOOD.with_columns(pl.col("item_id").cast(pl.String).replace("2", ""))
    with refused(tmp_path, "events without 'item_id'"):
        run(text, tmp_path / "d")
    assert run(text, tmp_path / "d", nulls="drop").num_items == 5


def test_every_id_missing(tmp_path: Path) -> None:
    none = GOOD.with_columns(user_id=pl.lit(None))
    with refused(tmp_path, "events without 'user_id'"):
        run(none, tmp_path / "d")
    with refused(tmp_path, "no event is left"):
        run(none, tmp_path / "d", nulls="drop")


def test_mixed_id_types(tmp_path: Path) -> None:
    mixed = pd.DataFrame({"user_id": [1, "a"] * 6, "item_id": range(12), "timestamp": range(12)})
    with refused(tmp_path, "mixed types"):
        run(mixed, tmp_path / "d")
    (tmp_path / "logs").mkdir()
    GOOD.write_parquet(tmp_path / "logs" / "0.parquet")
    GOOD.with_columns(pl.col("user_id").cast(pl.String)).write_parquet(tmp_path / "logs" / "1.parquet")
    with refused(tmp_path, r"'user_id' has mixed types\n  got: integer in .*0.parquet, large_string in .*1.parquet"):
        run(tmp_path / "logs", tmp_path / "d")
    lines = GOOD.write_csv() * 1 + "".join(f"{n},{n % 6},1\n" for n in range(11_000)) + "abc,1,1\n"
    (tmp_path / "late.csv").write_text(lines)
    with refused(tmp_path, r"abc(.|\n)*id_type=string"):
        run(tmp_path / "late.csv", tmp_path / "d")
    dataset = run(tmp_path / "late.csv", tmp_path / "d", id_type="string", filter="none")
    assert "abc" in dataset.users["user_id"].to_list()


def test_mixed_id_types_in_json(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"user_id": 1, "item_id": 2, "timestamp": 1}\n{"user_id": "a", "item_id": 2, "timestamp": 2}\n'
    )
    dataset = run(tmp_path / "log.jsonl", tmp_path / "d", filter="none", split="leave_one_out")
    assert sorted(dataset.users["user_id"]) == ["1", "a"]  # documented: one type for the column, text


def test_ids_of_a_type_that_no_id_has(tmp_path: Path) -> None:
    for values in ([True, False], [[1], [2]], [1.5, 2.5]):
        log = pl.DataFrame({"user_id": values, "item_id": [1, 2], "timestamp": [1, 2]})
        with refused(tmp_path, "ids of 'user_id'"):
            run(log, tmp_path / "d")


def test_missing_column(tmp_path: Path) -> None:
    with refused(
        tmp_path, r"no column 'item_id'\n  got: .*columns user_id, itemid, timestamp\n.*did you mean 'itemid'"
    ):
        run(GOOD.rename({"item_id": "itemid"}), tmp_path / "d")
    with refused(tmp_path, "no column 'event'"):
        run(GOOD, tmp_path / "d", events=("pv",))
    with refused(tmp_path, "no column 'split'"):
        run(GOOD, tmp_path / "d", split="column")
    with refused(tmp_path, "no column 'weight'"):
        run(GOOD, tmp_path / "d", min_weight=1.0)


def test_timestamps(tmp_path: Path) -> None:
    with refused(tmp_path, r"'timestamp' is negative\n  got: -1"):
        run(GOOD.with_columns(pl.col("timestamp") - 1), tmp_path / "d")
    early = run(GOOD.with_columns(pl.col("timestamp") - 3), tmp_path / "d", allow_negative_times=True)
    assert stored_sequences(early)[0][0] == (0, -3)
    for values, got in ((["soon"] * 72, "soon"), ([[1]] * 72, "List"), ([float("inf")] * 72, "inf")):
        with refused(tmp_path, rf"not numbers or dates\n  got: .*{got}"):
            run(GOOD.with_columns(timestamp=pl.Series(values)), tmp_path / "e")
    path = tmp_path / "log.csv"
    path.write_text(GOOD.write_csv() + "1,1,later\n")
    with refused(tmp_path, r"not numbers or dates\n  got: 'later'"):
        run(path, tmp_path / "e")


def test_duplicates_are_kept_or_dropped_as_asked(tmp_path: Path) -> None:
    double = pl.concat([GOOD, GOOD])
    assert run(double, tmp_path / "kept").info.num_events == 144
    once = run(double, tmp_path / "dropped", duplicates="drop_exact")
    assert once.fingerprint == run(GOOD, tmp_path / "good").fingerprint
    assert [step["events"] for step in once.info.raw["steps"]] == [144, 72, 72]


def test_filters_that_leave_nothing(tmp_path: Path) -> None:
    with refused(tmp_path, "frequency filter removes every event"):
        run(GOOD, tmp_path / "d", filter="k_core", min_user=100)
    with refused(tmp_path, r"no event is left after the filters(.|\n)*kinds of events met: buy, pv"):
        log = GOOD.with_columns(event=pl.Series(["pv", "buy"] * 36))
        run(log, tmp_path / "d", events=("view",))


def test_weights_and_labels(tmp_path: Path) -> None:
    for value in (None, float("nan"), -1.0):
        with refused(tmp_path, "weights of 'weight' must be finite"):
            run(GOOD.with_columns(weight=pl.Series([1.0] * 71 + [value])), tmp_path / "d")
    with refused(tmp_path, r"must say train, valid or test\n  got: 'maybe'"):
        run(GOOD.with_columns(split=pl.Series(["train"] * 71 + ["maybe"])), tmp_path / "d")
    with refused(tmp_path, r"goes back in time\n  got: user \d+ has a test event before a train event"):
        run(GOOD.with_columns(split=pl.Series(["test", "train"] * 36)), tmp_path / "d")


def test_truncated_and_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    rng = np.random.default_rng(0)
    big = pl.DataFrame({name: rng.integers(0, 10**9, 50_000) for name in ("user_id", "item_id", "timestamp")})
    big.write_parquet(path)
    whole = path.read_bytes()
    for size in (3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with refused(tmp_path, r"could not be read\n  got: .*log.parquet"):
            run(path, tmp_path / "d")
    path.write_bytes(whole[:2000] + bytes(len(whole) - 4000) + whole[-2000:])  # the footer is whole, the pages are not
    with refused(tmp_path, r"could not be read\n  got: .*log.parquet"):
        run(path, tmp_path / "d")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_no_rights(tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    locked, log = tmp_path / "locked", tmp_path / "log.parquet"
    locked.mkdir()
    GOOD.write_parquet(locked / "log.parquet")
    GOOD.write_parquet(log)
    locked.chmod(0o700)
    run(log, tmp_path / "warm")  # what is loaded lazily is loaded with rights
    log.chmod(0o600)
    os.seteuid(65534)
    try:
        for source in (locked, locked / "log.parquet", str(locked / "*.parquet"), log):
            with pytest.raises(StorageError, match="rights"):
                run(source, Path("/tmp/never"))
        with pytest.raises(StorageError, match="rights"):
            run(GOOD, tmp_path / "out")
    finally:
        os.seteuid(0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locked", "log.parquet", "warm"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system allows no mount")
    try:
        big = as_frame([(user, item, item) for user in range(3000) for item in range(6)])
        with refused(disk, "free some disk space", StorageError):
            run(big, disk / "d")
        assert run(GOOD, disk / "d").num_users == 12
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_disk_full_at_any_array(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemirec.data import writer

    calls, original = iter(range(1000)), writer.NpyWriter.write

    def write(self: writer.NpyWriter, values: Any) -> memoryview:
        if next(calls) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, values)

    monkeypatch.setattr(writer.NpyWriter, "write", write)
    users = pl.DataFrame({"user_id": range(12), "sex": ["m", "f"] * 6, "x": np.linspace(0, 1, 12)})
    with refused(tmp_path, "free some disk space", StorageError):
        prepare(GOOD, tmp_path / "d", users=users)


def test_interrupted(tmp_path: Path) -> None:
    def stop(stage: str, fraction: float) -> None:
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(GOOD, tmp_path / "d", progress=stop)
    assert not list(tmp_path.iterdir())


def test_target_exists(tmp_path: Path) -> None:
    first = run(GOOD, tmp_path / "d")
    with refused(tmp_path, "exists already", StorageError):
        run(GOOD.head(60), tmp_path / "d")
    with refused(tmp_path, "the log is empty"):
        prepare(GOOD.clear(), tmp_path / "d", overwrite=True)
    assert Dataset.open(tmp_path / "d").fingerprint == first.fingerprint  # a failure leaves the old one whole
    assert prepare(GOOD.head(60), tmp_path / "d", overwrite=True).info.num_events == 60
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    with refused(tmp_path, "not a dataset", StorageError):
        prepare(GOOD, precious, overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    "values",
    [
        {"fractions": (0.5, 0.1, 0.1)},
        {"fractions": (0.0, 0.5, 0.5)},
        {"evaluation_cut": 1.0},
        {"cut_times": (5, 1)},
        {"min_item": -1},
        {"shards": -2},
    ],
)
def test_settings_that_no_log_satisfies(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PrepareConfig(**values)
    with pytest.raises(ConfigError, match="two roles"):
        Columns(item="user_id")


def test_more_shards_than_users(tmp_path: Path) -> None:
    assert len(run(GOOD, tmp_path / "d", shards=50).shards) == 12


def test_columns_can_be_switched_off(tmp_path: Path) -> None:
    log = GOOD.with_columns(weight=pl.lit("no number"), split=pl.lit("no label"))
    dataset = run(log, tmp_path / "d", columns=Columns(weight=None, split=None))
    assert dataset.shards[0].weights is None
