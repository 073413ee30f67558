"""What every model of the catalogue must do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemirec.artifacts import load_tensors, save_tensors
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.config import from_dict, to_dict
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.catalog import MODELS, PROFILES, build_model, config_class, load_profile, model_class
from gemirec.models.common import TableModel
from gemirec.training.schedule import plan_stages
from support_models import TINY, begin, fit, held_out, loss_of, ready, tiny, train_batch

ALL = pytest.mark.parametrize("name", list(MODELS))
TRAINABLE = pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).trainable])
MULTI = pytest.mark.parametrize(
    "name",
    [name for name in MODELS if isinstance(getattr(config_class(name)(), "loss", None), MultiInterestLossConfig)],
)


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def test_every_model_is_in_this_suite() -> None:
    assert set(TINY) == set(MODELS)


LEARNER: dict[str, dict[str, Any]] = {
    # networks that begin at random need more than 320 users
    "gemirec": {"tower": {"pooled": 1.0}, "fusion": {"kind": "residual"}, "placeholder": "zero"},
    "re4": {"loss": {"normalize": True, "temperature": 0.1}},  # else its contrast at .02 rules the small retrieval loss
}
"""Settings with which a model learns from few users."""


@TRAINABLE
def test_training_lowers_the_loss_and_finds_the_planted_interests(name: str, planted: Dataset, spec: DataSpec) -> None:
    """Users draw from 2 of 6 clusters: by chance a third of a list is theirs."""
    model = tiny(name, spec, **LEARNER.get(name, {}))
    steps = 120 if len(model.stages) == 1 else 240
    losses = list(fit(model, planted, steps=steps))[plan_stages(model.stages, steps)[-1].start :]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1
    histories = held_out(planted, model.max_length)
    with torch.no_grad():
        found = model.interests(histories)
        score_BKN = found.vector_BKD @ model.item_vectors()[1:].T
    score_BN = score_BKN.masked_fill(~found.mask_BK[:, :, None], -torch.inf).amax(1)
    cluster_N = np.arange(spec.num_items) % 6
    top_BN = cluster_N[score_BN.topk(10).indices.numpy()]
    item_BL = histories.item_BL.numpy()
    own = [set(cluster_N[row[row > 0] - 1]) for row in item_BL]
    hit = np.mean([np.isin(top, list(mine)).mean() for top, mine in zip(top_BN, own, strict=True)])
    assert hit > 0.8


def test_popularity_ranks_by_training_count(planted: Dataset, spec: DataSpec) -> None:
    model = tiny("popularity", spec)
    found = model.interests(held_out(planted, 1))
    score_BN = (found.vector_BKD @ model.item_vectors().T)[:, 0]
    assert torch.equal(score_BN[0].double(), torch.tensor(spec.train_count_N).double())
    assert not list(model.parameters())
    batch = train_batch(planted, 1)
    share = np.asarray(spec.train_count_N)[batch.target_B] / spec.train_count_N.sum()
    assert model.losses(batch, "train").total().item() == pytest.approx(-np.log(share).mean(), rel=1e-5)


@ALL
def test_padding_changes_nothing(name: str, planted: Dataset, spec: DataSpec) -> None:
    """The same histories, padded to their longest or to the model's length: equal, bit for bit."""
    model = ready(name, spec).eval()
    wide = held_out(planted, max(model.max_length, 5))
    short = replace(wide, item_BL=wide.item_BL[:, : min(model.max_length, 5)].contiguous())
    padded = replace(short, item_BL=torch.nn.functional.pad(short.item_BL, (0, max(0, model.max_length - 5))))
    one, two = model.interests(short), model.interests(padded)
    assert torch.equal(one.vector_BKD, two.vector_BKD)
    assert torch.equal(one.mask_BK, two.mask_BK)
    batch = train_batch(planted, model.max_length)
    longest = max(int(batch.length_B.max()), 1)
    trimmed = replace(batch, item_BL=batch.item_BL[:, :longest], generator=torch.Generator().manual_seed(0))
    assert torch.equal(loss_of(model, batch), loss_of(model, trimmed))


@TRAINABLE
def test_padding_item_gets_no_gradient(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec)
    loss_of(model, train_batch(planted, model.max_length)).backward()  # type: ignore[no-untyped-call]
    assert isinstance(model, TableModel)
    assert model.item_table.weight.grad is not None
    assert (model.item_table.weight.grad[0] == 0).all()
    assert (model.item_vectors()[0] == 0).all()


@ALL
def test_a_batch_equals_its_rows(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec).eval()
    histories = rows(held_out(planted, model.max_length), slice(0, 8))
    together = model.interests(histories)
    for b in range(8):
        alone = model.interests(rows(histories, slice(b, b + 1)))
        torch.testing.assert_close(alone.vector_BKD[0], together.vector_BKD[b], rtol=1e-5, atol=1e-7)
        assert torch.equal(alone.mask_BK[0], together.mask_BK[b])


