"""What every store of cached interests keeps to: one suite for a dictionary, the memory map, LMDB and Redis."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemirec.errors import ArtifactError, ConfigError
from gemirec.retrieval.stores import Bulk
from support_stores import INFO, KINDS, Clock, Kind, RedisServer, bulk, need_redis, records

SECOND = 10**6


@pytest.fixture(scope="module")
def redis_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """One Redis for the module, started when it is first asked for."""
    held: list[RedisServer] = []
    yield held
    for server in held:
        server.kill()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, redis_once: list[RedisServer]) -> Kind:
    def redis() -> RedisServer:
        if not redis_once:
            need_redis()
            redis_once.append(RedisServer(tmp_path))
        return redis_once[0]

    found = Kind(request.param, tmp_path / "store", redis)
    found.forget()
    return found


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_store_equals_a_dictionary_with_times(kind: Kind, data: st.DataObject) -> None:
    kind.forget()
    clock = Clock()
    names = st.integers(0, 12)
    kind.fill(bulk(range(6), clock.micros))
    store, offset = kind.open(ttl=30.0, clock=clock), 0
    written, marked = dict.fromkeys(range(6), clock.micros), dict.fromkeys(range(13), 0)
    numbers = {user: user for user in range(6)}
    for _ in range(data.draw(st.integers(1, 6))):
        clock.sleep(data.draw(st.sampled_from([0.000001, 1.0, 16.0])))
        users = data.draw(st.lists(names, max_size=6))
        if data.draw(st.booleans()):
            offset += 17
            store.set_many(users, records(store.codec, np.array(users, dtype=np.int64) + offset, clock.micros))
            written.update(dict.fromkeys(users, clock.micros))
            numbers.update({user: user + offset for user in users})
        else:
            store.mark_stale(users)
            marked.update(dict.fromkeys(users, clock.micros))
        clock.sleep(0.000001)
        asked = data.draw(st.lists(st.integers(0, 15), max_size=8))
        found = store.get_many(asked)
        there = [user in written and written[user] > clock.micros - 30 * SECOND for user in asked]
        assert found.found_B.tolist() == there
        assert found.stale_B.tolist() == [
            ok and marked[user] >= written[user] for user, ok in zip(asked, there, strict=True)
        ]
        got = [row for row, ok in zip(found.record_B["index"].tolist(), there, strict=True) if ok]
        assert got == [
            [(numbers[user] + i) % 300 for i in range(3)] for user, ok in zip(asked, there, strict=True) if ok
        ]
    assert store.corrupt == 0
    store.close()


def test_ids_are_found_by_their_text(kind: Kind) -> None:
    clock = Clock()
    strange = ["é漢", "x" * 3000, "", "a b\n", "\ud800", "0", "-7", "1:2"]
    kind.fill(Bulk(INFO, 8, [(strange, records(INFO.codec(), range(8), clock.micros))]))
    store = kind.open()
    found = store.get_many([*strange, None, "x" * 2999, 0, -7])
    assert found.found_B.tolist() == [True] * 8 + [False, False, True, True]
    assert found.record_B["index"][:, 0].tolist() == [*range(8), 0, 0, 5, 6]
    assert store.get_many(pl.Series([0, None, -7])).found_B.tolist() == [True, False, True]
    store.set_many([None, "new"], records(store.codec, [1, 2], clock.micros))
    store.mark_stale([None])
    assert store.get_many([None, "new", "None"]).found_B.tolist() == [False, True, False]
    assert store.get_many([]).found_B.tolist() == []
    store.close()


def test_the_last_of_equal_users_counts(kind: Kind) -> None:
    kind.fill(bulk([], 1))
    store = kind.open()
    store.set_many(["a", "b", "a"], records(store.codec, [1, 2, 3], store.now()))
    assert store.get_many(["a", "b", "a"]).record_B["index"][:, 0].tolist() == [3, 2, 3]
    store.close()


def test_a_value_worked_out_while_an_event_arrives_is_stale(kind: Kind) -> None:
    clock = Clock()
    kind.fill(bulk([], 1))
    store = kind.open(clock=clock)
    read_at = clock.micros
    clock.sleep(0.1)
    store.mark_stale(["eve"])
    clock.sleep(0.1)
    store.set_many(["eve"], records(store.codec, [1], read_at))
    found = store.get_many(["eve"])
    assert (found.found_B.tolist(), found.stale_B.tolist()) == ([True], [True])
    store.set_many(["eve"], records(store.codec, [1], clock.micros))
    assert store.get_many(["eve"]).stale_B.tolist() == [False]
    store.close()


def test_a_new_generation_is_served_when_it_is_whole_and_knows_the_marks(kind: Kind) -> None:
    clock = Clock()
    kind.fill(bulk(range(250), clock.micros))
    old = kind.open(clock=clock)
    seen: list[bool] = []

    def blocks() -> Iterator[object]:
        codec = INFO.codec()
        for first in range(0, 200, 50):
            if kind.name != "memory":  # a dictionary has nothing to open again
                late = kind.open()
                seen.append(late.get_many([5, 249]).record_B["index"][:, 0].tolist() == [5, 249])
                late.close()
            clock.sleep(1)
            old.mark_stale([first])
            users = np.arange(first, first + 50)
            yield users.tolist(), records(codec, users + 9, clock.micros - SECOND)

    kind.fill(Bulk(INFO, 200, blocks()))  # type: ignore[arg-type]
    assert all(seen)
    new = kind.open(clock=clock)
    assert new.info.generation > old.info.generation
    assert old.get_many([5, 249]).record_B["index"][:, 0].tolist() == [5, 249]  # a reader keeps what it opened
    found = new.get_many([5, 249, 50])
    assert found.found_B.tolist() == [True, False, True]
    assert found.record_B["index"][0, 0] == 14
    assert new.get_many(list(range(200))).stale_B.nonzero()[0].tolist() == [0, 50, 100, 150]
    for store in (old, new):
        store.close()


def test_damaged_values_are_missing_and_counted(kind: Kind) -> None:
    """Every byte of a record, flipped or cut: never served, never an error."""
    kind.fill(bulk(range(60), 10**15))
    store = kind.open()
    size, rng = store.codec.dtype.itemsize, np.random.default_rng(0)
    whole = store.get_many(list(range(60))).record_B.copy()
    for place in range(size):
        record = whole[place : place + 1].copy()
        record.view(np.uint8)[place] ^= int(rng.integers(1, 256))
        _put_raw(kind, store, place, record.tobytes())
    found = store.get_many(list(range(60)))
    assert found.found_B.tolist() == [False] * size + [True] * (60 - size)
    assert store.corrupt == size
    assert not found.record_B[:size].view(np.uint8).any()
    if kind.name not in ("memory_map",):  # its records have one width
        for cut in (b"", b"x", whole[59].tobytes()[:-1], whole[59].tobytes() + b"y"):
            _put_raw(kind, store, 59, cut)
            assert not store.get_many([59]).found_B.any()
    _put_raw(kind, store, 58, whole[57].tobytes())  # another user's
    assert not store.get_many([58]).found_B.any()
    store.set_many([0], records(store.codec, [7], 10**15))
    assert store.get_many([0]).record_B["index"][0, 0] == 7
    store.close()


def test_values_of_another_model_or_layout_do_not_pass() -> None:
    codec = INFO.codec()
    key = np.ones((1, 2), dtype=np.uint64)
    record = records(codec, [1], 5)
    codec.seal(record, key)
    assert codec.intact(record, key).all()
    other = msgspec.structs.replace(INFO, version="model-b").codec()
    assert not other.intact(record, key).any()
    wider = msgspec.structs.replace(INFO, layout=msgspec.structs.replace(INFO.layout, entries=290)).codec()
    assert wider.dtype == codec.dtype
    assert not wider.intact(record, key).any()


def test_threads_read_whole_records_while_others_write(kind: Kind) -> None:
    kind.fill(bulk(range(64), 1))
    store = kind.open()
    wrong: list[object] = []
    stop = threading.Event()

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            users = rng.integers(0, 64, 16)
            store.set_many(users.tolist(), records(store.codec, users + 64 * int(rng.integers(4)), store.now()))

    def read() -> None:
        while not stop.is_set():
            found = store.get_many(list(range(64)))
            index_BK = found.record_B["index"].astype(int)
            good = ((index_BK - index_BK[:, :1]) % 300 == np.arange(3)).all(1) & (
                (index_BK[:, 0] - np.arange(64)) % 64 % 300 == 0
            )
            if not good[found.found_B].all():
                wrong.append(index_BK[found.found_B & ~good])

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong
    assert store.get_many(list(range(64))).found_B.all()
    store.close()


def test_what_is_not_there_is_said(kind: Kind) -> None:
    if kind.name != "memory":
        with pytest.raises(ArtifactError):
            kind.open()
    kind.fill(bulk([], 1))
    with pytest.raises(ConfigError, match="ttl"):
        kind.open(ttl=0)


def _put_raw(kind: Kind, store: object, user: int, value: bytes) -> None:
    """Write bytes past the store."""
    from gemirec.retrieval.stores.keys import user_keys

    keys, shelf = user_keys([user]), store._shelf  # type: ignore[attr-defined]
    (name,) = keys.texts()
    if kind.name == "memory":
        shelf.values[name] = value
    elif kind.name == "redis":
        shelf._connection.client.set(shelf._value + name, value)
    elif kind.name == "lmdb":
        with shelf._environment.begin(write=True) as transaction:
            transaction.put(name, value)
    else:
        slot = shelf._values._find(keys.key_B2[:, 0])[0]
        shelf._values._record_S[slot] = np.frombuffer(value, dtype=shelf._values._record_S.dtype)


def test_keys_differ() -> None:
    from gemirec.retrieval.stores.keys import user_keys

    texts = ["".join(part) for size in range(4) for part in itertools.product("01a\0", repeat=size)]
    texts += [str(number) for number in range(2000, 30_000)]
    for keys in (user_keys(texts), user_keys(pl.Series(texts))):
        for half in range(2):
            assert len(np.unique(keys.key_B2[:, half])) == len(texts)
        assert len(set(keys.texts())) == len(texts)
    assert (user_keys(texts).key_B2 == user_keys(pl.Series(texts)).key_B2).all()
