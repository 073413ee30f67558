"""GemiRec's formulas against plain NumPy (METHODS 1.3 to 1.7), and what its variants serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gemirec.components.codes import unflatten
from gemirec.components.selection import Selected
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.gemirec import GemiRec
from gemirec.models.gemirec.online import OnlinePath
from gemirec.models.gemirec.tower import Users
from support_models import held_out, ready, right_padded, sequences, shake, tiny, train_batch

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def shaken(spec: DataSpec, **over: Any) -> GemiRec:
    """A model in the joint stage, parameters away from their start, nothing random left."""
    model = ready("gemirec", spec, **over).eval()
    assert isinstance(model, GemiRec)
    shake(model)
    model.refresh()
    return model


class Plain:
    """The model's arithmetic in float64 NumPy, from its parameters alone; the generator's transformer is torch's."""

    def __init__(self, model: GemiRec) -> None:
        self.p = {key: value.double().numpy() for key, value in model.state_dict().items()}
        self.table = self.p["item_table.weight"]
        self.sizes = model.dictionary.sizes

    def mlp(self, name: str, x: Array, layers: tuple[str, str] = ("0", "2")) -> Array:
        hidden = x @ self.p[f"{name}.{layers[0]}.weight"].T + self.p[f"{name}.{layers[0]}.bias"]
        out: Array = np.maximum(hidden, 0) @ self.p[f"{name}.{layers[1]}.weight"].T + self.p[f"{name}.{layers[1]}.bias"]
        return out

    def codes(self, item: int) -> tuple[int, ...]:
        residual, codes = self.mlp("dictionary.quantizer.encoder", self.table[item]), []
        for level in range(len(self.sizes)):
            book = self.p[f"dictionary.quantizer.codebooks.{level}"]
            codes.append(int(((residual - book) ** 2).sum(1).argmin()))
            residual = residual - book[codes[-1]]
        return tuple(codes)

    def interest(self, item: int) -> int:
        return int(np.ravel_multi_index(self.codes(item), self.sizes))

    def embedding(self, interest: int) -> Array:
        codes = np.unravel_index(interest, self.sizes)
        return np.concatenate([self.p[f"dictionary.quantizer.codebooks.{c}"][m] for c, m in enumerate(codes)])

    def user(self, history: Array, category: int, numbers: Array) -> Array:
        profile = [
            self.p["tower_features.tables.0.weight"][category],
            self.p["tower_features.numeric.weight"] @ numbers,
        ]
        return self.mlp("tower.network", np.concatenate([self.table[history].mean(0), *profile]))

    def fused(self, interest: int, user: Array) -> Array:
        return self.mlp("fusion", np.concatenate([self.embedding(interest), user]), ("inner", "outer"))


