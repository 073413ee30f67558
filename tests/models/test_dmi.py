"""DMI against plain NumPy, over every base of the catalogue, in every order of training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gemirec
from gemirec.artifacts import load_tensors, save_tensors
from gemirec.components.diffusion import add_noise, child, fresh_noise, signal_schedule
from gemirec.components.regularizers import interest_contrast
from gemirec.config import from_dict, merge, to_dict
from gemirec.data.cooccurrence import cooccurrence
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.catalog import MODELS, build_model, load_profile, model_class
from gemirec.models.common import TableModel
from gemirec.models.dmi import DMI, DMIConfig
from gemirec.models.dmi.config import SHARED
from support_models import TINY, begin, fit, held_out, loss_of, ready, sequences, shake, tiny, train_batch
from support_numpy import numpy_of, softmax, unit

BASES = [name for name in MODELS if issubclass(model_class(name), TableModel) and name != "dmi"]
PRESETS = sorted(path.name.split(".")[1] for path in (Path(gemirec.__file__).parent / "profiles").glob("dmi.*.yaml"))


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def over(name: str, spec: DataSpec, **own: Any) -> DMI:
    """The tiny DMI over a tiny base, at the start of its last stage."""
    model = ready("dmi", spec, **merge({"base": part(name), "loss": TINY[name].get("loss", {})}, own))
    assert isinstance(model, DMI)
    return model


def part(name: str) -> dict[str, Any]:
    """A tiny model as a base."""
    return {"model": name, **{key: value for key, value in TINY[name].items() if key not in SHARED}}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_an_untrained_dmi_serves_what_its_base_serves(
    base: str, normalize: bool, planted: Dataset, spec: DataSpec
) -> None:
    """Whatever the base, the schedule and the number of steps; and every stage trains something."""
    own: dict[str, Any] = {"loss": {"normalize": normalize}, "noise": {"amount": 0.5}, "reverse_steps": 3}
    model = over(base, spec, **own).eval()
    shake(model.base)
    histories = held_out(planted, model.max_length)
    coarse, refined = model.base.interests(histories), model.interests(histories)
    torch.testing.assert_close(refined.vector_BKD, coarse.vector_BKD, rtol=1e-4, atol=1e-5)
    assert torch.equal(refined.mask_BK, coarse.mask_BK)
    assert refined.weight_BK is coarse.weight_BK or torch.equal(refined.weight_BK, coarse.weight_BK)  # type: ignore[arg-type]
    model.train()
    for stage in model.stages:
        begin(model, stage)
        terms = model.losses(train_batch(planted, model.max_length), stage.name)
        assert terms.total().isfinite()
        terms.total().backward()  # type: ignore[no-untyped-call]


def chain(model: DMI, coarse: Any, noise: Any = None, eta_noise: Any = ()) -> Any:
    """The reverse process by hand, around the model's own denoiser."""
    config, d = model.config, model.config.dim
    kept = numpy_of(signal_schedule(config.noise.schedule, config.noise.steps, config.noise.amount))
    h = numpy_of(coarse.found.vector_BKD)
    x = np.sqrt(kept[-1]) * np.sqrt(d) * unit(h)
    if noise is not None:
        x = x + np.sqrt(1 - kept[-1]) * noise
    times = [round(config.noise.steps * (1 - i / config.reverse_steps)) for i in range(config.reverse_steps + 1)]
    for i, (t, s) in enumerate(pairwise(times)):
        step = torch.full((len(x),), t)
        found = model.denoiser(torch.from_numpy(x).float(), step, coarse.item_BLD, coarse.mask_BL)
        clean = numpy_of(found)
        v = config.eta**2 * (1 - kept[s]) / (1 - kept[t]) * (1 - kept[t] / kept[s])
        guess = (x - np.sqrt(kept[t]) * clean) / np.sqrt(1 - kept[t])
        x = np.sqrt(kept[s]) * clean + np.sqrt(max(1 - kept[s] - v, 0)) * guess
        if s and config.eta:
            x = x + np.sqrt(v) * eta_noise[i]
    length = np.linalg.norm(h, axis=2, keepdims=True)
    return length * unit(x) if config.loss.normalize else length / np.sqrt(d) * x


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_serving_is_the_reverse_process(normalize: bool, steps: int, planted: Dataset, spec: DataSpec) -> None:
    """DDIM from the interest without noise; no randomness, whatever torch's generator says."""
    own: dict[str, Any] = {"noise": {"amount": 0.4, "schedule": "cosine"}, "loss": {"normalize": normalize}}
    model = over("comirec_sa", spec, reverse_steps=steps, **own).eval()
    shake(model, 0.2)
    histories = held_out(planted, model.max_length)
    by_hand = chain(model, model.coarse(histories))
    torch.manual_seed(5)
    np.testing.assert_allclose(numpy_of(model.interests(histories).vector_BKD), by_hand, rtol=1e-3, atol=1e-4)
    coarse = model.base.interests(histories).vector_BKD
    assert not torch.allclose(model.interests(histories).vector_BKD, coarse, atol=1e-2)


