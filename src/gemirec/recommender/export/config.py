"""What can be exported, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gemirec.config import Config

PARTS = ("items", "users", "map", "onnx")
"""The parts of an export."""
Exporter = Literal["auto", "torchscript", "dynamo"]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class ExportConfig(Config, frozen=True, kw_only=True):
    """How vectors, graphs and map are made."""

    int8: bool = False
    """Also write each graph with its weights in 8 bits."""
    least_recall: Share = 0.9
    """Of a graph in 8 bits: least share of the lists of ``list_length`` that must stay; below, nothing is written."""
    list_length: Count = 50
    """Length of the lists whose recall is measured."""
    tolerance: Annotated[float, Meta(gt=0)] = 1e-4
    """Largest difference between graph and model, in parts of the longest vector; above, nothing is written."""
    exporter: Exporter = "auto"
    """torch's exporter. ``torchscript`` takes a second or two and cannot do every model; ``dynamo`` takes half a minute
    to two; ``auto`` takes the first, and the second where the first fails or its graph does not give the model's
    numbers."""
    opset: Annotated[int, Meta(ge=18)] = 18
    """ONNX operator set of the graphs."""
    batch_size: Count = 512
    """Users of one pass through the model."""
    landmarks: Annotated[int, Meta(ge=1, le=5000)] = 2000
    """Most items that the map is computed from; the others are placed among them. Memory and time grow with its
    square."""
    map_steps: Annotated[int, Meta(ge=0)] = 350
    """Steps of the map's gradient descent; fewer than 200 leave it half done, 0 takes principal components."""
