"""What DMI trains when: the base's own stages, as far as the base trains alone, and the one with the refiner."""

from __future__ import annotations

from collections.abc import Sequence

from gemirec.models.base import Stage

BASE = "base_"
"""Before the name of a stage, a start or a term that is the base's own."""
JOINT, REFINER = "joint", "refiner"


def plan(train: str, base_share: float, own: Sequence[Stage], refiner: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages.

    Args:
        train: ``joint`` or ``refiner``: what the last stage trains.
        base_share: Share of the steps in which the base trains alone; 0 leaves the base's last stage to the joint one.
        own: The base's stages.
        refiner: Prefixes of the refiner's parameters.

    Example:
        >>> from gemirec.models.base import Stage
        >>> [(s.name, s.share, s.frozen) for s in plan("refiner", 0.25, [Stage("train")], ("denoiser.",))]
        [('base_train', 0.25, ('denoiser.',)), ('refiner', 0.75, ('base.',))]
        >>> [s.name for s in plan("joint", 0.0, [Stage("a"), Stage("b")], ("denoiser.",))]
        ['base_a', 'joint']
    """
    total = sum(stage.share for stage in own)
    alone = [
        Stage(
            BASE + stage.name,
            stage.share / total * (base_share or 1.0),
            (*_under_base(stage), *refiner),
            BASE + stage.on_start if stage.on_start else None,
        )
        for stage in own
    ]
    if train == REFINER:
        return *alone, Stage(REFINER, 1 - base_share, ("base.",))
    if base_share:
        return *alone, Stage(JOINT, 1 - base_share, _under_base(own[-1]))
    return *alone[:-1], Stage(JOINT, alone[-1].share, _under_base(own[-1]), alone[-1].on_start)


def _under_base(stage: Stage) -> tuple[str, ...]:
    """Return what a stage of the base freezes, by its name in the model around it."""
    return tuple(f"base.{prefix}" for prefix in stage.frozen)
