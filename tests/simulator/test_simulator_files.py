"""The simulator as a writer: deterministic, streamed, whole or not there, and strict about its configuration."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.config import from_dict, to_dict
from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.data.simulator import run as run_module
from gemirec.data.simulator.catalogue import build_catalogue
from gemirec.data.simulator.chunk import BIRTH, INTEREST, NO_BIRTH, PRECURSOR, draw_chunk
from gemirec.errors import ArtifactError, ConfigError, StorageError

TINY = SimulatorConfig(
    num_users=300,
    num_items=400,
    num_super_clusters=4,
    clusters_per_super=3,
    interests_min=2,
    interests_max=4,
    mean_events=12.0,
)
FILES = ["interactions", "items", "truth_events", "truth_items", "truth_users", "users"]


def with_fields(config: SimulatorConfig, **fields: Any) -> SimulatorConfig:
    return SimulatorConfig(**{name: getattr(config, name) for name in config.__struct_fields__} | fields)


def tables(log: SimulatedLog) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(log.path / f"{name}.parquet") for name in FILES}


def test_a_seed_gives_one_log_to_the_byte_and_another_seed_another(tmp_path: Path) -> None:
    one, again = simulate(tmp_path / "a", TINY), simulate(tmp_path / "b", TINY)
    assert sorted(p.name for p in one.path.iterdir()) == sorted([f"{n}.parquet" for n in FILES] + ["simulator.json"])
    for file in one.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes(), file.name
    other = tables(simulate(tmp_path / "c", with_fields(TINY, seed=2)))
    for name, table in tables(one).items():
        assert not table.equals(other[name]), name


def test_a_longer_log_repeats_the_chunks_of_a_shorter_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "EVENTS_PER_CHUNK", 1200)  # 100 users a chunk
    short, long = (
        tables(simulate(tmp_path / "a", with_fields(TINY, num_users=200))),
        tables(simulate(tmp_path / "b", TINY)),
    )
    for name, table in short.items():
        assert table.equals(long[name].head(table.height)), name
    assert long["users"].height == 300
    # No two chunks draw the same numbers.
    first, second = (long["truth_users"].slice(begin, 100).drop("user_id") for begin in (0, 100))
    assert not first.equals(second)


def test_a_chunk_is_one_row_group_and_memory_does_not_grow_with_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "EVENTS_PER_CHUNK", 6000)  # 500 users a chunk

    def peak(users: int) -> int:
        tracemalloc.start()
        simulate(tmp_path / str(users), with_fields(TINY, num_users=users))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(500)  # imports and caches
    assert peak(8000) < 1.2 * peak(1000)
    assert pq.ParquetFile(tmp_path / "8000" / "interactions.parquet").metadata.num_row_groups == 16


def test_the_log_is_by_user_then_time_and_its_ids_are_those_of_the_tables(tmp_path: Path) -> None:
    log = simulate(tmp_path / "log", TINY)
    made = tables(log)
    events = made["interactions"]
    assert events.columns == ["user_id", "item_id", "timestamp"]
    assert events.sort("user_id", "timestamp").equals(events)
    assert events.height == log.num_events == made["truth_events"].height
    assert made["users"]["user_id"].to_list() == list(range(300))
    assert made["items"]["item_id"].to_list() == list(range(400))
    assert set(events["item_id"]) <= set(range(400))
    assert made["items"].columns == ["item_id", "title", "category", "subcategory"]
    assert made["items"]["title"].n_unique() == 400


def test_string_ids_are_the_same_log_spelled_otherwise(tmp_path: Path) -> None:
    plain = tables(simulate(tmp_path / "a", TINY))
    spelled = tables(simulate(tmp_path / "b", with_fields(TINY, string_ids=True)))
    for name in ("interactions", "users", "items", "truth_users", "truth_items"):
        expected = plain[name].with_columns(
            (pl.lit(column[0]) + pl.col(column).cast(pl.String)).alias(column)
            for column in ("user_id", "item_id")
            if column in plain[name].columns
        )
        assert spelled[name].equals(expected), name


def test_an_opened_log_is_the_written_one(tmp_path: Path) -> None:
    config = with_fields(TINY, write_event_truth=False)
    log = simulate(tmp_path / "log", config)
    assert SimulatedLog.open(tmp_path / "log") == log
    assert log.truth_events is None
    assert not (log.path / "truth_events.parquet").exists()
    for path in (log.interactions, log.items, log.users, log.truth_users, log.truth_items):
        assert path.is_file()
    (log.path / "simulator.json").write_text('{"format_version": 1}')
    with pytest.raises(ArtifactError, match="damaged"):
        SimulatedLog.open(log.path)
    with pytest.raises(ArtifactError, match="missing"):
        SimulatedLog.open(tmp_path / "nowhere")


def test_progress_counts_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "EVENTS_PER_CHUNK", 1500)  # 125 users a chunk
    calls: list[tuple[int, int]] = []
    simulate(tmp_path / "log", TINY, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(125, 300), (250, 300), (300, 300)]


def test_an_existing_folder_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    old = tables(simulate(tmp_path / "log", TINY))
    newer = with_fields(TINY, seed=9)
    with pytest.raises(StorageError, match="exists already"):
        simulate(tmp_path / "log", newer)
    assert tables(SimulatedLog.open(tmp_path / "log"))["interactions"].equals(old["interactions"])
    simulate(tmp_path / "log", newer, overwrite=True)
    assert SimulatedLog.open(tmp_path / "log").config == newer
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def stop(done: int, total: int) -> None:
    raise KeyboardInterrupt(f"{done} of {total}")


def test_an_interrupted_simulation_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "log", TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []
    old = tables(simulate(tmp_path / "log", TINY))
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "log", with_fields(TINY, seed=2), overwrite=True, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
    assert tables(SimulatedLog.open(tmp_path / "log"))["interactions"].equals(old["interactions"])


def test_a_killed_simulation_leaves_no_log(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from gemirec.data.simulator import SimulatorConfig, simulate\n"
        "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "simulate(sys.argv[1], SimulatorConfig(num_users=50), progress=die)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "log").exists()
    simulate(tmp_path / "log", TINY)  # the remains do not stand in the way


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write_table(writer: Any, table: Any, **options: Any) -> None:
        written.append(table.num_rows)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(StorageError, match="free some disk space"):
        simulate(tmp_path / "log", TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_users": 0}, "num_users is too small"),
        ({"num_items": 35}, "num_items contradicts"),
        ({"noise": 1.5}, "noise must be a chance"),
        ({"noise": float("nan")}, "noise must be a chance"),
        ({"interests_min": 5}, "interests_max contradicts"),
        ({"interests_max": 12}, "interests_max contradicts"),
        ({"min_events": 1}, "min_events is too small"),
        ({"min_events": 20}, "mean_events contradicts"),
        ({"max_events": 11}, "mean_events contradicts"),
        ({"max_events": 4}, "max_events contradicts"),
        ({"birth_from": 0.9, "birth_to": 0.2}, "birth_to contradicts"),
        ({"announced_by_feature": 0.7}, "announced_by_precursor contradicts"),
        ({"precursors_per_cluster": 0}, "precursors_per_cluster contradicts"),
        ({"precursor_events": 0}, "precursor_events contradicts"),
        ({"item_spread": 0.0}, "item_spread must be positive"),
        ({"item_skew": -1.0}, "item_skew must not be negative"),
        ({"drift": float("inf")}, "drift must not be negative"),
        ({"horizon": 100}, "horizon contradicts"),
        ({"aspects": -1}, "aspects is too small"),
        ({"aspects": 1, "aspect_values": 1}, "aspect_values is too small"),
        ({"aspect_lean": 1.1}, "aspect_lean must be a chance"),
        ({"aspects": 1, "aspect_share": 1.0}, "aspect_share contradicts"),
        ({"seed": -1}, "seed is too small"),
        ({"num_super_clusters": 1, "clusters_per_super": 1, "interests_max": 2}, "interests_max contradicts"),
    ],
)
def test_a_bad_configuration_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_fields(TINY, **fields)
    with pytest.raises(ConfigError, match=message):
        from_dict(SimulatorConfig, to_dict(TINY) | fields)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    users=st.integers(1, 40),
    clusters=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    extra_items=st.integers(0, 30),
    precursors=st.integers(0, 3),
    interests=st.integers(1, 3),
    births=st.sampled_from([0.0, 0.5, 1.0]),
    chances=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3),
    events=st.tuples(st.integers(2, 6), st.integers(0, 30)),
    aspects=st.tuples(st.integers(0, 2), st.integers(2, 6), st.sampled_from([0.0, 0.5, 1.0])),
)
def test_every_chunk_keeps_its_promises(
    seed: int,
    users: int,
    clusters: tuple[int, int],
    extra_items: int,
    precursors: int,
    interests: int,
    births: float,
    chances: tuple[float, ...],
    events: tuple[int, int],
    aspects: tuple[int, int, float],
) -> None:
    total = clusters[0] * clusters[1]
    if interests + (births > 0) > total or (total < 2 and precursors):
        return
    noise, stickiness, weight = chances
    config = SimulatorConfig(
        seed=seed,
        num_users=users,
        num_super_clusters=clusters[0],
        clusters_per_super=clusters[1],
        precursors_per_cluster=precursors,
        num_items=total * (1 + precursors) + extra_items,
        interests_min=1,
        interests_max=interests,
        birth_share=births,
        announced_by_precursor=0.5 if precursors else 0.0,
        noise=noise,
        stickiness=stickiness,
        birth_weight=weight,
        min_events=events[0],
        mean_events=float(events[0] + events[1] // 2),
        max_events=events[0] + events[1],
        horizon=4 * (events[0] + events[1]),
        aspects=aspects[0],
        aspect_values=aspects[1],
        aspect_lean=aspects[2],
    )
    catalogue = build_catalogue(config)
    assert sorted(catalogue.id_N) == list(range(config.num_items))
    planted, made, _ = draw_chunk(config, catalogue, 0, 0, users)
    assert np.bincount(made.user_E, minlength=users).tolist() == planted.events_U.tolist()
    assert made.item_E.min() >= 0
    assert made.item_E.max() < config.num_items
    fits_EI = np.concatenate([catalogue.cluster_N[:, None], catalogue.value_NA], axis=1)[made.item_E]
    fits_EI += np.arange(1 + aspects[0]) * aspects[1] + (np.arange(1 + aspects[0]) > 0) * (total - aspects[1])
    wanted_E = np.isin(made.kind_E, [INTEREST, BIRTH])
    assert (fits_EI == made.cluster_E[:, None]).any(axis=1)[wanted_E].all()
    assert (made.cluster_E[made.kind_E == BIRTH] < total).all()
    end = np.cumsum(planted.events_U)
    for user in range(users):
        rows = slice(end[user] - planted.events_U[user], end[user])
        time, kind = made.time_E[rows], made.kind_E[rows]
        assert (np.diff(time) > 0).all()
        assert config.start <= time[0]
        assert time[-1] < config.start + config.horizon
        birth = planted.birth_U[user]
        if birth == NO_BIRTH:
            assert not np.isin(kind, [BIRTH, PRECURSOR]).any()
            continue
        assert 1 <= birth < len(kind)
        assert kind[birth] == BIRTH
        assert (kind[:birth] != BIRTH).all()
        assert not (kind[birth:] == PRECURSOR).any()
