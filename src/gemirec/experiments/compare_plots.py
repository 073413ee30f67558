"""The figures of a comparison's report, for one data set; a figure is ``None`` if there is nothing to draw."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

from gemirec.experiments.pictures.canvas import COLOURS, INK, bare, figure, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Row = Mapping[str, Any]
    Style = Mapping[str, tuple[str, str]]

DASHES = ("-", "--", ":", "-.")
WIDTH = 10.0
OFFSET = {"textcoords": "offset points"}


def styles(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a dash for every model, the same in all figures.

    Example:
        >>> styles(["a", "b"])["b"]
        ('#E69F00', '-')
    """
    kinds = [(colour, dash) for dash, colour in product(DASHES, COLOURS)]
    return {model: kinds[number % len(kinds)] for number, model in enumerate(models)}


def standing(rows: Sequence[Row], metric: str, style: Style) -> Any:
    """Draw a metric of every model with its interval over users, the highest on top; beside it, against collapse."""
    shown = sorted((row for row in rows if metric in row["metrics"]), key=lambda row: row["metrics"][metric]["mean"])
    if not shown:
        return None
    drawn = figure(WIDTH, 1.2 + max(2.2, 0.3 * len(shown)))
    left, right = drawn.subplots(1, 2)
    for place, row in enumerate(shown):
        value, (colour, _) = row["metrics"][metric], style[row["model"]]
        if value["low"] is not None:
            left.plot([value["low"], value["high"]], [place, place], color=colour, lw=2, alpha=0.5)
        left.plot([value["mean"]], [place], "o", color=colour, ms=6)
        if "int_cos" in row["metrics"]:
            cosine = row["metrics"]["int_cos"]["mean"]
            right.plot([cosine], [value["mean"]], "o", color=colour, ms=6)
            right.annotate(plain(row["model"]), (cosine, value["mean"]), fontsize=8, xytext=(4, 4), **OFFSET)
    left.set_yticks(range(len(shown)), [plain(row["model"]) for row in shown], fontsize=9)
    _dress(left, metric, "", f"{metric}, interval over users")
    _dress(right, "mean cosine of two interests (int_cos)", metric, "recall and collapse, models with K > 1")
    return drawn


def learning(lines: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], metric: str, style: Style) -> Any:
    """Draw validation and training loss over the steps, a line per run.

    Args:
        lines: By model, the lines of each run's ``metrics.jsonl``, the first seed first (drawn bold).
        metric: The validation metric.
        style: Of :func:`styles`.

    Losses of two models, or of two stages, are different things: each stage's curve is divided by its first value.
    """
    if not any(line["kind"] == "train" for runs in lines.values() for run in runs for line in run):
        return None
    drawn = figure(WIDTH, 3.9)
    left, right = drawn.subplots(1, 2)
    for model, runs in lines.items():
        colour, dash = style[model]
        for number, run in enumerate(runs):
            look: dict[str, Any] = {"color": colour, "ls": dash, "lw": 1.7 if number == 0 else 0.8}
            look["alpha"] = 1.0 if number == 0 else 0.5
            valid = [(line["step"], line[metric]) for line in run if line["kind"] == "valid" and metric in line]
            name = plain(model) if number == 0 else None
            if valid and any(line["kind"] == "train" for line in run):
                left.plot(*zip(*valid, strict=True), **look, marker="o", ms=2.5)
            for part in _stages(run) if number == 0 else ():
                right.plot(*zip(*part, strict=True), **look, label=name)
                name = None
    _dress(left, "step", "", f"validation {metric}")
    _dress(right, "step", "", "training loss, each stage from 1")
    right.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


