"""How a run shows that it moves: a callback with plain numbers, and a bar for terminals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


@dataclass(frozen=True)
class Progress:
    """State of a run at a log line or validation.

    Attributes:
        step: Steps done.
        steps: Most steps of the run.
        stage: Name of the stage.
        loss: Mean weighted loss since the report before.
        examples_per_s: Training windows per second since the report before.
        metric: Name of the validation metric.
        value: Its latest value, ``None`` before the first validation.
        best: Its best value so far, ``None`` before the first validation.
    """

    step: int
    steps: int
    stage: str
    loss: float
    examples_per_s: float
    metric: str
    value: float | None
    best: float | None


ProgressCallback = Callable[[Progress], None]


@contextlib.contextmanager
def progress_bar(console: Console | None = None) -> Iterator[ProgressCallback]:
    """Yield a callback for :func:`~gemirec.training.loop.train` that draws one rich progress bar.

    Args:
        console: Where to draw; ``None`` takes standard error.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Bar(*columns, console=console or Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None, numbers="")

        def show(now: Progress) -> None:
            numbers = f"loss {now.loss:.4f}  {now.examples_per_s:,.0f} examples/s"
            if now.value is not None and now.best is not None:
                numbers += f"  {now.metric} {now.value:.4f} (best {now.best:.4f})"
            bar.update(task, description=now.stage, completed=now.step, total=now.steps, numbers=numbers, refresh=True)

        yield show
