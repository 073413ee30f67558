"""Figures without a window and without matplotlib's global state.

matplotlib is the optional extra ``plots``: it is imported when a figure is made, and its objects are ``Any`` here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemirec.artifacts import atomic_file
from gemirec.errors import MissingExtraError

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F")
"""Told apart with any common colour vision: Okabe and Ito's, with a dark ochre in place of yellow, pale on white."""
GREY, INK = "#C9C9C9", "#222222"
DPI = 110


def figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of ``width`` x ``height`` inches, drawn by Agg and known to no ``pyplot``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plots", "matplotlib") from None
    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(drawn: Any, path: Path) -> Path:
    """Write a figure as PNG; the file appears whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # titles in scripts that the font lacks
        with atomic_file(path) as tmp:
            drawn.savefig(tmp, format="png")
    return path


def plain(text: str, most: int = 0) -> str:
    r"""Return text that matplotlib shows as it stands, cut to ``most`` characters if that is not 0.

    Example:
        >>> print(plain("costs $5 to $9", 10))
        costs \$5…
    """
    if most and len(text) > most:
        text = text[: most - 1].rstrip() + "…"
    return text.replace("$", r"\$")


def bare(axes: Any, *, keep: Iterable[str] = ()) -> None:
    """Take the frame off, but for the sides in ``keep``."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
