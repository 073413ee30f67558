"""A small diffusion over vectors: how much noise each step holds, the way there and the way back (DMI, 2502.05561).

The paper's text could not be read beyond its abstract: noise of a controllable amount is added to interests, dimension
by dimension, and taken away again step by step. All the rest here is ours. With ``a_t``, the share of the signal's
variance that is left at step t (``a_0 = 1``)::

    forward   x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) s * eps,   eps ~ N(0, I)                 (s = 1, or learned)
    reverse   x_s = sqrt(a_s) x0^ + sqrt(1 - a_s - v) (x_t - sqrt(a_t) x0^) / sqrt(1 - a_t) + sqrt(v) eps,   s < t
              v   = eta^2 (1 - a_s) / (1 - a_t) (1 - a_t / a_s)                            (DDIM, arXiv 2010.02502)

What is predicted is ``x_0`` everywhere, in training as in sampling: nothing here takes a prediction of the noise.

Axes: B batch, K interests, D embedding, X any leading axes, T steps of the forward process; a ``T`` axis has T + 1
entries, the first one for no noise.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

import torch
from msgspec import Meta
from torch import Tensor, nn

from gemirec.components.roles import Count
from gemirec.config import Config
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Schedule = Literal["linear", "cosine", "exponential", "small"]
MOST_NOISE = 0.99
"""Largest final noise. Pure noise would leave nothing of the interest, and ``1 / sqrt(a_t)`` must stay a number."""


class NoiseConfig(Config, frozen=True, kw_only=True):
    """The forward process. No value of the paper's is known: all are ours."""

    schedule: Schedule = "small"
    """How the noise's variance grows with the step, before it is scaled to ``amount``. ``linear``: betas linear (DDPM);
    ``cosine``: as its authors have it; ``exponential``: the rate of decay grows linearly; ``small``: the variance
    itself grows linearly (DiffRec)."""
    steps: Count = 10
    """T, steps of the forward process."""
    amount: Annotated[float, Meta(gt=0, le=MOST_NOISE)] = 0.1
    """Variance of the noise at the last step, ``1 - a_T``; the signal, whose variance is 1, has the rest. Bounded, so
    that an interest is never drowned."""
    per_dimension: bool = False
    """Learn from the coarse interest how the noise is divided among its dimensions; ``amount`` stays their mean."""


def signal_schedule(schedule: Schedule, steps: int, amount: float) -> Tensor:
    """Return ``a_t`` for t = 0 to T: ``[T + 1]`` float32, from 1 falling to ``1 - amount``.

    Only the shape comes from ``schedule``: ``1 - a_t = amount * v_t / v_T`` with

    - ``linear``: ``v_t = 1 - prod (1 - beta_i)``, beta from 1e-4 to .02 (Ho et al., 2020);
    - ``cosine``: ``v_t = 1 - f(t) / f(0)``, ``f(t) = cos^2( (t/T + .008) / 1.008 * pi/2 )`` (Nichol et al., 2021);
    - ``exponential``: ``v_t = 1 - exp(-u/10 - (10 - 1/10) u^2 / 2)``, u = t/T (a rate from .1 to 10, as in DiffuMIN);
    - ``small``: ``v_t`` linear from .005 at step 1 to 1 (DiffRec: 1e-4 to .02, times its noise scale).

    Args:
        schedule: The shape.
        steps: T, at least 1.
        amount: ``1 - a_T``, above 0 and at most .99.

    Raises:
        ConfigError: Steps or amount out of range (or not a number), or no such schedule.

    Example:
        >>> signal_schedule("small", 2, 0.5)
        tensor([1.0000, 0.9975, 0.5000])
    """
    _check(schedule, steps, amount)
    step_T = torch.arange(steps + 1, dtype=torch.float64)
    part_T = step_T / steps
    if schedule == "linear":
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        variance_T = torch.cat([step_T[:1], 1 - torch.cumprod(1 - beta, dim=0)])
    elif schedule == "cosine":
        left_T = torch.cos((part_T + 0.008) / 1.008 * math.pi / 2).square()
        variance_T = 1 - left_T / left_T[0]
    elif schedule == "exponential":
        variance_T = -torch.expm1(-0.1 * part_T - 9.9 * part_T.square() / 2)
    else:
        variance_T = torch.where(step_T > 0, 0.005 + 0.995 * (step_T - 1) / max(steps - 1, 1), 0.0)
    return (1 - amount * variance_T / variance_T[-1]).float()


def _check(schedule: str, steps: int, amount: float) -> None:
    """Raise for what makes no schedule."""
    if schedule not in get_args(Schedule):
        known = ", ".join(get_args(Schedule))
        raise ConfigError("there is no such noise schedule", got=schedule, fix=f"choose one of: {known}")
    if steps < 1:
        raise ConfigError("a diffusion needs at least one step", got=f"{steps} steps", fix="give 1 or more")
    if not 0 < amount <= MOST_NOISE:  # true of NaN, too
        raise ConfigError(
            "the noise's final variance is out of range",
            got=amount,
            fix=f"give a number above 0 and at most {MOST_NOISE}; the signal has the rest to 1",
        )


