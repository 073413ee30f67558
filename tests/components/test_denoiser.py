"""The denoiser's step, its pruning, and guidance by other users, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemirec.components.denoiser import Denoiser, DenoiserConfig, PruneConfig, kept_items
from gemirec.components.diffusion import signal_schedule
from gemirec.components.guidance import InterestMemory, attended
from gemirec.config import from_dict
from gemirec.errors import ConfigError
from support_numpy import numpy_of, softmax, unit

RULES: list[Any] = ["top", "mean", "learned", "none"]


def keep_by_hand(score: Any, real: Any, config: PruneConfig) -> Any:
    """The rules as they are worded, one interest of one user at a time."""
    kept = np.zeros_like(score)
    for b, k in np.ndindex(*score.shape[:2]):
        own = score[b, k][real[b]]
        if not len(own):
            continue
        if config.rule == "top":
            limit = np.sort(own)[::-1][max(int(np.ceil(np.float32(config.rho) * len(own))), 1) - 1]
        elif config.rule == "mean":
            limit = own.mean()
        elif config.rule == "learned":
            limit = min(own.mean() + config.threshold * np.sqrt(own.var() + 1e-6), own.max())
        else:
            limit = own.min()
        kept[b, k] = (score[b, k] >= limit - 1e-4) & real[b]
    return kept


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1), threshold=st.floats(-3, 3))
def test_rules_of_pruning(rule: Any, seed: int, share: float, threshold: float) -> None:
    """As worded; at least the best item is kept of every history that has one, padding never."""
    rng = np.random.default_rng(seed)
    score = rng.integers(-8, 8, (4, 3, 6)).astype(np.float64)  # with ties
    real = np.arange(6) < np.array([6, 3, 1, 0])[:, None]
    config = PruneConfig(rule=rule, rho=share, threshold=threshold)
    kept = numpy_of(kept_items(torch.from_numpy(score).float(), torch.from_numpy(real), config))
    np.testing.assert_array_equal(kept, keep_by_hand(score, real, config))
    best = np.where(real[:, None], score, -np.inf).argmax(2)
    assert (np.take_along_axis(kept, best[:, :, None], 2)[:3] == 1).all()


def test_equal_items_are_kept_or_pruned_together() -> None:
    """Rounding must not tell the same item at two places of the history apart."""
    score = torch.tensor([[[1.0, 1.0 + 1e-6, 0.0, 0.0]]])
    for rule in ("top", "mean"):
        kept = kept_items(score, torch.ones(1, 4, dtype=torch.bool), PruneConfig(rule=rule, rho=0.25))
        assert kept.tolist() == [[[1, 1, 0, 0]]]


def test_a_learned_threshold_has_the_gradient_of_a_sigmoid() -> None:
    """What is kept is 0 or 1; what is learned from is how far above the threshold a score stands."""
    config = PruneConfig(rule="learned", softness=0.7)
    score = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    threshold = torch.tensor(0.2, requires_grad=True)
    kept = kept_items(score, mask, config, threshold)
    assert set(kept.detach().flatten().tolist()) == {0.0, 1.0}
    weight = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    (kept * weight).sum().backward()  # type: ignore[no-untyped-call]
    s, real, total = numpy_of(score), mask.numpy(), 0.0
    for b, k in np.ndindex(2, 3):
        own = s[b, k][real[b]]
        z = (own - own.mean()) / np.sqrt(own.var() + 1e-6)
        gate = 1 / (1 + np.exp(-(z - 0.2) / 0.7))
        total += (numpy_of(weight)[b, k][real[b]] * -gate * (1 - gate) / 0.7).sum()
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(total, rel=1e-4)
    assert score.grad is not None
    assert (score.grad[1, :, 2:] == 0).all()
    assert score.grad[0].abs().min() > 0


def build(rule: Any = "top", *, guided: bool = False, train: bool = True, reads: bool = True) -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(prune=PruneConfig(rule=rule), cross_attention=reads)
    model = Denoiser(config, 6, signal_schedule("cosine", 5, 0.6), guided=guided)
    if train:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def inputs(length: Any = (4, 2, 1, 0)) -> tuple[torch.Tensor, ...]:
    """Noised interests, times, unit items, mask, guidance."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(4) < torch.tensor(length)[:, None]
    item = torch.nn.functional.normalize(torch.randn(len(length), 4, 6, generator=generator), dim=2) * mask[:, :, None]
    noised, guide = torch.randn(2, len(length), 3, 6, generator=generator).unbind()
    return noised, torch.tensor([5, 1, 3, 2]), item, mask, guide


def test_an_untrained_step_adds_the_guidance_that_the_config_says() -> None:
    noised, step, item, mask, guide = inputs()
    signal = signal_schedule("cosine", 5, 0.6)
    clean = noised / signal[step].sqrt()[:, None, None]
    for start in (0.0, 0.75):
        model = Denoiser(DenoiserConfig(guide_start=start), 6, signal, guided=True)
        torch.testing.assert_close(model(noised, step, item, mask, guide), clean + start * guide)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("reads", [True, False])
