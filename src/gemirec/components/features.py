"""User features as one vector.

Axes: B batch, F categorical features, G numeric features, P width of the profile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UserFeatures(nn.Module):
    """Embeds each categorical feature, maps the numeric ones linearly, and concatenates.

    A user without features (``None``, code 0, number 0) is an unknown user, not an error.

    Args:
        categorical_sizes: Codes of each categorical feature, the unknown code 0 included.
        num_numeric: Numeric features.
        dim: Width of each categorical embedding and of the numeric part.

    Example:
        >>> features = UserFeatures((3, 5), 2, dim=4)
        >>> features.width
        12
        >>> features(2, torch.tensor([[1, 2], [0, 4]]), None).shape
        torch.Size([2, 12])
    """

    def __init__(self, categorical_sizes: Sequence[int], num_numeric: int, dim: int) -> None:
        super().__init__()
        self.num_numeric = num_numeric
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in categorical_sizes)
        self.numeric = nn.Linear(num_numeric, dim, bias=False) if num_numeric else None
        self.width = dim * (len(categorical_sizes) + bool(num_numeric))
        for table in self.tables:
            nn.init.xavier_uniform_(table.weight)  # type: ignore[arg-type]

    def forward(self, batch: int, categorical_BF: Tensor | None, numeric_BG: Tensor | None) -> Tensor:
        """Return profiles ``[B, P]``.

        Args:
            batch: B.
            categorical_BF: ``[B, F]`` int64 codes, or ``None`` for unknown users.
            numeric_BG: ``[B, G]`` float32 numbers, or ``None`` for unknown users.
        """
        parts = []
        for column, table in enumerate(self.tables):
            device = table.weight.device
            unknown_B = torch.zeros(batch, dtype=torch.int64, device=device)  # type: ignore[arg-type]
            parts.append(table(unknown_B if categorical_BF is None else categorical_BF[:, column]))
        if self.numeric is not None:
            unknown_BG = self.numeric.weight.new_zeros(batch, self.num_numeric)
            parts.append(self.numeric(unknown_BG if numeric_BG is None else numeric_BG))
        return torch.cat(parts, dim=1)
