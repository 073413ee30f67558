"""An interest's neighbours before, during and after DMI's refinement.

Axes: K interests of the user, R columns (before, each step on the way, after), P nearest items, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from gemirec.errors import ConfigError
from gemirec.experiments.pictures.canvas import COLOURS, GREY, INK, bare, figure, plain
from gemirec.models.dmi import DMI

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from gemirec.experiments.pictures.case import Case, Names
    from gemirec.models.base import RetrievalModel

MOST_INTERESTS = 6
"""Interests that a picture has room for."""
TEXT = 44
"""Most characters of an item's name."""


@dataclass(frozen=True)
class Refinement:
    """One user's interests on their way.

    Attributes:
        title_R: What each column is: ``coarse``, the state before a later step, ``refined``.
        item_KRP: ``[K, R, P]`` int64 nearest items by cosine, nearest first.
        cosine_KRP: ``[K, R, P]`` float32 their cosines.
        moved_KR: ``[K, R]`` float32 cosine with the coarse interest.
    """

    title_R: list[str]
    item_KRP: NDArray[np.int64]
    cosine_KRP: NDArray[np.float32]
    moved_KR: NDArray[np.float32]


def with_refiner(model: RetrievalModel, artifact: Path) -> DMI:
    """Return a DMI.

    Raises:
        ConfigError: It is another model.
    """
    if not isinstance(model, DMI):
        raise ConfigError(
            "only a dmi model refines interests",
            got=f"{type(model).__name__} ({artifact})",
            fix="give an artifact of gemirec train --model dmi, or ask for --which map",
        )
    return model


@torch.no_grad()
def refinement(model: DMI, case: Case, *, nearest: int = 8) -> Refinement:
    """Refine a user's interests as at serving, and look at what lies nearest on the way.

    Args:
        model: A trained DMI.
        case: The user; the history ends where the held-out events begin.
        nearest: P; a small catalogue gives fewer.
    """
    coarse = model.coarse(case.now(model.max_length))
    states: list[tuple[str, Tensor]] = []

    def watch(noised_BKD: Tensor, step_B: Tensor) -> None:
        states.append((f"at t = {int(step_B)}", noised_BKD))

    dim = model.config.dim
    refined_BKE = model.refine(coarse, watch=watch)
    # Served from a shrunk start without noise, the first state is the coarse interest, only shorter.
    start = 0 if model.config.serve_start == "noised" else 1
    all_states = [("coarse", coarse.clean_BKD), *states[start:], ("refined", refined_BKE[..., :dim])]
    found_K = coarse.found.mask_BK[0].nonzero()[:MOST_INTERESTS, 0]
    state_KRD = F.normalize(torch.stack([state[0, found_K] for _, state in all_states], dim=1).float(), dim=2)
    item_ND = F.normalize(model.item_vectors()[1:, :dim].float(), dim=1)
    best = (state_KRD @ item_ND.T).topk(min(nearest, len(item_ND)), dim=2)
    moved_KR = (state_KRD * state_KRD[:, :1]).sum(dim=2)
    return Refinement(
        [title for title, _ in all_states],
        (best.indices + 1).numpy(),
        best.values.numpy(),
        moved_KR.numpy(),
    )


def refinement_figure(found: Refinement, case: Case, names: Names) -> Any:
    """Draw lists of neighbours: a row of lists for each interest, a column for each state.

    Items that the user took up later are starred and in colour, items of the history are grey, and what was not among
    the neighbours one column before is bold.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    interests, columns, places = found.item_KRP.shape
    drawn = figure(1.0 + 4.4 * columns, 1.4 + interests * (0.5 + 0.21 * places))
    grid = drawn.subplots(interests, columns, squeeze=False)
    history, future = set(case.history_H.tolist()), set(case.future_T.tolist())
    for k, r in np.ndindex(interests, columns):
        axes, before = grid[k, r], set(found.item_KRP[k, max(r - 1, 0)].tolist())
        axes.set_xlim(0, 1)
        axes.set_ylim(places - 0.5, -0.8)
        axes.set_xticks([])
        axes.set_yticks([])
        bare(axes)
        moved = "" if r == 0 else f"   cosine with coarse {found.moved_KR[k, r]:.3f}"
        axes.set_title(f"interest {k}, {found.title_R[r]}{moved}", fontsize=9.5, loc="left")
        for place, (item, cosine) in enumerate(zip(found.item_KRP[k, r], found.cosine_KRP[k, r], strict=True)):
            colour = COLOURS[4] if int(item) in future else "#8A8A8A" if int(item) in history else INK
            mark = "★ " if int(item) in future else "● " if int(item) in history else "   "
            weight = "bold" if int(item) not in before else "normal"
            text = f"{cosine:.2f} {mark}{plain(names.item(int(item)), TEXT)}"
            axes.text(0, place, text, fontsize=8, color=colour, weight=weight, va="center")
        axes.axhline(places - 0.52, color=GREY, lw=0.5)
    drawn.suptitle(
        plain(f"User {case.user_id}: neighbours of each interest on its way through the refinement")
        + "\n● in the history   ★ taken up later   bold: not among the neighbours one column before",
        fontsize=11,
        x=0.02,
        ha="left",
    )
    return drawn
