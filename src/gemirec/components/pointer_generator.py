"""A pointer-generator over classes: copy one that occurred, or generate any (See et al., ACL 2017, eq. 8-9).

Axes: B batch, L history length, D embedding, M classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MASKED = -1e9


class PointerGenerator(nn.Module):
    """``P(c) = g P_gen(c) + (1 - g) sum of a_l over the places l of class c``.

    With the state s and the vectors k_l of the history::

        a = softmax_l( (W s) . k_l / sqrt(D) )
        P_gen = softmax( V s + b )
        g = sigmoid( w . [s, sum_l a_l k_l] + d )

    Without history there is nothing to copy and g is 1.

    Args:
        dim: D.
        exists_M: ``[M]`` bool, the classes that may be generated; the others have no probability unless they occurred.

    Example:
        >>> network = PointerGenerator(4, torch.tensor([False, True, True]))
        >>> class_BL, mask_BL = torch.tensor([[1, 2, 0]]), torch.tensor([[True, True, False]])
        >>> chance_BM = network(torch.zeros(1, 4), torch.zeros(1, 3, 4), class_BL, mask_BL)
        >>> [round(value, 3) for value in chance_BM[0].tolist()]
        [0.0, 0.5, 0.5]
    """

    exists_M: Tensor

    def __init__(self, dim: int, exists_M: Tensor) -> None:
        super().__init__()
        self.pointer = nn.Linear(dim, dim, bias=False)
        self.generator = nn.Linear(dim, len(exists_M))
        self.gate = nn.Linear(2 * dim, 1)
        self.register_buffer("exists_M", exists_M, persistent=False)
        for layer in (self.pointer, self.generator, self.gate):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.generator.bias)
        nn.init.zeros_(self.gate.bias)

    def forward(self, state_BD: Tensor, key_BLD: Tensor, class_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the probabilities ``[B, M]`` float32; rows sum to 1.

        Args:
            state_BD: ``[B, D]`` what is known of each user.
            key_BLD: ``[B, L, D]`` vectors of the history's places.
            class_BL: ``[B, L]`` int64 class of each place, below M.
            mask_BL: ``[B, L]`` bool, true at real places.
        """
        logit_BL = (key_BLD @ self.pointer(state_BD)[:, :, None])[:, :, 0].float() * state_BD.shape[1] ** -0.5
        weight_BL = torch.softmax(logit_BL.masked_fill(~mask_BL, _MASKED), dim=1) * mask_BL
        context_BD = (weight_BL.to(key_BLD.dtype)[:, None] @ key_BLD)[:, 0]
        gate_B1 = torch.sigmoid(self.gate(torch.cat([state_BD, context_BD], dim=1)).float())
        gate_B1 = torch.where(mask_BL.any(dim=1, keepdim=True), gate_B1, 1.0)
        generated_BM = torch.softmax(self.generator(state_BD).float().masked_fill(~self.exists_M, _MASKED), dim=1)
        copied_BM = torch.zeros_like(generated_BM).scatter_add(1, class_BL, weight_BL.to(generated_BM.dtype))
        return gate_B1 * generated_BM + (1 - gate_B1) * copied_BM
