"""An engine with the requests that hold on to it, and the place that a variant serves from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemirec.serving.engine import Engine


class Served:
    """An engine and the requests in flight that hold on to it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests = 0
        self.retired = False

    @contextlib.contextmanager
    def held(self) -> Iterator[Engine]:
        """Hold the engine for a request: it is not closed before the last of them is done."""
        self.requests += 1
        try:
            yield self.engine
        finally:
            self.requests -= 1
            self.close_if_done()

    def close_if_done(self) -> None:
        """Close a retired engine that nobody holds."""
        if self.retired and not self.requests:
            self.engine.close()


@dataclass
class Slot:
    """What a variant serves; without a traffic split there is variant A alone."""

    artifact: Path
    served: Served