@ALL
def test_the_order_of_users_does_not_matter(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec).eval()
    histories = held_out(planted, model.max_length)
    order = torch.randperm(len(histories.item_BL), generator=torch.Generator().manual_seed(0))
    straight, shuffled = model.interests(histories), model.interests(rows(histories, order))
    torch.testing.assert_close(shuffled.vector_BKD, straight.vector_BKD[order], rtol=1e-5, atol=1e-7)


def rows(histories: Histories, index: Any) -> Histories:
    cat, num = histories.user_categorical_BF, histories.user_numeric_BG
    return Histories(histories.item_BL[index], None if cat is None else cat[index], None if num is None else num[index])


@ALL
@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_build_and_round_trip(name: str, profile: str, planted: Dataset, spec: DataSpec) -> None:
    values = load_profile(name, profile)
    assert set(values) == {"model", "training"}
    config = from_dict(config_class(name), values["model"])
    assert from_dict(config_class(name), to_dict(config)) == config
    model = build_model(name, config, spec)
    for stage in model.stages:
        begin(model, stage)
        assert model.losses(train_batch(planted, model.max_length), stage.name).total().isfinite()


@ALL
def test_saved_weights_come_back_bit_equal(name: str, planted: Dataset, spec: DataSpec, tmp_path: Path) -> None:
    model, other = ready(name, spec, seed=1), tiny(name, spec, seed=2)
    save_tensors(tmp_path / "model.safetensors", dict(model.state_dict()))
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
    histories = held_out(planted, model.max_length)
    model.eval()
    other.eval()
    assert torch.equal(model.interests(histories).vector_BKD, other.interests(histories).vector_BKD)
    assert torch.equal(model.item_vectors(), other.item_vectors())


@TRAINABLE
def test_equal_seeds_give_equal_runs(name: str, planted: Dataset, spec: DataSpec) -> None:
    models = [tiny(name, spec, seed=seed) for seed in (3, 3, 4)]
    losses = [list(fit(model, planted, steps=3)) for model in models]
    assert losses[0] == losses[1] != losses[2]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@ALL
def test_interests_repeat_in_eval_mode(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec).eval()
    histories = held_out(planted, model.max_length)
    assert torch.equal(model.interests(histories).vector_BKD, model.interests(histories).vector_BKD)


VECTORS: dict[str, Callable[[int], int]] = {
    "timirec": lambda interests: 1,  # merged once the second stage begins
    "mgnm": lambda interests: 3 * interests,  # those of each level
}
"""Vectors that a model serves with K interests, where they are not K."""


@MULTI
@pytest.mark.parametrize("negatives", ["uniform", "in_batch", "mixed"])
@pytest.mark.parametrize("readout", ["hard", "best", "label_aware"])
def test_any_k_trains_with_any_negatives(
    name: str, readout: str, negatives: str, planted: Dataset, spec: DataSpec
) -> None:
    for interests in (1, 3):
        over: dict[str, Any] = {"num_interests": interests, "loss": {"negatives": negatives, "readout": readout}}
        model = tiny(name, spec, **over)
        losses = list(fit(model, planted, steps=3))
        assert np.isfinite(losses).all()
        found = model.interests(held_out(planted, model.max_length))
        assert found.vector_BKD.shape[1:] == (VECTORS.get(name, int)(interests), model.item_vectors().shape[1])
        assert found.mask_BK[:, 0].all()


SERVED: dict[str, dict[str, Any]] = {
    "sasrec": {"all_positions": False},  # the other positions are served as histories of their own
    "hstu": {"all_positions": False},
    "ulim": {"train_categories": "served", "search": "all"},  # the coordinates of categories lengthen unit vectors
    "mima": {"positives": "target", "calibrate": False},  # a set, matched on the raw interests, by default
    "mgnm": {"train_interests": "served"},  # otherwise level by level
    "bam": {"selection": "readout"},  # otherwise one interest, drawn
    "gemirec": {"train_interests": "served"},  # "label" trains the target's interest, which serving cannot know
}
"""Settings with which a model trains exactly what it serves."""


@TRAINABLE
@pytest.mark.parametrize("normalize", [False, True])
def test_serving_vectors_are_the_training_vectors(name: str, normalize: bool, planted: Dataset, spec: DataSpec) -> None:
    """The loss, computed anew from ``interests`` and ``item_vectors``, is the loss that the model reports."""
    over: dict[str, Any] = {"loss": {"normalize": normalize}, **SERVED.get(name, {})}
    model = ready(name, spec, **over).eval()
    assert isinstance(model, TableModel)
    batch = train_batch(planted, model.max_length)
    found = model.interests(batch)
    again = model.retrieval_loss(
        found.vector_BKD,
        batch.target_B,
        lambda ids: model.item_vectors()[ids],
        mask_BK=found.mask_BK,
        generator=torch.Generator().manual_seed(0),
    )
    terms = model.losses(batch, model.stages[-1].name).terms
    torch.testing.assert_close(terms["retrieval"], again)
    ids = torch.tensor([[1, 5], [7, 2]])
    torch.testing.assert_close(model.item_vectors(ids), model.item_vectors()[ids])
    if normalize:
        torch.testing.assert_close(model.item_vectors()[1:].norm(dim=1), torch.ones(spec.num_items))
        torch.testing.assert_close(found.vector_BKD.norm(dim=2), found.mask_BK.float())


