"""Windows and evaluation batches against plain Python, and the properties that training relies on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemirec.data.batches import WindowSampler, evaluation_batches, pad_histories
from gemirec.data.dataset import TEST_END, TEST_START, TRAIN_END, VALID_END, VALID_START, Dataset
from gemirec.errors import ConfigError, TrainingError
from support import write_planted_dataset

Sampling = Literal["users", "events"]
MIN_HISTORY = 4


def sequences(dataset: Dataset) -> list[list[int]]:
    return [
        shard.events[shard.offsets[u] : shard.offsets[u + 1]].tolist()
        for shard in dataset.shards
        for u in range(shard.num_users)
    ]


def all_bounds(dataset: Dataset) -> np.ndarray:
    return np.concatenate([np.asarray(shard.bounds) for shard in dataset.shards])


def distinct_items(dataset: Dataset) -> None:
    """Number the events 1, 2, ... within each user, so that a target item says its position."""
    for number in range(len(dataset.shards)):
        folder = dataset.path / "shards" / f"{number:05d}"
        offsets = np.load(folder / "offsets.npy")
        sizes = np.diff(offsets)
        np.save(folder / "events.npy", (np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes) + 1).astype(np.int32))


@pytest.fixture(scope="module", params=[1, 3])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("batches") / "d"
    return write_planted_dataset(
        path, num_users=150, length=(1, 30), num_shards=request.param, weights=True, user_features=True, seed=3
    )


@pytest.fixture(scope="module", params=[1, 3])
def positions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("positions") / "d"
    made = write_planted_dataset(path, num_users=60, length=(1, 16), num_shards=request.param, seed=5)
    distinct_items(made)
    return Dataset.open(path)


@pytest.mark.parametrize("sampling", ["users", "events"])
@pytest.mark.parametrize("max_length", [1, 6, 40])
def test_windows_equal_plain_python(dataset: Dataset, sampling: Sampling, max_length: int) -> None:
    events, bounds = sequences(dataset), all_bounds(dataset)
    weight = np.concatenate([np.asarray(s.weights) for s in dataset.shards])
    first = np.concatenate([[0], np.cumsum([len(e) for e in events])])
    categorical, numeric = dataset.user_features()
    assert categorical is not None
    assert numeric is not None
    sampler = WindowSampler(dataset, batch_size=64, max_length=max_length, sampling=sampling, seed=9)
    for step in range(8):
        batch = sampler.windows(step)
        assert batch.weight_B is not None
        assert batch.item_BL.dtype == batch.target_B.dtype == batch.user_B.dtype == torch.int64
        for row, user in enumerate(batch.user_B.tolist()):
            window = [i for i in batch.item_BL[row].tolist() if i]
            padded = window + [0] * (max_length - len(window))
            assert batch.item_BL[row].tolist() == padded, "padding stands behind the items"
            # The window must be what precedes some training position with this target and this weight.
            candidates = [
                k
                for k in range(MIN_HISTORY, bounds[user, TRAIN_END])
                if events[user][max(0, k - max_length) : k] == window
                and events[user][k] == batch.target_B[row]
                and weight[first[user] + k] == batch.weight_B[row]
            ]
            assert candidates, (step, row)
        np.testing.assert_array_equal(batch.user_categorical_BF, categorical[batch.user_B.numpy()])
        np.testing.assert_array_equal(batch.user_numeric_BG, numeric[batch.user_B.numpy()])


@pytest.mark.parametrize("sampling", ["users", "events"])
def test_a_batch_depends_on_seed_and_step_only(dataset: Dataset, sampling: Sampling) -> None:
    def make(seed: int) -> WindowSampler:
        return WindowSampler(dataset, batch_size=32, max_length=8, sampling=sampling, seed=seed)

    one, other = make(1), make(1)
    forward = [one.windows(s) for s in range(6)]
    for step in (5, 0, 3):
        again = other.windows(step)
        assert torch.equal(again.item_BL, forward[step].item_BL)
        assert torch.equal(again.target_B, forward[step].target_B)
        assert torch.equal(again.user_B, forward[step].user_B)
    assert not torch.equal(forward[0].target_B, forward[1].target_B)
    assert not torch.equal(make(2).windows(0).target_B, forward[0].target_B)


def test_users_of_a_batch_are_distinct_and_all_are_drawn_when_they_just_suffice(positions: Dataset) -> None:
    usable = np.flatnonzero(all_bounds(positions)[:, TRAIN_END] > MIN_HISTORY)
    full = WindowSampler(positions, batch_size=len(usable), max_length=5)
    for step in range(5):
        assert full.windows(step).user_B.tolist() == usable.tolist()
    more = WindowSampler(positions, batch_size=3 * len(usable), max_length=5)
    assert set(more.windows(0).user_B.tolist()) <= set(usable.tolist())
    assert len(more.windows(0).user_B) == 3 * len(usable)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Return the chi-square statistic in standard deviations above its mean (df, variance 2 df)."""
    df = len(expected) - 1
    return float((((observed - expected) ** 2 / expected).sum() - df) / np.sqrt(2 * df))