def add_noise(clean_XD: Tensor, signal_X: Tensor | float, noise_XD: Tensor) -> Tensor:
    """Return ``sqrt(a) x + sqrt(1 - a) eps``: ``[..., D]`` float32.

    With ``a = a_t`` and ``x = x_0`` this is the forward process in closed form; with ``a = a_t / a_{t-1}`` and
    ``x = x_{t-1}`` it is one step of it.

    Args:
        clean_XD: ``[..., D]`` x.
        signal_X: a, one number or ``[...]``.
        noise_XD: ``[..., D]`` eps, already multiplied by a learned scale if there is one.

    Example:
        >>> add_noise(torch.ones(1, 2), 0.64, torch.tensor([[0.0, 1.0]]))
        tensor([[0.8000, 1.4000]])
    """
    signal_X = torch.as_tensor(signal_X, dtype=torch.float32, device=clean_XD.device)[..., None]
    return signal_X.sqrt() * clean_XD.float() + (1 - signal_X).sqrt() * noise_XD.float()


def child(generator: torch.Generator | None) -> torch.Generator:
    """Return a source on the CPU, seeded by one number of ``generator`` (torch's global one if ``None``).

    However much is drawn from it, ``generator`` goes on the same: a step's negatives do not depend on K, D or steps.

    Example:
        >>> one, two = (torch.Generator().manual_seed(0) for _ in range(2))
        >>> _ = torch.rand(5, generator=child(one)), torch.rand(7, generator=child(two))
        >>> bool(torch.rand(1, generator=one) == torch.rand(1, generator=two))
        True
    """
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))


def fresh_noise(like_XD: Tensor, generator: torch.Generator | None) -> Callable[[int], Tensor]:
    """Return a source of normal noise of a tensor's shape, new at each call, by children of ``generator``."""
    return lambda _: torch.randn(like_XD.shape, generator=child(generator)).to(like_XD.device)


class DimensionScale(nn.Module):
    """``s = sqrt(D) sigma(W h + b) / |sigma(W h + b)|``: noise per dimension, learned from the coarse interest.

    The mean of ``s_d^2`` over the dimensions is 1, so that the amount of noise stays what the schedule says, and
    learning cannot simply switch it off. It starts with equal scales.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, coarse_XD: Tensor) -> Tensor:
        """Return the scales ``[..., D]`` float32, all above 0, of interests ``[..., D]``."""
        gate_XD = torch.sigmoid(self.inner(coarse_XD).float())
        scale_XD: Tensor = gate_XD * gate_XD.square().mean(dim=-1, keepdim=True).rsqrt()
        return scale_XD


class Leg(NamedTuple):
    """One step back from time ``step``: ``x <- clean x0^ + noisy x + fresh eps``."""

    step: int
    clean: float
    noisy: float
    fresh: float


class ReverseProcess:
    """From a noised vector back to a clean one, in a few evenly spaced steps.

    Args:
        signal_T: ``[T + 1]`` of :func:`signal_schedule`.
        steps: Predictions, 1 to T; the first is at time T.
        eta: 0 for DDIM, which draws nothing; 1 adds as much noise as the forward process took on the same way.

    Raises:
        ConfigError: No step, or more steps than the forward process has.

    Example:
        >>> reverse = ReverseProcess(signal_schedule("small", 10, 0.1), 2)
        >>> [leg.step for leg in reverse.legs]
        [10, 5]
        >>> reverse(lambda noised, step: noised * 0 + step, torch.zeros(1))
        tensor([5.])
    """

    def __init__(self, signal_T: Tensor, steps: int, eta: float = 0.0) -> None:
        last = len(signal_T) - 1
        if not 1 <= steps <= last:
            raise ConfigError(
                "the reverse process cannot have that many steps",
                got=f"{steps} reverse steps, {last} forward ones",
                fix=f"give reverse_steps from 1 to {last}, or a larger noise.steps",
            )
        signal = signal_T.double().tolist()
        times = [last - last * i // steps for i in range(steps)] + [0]
        self.legs = [_leg(t, signal[t], signal[s], eta) for t, s in pairwise(times)]

    def __call__(
        self,
        predict: Callable[[Tensor, int], Tensor],
        start_XD: Tensor,
        draw: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Return ``x_0`` ``[..., D]``.

        Args:
            predict: Gives x0^ of a noised vector and its time.
            start_XD: ``[..., D]`` x_T.
            draw: Gives fresh noise ``[..., D]`` of unit variance for leg i, counted from 0; asked if ``eta > 0`` only.
        """
        x_XD = start_XD
        for i, leg in enumerate(self.legs):
            clean_XD = predict(x_XD, leg.step)
            x_XD = leg.clean * clean_XD + leg.noisy * x_XD if leg.noisy else leg.clean * clean_XD
            if leg.fresh and draw is not None:
                x_XD = x_XD + leg.fresh * draw(i)
        return x_XD


def _leg(step: int, now: float, then: float, eta: float) -> Leg:
    """Return the step from time ``step``, with signal ``now``, to one with signal ``then``."""
    if now == 1:  # noise so small that float32 does not see it
        return Leg(step, 1.0, 0.0, 0.0)
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    noisy = math.sqrt(max(1 - then - variance, 0.0) / (1 - now))
    return Leg(step, math.sqrt(then) - noisy * math.sqrt(now), noisy, math.sqrt(variance))