def test_the_retrieval_loss_is_the_papers(planted: Dataset, spec: DataSpec) -> None:
    """L_MIRM: in-batch items other than the target, and the union of hard and easy interests without its own."""
    model = shaken(spec, hard_negatives=6, easy_negatives=9)
    plain, batch = Plain(model), train_batch(planted, model.max_length, step=3)
    target = batch.target_B.tolist()
    assert len(set(target)) < len(target)
    logp = model.log_probs(model.state(batch)).detach().numpy()
    hard = np.argsort(-logp, axis=1, kind="stable")[:, :6]
    easy = torch.randint(18, (64, 9), generator=torch.Generator().manual_seed(3)).numpy()
    assert batch.user_categorical_BF is not None
    assert batch.user_numeric_BG is not None
    losses, own_were_there = [], 0
    for b, item in enumerate(target):
        history = batch.item_BL[b][batch.item_BL[b] > 0].numpy()
        user = plain.user(history, int(batch.user_categorical_BF[b, 0]), batch.user_numeric_BG[b].double().numpy())
        own = plain.interest(item)
        vector = plain.fused(own, user)
        items = [vector @ plain.table[j] for j in target if j != item]
        others = {*hard[b].tolist(), *easy[b].tolist()}
        own_were_there += own in others
        interests = [plain.fused(m, user) @ plain.table[item] for m in others - {own}]
        score = vector @ plain.table[item]
        losses.append(np.log(np.exp([score, *items, *interests]).sum()) - score)
    assert 0 < own_were_there < 64
    assert model.losses(batch, "joint").terms["retrieval"].item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_generators_and_the_dictionarys_loss(planted: Dataset, spec: DataSpec) -> None:
    """L_MIPDM: minus log of the probability of the target's interest. L_IDMM: of the target items."""
    model = shaken(spec, decoder={"positions": "last"})
    assert model.decoder is not None
    plain, batch = Plain(model), train_batch(planted, model.max_length)
    interest = [plain.interest(int(item)) for item in batch.target_B]
    logp = model.log_probs(model.state(batch)).detach().numpy()
    terms = model.losses(batch, "joint")
    assert terms.terms["generator"].item() == pytest.approx(-logp[np.arange(64), interest].mean(), rel=1e-5)
    rows = []
    for item in batch.target_B.tolist():
        residual, total = plain.mlp("dictionary.quantizer.encoder", plain.table[item]), 0.0
        for level, code in enumerate(plain.codes(item)):
            residual = residual - plain.p[f"dictionary.quantizer.codebooks.{level}"][code]
            total += 1.25 * (residual**2).sum()
        decoded = plain.mlp("dictionary.quantizer.decoder", plain.embedding(plain.interest(item)))
        rows.append(total + ((plain.table[item] - decoded) ** 2).sum())
    assert terms.terms["dictionary"].item() == pytest.approx(np.mean(rows), rel=1e-4)
    assert terms.weights == {"dictionary": 0.2, "generator": 1.0, "retrieval": 1.0}
    parts = {name: value.item() for name, value in terms.terms.items()}
    total = 0.2 * parts["dictionary"] + parts["generator"] + parts["retrieval"]
    assert terms.total().item() == pytest.approx(total, rel=1e-6)
    assert model.losses(batch, "dictionary").total().item() == pytest.approx(parts["dictionary"], rel=1e-6)


def users_of(vector_BD: torch.Tensor) -> Users:
    """Users whose histories the fusion does not read."""
    return Users(vector_BD, vector_BD.new_zeros(len(vector_BD), 0, vector_BD.shape[1]), torch.ones(0))


def test_attending_adds_the_history_as_the_interest_sees_it(spec: DataSpec) -> None:
    """NumPy: the normalised mean of the items, weighted by a softmax of cosines with the interest's direction."""
    model = shaken(spec, fusion={"kind": "residual", "attend": 0.5, "sharpness": 3.0})
    plain, rng = Plain(model), np.random.default_rng(0)
    interest, user, item = rng.normal(size=(5, 3, 8)), rng.normal(size=(5, 16)), rng.normal(size=(5, 4, 16))
    mask = np.arange(4) < np.array([1, 2, 3, 4, 4])[:, None]
    both = np.concatenate([interest, np.repeat(user[:, None], 3, axis=1)], axis=2)
    direction = interest @ plain.p["fusion.project.weight"].T
    base = user[:, None] + plain.p["fusion.gate"] * (plain.mlp("fusion", both, ("inner", "outer")) + direction)
    unit = direction / np.linalg.norm(direction, axis=2, keepdims=True)
    score = plain.p["fusion.sharpness"] * unit @ (item / np.linalg.norm(item, axis=2, keepdims=True)).swapaxes(1, 2)
    weight = np.exp(score) * mask[:, None]
    pooled = (weight / weight.sum(2, keepdims=True)) @ item
    expected = base + plain.p["fusion.attend"] * pooled / np.linalg.norm(pooled, axis=2, keepdims=True)
    users = Users(torch.from_numpy(user).float(), torch.from_numpy(item).float(), torch.from_numpy(mask))
    got = model.fusion(torch.from_numpy(interest).float(), users)
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_fusion_is_the_network_of_the_concatenation(kind: str, spec: DataSpec) -> None:
    model = shaken(spec, fusion={"kind": kind})
    plain, rng = Plain(model), np.random.default_rng(0)
    interest, user = rng.normal(size=(5, 3, 8)), rng.normal(size=(5, 16))
    both = np.concatenate([interest, np.repeat(user[:, None], 3, axis=1)], axis=2)
    expected = plain.mlp("fusion", both, ("inner", "outer"))
    if kind == "residual":
        expected = user[:, None] + plain.p["fusion.gate"] * (expected + interest @ plain.p["fusion.project.weight"].T)
    got = model.fusion(torch.from_numpy(interest).float(), users_of(torch.from_numpy(user).float()))
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_residual_fusion_begins_as_the_user_and_the_sum_of_its_codes(spec: DataSpec) -> None:
    over: dict[str, Any] = {"fusion": {"kind": "residual"}, "quantizer": {"encoder": "identity", "code_dim": 16}}
    model = ready("gemirec", spec, **over)
    assert isinstance(model, GemiRec)
    interest, user = torch.randn(4, 2, 32), torch.randn(4, 16)
    expected = user[:, None] + 0.3 * (interest[..., :16] + interest[..., 16:])
    torch.testing.assert_close(model.fusion(interest, users_of(user)), expected)


