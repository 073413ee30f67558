"""GemiRec's stages (METHODS 1.6): what each trains and starts with, and what is served before the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gemirec.data.dataset import Dataset, DataSpec
from gemirec.models.gemirec import GemiRec
from gemirec.training.schedule import plan_stages
from support_models import begin, fit, held_out, ready, shake, tiny, train_batch

STEPS = 20


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def snapshot(model: GemiRec) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Modules and buffers whose values differ."""
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("joint", [True, False])
def test_every_stage_trains_its_own_modules(joint: bool, planted: Dataset, spec: DataSpec) -> None:
    """The retriever; the dictionary and nothing else; everything, codes left alone by -J (``joint: false``)."""
    model = tiny("gemirec", spec, joint=joint, item_categories=True, dictionary_share=0.5)
    assert isinstance(model, GemiRec)
    spans = plan_stages(model.stages, STEPS)
    states = [snapshot(model), *(snapshot(model) for _ in fit(model, planted, steps=STEPS))]
    retriever = {"item_table", "category", "tower", "tower_features", "fusion"}
    first, second, third = ((states[span.start + 1], states[span.end]) for span in spans)
    assert changed(*first) == {*retriever, "placeholder"}
    assert changed(first[1], second[0]) == {"dictionary", "interest_N", "phase"}
    assert changed(*second) == {"dictionary"}
    assert changed(second[1], third[0]) >= {"phase", "interest_N"}
    everything = {*retriever, "decoder", "generator_features"}
    assert changed(*third) == (everything | {"dictionary"} if joint else everything)
    if not joint:  # bit-equal from the end of the second stage to the end of training
        assert "dictionary" not in changed(second[1], third[1])
        assert "dictionary" not in model.losses(train_batch(planted, model.max_length), "joint").terms


def test_stages_freeze_exactly_what_they_do_not_train(planted: Dataset, spec: DataSpec) -> None:
    """Several processes wait for the gradient of everything that is not frozen; here all of it arrives."""
    configs: list[dict[str, Any]] = [
        {},
        {"joint": False, "train_interests": "served", "keep_user_vector": True, "positions": "all"},
        {"dictionary": "categories", "generator": "history", "placeholder": "category"},
        {"tower": {"kind": "causal", "pooled": 0.5}, "fusion": {"kind": "residual"}, "placeholder": "zero"},
        {"fusion": {"kind": "residual", "attend": 0.5}, "decoder": {"head": "factorised"}, "item_categories": True},
        {"fusion": {"attend": 0.5}, "generator_features": False, "tower_features": False, "user_weight": 0.5},
    ]
    for over in configs:
        model = tiny("gemirec", spec, **over)
        for stage in model.stages:
            begin(model, stage)
            model.zero_grad()
            model.losses(train_batch(planted, model.max_length), stage.name).total().backward()  # type: ignore[no-untyped-call]
            free = {key: p for key, p in model.named_parameters() if not key.startswith(stage.frozen or ("-",))}
            assert [key for key, p in free.items() if p.grad is None] == [], (over, stage.name)
            assert free


@pytest.mark.parametrize("every", [0, 1, 3])
def test_items_are_assigned_when_the_config_says(every: int, planted: Dataset, spec: DataSpec) -> None:
    """1: with the step's own dictionary; 0: at the start of the joint stage; n: at joint steps 0, n, 2 n, ..."""
    model = ready("gemirec", spec, refresh_every=every, joint=False)
    assert isinstance(model, GemiRec)
    item_N = torch.arange(spec.num_items + 1)
    asked, last = model.dictionary.assign(item_N, model.item_table.weight), -1
    for step in range(7):
        shake(model, 0.2)
        now = model.dictionary.assign(item_N, model.item_table.weight)
        assert not torch.equal(now[1:], asked[1:])
        if every == 1 or (every > 1 and step % every == 0):
            asked, last = now, step
        batch = train_batch(planted, model.max_length, step=step)
        model.train().losses(batch, "joint")
        assert torch.equal(model.item_interests()[1:], asked[1:]), (step, last)
        assert torch.equal(model._interests_of(batch.target_B, model._items(batch.target_B)), asked[batch.target_B])
        model.eval().losses(batch, "joint")  # a look at the loss is no training step
    assert int(model.joint_steps) == (7 if every > 1 else 0)


@pytest.mark.parametrize("kind", ["zero", "learned", "category"])
def test_before_the_joint_stage_the_placeholder_stands_for_the_interest(
    kind: str, planted: Dataset, spec: DataSpec
) -> None:
    """Served and trained: one vector, the user fused with it; the category is the target's, or the last item's."""
    model = tiny("gemirec", spec, placeholder=kind).eval()
    assert isinstance(model, GemiRec)
    shake(model)
    assert model.diagnostics() == {}
    histories, batch = held_out(planted, model.max_length), train_batch(planted, model.max_length)
    last_B = histories.item_BL.gather(1, histories.length_B[:, None] - 1)[:, 0]

    def stands(item_B: Tensor) -> Tensor:
        if kind == "zero":
            return torch.zeros(len(item_B), 8)
        table = dict(model.named_parameters())["placeholder.weight"]
        return table[torch.from_numpy(spec.category_N)[item_B].long() if kind == "category" else item_B * 0]

    served = model.fusion(stands(last_B)[:, None], model.users(histories))
    for phase in (0, 1):
        model.phase.fill_(phase)
        found = model.interests(histories)
        torch.testing.assert_close(found.vector_BKD, served)
        assert found.mask_BK.all()
    trained = model.fusion(stands(batch.target_B)[:, None], model.users(batch))
    loss = model.retrieval_loss(trained, batch.target_B, model.item_vectors)
    terms = model.losses(batch, "retrieval").terms
    assert terms.keys() == {"retrieval"}
    torch.testing.assert_close(terms["retrieval"], loss)


def test_without_a_dictionary_stage_the_joint_one_sets_the_codes(spec: DataSpec) -> None:
    model = tiny("gemirec", spec)
    assert isinstance(model, GemiRec)
    before = snapshot(model)
    begin(model, model.stages[-1])
    assert changed(before, snapshot(model)) >= {"dictionary", "phase"}
    assert int(model.phase) == 2
    assert model.diagnostics()["utilisation_level_1"] == 1.0
    whole = ready("gemirec", spec)
    assert isinstance(whole, GemiRec)
    assert changed(snapshot(model), snapshot(whole)) == set()


def test_the_seed_of_a_stage_decides_its_kmeans(spec: DataSpec) -> None:
    codes = []
    for seed in (0, 0, 1):
        model = tiny("gemirec", spec)
        begin(model, model.stages[1], seed=seed)
        codes.append(model.state_dict()["dictionary.quantizer.codebooks.0"])
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
