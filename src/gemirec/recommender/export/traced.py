"""What a request needs of a model, as modules of plain tensors that torch can trace.

Axes: B batch, L length of the history as given, M that the model reads, K interests, k those of the cache, D embedding,
F categorical and G numeric user features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.selection import Selected
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests, RetrievalModel
from gemirec.models.dmi import DMI
from gemirec.models.gemirec import GemiRec
from gemirec.models.gemirec.online import OnlinePath

if TYPE_CHECKING:
    from gemirec.components.denoiser import Denoiser


class Case(NamedTuple):
    """Inputs of a graph by name, and the outputs by name that the model itself gives for them."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class HistoryGraph(nn.Module):
    """Histories to interests: the whole model.

    Args:
        model: In ``eval`` mode.

    Attributes:
        dynamic: Axes of each input and output whose size is free.
    """

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model
        spec = model.spec
        self.names = ["item"]
        if spec.user_categorical_sizes:
            self.names.append("categorical")
        if spec.num_user_numeric:
            self.names.append("numeric")
        self._features = tuple(self.names[1:])

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Names of the free axes of inputs and outputs."""
        axes = {name: {0: "batch"} for name in (*self.names, "vector", "mask", "weight")}
        return axes | {"item": {0: "batch", 1: "length"}}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return ``vector`` ``[B, K, D]``, ``mask`` ``[B, K]`` and, where the model has one, ``weight`` ``[B, K]``.

        Args:
            *inputs: As :attr:`names` has them: ``item`` ``[B, L]`` int64 item indices, oldest first, 0 behind; with
                user features ``categorical`` ``[B, F]`` int64 and ``numeric`` ``[B, G]`` float32.
        """
        return tuple(_named(self.model.interests(self._histories(inputs))).values())

    def case(self, histories: Histories) -> Case:
        """Return inputs, and what the model says of their last M items."""
        inputs = self._inputs(histories)
        return Case(inputs, _named(self.model.interests(self._histories(tuple(inputs.values())))))

    def _inputs(self, histories: Histories) -> dict[str, Tensor]:
        found = {"item": histories.item_BL}
        for name, value in (("categorical", histories.user_categorical_BF), ("numeric", histories.user_numeric_BG)):
            if name in self._features:
                assert value is not None
                found[name] = value
        return found

    def _histories(self, inputs: tuple[Tensor, ...]) -> Histories:
        """Return histories as wide as the model reads."""
        item_BM = last_items(inputs[0], self.model.max_length)
        found = dict(zip(self._features, inputs[1:], strict=False))
        return Histories(item_BM, found.get("categorical"), found.get("numeric"))


class FusionGraph(HistoryGraph):
    """Histories and cached indices of a dictionary to interests: user tower and fusion, without the generator.

    Args:
        model: GemiRec, or DMI over it, in ``eval`` mode.

    Raises:
        ConfigError: The generator is not trained, or the model serves the user's own vector alone.
    """

    def __init__(self, model: GemiRec | DMI) -> None:
        super().__init__(model)
        base = model.base if isinstance(model, DMI) else model
        assert isinstance(base, GemiRec)
        k = base.config.num_interests - base.config.keep_user_vector
        if int(base.phase) < 2 or k < 1:
            raise ConfigError(
                "the model serves no interest of its dictionary, so there is nothing to fuse",
                got=f"stage {int(base.phase)} of 2, {k} interests",
                fix="train it to its last stage with a larger model.num_interests, or leave out the graph: --which",
            )
        self.base = base
        self.refiner = model if isinstance(model, DMI) else None
        self.fused = OnlinePath(base)
        self.names += ["interest", "log_probability"]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`HistoryGraph.forward` does.

        Args:
            *inputs: Those of :meth:`HistoryGraph.forward`, then ``interest`` ``[B, k]`` int64 indices of the
                dictionary, -1 where missing, and ``log_probability`` ``[B, k]`` float32, -inf where missing.
        """
        histories = self._histories(inputs)
        found = self.fused(histories, Selected(*inputs[-2:]))
        if self.refiner is not None:
            found = self.refiner.interests(histories, found)
        return tuple(_named(found).values())

    def case(self, histories: Histories) -> Case:
        """Return inputs, the indices being those that the generator selects, and what the model says."""
        inputs = self._inputs(histories)
        wide = self._histories(tuple(inputs.values()))
        chosen = self.base.select(self.base.state(wide))
        inputs |= {"interest": chosen.index_Bk, "log_probability": chosen.logp_Bk}
        return Case(inputs, _named(self.model.interests(wide)))


class DenoiserGraph(nn.Module):
    """One step of DMI's reverse process: :meth:`gemirec.components.denoiser.Denoiser.forward`."""

    def __init__(self, model: DMI) -> None:
        super().__init__()
        self.denoiser: Denoiser = model.denoiser
        self.model = [model]  # in a list: its parameters are no part of the graph
        guided = self.denoiser.guide_gate_D is not None
        self.names = ["noised", "step", "item_vector", "mask", *(["guide"] if guided else [])]

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Names of the free axes of inputs and outputs."""
        both, one = {0: "batch", 1: "length"}, {0: "batch"}
        axes = dict.fromkeys((*self.names, "clean"), one)
        return axes | {"item_vector": both, "mask": both}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return ``clean`` ``[B, K, D]``."""
        return (self.denoiser(*inputs),)

    def case(self, histories: Histories) -> Case:
        """Return inputs as they come up at serving, the interests at times spread over the forward process."""
        model = self.model[0]
        batch, length = histories.item_BL.shape
        wide = replace(histories, item_BL=last_items(histories.item_BL, model.max_length))
        coarse = model.coarse(wide)
        inputs = {
            "noised": coarse.clean_BKD,
            "step": torch.arange(batch) * 7 % len(model.signal_T),
            "item_vector": coarse.item_BLD[:, :length],
            "mask": coarse.mask_BL[:, :length],
        }
        if coarse.guide_BKD is not None:
            inputs["guide"] = coarse.guide_BKD
        return Case(inputs, {"clean": self.denoiser(*inputs.values())})


Graph = HistoryGraph | DenoiserGraph


def graphs_of(model: RetrievalModel) -> dict[str, Graph]:
    """Return the graphs of a model by name: ``model``, and ``denoiser`` of DMI.

    Raises:
        ConfigError: It serves no interest of its dictionary yet.
    """
    base = model.base if isinstance(model, DMI) else model
    found: dict[str, Graph] = {}
    if isinstance(base, GemiRec):
        assert isinstance(model, GemiRec | DMI)
        found["model"] = FusionGraph(model)
    else:
        found["model"] = HistoryGraph(model)
    if isinstance(model, DMI):
        found["denoiser"] = DenoiserGraph(model)
    # torch's exporter gives a module back in the mode it had, and its parts with it: dropout must stay off
    return {name: graph.eval() for name, graph in found.items()}


def last_items(item_BL: Tensor, most: int) -> Tensor:
    """Return the last ``most`` items of each row ``[B, most]``, oldest first, 0 behind.

    Example:
        >>> last_items(torch.tensor([[1, 2, 3], [4, 0, 0]]), 2)
        tensor([[2, 3],
                [4, 0]])
    """
    first_B1 = ((item_BL != 0).sum(dim=1, keepdim=True) - most).clamp(min=0)
    return F.pad(item_BL, (0, most)).gather(1, first_B1 + torch.arange(most))


def _named(found: Interests) -> dict[str, Tensor]:
    out = {"vector": found.vector_BKD, "mask": found.mask_BK}
    return out if found.weight_BK is None else out | {"weight": found.weight_BK}