def test_noise_at_serving_is_of_a_seed_and_the_same_for_all(planted: Dataset, spec: DataSpec) -> None:
    own: dict[str, Any] = {"noise": {"amount": 0.4, "schedule": "cosine"}, "eta": 0.7, "serve_start": "noised"}
    model = over("comirec_sa", spec, serve_seed=9, **own).eval()
    shake(model, 0.2)
    histories = held_out(planted, model.max_length)
    seeds = (torch.Generator().manual_seed(9 + i) for i in range(3))
    noise = [numpy_of(torch.randn(3, 16, generator=seed)) for seed in seeds]
    by_hand = chain(model, model.coarse(histories), noise[0], noise[1:])
    np.testing.assert_allclose(numpy_of(model.interests(histories).vector_BKD), by_hand, rtol=1e-3, atol=1e-4)


def test_sampling_draws_from_its_generator(planted: Dataset, spec: DataSpec) -> None:
    model = over("comirec_sa", spec, noise={"amount": 0.4}, eta=1.0).eval()
    shake(model, 0.2)
    histories = held_out(planted, model.max_length)
    one, same, other = (
        model.sample(histories, torch.Generator().manual_seed(seed)).vector_BKD.detach() for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-2)
    generator = torch.Generator().manual_seed(1)
    draw = fresh_noise(model.coarse(histories).clean_BKD, generator)
    noise = [numpy_of(draw(i)) for i in range(2)]
    np.testing.assert_allclose(
        numpy_of(one), chain(model, model.coarse(histories), noise[0], noise[1:]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("reconstruct", ["item", "coarse"])
@pytest.mark.parametrize("per_dimension", [False, True])
def test_reconstruction(reconstruct: str, per_dimension: bool, planted: Dataset, spec: DataSpec) -> None:
    """The interest nearest to the next item is noised to a random step; x0^ is compared with the target."""
    noise: dict[str, Any] = {"amount": 0.4, "per_dimension": per_dimension}
    model = over("comirec_sa", spec, noise=noise, reconstruct=reconstruct).eval()
    shake(model, 0.2)
    batch = replace(train_batch(planted, model.max_length), weight_B=torch.arange(64.0))
    model.retrieval_loss.sampler.sample(batch.target_B, batch.generator)  # the retrieval loss draws first
    step = torch.randint(1, 11, (64,), generator=child(batch.generator))
    eps = numpy_of(torch.randn(64, 1, 16, generator=child(batch.generator)))
    coarse = model.coarse(batch)
    target = 4 * unit(numpy_of(model.item_vectors(batch.target_B)))
    x0 = 4 * unit(numpy_of(coarse.found.vector_BKD))
    own = x0[np.arange(64), np.einsum("bkd,bd->bk", x0, target).argmax(1)][:, None]
    if model.scale is not None:
        eps = eps * numpy_of(model.scale(torch.from_numpy(own).float()))
    kept = numpy_of(signal_schedule("small", 10, 0.4))[step.numpy()][:, None, None]
    noised = torch.from_numpy(np.sqrt(kept) * own + np.sqrt(1 - kept) * eps).float()
    found = numpy_of(model.denoise(noised, step, coarse.item_BLD, coarse.mask_BL))[:, 0]
    wanted = target if reconstruct == "item" else own[:, 0]
    by_hand = np.average(((found - wanted) ** 2).mean(1), weights=np.arange(64))
    again = replace(batch, generator=torch.Generator().manual_seed(0))
    terms = model.losses(again, "joint")
    assert terms.terms["reconstruction"].item() == pytest.approx(by_hand, rel=1e-3)
    assert terms.weights["reconstruction"] == 0.1


def test_training_and_sampling_agree_on_what_is_predicted(
    planted: Dataset, spec: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser that says the next item has no error in training, and at serving it is that item, in any steps.

    DiffuMIN's released code trains the clean vector and samples as if it had trained the noise.
    """
    for steps in (1, 2, 10):
        model = over("comirec_sa", spec, reverse_steps=steps, noise={"amount": 0.9}, loss={"normalize": True}).eval()
        batch = train_batch(planted, model.max_length)
        item = torch.nn.functional.normalize(model.item_table(batch.target_B), dim=1).detach()

        def oracle(noised: Tensor, *_: Any, item: Tensor = item) -> Tensor:
            return 4 * item[:, None].expand_as(noised)

        monkeypatch.setattr(model, "denoise", oracle)
        assert model.losses(batch, "joint").terms["reconstruction"].item() == pytest.approx(0, abs=1e-6)
        served = model.interests(batch).vector_BKD
        torch.testing.assert_close(served, item[:, None].expand_as(served), rtol=1e-3, atol=1e-4)


def test_training_starts_at_the_noised_interest_and_draws_nothing_when_it_starts_clean(
    planted: Dataset, spec: DataSpec
) -> None:
    own: dict[str, Any] = {"noise": {"amount": 0.4}, "reconstruction_weight": 0.0, "base_weight": 0.0}
    clean = over("comirec_sa", spec, train_start="clean", **own)
    noised = over("comirec_sa", spec, **own)
    for model in (clean, noised):
        shake(model, 0.2)
    batch = train_batch(planted, clean.max_length)
    served = loss_of(noised.eval(), batch)
    torch.testing.assert_close(loss_of(clean.train(), replace(batch, generator=seeded())), served)
    got = loss_of(noised.train(), replace(batch, generator=seeded()))
    generator = seeded()
    noise = numpy_of(fresh_noise(torch.empty(64, 3, 16), generator)(0))
    vector = torch.from_numpy(chain(noised, noised.coarse(batch), noise)).float()
    by_hand = noised._retrieval(vector, None, batch.target_B, None, generator)
    torch.testing.assert_close(got, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, served)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_learned_scale_learns_through_what_is_served(planted: Dataset, spec: DataSpec) -> None:
    model = over("comirec_sa", spec, noise={"per_dimension": True}).train()
    shake(model, 0.2)
    loss_of(model, train_batch(planted, model.max_length)).backward()  # type: ignore[no-untyped-call]
    assert model.scale is not None
    assert isinstance(model.scale.inner.weight.grad, Tensor)
    assert (model.scale.inner.weight.grad != 0).any()


def test_contrast_and_the_bases_own_terms(planted: Dataset, spec: DataSpec) -> None:
    own: dict[str, Any] = {"contrast_weight": 0.5, "contrast_temperature": 0.3, "base_weight": 2.0}
    model = over("remi", spec, **own).eval()
    shake(model, 0.2)
    terms = model.losses(train_batch(planted, model.max_length), "joint")
    assert set(terms.terms) == {"retrieval", "reconstruction", "contrast", "base_retrieval", "base_routing"}
    batch = train_batch(planted, model.max_length)
    refined, coarse = model.interests(batch).vector_BKD, model.base.interests(batch).vector_BKD
    torch.testing.assert_close(terms.terms["contrast"], interest_contrast(refined, coarse, 0.3))
    weights = model.base.losses(batch, "train").weights
    assert terms.weights["base_routing"] == 2 * weights["routing"]
    assert terms.weights["base_retrieval"] == 2


def moved(model: DMI, planted: Dataset, stage: str) -> set[str]:
    """First parts of the names of parameters that a step of a stage changes."""
    from gemirec.training.schedule import frozen

    before = {name: value.clone() for name, value in model.named_parameters()}
    spec = next(found for found in model.stages if found.name == stage)
    begin(model, spec)
    with frozen(model, spec):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer.zero_grad()
        model.losses(train_batch(planted, model.max_length), stage).total().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"joint": {"base", "denoiser"}}),
        ({"base_share": 0.25}, {"base_train": {"base"}, "joint": {"base", "denoiser"}}),
        ({"base_share": 0.25, "train": "refiner"}, {"base_train": {"base"}, "refiner": {"denoiser"}}),
    ],
)
def test_what_trains_when(own: dict[str, Any], expected: Any, planted: Dataset, spec: DataSpec) -> None:
    model = over("comirec_sa", spec, **own).train()
    assert {stage.name: moved(model, planted, stage.name) for stage in model.stages} == expected
    shares = [stage.share for stage in model.stages]
    assert shares == ([1.0] if not own else [0.25, 0.75])


def test_a_base_alone_trains_as_it_would_without_dmi(planted: Dataset, spec: DataSpec) -> None:
    model = over("comirec_sa", spec, base_share=0.5).train()
    alone = model.base.losses(train_batch(planted, model.max_length), "train").total()
    torch.testing.assert_close(model.losses(train_batch(planted, model.max_length), "base_train").total(), alone)


def test_a_frozen_base_serves_the_same_coarse_interests(planted: Dataset, spec: DataSpec) -> None:
    model = tiny("dmi", spec, base_share=0.5, train="refiner", loss={"normalize": True, "temperature": 0.1})
    assert isinstance(model, DMI)
    steps = fit(model, planted, steps=60)
    for _ in range(31):
        next(steps)
    histories = held_out(planted, model.max_length)
    before = model.base.interests(histories).vector_BKD
    losses = list(steps)
    assert torch.equal(model.base.interests(histories).vector_BKD, before)
    assert not torch.allclose(model.interests(histories).vector_BKD, before, atol=1e-2)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_each_step_prunes_anew(planted: Dataset, spec: DataSpec) -> None:
    """What is kept depends on the interest as it is by then; what is read sums to 1 over what is kept."""
    model = over("comirec_sa", spec, reverse_steps=3, noise={"amount": 0.5}).eval()
    shake(model, 0.5)
    histories = held_out(planted, model.max_length)
    read = model.reads(histories).detach()
    torch.testing.assert_close(read.sum(3), torch.ones(read.shape[:3]))
    kept = read > 0
    limit = (0.5 * histories.length_B).ceil()
    apart = torch.tensor([len(set(row[row > 0].tolist())) == (row > 0).sum() for row in histories.item_BL])
    assert apart.sum() > 5
    assert (kept.sum(3) == limit[None, :, None])[:, apart].all()  # more where a history repeats an item
    assert (kept[0] != kept[1]).any()
    assert (kept[1] != kept[2]).any()
    assert not (kept & ~histories.mask_BL[None, :, None]).any()


@pytest.mark.parametrize("rule", ["top", "mean", "learned", "none"])
def test_a_history_of_one_item(rule: Any, spec: DataSpec) -> None:
    """It is kept, whatever the rule, and everything stays finite, gradients too, in the noisiest process."""
    own: dict[str, Any] = {"denoiser": {"prune": {"rule": rule, "rho": 1e-6, "threshold": 9.0}}}
    model = over("comirec_sa", spec, noise={"amount": 0.99, "schedule": "cosine"}, eta=1.0, reverse_steps=10, **own)
    shake(model, 0.5)
    item = torch.tensor([[7], [3]])
    assert (model.reads(Histories(item)) == 1).all()
    loss_of(model.train(), TrainBatch(item, target_B=torch.tensor([4, 5]))).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.interests(Histories(item)).vector_BKD.isfinite().all()


def test_neighbours_guide(planted: Dataset, spec: DataSpec) -> None:
    """What co-occurs with the newest items, attended to from the coarse interest, comes into every step."""
    model = over("comirec_sa", spec, guidance="neighbours", neighbours=3, neighbours_of=4).eval()
    before = model.coarse(held_out(planted, model.max_length)).guide_BKD
    assert before is not None
    assert (before == 0).all()
    model.learn_from(planted)
    shake(model, 0.3)
    histories = held_out(planted, model.max_length)
    histories.item_BL[0, 2:] = 0  # fewer than are asked for
    coarse = model.coarse(histories)
    id_NM = cooccurrence(planted, max_neighbours=3).id_NM
    newest = [np.pad(row[row > 0][-4:], (0, 4 - len(row[row > 0][-4:]))) for row in histories.item_BL.numpy()]
    around = id_NM[np.array(newest)].reshape(len(newest), -1)
    vector = unit(numpy_of(model.item_vectors()))[around]
    x0 = numpy_of(coarse.clean_BKD)
    score = np.where(around[:, None] > 0, np.einsum("bkd,bmd->bkm", x0, vector), -1e9)
    assert coarse.guide_BKD is not None
    np.testing.assert_allclose(numpy_of(coarse.guide_BKD), 4 * softmax(score) @ vector, rtol=1e-3, atol=1e-4)
    refined = model.interests(histories).vector_BKD
    assert not torch.allclose(refined, model.refine(replace(coarse, guide_BKD=torch.zeros_like(coarse.clean_BKD))))


def test_users_guide_and_are_saved(planted: Dataset, spec: DataSpec, tmp_path: Path) -> None:
    """Interests of trained users are remembered, at serving none is added, and a saved model knows them."""
    model = over("comirec_sa", spec, guidance="users", memory=100)
    list(fit(model, planted, steps=3))
    assert model.memory is not None
    assert int(model.memory.count) == 3 * 64
    histories = held_out(planted, model.max_length)
    served = model.interests(histories).vector_BKD
    assert int(model.memory.count) == 3 * 64
    coarse = model.coarse(histories)
    assert coarse.guide_BKD is not None
    assert coarse.guide_BKD.norm(dim=2).mean() > 1
    save_tensors(tmp_path / "model.safetensors", dict(model.state_dict()))
    other = over("comirec_sa", spec, guidance="users", memory=100, seed=2)
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
    assert torch.equal(other.eval().interests(histories).vector_BKD, served)


def test_the_coordinates_of_cells_stay_as_they_are(planted: Dataset, spec: DataSpec) -> None:
    """GemiRec's interests are refined where they are compared by content; codes and probabilities are its own."""
    model = over("gemirec", spec, base={"cells": "own"}, loss={"normalize": True}).eval()
    shake(model, 0.3)
    histories = held_out(planted, model.max_length)
    coarse, refined = model.base.interests(histories), model.interests(histories)
    assert refined.vector_BKD.shape[2] == 16 + 6
    assert torch.equal(refined.vector_BKD[..., 16:], coarse.vector_BKD[..., 16:])
    assert not torch.allclose(refined.vector_BKD[..., :16], coarse.vector_BKD[..., :16], atol=1e-2)
    torch.testing.assert_close(refined.vector_BKD[..., :16].norm(dim=2), refined.mask_BK.float())
    assert refined.code_BKC is not None
    assert torch.equal(refined.code_BKC, coarse.code_BKC)  # type: ignore[arg-type]
    weight_BKL = model.attribution(histories)
    assert weight_BKL is not None
    assert weight_BKL.shape == (len(histories.item_BL), 3, model.max_length)


def test_gemirec_goes_through_its_stages_first(planted: Dataset, spec: DataSpec) -> None:
    """Its starts run under DMI's name, its own terms stay, and the refiner learns in the last stage alone."""
    model = tiny("dmi", spec, base=part("gemirec"))
    assert [stage.name for stage in model.stages] == ["base_retrieval", "base_dictionary", "joint"]
    assert [stage.on_start for stage in model.stages] == [None, "base_start_dictionary", "base_start_joint"]
    losses = list(fit(model, planted, steps=30))
    assert np.isfinite(losses).all()
    assert isinstance(model, DMI)
    terms = loss_terms(model, planted)
    own = {"base_dictionary", "base_generator", "base_retrieval"}
    assert own <= terms
    assert {"retrieval", "reconstruction"} <= terms
    assert model.diagnostics()["context_gate"] > 0
    assert len(model.diagnostics()) > 1


def loss_terms(model: DMI, planted: Dataset) -> set[str]:
    return set(model.losses(train_batch(planted, model.max_length), model.stages[-1].name).terms)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_trains_and_round_trips(preset: str, planted: Dataset, spec: DataSpec) -> None:
    values = load_profile("dmi", preset)["model"]
    config = from_dict(DMIConfig, values)
    assert from_dict(DMIConfig, to_dict(config)) == config
    assert (
        isinstance(build_model("dmi", merge(values, {"dim": 8, "max_length": 6}), spec), DMI) == (preset != "gemirec")
        or preset == "gemirec"
    )


def test_the_preset_over_gemirec_is_gemirec(spec: DataSpec) -> None:
    """Its structure, loss and training are those of GemiRec's tuned profile: change both together."""
    own, around = load_profile("gemirec", "tuned"), load_profile("dmi", "gemirec")
    fields = {key: value for key, value in own["model"].items() if key not in SHARED}
    assert around["model"]["base"] == {"model": "gemirec", **fields}
    assert {key: around["model"][key] for key in own["model"] if key in SHARED} == {
        key: value for key, value in own["model"].items() if key in SHARED
    }
    assert around["training"] == own["training"]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"reverse_steps": 0}, "reverse_steps"),
        ({"noise": {"steps": 0}}, "noise.steps"),
        ({"noise": {"steps": 1}}, "that many steps"),
        ({"noise": {"amount": 1.0}}, "noise.amount"),
        ({"denoiser": {"prune": {"rho": 0.0}}}, "rho"),
        ({"train": "refiner"}, "never trained"),
        ({"base": {"model": "popularity"}}, "cannot be refined"),
        ({"base": {"model": "dmi"}}, "cannot be refined"),
        ({"base": {"model": "comirec"}}, "comirec_"),
        ({"base": {"model": "mind", "hops": 3}}, "unknown key"),
        ({"base": {"model": "comirec_sa", "dim": 8}}, "set model.dim"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], what: str, spec: DataSpec) -> None:
    with pytest.raises(ConfigError, match=what) as error:
        tiny("dmi", spec, **config)
    assert "got:" in str(error.value)
    assert "fix:" in str(error.value)


def test_a_base_without_a_name_is_refused(spec: DataSpec) -> None:
    with pytest.raises(ConfigError, match="has no name"):
        build_model("dmi", {"base": {"positions": "newest"}}, spec)


def test_items_come_through_the_base_alone(planted: Dataset, spec: DataSpec) -> None:
    """One item table, one name in the file, whatever the base makes of it."""
    model = over("simrec", spec)
    tables = [name for name in model.state_dict() if name.endswith("item_table.weight")]
    assert tables == ["base.item_table.weight"]
    model.learn_from(planted)
    assert torch.equal(model.item_vectors(), model.base.item_vectors())
    item = torch.tensor([int(sequences(planted)[0][0])])
    noise = add_noise(model.item_vectors(item), 1.0, torch.ones(1, 16))
    torch.testing.assert_close(noise, model.item_vectors(item))
