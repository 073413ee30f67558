"""Plain NumPy that several tests check tensors against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def numpy_of(tensor: Tensor) -> Array:
    """The tensor's numbers in double precision."""
    out: Array = tensor.detach().double().numpy()
    return out


def softmax(x: Any, axis: int = -1) -> Array:
    """``e^x / sum e^x`` along an axis."""
    e: Array = np.exp(x - x.max(axis=axis, keepdims=True))
    out: Array = e / e.sum(axis=axis, keepdims=True)
    return out


def unit(x: Any) -> Array:
    """Rows of the last axis divided by their length; a zero row stays zero."""
    out: Array = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return out