def _stages(run: Sequence[Mapping[str, Any]]) -> Iterator[list[tuple[int, float]]]:
    """Yield each stage's training loss, divided by its first value, where that can be done."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run:
        if line["kind"] == "train" and math.isfinite(line["loss"]):
            found.setdefault(line["stage"], []).append((line["step"], line["loss"]))
    for points in found.values():
        if points[0][1] > 0:
            yield [(step, value / points[0][1]) for step, value in points]


def first_interests(views: Mapping[str, Row], rows: Sequence[Row], metric: str, style: Style) -> Any:
    """Draw a metric over the number of interests: served with the first k of them, and trained with K.

    Args:
        views: By model, what :func:`gemirec.experiments.compare_views.views` found.
        rows: The table's rows: variants that differ in ``num_interests`` alone make a line of models trained with K.
        metric: The metric.
        style: Of :func:`styles`.
    """
    served = {model: view["first_k"] for model, view in views.items() if view["first_k"]}
    trained = {base: points for base, points in trained_with(rows, metric).items() if len(points) > 1}
    if not served and not trained:
        return None
    drawn = figure(WIDTH, 3.9)
    panels = drawn.subplots(1, bool(served) + bool(trained), squeeze=False)[0]
    for model, points in served.items():
        colour, dash = style[model]
        x, y = [point["k"] for point in points], [point[metric] for point in points]
        panels[0].plot(x, y, color=colour, ls=dash, marker="o", ms=4, label=plain(model))
    if served:
        _dress(panels[0], "k", metric, "one trained model, served with its first k interests")
    for (base, pairs), colour in zip(trained.items(), COLOURS * 3, strict=False):
        panels[-1].plot(*zip(*pairs, strict=True), color=colour, marker="s", ms=5, label=plain(base))
    if trained:
        _dress(panels[-1], "K", metric, "models trained with K interests")
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


def trained_with(rows: Sequence[Row], metric: str) -> dict[str, list[tuple[int, float]]]:
    """Return ``(K, value)`` of rows of one data set that differ in ``num_interests`` alone, by their base model."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        model = dict(row["config"]["model"])
        count = model.pop("num_interests", None)
        if count is not None and metric in row["metrics"]:
            rest = str((sorted(model.items()), sorted(row["config"]["training"].items())))
            groups.setdefault(row["base"], {}).setdefault(rest, []).append((count, row["metrics"][metric]["mean"]))
    longest = {base: max(kinds.values(), key=len) for base, kinds in groups.items()}
    return {base: sorted(points) for base, points in longest.items()}


def diversity(views: Mapping[str, Row], metric: str, other: str, style: Style) -> Any:
    """Draw recall against category diversity as ComiRec's lambda grows; a ring marks lambda 0."""
    shown = {model: [p for p in view["trade_off"] if other in p] for model, view in views.items()}
    shown = {model: points for model, points in shown.items() if points}
    if not shown:
        return None
    drawn = figure(WIDTH, 4.4)
    axes = drawn.subplots()
    for model, points in shown.items():
        colour, dash = style[model]
        x, y = [p[other] for p in points], [p[metric] for p in points]
        axes.plot(x, y, color=colour, ls=dash, marker="o", ms=3.5, label=plain(model))
        axes.plot(x[:1], y[:1], "o", ms=9, mfc="none", mec=colour)
    _dress(
        axes, f"category {other}", metric, "ComiRec's greedy aggregation: recall for diversity, lambda from 0 (ring) up"
    )
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


def heat(views: Mapping[str, Row]) -> Any:
    """Draw the mean cosine of every pair of interests, a square per model with more than one interest."""
    shown = {model: view["cosine_KK"] for model, view in views.items() if len(view["cosine_KK"]) > 1}
    if not shown:
        return None
    across = min(5, len(shown))
    down = math.ceil(len(shown) / across)
    drawn = figure(WIDTH * across / 5 + 0.9, 2.35 * down)
    grid = drawn.subplots(down, across, squeeze=False).ravel()
    image = None
    for axes, (model, cosine_KK) in zip(grid, shown.items(), strict=False):
        value_KK = [[math.nan if value is None else value for value in row] for row in cosine_KK]
        image = axes.imshow(value_KK, vmin=-1, vmax=1, cmap="RdBu_r")
        if len(value_KK) <= 6:
            for i, j in product(range(len(value_KK)), repeat=2):
                ink = "white" if abs(value_KK[i][j]) > 0.65 else INK
                axes.text(j, i, f"{value_KK[i][j]:.2f}", ha="center", va="center", fontsize=6.5, color=ink)
        axes.set_title(plain(model), fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    drawn.colorbar(image, ax=list(grid), shrink=0.8, label="mean cosine")
    return drawn


def _dress(axes: Any, across: str, up: str, title: str) -> None:
    """Give axes their names, a title and a quiet frame."""
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.set_title(plain(title), fontsize=10, color=INK)
    axes.grid(color="#E6E6E6", lw=0.8)
    bare(axes, keep=("left", "bottom"))
