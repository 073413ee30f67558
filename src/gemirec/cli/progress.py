"""Progress on stderr: a live line on a terminal, a plain line now and then everywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemirec.training.progress import Progress

PLAIN_EVERY_S = 5.0
"""Seconds between plain lines."""


class Reporter:
    """Callbacks for everything that takes time; use it as a context manager.

    Args:
        quiet: Print nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._last = 0.0
        self._shown = ""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_live_line()

    def note(self, text: str) -> None:
        """Say that something begins or has ended; always shown, on a line of its own."""
        if not self._quiet:
            self._end_live_line()
            print(text, file=sys.stderr, flush=True)

    def status(self, text: str, *, done: bool = False) -> None:
        """Show a state that the next one replaces."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._live:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
            self._shown = text
        elif done or now - self._last >= PLAIN_EVERY_S:
            self._last = now
            print(text, file=sys.stderr, flush=True)

    def staged(self, stage: str, fraction: float) -> None:
        """Show how much of a stage is done."""
        self.status(f"  {stage} {fraction:.0%}", done=False)

    def counted(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``."""
        share = f" ({done / total:.0%})" if total else ""
        self.status(f"  {done:,} of {total:,}{share}", done=done >= total)

    def training(self, now: Progress) -> None:
        """Show the state of the training loop."""
        text = f"  step {now.step:,}/{now.steps:,}  loss {now.loss:.4f}  {now.examples_per_s:,.0f} examples/s"
        if now.value is not None and now.best is not None:
            text += f"  {now.metric} {now.value:.4f} (best {now.best:.4f})"
        self.status(text, done=now.step >= now.steps)

    def _end_live_line(self) -> None:
        if self._shown:
            print(file=sys.stderr, flush=True)
            self._shown = ""
