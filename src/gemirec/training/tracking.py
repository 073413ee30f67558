"""Where the numbers of a run go: ``metrics.jsonl`` always, TensorBoard if it is installed.

One JSON object per line. Training lines: ``kind`` "train", ``step``, ``stage``, ``loss`` (weighted total),
``loss/<term>`` of every term (unweighted mean since the line before), ``lr``, ``item_lr``, ``examples_per_s``.
Validation lines: ``kind`` "valid", ``step``, ``stage``, every metric, ``seconds``.
Health lines: ``kind`` "health", ``step``, ``stage``, every finite number of the model's ``diagnostics``, and ``alarm``:
1 if the model says that its inner state has gone wrong, else 0. Models that have diagnostics (GemiRec, once there is a
dictionary) write them every ``training.eval_every`` steps and at the end of each stage.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gemirec.artifacts import atomic_file, translate_os_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Tracker:
    """Appends lines to ``run/metrics.jsonl`` and scalars to ``run/tensorboard``.

    Args:
        run: The run folder.
        step: The step that the run continues from, ``None`` for a fresh run. Lines of later steps, and a half-written
            last line, are removed, so that no step stands twice; TensorBoard is told to drop them too.
        tensorboard: Whether to write TensorBoard files if the package is installed.
    """

    def __init__(self, run: Path, *, step: int | None = None, tensorboard: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in read_metrics(run) if line["step"] <= step] if step is not None else []
            with atomic_file(self.path) as tmp:
                tmp.write_text("".join(_dump(line) for line in kept), encoding="utf-8")
        with translate_os_errors(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        self._board = _summary_writer(run / "tensorboard", step) if tensorboard else None

    def log(self, kind: str, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Write one line; it is in the operating system's hands when this returns."""
        with translate_os_errors(self.path):
            self._file.write(_dump({"kind": kind, "step": step, "stage": stage, **values}))
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of ``run/metrics.jsonl``; a line cut by a killed process is left out."""
    lines = []
    with translate_os_errors(run), (run / "metrics.jsonl").open(encoding="utf-8") as stream:
        for text in stream:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _summary_writer(folder: Path, step: int | None) -> Any:
    """Return a TensorBoard writer, or ``None`` where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=None if step is None else step + 1)