@pytest.mark.parametrize("kind", ["mean", "causal"])
def test_every_position_is_trained_as_its_prefix(kind: str, planted: Dataset, spec: DataSpec) -> None:
    """The losses of a window are those of its prefixes as histories of their own, the next item their target."""
    over: dict[str, Any] = {"tower": {"kind": kind}, "easy_negatives": 0}
    every = shaken(spec, positions="all", **over)
    last = shaken(spec, positions="last", decoder={"positions": "last"}, **over)
    last.load_state_dict(every.state_dict())
    events = torch.from_numpy(sequences(planted)[3][:6].astype(np.int64))
    window = TrainBatch(events[None, :5], target_B=events[5:])
    prefixes = TrainBatch(right_padded([events[:n] for n in range(1, 6)], every.max_length), target_B=events[1:])
    found, expected = every.losses(window, "joint"), last.losses(prefixes, "joint")
    assert found.terms.keys() == expected.terms.keys()
    for name in found.terms:
        torch.testing.assert_close(found.terms[name], expected.terms[name])


def test_the_losses_keep_to_their_modules(planted: Dataset, spec: DataSpec) -> None:
    """Dictionary and generator leave the item vectors alone; the retriever moves the codes, not the generator."""
    model = shaken(spec, item_categories=True)
    terms = model.losses(train_batch(planted, model.max_length), "joint").terms
    touched = {}
    for name, term in terms.items():
        model.zero_grad()
        term.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        touched[name] = {key.split(".")[0] for key in gradients}
        touched[f"{name} dictionary"] = {key.split(".")[2] for key in gradients if key.startswith("dictionary.")}
    assert touched["dictionary"] == {"dictionary"}
    assert touched["generator"] == {"decoder", "generator_features"}
    assert touched["retrieval"] == {"item_table", "category", "tower", "tower_features", "fusion", "dictionary"}
    assert touched["retrieval dictionary"] == {"codebooks"}
    assert touched["dictionary dictionary"] == {"codebooks", "encoder", "decoder"}


