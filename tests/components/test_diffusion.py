"""Noise schedules, the forward process and the way back, against plain NumPy."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemirec.components.diffusion import (
    MOST_NOISE,
    DimensionScale,
    NoiseConfig,
    ReverseProcess,
    Schedule,
    add_noise,
    signal_schedule,
)
from gemirec.config import from_dict
from gemirec.errors import ConfigError
from support_numpy import numpy_of

SCHEDULES = get_args(Schedule)
KINDS = pytest.mark.parametrize("schedule", SCHEDULES)


def by_hand(schedule: str, steps: int) -> Any:
    """The variance of the noise at steps 1 to T, before it is scaled."""
    t = np.arange(1, steps + 1)
    if schedule == "linear":
        return 1 - np.cumprod(1 - np.linspace(1e-4, 0.02, steps))
    if schedule == "cosine":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return 1 - f[1:] / f[0]
    if schedule == "exponential":
        return 1 - np.exp(-0.1 * t / steps - (10 - 0.1) * (t / steps) ** 2 / 2)
    return np.linspace(1e-4, 0.02, steps) / 0.02 if steps > 1 else np.ones(1)


@KINDS
@given(steps=st.integers(1, 60), amount=st.floats(1e-4, MOST_NOISE))
def test_schedules(schedule: Any, steps: int, amount: float) -> None:
    """Their shape is the formula's, their last noise is the amount, and the signal only ever falls."""
    signal_T = signal_schedule(schedule, steps, amount)
    assert signal_T.dtype == torch.float32
    variance = by_hand(schedule, steps)
    np.testing.assert_allclose(1 - numpy_of(signal_T)[1:], amount * variance / variance[-1], rtol=1e-3, atol=2e-7)
    assert signal_T[0] == 1
    assert 1 - signal_T[-1].item() == pytest.approx(amount, rel=1e-3)
    assert (signal_T.diff() <= 0).all()
    assert signal_T.rsqrt().isfinite().all()


@KINDS
@pytest.mark.parametrize("amount", [0.05, MOST_NOISE])
def test_the_closed_form_is_the_chain_of_steps(schedule: Any, amount: float) -> None:
    """Step by step with one noise each, and at once with the sum of what is left of them."""
    steps, generator = 7, torch.Generator().manual_seed(0)
    signal_T = signal_schedule(schedule, steps, amount)
    noise_TD = torch.randn(steps, 5, generator=generator)
    clean_D = torch.randn(5, generator=generator)
    x_D, left = clean_D, np.zeros(steps)
    for t in range(1, steps + 1):
        ratio = float(signal_T[t]) / float(signal_T[t - 1])
        x_D = add_noise(x_D, ratio, noise_TD[t - 1])
        left *= np.sqrt(ratio)
        left[t - 1] = np.sqrt(1 - ratio)
        share = np.sqrt(1 - float(signal_T[t]))
        assert np.sum(left**2) == pytest.approx(share**2, rel=1e-3)  # independent noises: variances add
        together = torch.from_numpy((left[:, None] * numpy_of(noise_TD)).sum(0) / share).float()
        torch.testing.assert_close(x_D, add_noise(clean_D, signal_T[t], together), rtol=1e-3, atol=1e-5)


def test_the_variance_of_each_dimension_is_as_stated() -> None:
    """``(1 - a_t) s_d^2`` in dimension d, around ``sqrt(a_t) x_0``; the s_d^2 average 1, whatever has been learned."""
    generator = torch.Generator().manual_seed(0)
    scale = DimensionScale(6)
    coarse_D = torch.randn(6, generator=generator)
    torch.testing.assert_close(scale(coarse_D), torch.ones(6))
    with torch.no_grad():
        scale.inner.weight.normal_(generator=generator)
    scale_D = scale(coarse_D).detach()
    gate = 1 / (1 + np.exp(-(numpy_of(scale.inner.weight) @ numpy_of(coarse_D))))
    np.testing.assert_allclose(numpy_of(scale_D), np.sqrt(6) * gate / np.linalg.norm(gate), rtol=1e-5)
    assert scale_D.square().mean().item() == pytest.approx(1, rel=1e-5)
    signal_T = signal_schedule("cosine", 5, 0.4)
    noise_XD = torch.randn(200_000, 6, generator=generator) * scale_D
    for t in (1, 3, 5):
        x_XD = numpy_of(add_noise(coarse_D, signal_T[t], noise_XD))
        kept = float(signal_T[t])
        np.testing.assert_allclose(x_XD.var(0), (1 - kept) * numpy_of(scale_D) ** 2, rtol=0.02)
        np.testing.assert_allclose(x_XD.mean(0), math.sqrt(kept) * numpy_of(coarse_D), atol=0.01)


