"""Co-occurrence against brute force over every pair of positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemirec.data.cooccurrence import Decay, cooccurrence
from gemirec.data.dataset import TRAIN_END, Dataset
from gemirec.errors import ConfigError
from support import write_planted_dataset

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Few items, so that pairs repeat and items meet themselves; three shards."""
    return write_planted_dataset(
        tmp_path_factory.mktemp("log") / "data", num_users=60, num_items=25, length=(2, 12), num_shards=3, seed=4
    )


def brute_force(dataset: Dataset, window: int, decay: Decay) -> Array:
    table = np.zeros((dataset.num_items + 1, dataset.num_items + 1))
    for shard in dataset.shards:
        for u in range(shard.num_users):
            events = shard.events[shard.offsets[u] :][: shard.bounds[u, TRAIN_END]]
            for p, i in enumerate(events):
                for q, j in enumerate(events):
                    if 0 < abs(p - q) <= window:
                        table[i, j] += window - abs(p - q) + 1 if decay == "linear" else 1
    return table


@pytest.mark.parametrize("decay", ["linear", "none"])
@pytest.mark.parametrize("window", [1, 3, 50])
@pytest.mark.parametrize(("max_pairs", "block_events"), [(1 << 24, 1 << 21), (300, 40), (1, 1)])
def test_it_equals_brute_force_whatever_the_budget(
    window: int, decay: Decay, max_pairs: int, block_events: int, dataset: Dataset
) -> None:
    table = brute_force(dataset, window, decay)
    found = cooccurrence(
        dataset, window=window, decay=decay, max_neighbours=6, max_pairs=max_pairs, block_events=block_events
    )
    assert table[:, 0].sum() == 0
    np.testing.assert_array_equal(found.own_N, np.diag(table))
    np.fill_diagonal(table, 0)
    for i, row in enumerate(table):
        strongest = [int(j) for j in sorted(np.flatnonzero(row), key=lambda j: (-row[j], j))[:6]]
        padded = strongest + [0] * (6 - len(strongest))
        assert found.id_NM[i].tolist() == padded
        assert found.weight_NM[i].tolist() == [row[j] for j in padded]


def test_held_out_events_are_not_read(dataset: Dataset, tmp_path: Path) -> None:
    """Some users of this dataset train on nothing: their pairs are nowhere."""
    everything = np.zeros((26, 26))
    for shard in dataset.shards:
        for u in range(shard.num_users):
            events = np.asarray(shard.events[shard.offsets[u] : shard.offsets[u + 1]])
            np.add.at(everything, (events[:-1], events[1:]), 1)
            np.add.at(everything, (events[1:], events[:-1]), 1)
    found = cooccurrence(dataset, window=1, max_neighbours=25)
    assert found.weight_NM.sum() + found.own_N.sum() < everything.sum()


@pytest.mark.parametrize(("window", "neighbours"), [(0, 5), (3, 0)])
def test_nonsense_is_refused(window: int, neighbours: int, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="needs a window and neighbours"):
        cooccurrence(dataset, window=window, max_neighbours=neighbours)