@pytest.mark.parametrize(
    "over", [{}, {"keep_user_vector": True}, {"generator": "history"}, {"loss": {"normalize": True}}]
)
def test_serving_is_to_select_and_to_fuse(over: dict[str, Any], planted: Dataset, spec: DataSpec) -> None:
    """The generator's interests, looked up later, give the vectors of the whole model, bit for bit; METHODS 1.7."""
    model = shaken(spec, **over)
    plain, histories = Plain(model), held_out(planted, model.max_length)
    whole, chosen = model.interests(histories), model.select(model.state(histories))
    parts = model.fused(histories, chosen)
    assert torch.equal(whole.vector_BKD, parts.vector_BKD)
    assert torch.equal(whole.mask_BK, parts.mask_BK)
    assert whole.code_BKC is not None
    assert whole.weight_BK is not None
    kept = bool(model.config.keep_user_vector)
    assert torch.equal(unflatten(chosen.index_Bk.clamp(min=0), (6, 3))[whole.mask_BK[:, kept:]],
                       whole.code_BKC[:, kept:][whole.mask_BK[:, kept:]])  # fmt: skip
    torch.testing.assert_close(whole.weight_BK[:, kept:], chosen.logp_Bk.exp())
    user = model.users(histories).vector_BD[0].detach().double().numpy()
    first = plain.fused(int(chosen.index_Bk[0, 0]), user)
    if kept:
        first = plain.mlp("fusion", np.concatenate([np.zeros(8), user]), ("inner", "outer"))
        assert (whole.code_BKC[:, 0] == -1).all()
        torch.testing.assert_close(whole.weight_BK.sum(1), torch.ones(len(whole.weight_BK)))
    expected = first / np.linalg.norm(first) if model.config.loss.normalize else first
    np.testing.assert_allclose(whole.vector_BKD[0, 0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert whole.vector_BKD.shape[1] == 3


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"keep_user_vector": True, "cells": "apart"},
        {"fusion": {"kind": "residual", "attend": 0.5}, "loss": {"normalize": True}},
        {"dictionary": "categories", "keep_user_vector": True, "fusion": {"kind": "residual"}},
    ],
)
def test_the_online_path_is_the_model(over: dict[str, Any], planted: Dataset, spec: DataSpec) -> None:
    """What it does to interests beforehand gives the vectors of :meth:`fused`, for absent interests and users too."""
    model = shaken(spec, **over)
    histories = held_out(planted, model.max_length)
    histories.item_BL[0] = 0
    index_Bk, logp_Bk = model.select(model.state(histories))
    index_Bk[1, -1], index_Bk[2] = -1, -1
    chosen = Selected(index_Bk, logp_Bk)
    want, got = model.fused(histories, chosen), OnlinePath(model)(histories, chosen)
    assert torch.equal(got.mask_BK, want.mask_BK)
    torch.testing.assert_close(
        got.vector_BKD * got.mask_BK[:, :, None], want.vector_BKD.detach() * want.mask_BK[:, :, None]
    )
    for one, other in ((got.code_BKC, want.code_BKC), (got.weight_BK, want.weight_BK)):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_the_history_s_share_is_mixed_into_what_is_served(planted: Dataset, spec: DataSpec) -> None:
    """``p = (1 - a) p_decoder + a p_history`` serves and selects; training does not see it."""
    share, batch = 0.3, train_batch(planted, 12)
    histories = held_out(planted, 12)
    probability = {}
    for name, over in (("decoder", {}), ("history", {"generator": "history"}), ("mixed", {"history_share": share})):
        model = shaken(spec, **over)
        probability[name] = model.log_probs(model.state(histories)).exp().detach()
    torch.testing.assert_close(
        probability["mixed"], (1 - share) * probability["decoder"] + share * probability["history"]
    )
    mixed, plain = (shaken(spec, history_share=part, train_interests="served") for part in (share, 0.0))
    chosen = mixed.select(mixed.state(histories), 1, None)
    assert torch.equal(chosen.index_Bk[:, 0], probability["mixed"].argmax(dim=1))
    terms = []
    for model in (mixed, plain):
        again = replace(batch, generator=torch.Generator().manual_seed(0))
        terms.append({name: value.item() for name, value in model.losses(again, "joint").terms.items()})
    assert terms[0] == terms[1]


