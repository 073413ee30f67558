"""The posterior over interests along a user's history: what the generator expects, event by event.

Axes: X positions of the history, M interests, R interests shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gemirec.experiments.pictures.canvas import COLOURS, bare, figure, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.experiments.pictures.case import Case, Names
    from gemirec.models.gemirec import GemiRec

MOST_ROWS = 32
"""Interests that a picture has room for."""
FAINT = 0.05
"""An interest that is never so probable has no row, unless it came true."""


@dataclass(frozen=True)
class Posterior:
    """The generator along a history.

    Attributes:
        length_X: ``[X]`` events read at each position.
        probability_XM: ``[X, M]`` float32, of the next event's interest; each row sums to 1.
        true_X: ``[X]`` int64 interest of the event that came next; -1 where none is known.
        shown_R: ``[R]`` int64 interests that are ever among the most probable.
    """

    length_X: NDArray[np.int64]
    probability_XM: NDArray[np.float32]
    true_X: NDArray[np.int64]
    shown_R: NDArray[np.int64]


@torch.no_grad()
def posterior(model: GemiRec, case: Case, *, top: int = 8, most: int = 40) -> Posterior:
    """Ask the generator after each event of the history what comes next.

    Args:
        model: A trained GemiRec.
        case: The user.
        top: An interest is shown if it is ever among so many most probable ones, and ever has 5 % or came next; of
            more than 32, those with the greatest probability anywhere.
        most: Last positions of a long history.

    Returns:
        Positions in time order; the last one has read the whole history, and what came next is the first held-out
        event.
    """
    events = len(case.history_H)
    length_X = np.arange(max(1, events - most + 1), events + 1)
    state_XH = model.state(case.prefixes(length_X.tolist(), model.max_length))
    probability_XM = model.log_probs(state_XH).float().exp()
    next_X = np.concatenate([case.history_H, case.future_T[:1]])[length_X[: len(length_X) - (not len(case.future_T))]]
    true_X = np.full(len(length_X), -1)
    true_X[: len(next_X)] = model.item_interests()[torch.from_numpy(next_X)].numpy()
    top = min(top, probability_XM.shape[1])
    ever_R = torch.unique(probability_XM.topk(top, dim=1).indices)
    peak_R = probability_XM[:, ever_R].amax(dim=0)
    keep_R = (peak_R >= FAINT) | torch.isin(ever_R, torch.from_numpy(true_X))
    ever_R, peak_R = ever_R[keep_R], peak_R[keep_R]
    shown_R = ever_R[peak_R.argsort(descending=True, stable=True)[:MOST_ROWS]]
    when_R = probability_XM[:, shown_R].argmax(dim=0)
    shown_R = shown_R[when_R.argsort(stable=True)]  # by the time of the peak: a change of mind runs down the picture
    return Posterior(length_X, probability_XM.numpy(), true_X, shown_R.numpy())


def posterior_figure(found: Posterior, case: Case, names: Names) -> Any:
    """Draw a heat map: positions across, interests down, a ring around what came next.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shown = found.probability_XM[:, found.shown_R]
    grid_RX = np.concatenate([shown, np.clip(1 - shown.sum(axis=1, keepdims=True), 0, 1)], axis=1).T
    drawn = figure(3.6 + 0.3 * max(12, grid_RX.shape[1]), 3.9 + 0.24 * len(grid_RX))
    axes = drawn.subplots()
    from matplotlib.colors import PowerNorm

    image = axes.imshow(grid_RX, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=grid_RX.max()), aspect="auto")
    row_of = {int(interest): row for row, interest in enumerate(found.shown_R)}
    known = found.true_X >= 0
    rows = [row_of.get(int(interest), len(row_of)) for interest in found.true_X[known]]
    ring = {"facecolors": "none", "edgecolors": COLOURS[4], "linewidths": 1.8}
    axes.scatter(np.flatnonzero(known), rows, s=70, label="interest of the next item", **ring)
    axes.set_yticks(range(len(grid_RX)))
    called = [names.interest(int(interest)) for interest in found.shown_R]
    axes.set_yticklabels([plain(name, 36) for name in called] + ["all other interests"], fontsize=8.5)
    axes.set_xticks(range(len(found.length_X)))
    read = [names.item(int(case.history_H[length - 1])) for length in found.length_X]
    labels = [f"{plain(name, 44)}  {length}" for name, length in zip(read, found.length_X, strict=True)]
    axes.set_xticklabels(labels, rotation=90, fontsize=7.5)
    axes.set_xlabel("history, oldest first: the item read last at each position")
    axes.tick_params(length=0)
    bare(axes)
    for line in range(1, len(grid_RX)):
        axes.axhline(line - 0.5, color="#EEEEEE", lw=0.5)
    axes.axhline(len(grid_RX) - 1.5, color="#777777", lw=1)
    drawn.colorbar(image, ax=axes, label="probability of the next item's interest", shrink=0.8, pad=0.01)
    drawn.legend(loc="outside upper right", frameon=False, fontsize=9)
    drawn.suptitle(plain(f"User {case.user_id}: what the generator expects next"), fontsize=13, x=0.02, ha="left")
    return drawn