def test_a_step(rule: Any, guided: bool, reads: bool) -> None:
    model = build(rule, guided=guided, reads=reads)
    noised, step, item, mask, guide = inputs()
    w = {key: numpy_of(value) for key, value in [*model.named_parameters(), *model.named_buffers()]}
    x, e, u = numpy_of(noised), numpy_of(item), numpy_of(guide)
    angle = w["time.sinusoid_TD"][step.numpy()]
    hidden = angle @ w["time.network.0.weight"].T + w["time.network.0.bias"]
    time = hidden / (1 + np.exp(-hidden)) @ w["time.network.2.weight"].T + w["time.network.2.bias"]
    q = x + time[:, None]
    score = q @ w["query.weight"].T @ e.transpose(0, 2, 1)
    real = mask.numpy()
    config = PruneConfig(rule=rule, threshold=float(w.get("threshold", 0.0)))
    kept = keep_by_hand(score, real, config)
    a = np.exp(score - score.max(2, keepdims=True)) * kept
    a = a / np.maximum(a.sum(2, keepdims=True), 1e-20) * reads
    np.testing.assert_allclose(numpy_of(model.attention(noised, step, item, mask)), a, rtol=1e-4, atol=1e-6)
    c = np.sqrt(6) * (a @ e) @ w["value.weight"].T
    mixed = q + c + (u if guided else 0)
    normed = (mixed - mixed.mean(2, keepdims=True)) / np.sqrt(mixed.var(2, keepdims=True) + 1e-5)
    normed = normed * w["norm.weight"] + w["norm.bias"]
    out = np.maximum(normed @ w["network.0.weight"].T + w["network.0.bias"], 0)
    out = out @ w["network.2.weight"].T + w["network.2.bias"]
    kept_signal = numpy_of(signal_schedule("cosine", 5, 0.6))[step.numpy()][:, None, None]
    by_hand = x / np.sqrt(kept_signal) + w["context_gate_D"] * c + out
    if guided:
        by_hand = by_hand + w["guide_gate_D"] * u
    got = model(noised, step, item, mask, guide if guided else None)
    np.testing.assert_allclose(numpy_of(got), by_hand, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_an_untrained_denoiser_returns_the_interest_and_can_learn(rule: Any) -> None:
    model = build(rule, train=False)
    noised, step, item, mask, _ = inputs()
    kept = signal_schedule("cosine", 5, 0.6)[step][:, None, None]
    torch.testing.assert_close(model(noised, step, item, mask), noised / kept.sqrt())
    model(noised, step, item, mask).square().sum().backward()
    for part in (model.context_gate_D, model.network[2].weight):
        assert isinstance(part.grad, torch.Tensor)
        assert (part.grad != 0).any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_times_are_told_apart() -> None:
    noised, _, item, mask, _ = inputs()
    model = build("none")
    found = torch.stack([model(noised, torch.tensor([t]), item, mask) for t in range(6)])
    assert all(not torch.allclose(found[i], found[j]) for i in range(6) for j in range(i))


def test_one_step_is_exported_and_serves_other_shapes() -> None:
    """The exported program is the step, for other numbers of users and times."""
    model = build().eval()
    noised, step, item, mask, _ = inputs()
    users = torch.export.Dim("users", min=2, max=64)
    shapes = ({0: users}, {0: users}, {0: users}, {0: users})
    program = torch.export.export(model, (noised, step, item, mask), dynamic_shapes=shapes)
    some = [part.repeat(3, *[1] * (part.ndim - 1))[:7] for part in (noised, step.flip(0), item, mask)]
    torch.testing.assert_close(program.module()(*some), model(*some))


@pytest.mark.parametrize(("field", "value"), [("rho", 0.0), ("rho", 1.5), ("softness", 0.0), ("rule", "best")])
def test_what_cannot_be_pruned_by_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(DenoiserConfig, {"prune": {field: value}})


def test_guidance_attends_to_what_exists() -> None:
    clean, _, item, mask, _ = inputs()
    x, e, real = numpy_of(clean), numpy_of(item), mask.numpy()
    score = np.where(real[:, None], x @ e.transpose(0, 2, 1), -1e9)
    by_hand = np.sqrt(6) * (softmax(score, 2) * real[:, None]) @ e
    np.testing.assert_allclose(numpy_of(attended(clean, item, mask)), by_hand, rtol=1e-4, atol=1e-6)
    assert (by_hand[3] == 0).all()


def test_the_memory_forgets_the_oldest_and_finds_the_nearest() -> None:
    memory, rng = InterestMemory(5, 4), np.random.default_rng(0)
    clean = torch.from_numpy(rng.normal(size=(2, 3, 4))).float()
    assert (memory.nearest(clean, 2) == 0).all()
    seen = rng.normal(size=(18, 4))
    for start, end in [(0, 3), (3, 7), (7, 8), (8, 18)]:  # the last lot is larger than the memory
        memory.remember(torch.from_numpy(seen[start:end]))
        known = unit(seen[max(end - 5, 0) : end])
        score = numpy_of(clean) @ known.T
        row = np.argsort(-score, axis=2)[:, :, :2]
        weight = softmax(np.take_along_axis(score, row, 2), 2)
        by_hand = 2 * np.einsum("bkm,bkmd->bkd", weight, known[row])
        np.testing.assert_allclose(numpy_of(memory.nearest(clean, 2)), by_hand, rtol=1e-4, atol=1e-5)
