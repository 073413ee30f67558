"""The item table: the one place that knows where item vectors live.

Axes: N items (row 0 is padding), D embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Initialisation = Literal["glorot_uniform", "kaiming_normal", "normal"]


class ItemTable(nn.Embedding):
    """A table of item vectors whose gradient can be sparse, so that a step's cost does not grow with the catalogue.

    Args:
        num_items: Items, padding not counted.
        dim: Width of a vector.
        init: ``glorot_uniform`` over ``[N + 1, D]`` (TensorFlow's default, the original ComiRec: standard
            deviation about .013 at 12 k x 64); ``kaiming_normal`` (the PyTorch ports: .177 at D 64); ``normal``
            with ``std``.
        std: Standard deviation of ``normal``.

    The padding row is zero and receives no gradient. It is an ``nn.Embedding`` because DistributedDataParallel knows
    by that, and by ``sparse``, to exchange sparse gradients; the trainer sets ``sparse`` to fit the optimiser.
    """

    def __init__(self, num_items: int, dim: int, init: Initialisation = "glorot_uniform", std: float = 0.02) -> None:
        weight_ND = torch.empty(num_items + 1, dim)
        if init == "glorot_uniform":
            nn.init.xavier_uniform_(weight_ND)
        elif init == "kaiming_normal":
            nn.init.kaiming_normal_(weight_ND)
        else:
            nn.init.normal_(weight_ND, std=std)
        weight_ND[0] = 0
        super().__init__(num_items + 1, dim, padding_idx=0, _weight=weight_ND)
        self.num_items = num_items
        self.dim = dim

    def forward(self, item_ids: Tensor) -> Tensor:
        """Look up ``item_ids`` ``[...]``; returns ``[..., D]``."""
        return F.embedding(item_ids, self.weight, padding_idx=0, sparse=self.sparse and self.training)