@pytest.mark.parametrize("head", ["flat", "factorised"])
@pytest.mark.parametrize("limited", ["all", "first"])
def test_served_interests_obey_the_limit(limited: str, head: str, planted: Dataset, spec: DataSpec) -> None:
    """No code of a limited level more than epsilon times; without the limit, the planted favourites fill the list."""
    histories = None
    for level, favourite in ((0, 4), (1, 2)):
        most = {}
        for epsilon in (2, 0):
            over: dict[str, Any] = {"epsilon": epsilon, "limit_levels": limited, "decoder": {"head": head}}
            model = shaken(spec, **over)
            histories = histories or held_out(planted, model.max_length)
            favour(model, level, favourite)
            code_BKC = model.interests(histories).code_BKC
            assert code_BKC is not None
            most[epsilon] = max(int(np.bincount(row).max()) for row in code_BKC[:, :, level].numpy())
        assert most[0] == 3
        assert most[2] == (2 if limited == "all" or level == 0 else 3)


def favour(model: GemiRec, level: int, code: int) -> None:
    """Make the generator love every interest that has one code."""
    assert model.decoder is not None
    head: Any = model.decoder.head
    with torch.no_grad():
        if model.config.decoder.head == "factorised":
            head.outputs[level].bias[code] += 50
        else:
            head.output.bias += 50.0 * (unflatten(torch.arange(18), (6, 3))[:, level] == code)


def test_generator_from_history_counts(planted: Dataset, spec: DataSpec) -> None:
    """The paper's -M: interests by how often the history has them; ties and the rest by the catalogue's popularity."""
    model = shaken(spec, generator="history", epsilon=0)
    plain, histories = Plain(model), held_out(planted, model.max_length)
    interest = [plain.interest(item) for item in range(1, spec.num_items + 1)]
    share = np.bincount(interest, weights=spec.train_count_N[1:], minlength=18) / spec.train_count_N.sum()
    chosen = model.select(model.state(histories))
    for row, index_k, logp_k in zip(histories.item_BL, chosen.index_Bk, chosen.logp_Bk, strict=True):
        items = row[row > 0].tolist()
        count = np.bincount([interest[item - 1] for item in items], minlength=18)
        probability = (count + share) / (len(items) + 1)
        assert probability.sum() == pytest.approx(1)
        best = np.argsort(-probability, kind="stable")[:3]
        np.testing.assert_allclose(np.exp(logp_k.numpy()), probability[best], rtol=1e-4)
        np.testing.assert_allclose(probability[index_k.numpy()], probability[best], rtol=1e-4)
    assert "generator" not in model.losses(train_batch(planted, model.max_length), "joint").terms


def test_preset_categories_are_the_codes(planted: Dataset, spec: DataSpec) -> None:
    """The paper's -I: one level, the item's category its code, no stage and no loss for a dictionary."""
    model = shaken(spec, dictionary="categories")
    assert [stage.name for stage in model.stages] == ["retrieval", "joint"]
    assert model.dictionary.sizes == (7,)
    assert model.item_interests().tolist() == spec.category_N.tolist()
    terms = model.losses(train_batch(planted, model.max_length), "joint").terms
    assert terms.keys() == {"generator", "retrieval"}
    terms["retrieval"].backward()  # type: ignore[no-untyped-call]
    gradient = dict(model.named_parameters())["dictionary.table.weight"].grad
    assert gradient is not None
    assert gradient.any()
    report = model.diagnostics()
    assert report["utilisation"] == pytest.approx(6 / 7)  # "unknown" has no item here
    assert model.alarm() is None


