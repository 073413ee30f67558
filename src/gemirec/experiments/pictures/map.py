"""The item map: items, a user's history, interests and future in one picture, for one model or two side by side.

Axes: N items of the whole catalogue (entry 0 is padding), S items drawn, K interests, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from gemirec.experiments.pictures.canvas import COLOURS, GREY, INK, bare, figure, plain
from gemirec.recommender.projection import tsne

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.experiments.pictures.case import Case, Names
    from gemirec.models.base import RetrievalModel

NEAREST = 20
"""Items that say what an interest is about."""
_SIDES = [
    (sx * far, sy * far) for far in (9, 26, 44, 62) for sx, sy in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0))
]
"""Where a label may stand beside its point, in points; the first that is free is taken."""
_HIGH = 13
"""Height of a label, in points."""


@dataclass(frozen=True)
class ItemMap:
    """One panel.

    Attributes:
        title: Name of the model.
        item_S: ``[S]`` int64 item indices.
        xy_S2: ``[S, 2]`` float32, their places.
        xy_K2: ``[K, 2]`` float32, places of the interests.
        label_K: What stands beside each interest: its number and, where the model gives one, its probability.
        about_K: What each interest is: its codes, and the most frequent category of the items nearest to it.
    """

    title: str
    item_S: NDArray[np.int64]
    xy_S2: NDArray[np.float32]
    xy_K2: NDArray[np.float32]
    label_K: list[str]
    about_K: list[str]


@dataclass(frozen=True)
class Key:
    """What the colours mean.

    Attributes:
        label_N: ``[N + 1]`` label of each item.
        shown: Labels with a colour of their own, in the order of the legend; all others are grey.
        names: What each of those is called.
        what: What a label is: a level-1 code, or a category.
    """

    label_N: NDArray[np.int64]
    shown: list[int]
    names: list[str]
    what: str

    def colours(self, item_S: NDArray[np.int64]) -> list[str]:
        """Return the colour of each item."""
        colour = dict(zip(self.shown, COLOURS, strict=False))
        return [colour.get(int(label), GREY) for label in self.label_N[item_S]]


def sample_items(train_count_N: NDArray[np.int64], case: Case, most: int, seed: int = 1) -> NDArray[np.int64]:
    """Return ``[S]`` item indices, ascending: the user's own, and others drawn from those with training events."""
    own = np.unique(np.concatenate([case.history_H, case.future_T]))
    rest = np.setdiff1d(np.flatnonzero(train_count_N > 0), own)
    count = min(len(rest), max(most - len(own), 0))
    drawn = np.random.default_rng(seed).choice(rest, size=count, replace=False)
    return np.sort(np.concatenate([own, drawn])).astype(np.int64)


@torch.no_grad()
def item_map(model: RetrievalModel, case: Case, item_S: NDArray[np.int64], names: Names, title: str) -> ItemMap:
    """Lay items and the user's interests out in one t-SNE map.

    All vectors are L2-normalised first: near means a large cosine. Interests are points like the items, so that each
    lands among the items that it is most similar to.

    Args:
        model: Any trained model.
        case: The user.
        item_S: ``[S]`` item indices to draw.
        names: For the categories.
        title: Of the panel.
    """
    found = model.interests(case.now(model.max_length))
    real_K = found.mask_BK[0]
    vector_KD = F.normalize(found.vector_BKD[0][real_K].float(), dim=-1)
    all_ND = model.item_vectors().float()
    unit_ND = F.normalize(all_ND, dim=-1)
    xy_X2 = tsne(torch.cat([unit_ND[torch.from_numpy(item_S)], vector_KD]), guests=len(vector_KD)).numpy()
    near_KX = (found.vector_BKD[0][real_K].float() @ all_ND[1:].T).topk(min(NEAREST, len(all_ND) - 1)).indices + 1
    labels = [str(number) for number in range(1, len(vector_KD) + 1)]
    if found.weight_BK is not None:
        labels = [f"{n} ({weight:.0%})" for n, weight in zip(labels, found.weight_BK[0][real_K].tolist(), strict=True)]
    about = [names.most(near_X) for near_X in near_KX.numpy()]
    if found.code_BKC is not None:
        paths = [".".join(map(str, codes)) for codes in found.code_BKC[0][real_K].tolist()]
        kinds = ["the user's own vector" if path.startswith("-") else f"code {path}" for path in paths]
        about = [f"{kind}; {text}".removesuffix("; ") for kind, text in zip(kinds, about, strict=True)]
    return ItemMap(title, item_S, xy_X2[: len(item_S)], xy_X2[len(item_S) :], labels, about)


def colour_key(label_N: NDArray[np.int64], case: Case, names: Names, what: str) -> Key:
    """Choose the labels that get a colour: those of the user's items first, most frequent first, then the largest.

    Args:
        label_N: ``[N + 1]`` label of each item; entry 0 is not read.
        case: The user.
        names: For the categories.
        what: ``code`` or ``category``: how a label is called.
    """
    size = np.bincount(label_N[1:])
    own = np.bincount(label_N[np.concatenate([case.history_H, case.future_T])], minlength=len(size))
    order = np.lexsort((-size, -own))
    shown = [int(label) for label in order[: len(COLOURS)] if size[label]]
    if what == "category":
        called = [names.label(label) for label in shown]
    else:
        called = [f"{what} {label}  {names.most(np.flatnonzero(label_N[1:] == label) + 1)}".rstrip() for label in shown]
    return Key(label_N, shown, called, what)


