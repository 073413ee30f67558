"""Checkpoints that survive ``kill -9`` at any moment.

A checkpoint is a folder of its own, named by its step; which one is ``last`` and which is ``best`` stands in one small
file that is replaced atomically::

    checkpoints/index.json                    {"last": "step-00000500", "best": "step-00000250"}
    checkpoints/step-00000500/model.safetensors
                              optimizer.safetensors
                              state.json

A folder is complete before the index names it, and is deleted only after the index has stopped naming it. So there is
always a valid ``last``, whenever the process dies.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch

from gemirec.artifacts import (
    FORMAT_VERSION,
    atomic_dir,
    check_format,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from gemirec.errors import ArtifactError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

Which = Literal["last", "best"]


class TrainState(msgspec.Struct, kw_only=True):
    """Where a run stands. There is no random state in it: everything random derives from (seed, step)."""

    step: int = 0
    """Optimiser steps done."""
    stage: str = ""
    """Stage of the last step done."""
    best_metric: float | None = None
    """Best value of the validation metric so far, in the last stage."""
    best_step: int = 0
    bad_validations: int = 0
    """Validations since the best one."""
    stopped: bool = False
    """Whether early stopping has ended the run."""
    seconds: float = 0.0
    """Time spent in training steps, over all processes that worked on this run, validation not counted."""
    examples: int = 0
    """Training windows seen."""
    scaler: dict[str, float] = {}
    """State of the fp16 loss scaler; empty without one."""
    versions: dict[str, str] = {}
    format_version: int = FORMAT_VERSION


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of all optimisers as flat named tensors: ``<optimiser>.<parameter number>.<entry>``."""
    return {
        f"{name}.{number}.{key}": torch.as_tensor(value)
        for name, optimizer in optimizers.items()
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def restore_optimizer(optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` returned; learning rates and the like stay those of ``optimizers``."""
    states: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in optimizers}
    for path, tensor in tensors.items():
        name, number, key = path.split(".", 2)
        if name not in states:
            raise ArtifactError(
                "a checkpoint was written with another optimiser",
                got=f"state of {name!r}; this run has {', '.join(sorted(states))}",
                fix="resume with the configuration that wrote the checkpoint",
            )
        states[name].setdefault(int(number), {})[key] = tensor
    for name, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states[name], "param_groups": groups})


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: The run folder; checkpoints go to ``run/checkpoints``.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "checkpoints"

    def index(self) -> dict[str, str]:
        """Return which folder is ``last`` and which is ``best``; empty before the first checkpoint.

        Raises:
            ArtifactError: The index is damaged or names a folder that is not there.
        """
        file = self.path / "index.json"
        if not file.exists():
            return {}
        index = read_json(file)
        if not isinstance(index, dict) or not all((self.path / str(name)).is_dir() for name in index.values()):
            raise ArtifactError(
                "the checkpoint index is damaged: it names a folder that is not there",
                got=f"{file}: {index}",
                fix="restore the folder, or train again into another one",
            )
        return {str(key): str(value) for key, value in index.items()}

    def folder(self, which: Which) -> Path:
        """Return the folder of the ``last`` or ``best`` checkpoint.

        Raises:
            ArtifactError: There is none.
        """
        index = self.index()
        if which not in index:
            raise ArtifactError(f"there is no {which!r} checkpoint", got=self.path, fix="train for longer first")
        return self.path / index[which]

    def save(
        self, state: TrainState, model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], *, best: bool
    ) -> None:
        """Write a checkpoint, make it ``last`` (and ``best`` if so), then delete what neither names.

        Raises:
            TrainingError: A parameter is not finite; nothing is written.
            StorageError: The disk refuses; the checkpoints before are untouched.
        """
        tensors = model.state_dict()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
                raise TrainingError(
                    f"the parameter {name!r} is not finite",
                    got=f"after step {state.step}",
                    fix="lower training.learning_rate or set training.clip_norm; the checkpoints before are kept",
                )
        name = f"step-{state.step:08d}"
        with atomic_dir(self.path / name, overwrite=True) as folder:
            save_tensors(folder / "model.safetensors", tensors)
            save_tensors(folder / "optimizer.safetensors", optimizer_tensors(optimizers))
            write_json(folder / "state.json", msgspec.to_builtins(state))
        index = self.index()
        index["last"] = name
        if best:
            index["best"] = name
        write_json(self.path / "index.json", index)
        self.clean()

    def clean(self) -> None:
        """Delete every folder that the index does not name: older checkpoints, and halves left by a killed process."""
        if not self.path.is_dir():
            return
        named = {"index.json", *self.index().values()}
        for entry in self.path.iterdir():
            if entry.name in named:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def load(
        self, which: Which, model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer] | None = None
    ) -> TrainState:
        """Load a checkpoint into ``model`` and, if given, ``optimizers``.

        Raises:
            ArtifactError: A file is missing, cut, damaged, of another version, or of another model.
        """
        folder = self.folder(which)
        state = read_state(folder)
        load_model(folder, model)
        if optimizers is not None:
            restore_optimizer(optimizers, load_tensors(folder / "optimizer.safetensors"))
        return state


def read_state(folder: Path) -> TrainState:
    """Read ``state.json`` of a checkpoint folder."""
    raw = read_json(folder / "state.json")
    check_format("checkpoint", raw.get("format_version") if isinstance(raw, dict) else None, folder)
    try:
        return msgspec.convert(raw, TrainState)
    except msgspec.ValidationError as error:
        raise ArtifactError(
            "a checkpoint's state.json is damaged", got=f"{folder}: {error}", fix="take another checkpoint"
        ) from error


def load_model(folder: Path, model: nn.Module) -> None:
    """Load ``model.safetensors`` of ``folder`` into ``model``, every name and shape checked."""
    found: dict[str, Any] = load_tensors(folder / "model.safetensors")
    own = model.state_dict()
    wrong = sorted(found.keys() ^ own.keys()) or [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if found[name].shape != tensor.shape
    ]
    if wrong:
        raise ArtifactError(
            "a checkpoint does not fit the model",
            got=f"{folder}: {', '.join(wrong[:5])}",
            fix="build the model with the configuration and dataset that the checkpoint was trained with",
        )
    model.load_state_dict(found)