@pytest.mark.parametrize("over", [{}, {"tower": {"kind": "causal"}}, {"keep_user_vector": True}])
def test_users_with_one_event_or_without_features_are_served(
    over: dict[str, Any], planted: Dataset, spec: DataSpec
) -> None:
    """A missing feature is code 0 and number 0; what a user's row says does not depend on the others'."""
    model = shaken(spec, **over)
    item_BL = torch.tensor([[5], [9]])
    unknown = replace(
        Histories(item_BL), user_categorical_BF=torch.zeros(2, 1, dtype=torch.int64), user_numeric_BG=torch.zeros(2, 2)
    )
    missing, zero = model.interests(Histories(item_BL)), model.interests(unknown)
    assert torch.equal(missing.vector_BKD, zero.vector_BKD)
    assert missing.mask_BK.all()
    assert missing.vector_BKD.isfinite().all()
    known = replace(unknown, user_categorical_BF=torch.tensor([[0], [3]]))
    torch.testing.assert_close(model.interests(known).vector_BKD[0], zero.vector_BKD[0])
    assert not torch.allclose(model.interests(known).vector_BKD[1], zero.vector_BKD[1])


@pytest.mark.parametrize(
    ("over", "what", "got"),
    [
        ({"num_interests": 19, "epsilon": 0}, "fewer interests than are asked for", "18 interests"),
        ({"num_interests": 7}, "the limit on repeated codes admits fewer", "level 2 has 3 codes"),
        ({"num_interests": 7, "limit_levels": "first"}, None, ""),
        ({"num_interests": 7, "keep_user_vector": True}, None, ""),
        ({"dictionary": "categories", "num_interests": 8, "epsilon": 0}, "fewer interests than are asked", "7 inter"),
        ({"quantizer": {"sizes": [121]}}, "more codes than there are items", "120 items"),
        ({"quantizer": {"sizes": [60], "kmeans_sample": 50}}, "more codes than there are items", "kmeans_sample 50"),
        ({"decoder": {"heads": 3}}, "heads must divide", "heads 3"),
        ({"history_share": 0.5, "decoder": {"head": "factorised"}}, "mixed into a flat head only", "history_share 0.5"),
        ({"tower": {"kind": "causal", "heads": 3}}, "heads must divide", "tower.heads 3"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_when_the_model_is_built(
    over: dict[str, Any], what: str | None, got: str, spec: DataSpec
) -> None:
    if what is None:
        ready("gemirec", spec, **over)
        return
    with pytest.raises(ConfigError, match=what) as caught:
        tiny("gemirec", spec, **over)
    assert got in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "over", [{"dictionary": "categories"}, {"quantizer": {"init": "category"}}, {"placeholder": "category"}]
)
def test_data_without_categories_are_refused_where_they_are_needed(over: dict[str, Any], spec: DataSpec) -> None:
    bare = DataSpec(num_items=spec.num_items, train_count_N=spec.train_count_N)
    with pytest.raises(ConfigError, match="there are none") as caught:
        tiny("gemirec", bare, **over)
    assert "item table that has a category column" in caught.value.fix
    ready("gemirec", bare, item_categories=True)  # the default adds them only where there are any


@pytest.mark.parametrize("pooled", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["mean", "causal"])
def test_the_last_vector_is_that_of_the_full_tower(kind: str, pooled: float, spec: DataSpec, planted: Dataset) -> None:
    """Serving computes the last position alone; training computes all of them."""
    model = shaken(spec, tower={"kind": kind, "layers": 2, "pooled": pooled}).eval()
    histories = held_out(planted, model.max_length)
    item_BLD = model._items(histories.item_BL)
    profile = torch.randn(len(histories.item_BL), 1)
    assert model.tower_features is not None
    profile = profile.expand(-1, model.tower_features.width)
    whole_BLD = model.tower(item_BLD, profile)
    expected = whole_BLD[torch.arange(len(whole_BLD)), histories.length_B - 1]
    got = model.tower.last(item_BLD, histories.mask_BL, profile)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    empty = torch.zeros(1, model.max_length, dtype=torch.int64)
    assert (model.tower.last(torch.zeros(1, model.max_length, 16), empty != 0, profile[:1]) == 0).all()