def map_figure(maps: Sequence[ItemMap], case: Case, key: Key, num_items: int) -> Any:
    """Draw one panel per map.

    Args:
        maps: The panels.
        case: The user of all of them.
        key: The colours of all of them.
        num_items: N, for the title.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = figure(6.4 * len(maps) + 2.6, 7.2)
    panels = drawn.subplots(1, len(maps), squeeze=False)[0]
    for axes, panel in zip(panels, maps, strict=True):
        _draw(axes, panel, case, key)
    drawn.legend(handles=_legend(key), loc="outside right center", frameon=False, fontsize=9)
    drawn.suptitle(
        plain(f"User {case.user_id}: t-SNE map of {len(maps[0].item_S):,} of {num_items:,} items"), fontsize=13
    )
    return drawn


def _draw(axes: Any, panel: ItemMap, case: Case, key: Key) -> None:
    """Draw items, then history, future and interests on top."""
    axes.scatter(*panel.xy_S2.T, s=9, c=key.colours(panel.item_S), alpha=0.75, linewidths=0, zorder=1)
    for items, marker, size, order in ((case.history_H, "o", 62, 3), (case.future_T, "*", 230, 4)):
        own = np.unique(items)
        place = np.searchsorted(panel.item_S, own)
        axes.scatter(
            *panel.xy_S2[place].T,
            s=size,
            c=key.colours(own),
            marker=marker,
            edgecolors=INK,
            linewidths=0.9,
            zorder=order,
        )
    axes.scatter(*panel.xy_K2.T, s=190, c="white", marker="X", linewidths=0, zorder=5)
    axes.scatter(*panel.xy_K2.T, s=110, c="black", marker="X", linewidths=0, zorder=6)
    axes.set_title(plain(panel.title), fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])
    bare(axes)
    axes.set_aspect("equal", adjustable="datalim")
    _write_labels(axes, panel)
    head = f"Interests{' (probability)' if '(' in panel.label_K[0] else ''}: "
    head += f"most frequent category of the {NEAREST} nearest items" if any(panel.about_K) else "numbered as above"
    about = [f"{label}  {text}" for label, text in zip(panel.label_K, panel.about_K, strict=True)]
    axes.set_xlabel(plain("\n".join([head, *about])), fontsize=8.5, loc="left")
    axes.xaxis.label.set_linespacing(1.35)
    axes.xaxis.label.set_multialignment("left")


def _write_labels(axes: Any, panel: ItemMap) -> None:
    """Write each interest's label on the side where it meets the fewest other labels and crosses."""
    from matplotlib.patheffects import withStroke

    axes.margins(0.09)
    axes.autoscale_view()
    axes.apply_aspect()
    point_K2 = axes.transData.transform(panel.xy_K2) * 72 / axes.figure.dpi
    taken = [(float(x), float(y), 8.0) for x, y in point_K2]
    for place, (x, y), label in zip(panel.xy_K2, point_K2, panel.label_K, strict=True):
        side = _free_side(float(x), float(y), 3.4 * len(label), taken)
        axes.annotate(
            plain(label),
            place,
            xytext=side,
            textcoords="offset points",
            ha="left" if side[0] > 0 else "right",
            va="center",
            fontsize=10,
            fontweight="bold",
            zorder=7,
            arrowprops={"arrowstyle": "-", "lw": 0.8, "color": INK, "shrinkB": 4},
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _free_side(x: float, y: float, half: float, taken: list[tuple[float, float, float]]) -> tuple[int, int]:
    """Return where a label of half-width ``half`` stands beside a point, and add it to ``taken``.

    Args:
        x: Of the point, in typographic points, as all lengths here.
        y: Of the point.
        half: Half the label's width.
        taken: Middles and half-widths of what is there already.
    """
    best, least = _SIDES[0], math.inf
    for side in _SIDES:
        mx, my = x + side[0] + math.copysign(half, side[0]), y + side[1]
        overlap = sum(
            max(0.0, half + other + 3 - abs(mx - tx)) * max(0.0, _HIGH - abs(my - ty)) for tx, ty, other in taken
        )
        if overlap < least:
            best, least = side, overlap
    taken.append((x + best[0] + math.copysign(half, best[0]), y + best[1], half))
    return best


def _legend(key: Key) -> list[Any]:
    """Return what the legend shows: the three kinds of points, then the colours."""
    from matplotlib.lines import Line2D

    def entry(marker: str, size: float, colour: str, label: str, edge: str = "none") -> Any:
        return Line2D(
            [], [], ls="", marker=marker, ms=size, mfc=colour, mec=edge, mew=0.9 if edge != "none" else 0, label=label
        )

    kinds = [
        entry("o", 8, "white", "history", INK),
        entry("*", 15, "white", "future (held out)", INK),
        entry("X", 11, "black", "interest of the model"),
    ]
    colours = [
        entry("o", 7, colour, plain(name, 38))
        for name, colour in zip(key.names, COLOURS[: len(key.names)], strict=True)
    ]
    return [*kinds, *colours, entry("o", 7, GREY, {"category": "other categories"}.get(key.what, "other codes"))]