@KINDS
@pytest.mark.parametrize("steps", range(1, 11))
def test_a_perfect_prediction_of_x0_leads_back(schedule: Any, steps: int) -> None:
    """Along the very line of the forward process, with its very noise; a prediction of the noise leads elsewhere.

    That is the guard against mixed targets: DiffuMIN trains x_0 and samples as if it were the noise.
    """
    generator = torch.Generator().manual_seed(steps)
    signal_T = signal_schedule(schedule, 10, 0.6)
    clean, noise = torch.randn(2, 4, 3, generator=generator).unbind()
    reverse = ReverseProcess(signal_T, steps)
    seen: list[int] = []

    def oracle(x: torch.Tensor, step: int) -> torch.Tensor:
        torch.testing.assert_close(x, add_noise(clean, signal_T[step], noise), rtol=1e-3, atol=1e-4)
        seen.append(step)
        return clean

    start = add_noise(clean, signal_T[-1], noise)
    torch.testing.assert_close(reverse(oracle, start), clean)
    assert len(seen) == steps
    assert seen[0] == 10
    assert seen == sorted(set(seen), reverse=True)
    assert not torch.allclose(reverse(lambda x, step: noise, start), clean, atol=0.1)


@KINDS
def test_eta_1_is_the_posterior_of_the_forward_process(schedule: Any) -> None:
    """One step from t to t - 1 has the mean and the variance of ``q(x_{t-1} | x_t, x_0)`` (DDPM eq. 7)."""
    signal_T = signal_schedule(schedule, 6, 0.5)
    kept = numpy_of(signal_T)
    for leg in ReverseProcess(signal_T, 6, eta=1.0).legs:
        t = leg.step
        alpha, beta = kept[t] / kept[t - 1], 1 - kept[t] / kept[t - 1]
        assert leg.clean == pytest.approx(np.sqrt(kept[t - 1]) * beta / (1 - kept[t]), rel=1e-4, abs=1e-6)
        assert leg.noisy == pytest.approx(np.sqrt(alpha) * (1 - kept[t - 1]) / (1 - kept[t]), rel=1e-4, abs=1e-6)
        assert leg.fresh == pytest.approx(np.sqrt(beta * (1 - kept[t - 1]) / (1 - kept[t])), rel=1e-4, abs=1e-6)
    assert leg.fresh == 0, "the last step adds nothing"


def test_stochastic_sampling_keeps_the_forward_process_variance() -> None:
    """With the true x_0 predicted, x_s is spread as the forward process spreads it, whatever eta."""
    signal_T = signal_schedule("cosine", 10, 0.8)
    generator = torch.Generator().manual_seed(0)
    start = add_noise(torch.zeros(100_000), signal_T[-1], torch.randn(100_000, generator=generator))
    for eta in (0.0, 0.5, 1.0):
        spread: dict[int, float] = {}

        def predict(x: torch.Tensor, step: int, spread: dict[int, float] = spread) -> torch.Tensor:
            spread[step] = float(x.var())
            return torch.zeros_like(x)

        ReverseProcess(signal_T, 4, eta)(predict, start, lambda i: torch.randn(100_000, generator=generator))
        for step, variance in spread.items():
            assert variance == pytest.approx(1 - float(signal_T[step]), rel=0.03)


@pytest.mark.parametrize(
    ("schedule", "steps", "amount", "what"),
    [
        ("small", 0, 0.1, "at least one step"),
        ("cosine", 5, 0.0, "final variance"),
        ("cosine", 5, 1.0, "final variance"),
        ("linear", 5, math.nan, "final variance"),
        ("sigmoid", 5, 0.1, "no such noise schedule"),
    ],
)
def test_what_makes_no_schedule_is_refused(schedule: Any, steps: int, amount: float, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as error:
        signal_schedule(schedule, steps, amount)
    assert "got:" in str(error.value)
    assert "fix:" in str(error.value)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"amount": 1.0}, {"amount": 0.0}, {"amount": math.nan}])
def test_the_config_refuses_it_before(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        from_dict(NoiseConfig, bad)


def test_noise_below_rounding_leads_back_too() -> None:
    signal_T = signal_schedule("linear", 60, 1e-4)
    assert signal_T[1] == 1
    clean = torch.ones(3)
    assert torch.equal(
        ReverseProcess(signal_T, 60, eta=1.0)(lambda x, step: clean, clean, lambda i: torch.randn(3)), clean
    )


@pytest.mark.parametrize("steps", [0, 6])
def test_more_reverse_steps_than_forward_ones_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="1 to 5"):
        ReverseProcess(signal_schedule("small", 5, 0.1), steps)