def draws(positions: Dataset, sampling: Sampling, steps: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return how often each training position was a target, in the order of the returned (user, position) list."""
    end = all_bounds(positions)[:, TRAIN_END]
    slots = [(u, k) for u in range(len(end)) for k in range(MIN_HISTORY, end[u])]
    number = {slot: n for n, slot in enumerate(slots)}
    sampler = WindowSampler(positions, batch_size=20, max_length=3, sampling=sampling, seed=11)
    assert sampler.num_windows == len(slots)
    assert sampler.num_users == len({u for u, _ in slots})
    count = np.zeros(len(slots), dtype=np.int64)
    for step in range(steps):
        batch = sampler.windows(step)
        for user, item in zip(batch.user_B.tolist(), batch.target_B.tolist(), strict=True):
            count[number[user, item - 1]] += 1
    return count, slots


def test_users_are_uniform_and_positions_uniform_within_a_user(positions: Dataset) -> None:
    count, slots = draws(positions, "users", steps=1500)
    user = np.array([u for u, _ in slots])
    per_user = np.bincount(user, minlength=60)
    expected = count.sum() / len(set(user.tolist())) / per_user[user]
    assert chi_square(count, expected) < 4
    shuffled = expected * per_user[user] / per_user[user].mean()  # the other scheme's expectation must not fit
    assert chi_square(count, shuffled * expected.sum() / shuffled.sum()) > 20


def test_events_are_uniform_over_training_positions(positions: Dataset) -> None:
    count, slots = draws(positions, "events", steps=1500)
    assert chi_square(count, np.full(len(slots), count.sum() / len(slots))) < 4


@pytest.mark.parametrize("sampling", ["users", "events"])
def test_no_held_out_event_is_ever_read(tmp_path: Path, sampling: Sampling) -> None:
    made = write_planted_dataset(tmp_path / "d", num_users=80, length=(6, 20), num_shards=2, seed=2)
    held_out = 7_777_777
    for number, shard in enumerate(made.shards):
        events, bounds = np.array(shard.events), np.array(shard.bounds)
        sizes = np.diff(shard.offsets)
        # Every user trains on the first events and is held out on the two last (leave-one-out).
        bounds[:] = np.stack([sizes - 2, sizes - 2, sizes - 1, sizes - 1, sizes], axis=1)
        for last in (1, 2):
            events[shard.offsets[1:] - last] = held_out
        np.save(made.path / "shards" / f"{number:05d}" / "events.npy", events)
        np.save(made.path / "shards" / f"{number:05d}" / "bounds.npy", bounds)
    dataset = Dataset.open(tmp_path / "d")
    sampler = WindowSampler(dataset, batch_size=50, max_length=30, sampling=sampling)
    for step in range(60):
        batch = sampler.windows(step)
        assert not (batch.item_BL == held_out).any()
        assert not (batch.target_B == held_out).any()
    (valid,) = evaluation_batches(dataset, "valid", batch_size=80, max_length=30)
    assert (valid.target_E == held_out).all()
    assert not (valid.seen_E == held_out).any(), "the history of validation ends before its target"


def test_a_dataset_without_windows_says_so(tmp_path: Path) -> None:
    made = write_planted_dataset(tmp_path / "d", num_users=10, length=(3, 4))
    with pytest.raises(TrainingError, match="no user has a training window"):
        WindowSampler(made, batch_size=4, max_length=5)
    assert WindowSampler(made, batch_size=4, max_length=5, min_history=3).windows(0).item_BL.shape == (4, 5)


@pytest.mark.parametrize(
    "bad", [{"batch_size": 0}, {"max_length": 0}, {"min_history": 0}, {"seed": -1}, {"sampling": "items"}]
)
def test_bad_arguments_are_refused(dataset: Dataset, bad: dict[str, int]) -> None:
    arguments: dict[str, int] = {"batch_size": 4, "max_length": 5} | bad
    with pytest.raises(ConfigError):
        WindowSampler(dataset, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluation_batches_equal_plain_python(
    dataset: Dataset, split: Literal["valid", "test"], batch_size: int
) -> None:
    events, bounds = sequences(dataset), all_bounds(dataset)
    cut, stop = (VALID_START, VALID_END) if split == "valid" else (TEST_START, TEST_END)
    order = np.random.default_rng(0).permutation(dataset.users_in(split))
    categorical, _ = dataset.user_features()
    assert categorical is not None
    seen_users = []
    for batch in evaluation_batches(dataset, split, batch_size=batch_size, max_length=6, users=order):
        assert len(batch.user_B) <= batch_size
        for row, user in enumerate(batch.user_B.tolist()):
            history = events[user][: bounds[user, cut]]
            target = events[user][bounds[user, cut] : bounds[user, stop]]
            a, b = batch.seen_offset_B1[row : row + 2].tolist()
            assert batch.seen_E[a:b].tolist() == history
            a, b = batch.target_offset_B1[row : row + 2].tolist()
            assert batch.target_E[a:b].tolist() == target
            window = history[-6:]
            assert batch.item_BL[row].tolist() == window + [0] * (6 - len(window))
            assert batch.user_categorical_BF is not None
            assert batch.user_categorical_BF[row].tolist() == categorical[user].tolist()
            seen_users.append(user)
    assert seen_users == order.tolist()


def test_evaluation_takes_every_user_of_the_split_by_default(dataset: Dataset) -> None:
    users = [u for b in evaluation_batches(dataset, "valid", batch_size=4, max_length=3) for u in b.user_B.tolist()]
    assert users == dataset.users_in("valid").tolist()


def test_evaluation_refuses_what_it_cannot_do(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        evaluation_batches(dataset, "train", batch_size=4, max_length=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be positive"):
        evaluation_batches(dataset, "valid", batch_size=0, max_length=3)
    training = dataset.users_in("train")[:2]
    with pytest.raises(ConfigError, match="nothing held out"):
        next(evaluation_batches(dataset, "valid", batch_size=4, max_length=3, users=training))


@given(rows=st.lists(st.lists(st.integers(1, 2**31 - 1), max_size=9), max_size=12), max_length=st.integers(1, 12))
def test_padded_histories_are_the_last_entries_then_zeros(rows: list[list[int]], max_length: int) -> None:
    flat = np.array([i for row in rows for i in row], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    padded = pad_histories(flat, offsets, max_length)
    assert padded.shape == (len(rows), max_length)
    assert padded.dtype == torch.int64
    for row, got in zip(rows, padded.tolist(), strict=True):
        kept = row[-max_length:]
        assert got == kept + [0] * (max_length - len(kept))
