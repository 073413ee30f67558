"""SimRec's item vectors against the whole matrix in NumPy, and the story of its neighbours through training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gemirec.config import TrainingConfig
from gemirec.data.dataset import TRAIN_END, Dataset
from gemirec.errors import ConfigError
from gemirec.models.catalog import build_model
from gemirec.models.simrec import SimRec
from gemirec.recommender import Recommender
from gemirec.training.loop import train
from support_models import TINY, shake, tiny, train_batch

Array = NDArray[np.float64]


def build(planted: Dataset, **over: Any) -> SimRec:
    model = tiny("simrec", planted.spec(), **over)
    assert isinstance(model, SimRec)
    shake(model)
    return model.eval()


def whole_matrix(dataset: Dataset, window: int, identity: Literal["before", "after"]) -> Array:
    """The release's construction: every pair of positions, then identity and normalisation."""
    table = np.zeros((dataset.num_items + 1, dataset.num_items + 1))
    for shard in dataset.shards:
        for u in range(shard.num_users):
            events = shard.events[shard.offsets[u] :][: shard.bounds[u, TRAIN_END]]
            for p, i in enumerate(events):
                for q in range(max(0, p - window), min(len(events), p + window + 1)):
                    if p != q:
                        table[i, events[q]] += window - abs(p - q) + 1
    if identity == "before":
        table += np.eye(len(table))
        return table / table.sum(1, keepdims=True)  # type: ignore[no-any-return]
    return table / np.maximum(table.sum(1, keepdims=True), 1) + np.eye(len(table))  # type: ignore[no-any-return]


@pytest.mark.parametrize("identity", ["before", "after"])
@pytest.mark.parametrize("mix", ["replace", "sum", "concat"])
def test_item_vectors_with_every_neighbour_kept(
    mix: str, identity: Literal["before", "after"], planted: Dataset
) -> None:
    model = build(planted, mix=mix, identity=identity, attribute_weight=0.7, neighbours=120)
    model.learn_from(planted)
    matrix = whole_matrix(planted, 3, identity)
    own = model.item_table.weight.detach().double().numpy()
    if model.attribute_table is None:
        expected = matrix @ own
    else:
        attribute = matrix @ model.attribute_table.weight.detach().double().numpy()
        expected = np.concatenate([own, attribute], axis=1) if mix == "concat" else own + 0.7 * attribute
    np.testing.assert_allclose(model.item_vectors().detach(), expected, rtol=1e-4, atol=1e-5)
    ids = torch.tensor([[3, 0], [7, 3]])
    np.testing.assert_allclose(model.item_vectors(ids).detach(), expected[ids.numpy()], rtol=1e-4, atol=1e-5)


def test_only_the_strongest_are_kept_and_their_weights_sum_to_one(planted: Dataset) -> None:
    model = build(planted, neighbours=4)
    model.learn_from(planted)
    matrix = whole_matrix(planted, 3, "before")
    for i in range(1, planted.num_items + 1):
        others = np.delete(matrix[i], i)
        kept = model.weight_NM[i].numpy()
        assert kept.sum() == pytest.approx(1)
        strongest = np.sort(others)[::-1][:4]
        np.testing.assert_allclose(kept[1:] / kept[0], strongest / matrix[i, i], rtol=1e-5)


def test_without_neighbours_it_is_comirec_sa(planted: Dataset) -> None:
    """Before ``learn_from`` the mixing is the identity."""
    model = build(planted)
    other = tiny("comirec_sa", planted.spec()).eval()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("_NM")})
    batch = train_batch(planted, model.max_length)
    torch.testing.assert_close(model.interests(batch).vector_BKD, other.interests(batch).vector_BKD)
    torch.testing.assert_close(model.item_vectors(), other.item_vectors())


def test_a_target_teaches_its_neighbours(planted: Dataset) -> None:
    """The gradient of one item's vector reaches the rows of its neighbours, by their weights, and no other."""
    model = build(planted)
    model.learn_from(planted)
    model.item_vectors(torch.tensor([5])).sum().backward()  # type: ignore[no-untyped-call]
    assert model.item_table.weight.grad is not None
    got = model.item_table.weight.grad[:, 0]
    expected = torch.zeros(planted.num_items + 1)
    expected[model.neighbour_NM[5].long()] = model.weight_NM[5]
    torch.testing.assert_close(got, expected)


def test_neighbours_through_training_resuming_saving_and_loading(planted: Dataset, tmp_path: Path) -> None:
    """Learnt once before the first step, kept by checkpoints, and in the saved recommender."""
    calls = []
    original = SimRec.learn_from

    def counted(self: SimRec, dataset: Dataset) -> None:
        calls.append(1)
        original(self, dataset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimRec, "learn_from", counted)
        config = TrainingConfig(steps=6, batch_size=8, eval_every=3, checkpoint_every=3)
        done = train("simrec", planted, model_config=TINY["simrec"], training=config, out=tmp_path / "run")
        again = train(
            "simrec", planted, model_config=TINY["simrec"], training=config, out=tmp_path / "run", resume=True
        )
    assert len(calls) == 1
    expected = build(planted)
    expected.learn_from(planted)
    for model in (done.model, again.model):
        assert isinstance(model, SimRec)
        assert torch.equal(model.weight_NM, expected.weight_NM)
        assert torch.equal(model.neighbour_NM, expected.neighbour_NM)
    assert (expected.neighbour_NM[1:, 1:] > 0).any()
    quick = {"model": TINY["simrec"], "training": {"steps": 2, "batch_size": 8}}
    recommender = Recommender.fit(planted, model="simrec", overrides=quick)
    recommender.save_pretrained(tmp_path / "saved")
    loaded = Recommender.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded.model, SimRec)
    assert torch.equal(loaded.model.weight_NM, expected.weight_NM)


def test_halves_must_be_equal(planted: Dataset) -> None:
    with pytest.raises(ConfigError, match="halves"):
        build_model("simrec", {"dim": 9, "mix": "concat"}, planted.spec())
