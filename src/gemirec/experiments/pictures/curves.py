"""Training curves: a panel per loss term, validation, and the dictionary's health, with the stages marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemirec.errors import ArtifactError
from gemirec.experiments.pictures.canvas import COLOURS, INK, bare, figure, plain

HEALTH = ("utilisation", "entropy", "collisions")
"""Beginnings of the names of health numbers between 0 and 1; ``min_distance`` has a panel of its own."""
TOTAL = "loss (weighted total)"


@dataclass
class Panel:
    """One panel: named curves over the steps of training.

    Attributes:
        title: What it shows.
        curves: Name to list of ``(stage, step, value)``, in the order of the log.
    """

    title: str
    curves: dict[str, list[tuple[str, int, float]]] = field(default_factory=dict)


def panels(lines: Sequence[Mapping[str, Any]], metric: str = "recall@50") -> list[Panel]:
    """Sort the lines of a run's ``metrics.jsonl`` into panels.

    Args:
        lines: From :func:`gemirec.training.tracking.read_metrics`.
        metric: The validation metric shown.

    Returns:
        The weighted total, each unweighted term, then validation and health where the run has them.

    Raises:
        ArtifactError: There is no training line.

    Example:
        >>> lines = [{"kind": "train", "step": 5, "stage": "joint", "loss": 2.0, "loss/user": 1.0, "lr": 0.1}]
        >>> [(panel.title, panel.curves) for panel in panels(lines)]
        [('loss (weighted total)', {'loss': [('joint', 5, 2.0)]}), ('loss/user', {'loss/user': [('joint', 5, 1.0)]})]
    """
    found: dict[str, Panel] = {}
    for line in lines:
        for name, value in line.items():
            title = _panel_of(line["kind"], name, metric)
            if title and isinstance(value, (int, float)) and math.isfinite(value):
                curve = found.setdefault(title, Panel(title)).curves.setdefault(name, [])
                curve.append((line["stage"], line["step"], value))
    if not any(line["kind"] == "train" for line in lines):
        raise ArtifactError("the run has no training line yet", got=f"{len(lines)} lines", fix="let it train longer")
    order = sorted(found, key=lambda title: (title.startswith("dictionary"), title.startswith("validation")))
    return [found[title] for title in order]


def _panel_of(kind: str, name: str, metric: str) -> str:
    """Return the title of the panel that shows a number, nothing for one that is not shown."""
    if kind == "train":
        return TOTAL if name == "loss" else name if name.startswith("loss/") else ""
    if kind == "valid":
        return f"validation {metric}" if name == metric else ""
    if kind != "health":
        return ""
    if name.startswith("min_distance"):
        return "dictionary: least distance of two codes"
    return "dictionary: health" if name.startswith(HEALTH) else ""


def stage_ends(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return the stages in order, each with its first and last step.

    A stage begins where the one before it ends: the loop writes a line at the end of each.

    Example:
        >>> kinds = [("a", 50), ("a", 80), ("b", 100)]
        >>> stage_ends([{"kind": "train", "stage": stage, "step": step} for stage, step in kinds])
        [('a', 0, 80), ('b', 80, 100)]
    """
    spans: list[tuple[str, int, int]] = []
    for line in lines:
        if line["kind"] != "train":
            continue
        if spans and spans[-1][0] == line["stage"]:
            spans[-1] = (*spans[-1][:2], line["step"])
        else:
            spans.append((line["stage"], spans[-1][2] if spans else 0, line["step"]))
    return spans


def curves_figure(lines: Sequence[Mapping[str, Any]], *, metric: str = "recall@50", title: str = "") -> Any:
    """Draw the panels of a run.

    Args:
        lines: From :func:`gemirec.training.tracking.read_metrics`.
        metric: The validation metric shown.
        title: Of the picture.

    Raises:
        ArtifactError: There is no training line.
        MissingExtraError: matplotlib is not installed.
    """
    shown, spans = panels(lines, metric), stage_ends(lines)
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    drawn = figure(4.6 * across, 0.6 + 2.9 * down)
    grid = drawn.subplots(down, across, squeeze=False, sharex=True).ravel()
    for axes, panel in zip(grid, shown, strict=False):
        _draw(axes, panel, spans)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(shown) - across) : len(shown)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    drawn.suptitle(plain(title), fontsize=13)
    return drawn


def _draw(axes: Any, panel: Panel, spans: Sequence[tuple[str, int, int]]) -> None:
    """Draw one panel: each curve breaks where a stage ends."""
    styles = [(colour, dash) for dash in ("-", "--", ":") for colour in COLOURS]
    for (name, points), (colour, dash) in zip(panel.curves.items(), styles, strict=False):
        label: str | None = plain(name)
        for stage, begin, end in spans:
            part = [(step, value) for _, step, value in points if begin < step <= end and stage]
            if part:
                marker = "o" if len(part) == 1 else None
                axes.plot(*zip(*part, strict=True), color=colour, ls=dash, lw=1.7, marker=marker, ms=4, label=label)
                label = None
    for number, (stage, begin, end) in enumerate(spans):
        if number:
            axes.axvline(begin, color="#999999", lw=1, ls=(0, (4, 3)))
        if len(spans) > 1:
            axes.text(
                (begin + end) / 2,
                1.01,
                plain(stage),
                transform=axes.get_xaxis_transform(),
                ha="center",
                fontsize=8,
                color="#555555",
            )
    axes.set_xlim(0, spans[-1][2])
    axes.set_title(plain(panel.title), fontsize=10.5, pad=14, color=INK)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    bare(axes, keep=("left", "bottom"))
    if len(panel.curves) > 1:
        axes.legend(fontsize=7.5, frameon=False)