@TRAINABLE
def test_sparse_gradients_equal_dense_ones(name: str, planted: Dataset, spec: DataSpec) -> None:
    """And none of them is dense: a step touches the rows of its items, not the catalogue."""
    gradients = []
    for sparse in (False, True):
        model = ready(name, spec).train()
        assert isinstance(model, TableModel)
        model.item_table.sparse = sparse
        torch.manual_seed(0)
        loss_of(model, train_batch(planted, model.max_length)).backward()  # type: ignore[no-untyped-call]
        gradient = model.item_table.weight.grad
        assert gradient is not None
        assert gradient.is_sparse == sparse
        gradients.append(gradient.to_dense() if sparse else gradient)
    torch.testing.assert_close(gradients[0], gradients[1])


ALONE: dict[str, dict[str, Any]] = {
    "gemirec": {"easy_negatives": 0},  # drawn for every row, so that half a batch takes half the draws
    "re4": {"contrast_with": "own"},
}
"""Settings with which a row's loss does not depend on the rows beside it."""


@TRAINABLE
def test_example_weights_act(name: str, planted: Dataset, spec: DataSpec) -> None:
    """Weight 0 leaves an example out: the loss is that of the first half alone (same candidates)."""
    model = ready(name, spec, **{"loss": {"negatives": "uniform"}, **ALONE.get(name, {})}).eval()
    batch = train_batch(planted, model.max_length)
    half = torch.arange(64) < 32
    weighted = replace(batch, weight_B=half.float() * 3, generator=torch.Generator().manual_seed(9))
    first = TrainBatch(
        batch.item_BL[:32],
        None if batch.user_categorical_BF is None else batch.user_categorical_BF[:32],
        None if batch.user_numeric_BG is None else batch.user_numeric_BG[:32],
        target_B=batch.target_B[:32],
        generator=torch.Generator().manual_seed(9),
    )
    torch.testing.assert_close(loss_of(model, weighted), loss_of(model, first))


@ALL
def test_a_user_without_history_gets_something_finite(name: str, planted: Dataset, spec: DataSpec) -> None:
    """One interest, and nothing that is not a number; models whose only input is the history give zero."""
    model = ready(name, spec).eval()
    for width in (0, model.max_length):
        found = model.interests(Histories(torch.zeros(2, width, dtype=torch.int64)))
        assert found.vector_BKD.isfinite().all()
        assert found.mask_BK.sum(1).tolist() == [1, 1]
        if name != "popularity":
            assert (found.vector_BKD == 0).all()
    batch = replace(train_batch(planted, model.max_length), generator=None)
    empty = replace(batch, item_BL=torch.zeros_like(batch.item_BL))
    model.train()
    loss = loss_of(model, empty)
    assert loss.isfinite()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@ALL
def test_one_empty_row_does_not_disturb_the_others(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec).eval()
    histories = rows(held_out(planted, model.max_length), slice(0, 4))
    emptied = replace(histories, item_BL=histories.item_BL * torch.tensor([[1], [0], [1], [1]]))
    kept = torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        model.interests(emptied).vector_BKD[kept], model.interests(histories).vector_BKD[kept], rtol=1e-5, atol=1e-7
    )


@TRAINABLE
def test_bfloat16_autocast_is_close(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec, item_init="normal", item_std=0.3).eval()
    batch = train_batch(planted, model.max_length)
    exact = loss_of(model, batch)
    batch = train_batch(planted, model.max_length)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, batch)
        found = model.interests(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)
    assert found.vector_BKD.dtype == torch.float32
    torch.testing.assert_close(found.vector_BKD, model.interests(batch).vector_BKD, rtol=0.1, atol=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@TRAINABLE
def test_a_window_wider_than_the_model_is_refused(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec)
    with pytest.raises(ConfigError, match="wider than the model reads"):
        model.interests(held_out(planted, model.max_length + 1))


@pytest.mark.slow
@TRAINABLE
def test_compiled_losses_equal_eager_ones(name: str, planted: Dataset, spec: DataSpec) -> None:
    model = ready(name, spec).eval()
    compiled = torch.compile(lambda batch: loss_of(model, batch))
    for step in range(2):
        eager = loss_of(model, train_batch(planted, model.max_length, step=step))
        got = compiled(train_batch(planted, model.max_length, step=step))
        torch.testing.assert_close(got, eager, rtol=1e-4, atol=1e-5)


def test_importing_every_model_changes_nothing_global() -> None:
    """RecBole's package turns anomaly detection on for the whole process when it is imported."""
    code = """
import torch
def state():
    return (torch.is_anomaly_enabled(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.is_grad_enabled(), torch.backends.cuda.matmul.allow_tf32, torch.get_rng_state().tolist())
before = state()
from gemirec.models.catalog import MODELS, model_class, config_class
for name in MODELS:
    model_class(name), config_class(name)
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
