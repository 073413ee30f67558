"""How long work shows that it moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gemirec.training.progress import Progress


class Watcher(Protocol):
    """What the command line's reporter offers; :class:`Silent` for none."""

    def note(self, text: str) -> None:
        """Say that something begins or has ended."""

    def staged(self, stage: str, fraction: float) -> None:
        """Show how much of a stage is done."""

    def counted(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``."""

    def training(self, now: Progress) -> None:
        """Show the state of the training loop."""


class Silent:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def staged(self, stage: str, fraction: float) -> None:
        """Show nothing."""

    def counted(self, done: int, total: int) -> None:
        """Show nothing."""

    def training(self, now: Progress) -> None:
        """Show nothing."""
