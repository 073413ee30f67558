"""Distributions over an interest dictionary: one softmax over all tuples, or one per level.

Both heads have the same three methods. An interest is a tuple ``(m^1, .., m^C)``, one code per sub-dictionary, or its
flat index, the first level being the most significant digit.

Axes: X states, H hidden, M interests (tuples), C sub-dictionaries (levels), V codes of one level, P prefixes of a
tuple, k interests returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.codes import count_interests, flat_index, unflatten
from gemirec.components.selection import ordered_top_k

if TYPE_CHECKING:
    from collections.abc import Sequence


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FlatHead(nn.Module):
    """One softmax over all M interests (GemiRec: ``softmax(z_FC(.))``); M (H + 1) parameters.

    Args:
        hidden: H.
        sizes: Codes of each level.
    """

    def __init__(self, hidden: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.output = _linear(hidden, count_interests(sizes))

    def log_probs(self, state_XH: Tensor) -> Tensor:
        """Return the log-probabilities ``[X, M]`` float32 of all interests."""
        return F.log_softmax(self.output(state_XH).float(), dim=1)

    def loss(self, state_XH: Tensor, code_XC: Tensor) -> Tensor:
        """Return ``-log p`` ``[X]`` float32 of one tuple per state."""
        return F.cross_entropy(self.output(state_XH).float(), flat_index(code_XC, self.sizes), reduction="none")

    @torch.no_grad()
    def top(self, state_XH: Tensor, k: int, beam: int) -> tuple[Tensor, Tensor]:
        """Return the ``k`` most probable interests, exactly; ``beam`` is not used."""
        logp_Xk, index_Xk = ordered_top_k(self.log_probs(state_XH), k)
        return index_Xk, logp_Xk


class FactorisedHead(nn.Module):
    r"""One softmax per level, each given the codes before it; parameters and cost grow with the sum of the sizes.

    ::

        log p(m | s) = sum_c log softmax(W_c (s + sum_{c' < c} E_{c'}[m^{c'}]) + b_c)_{m^c}

    Not the paper's, which has one softmax over all tuples. Within a level the logits are a part of the state plus a
    part of the codes before, so that what a code says of the next one does not depend on the user.

    Args:
        hidden: H.
        sizes: Codes of each level.
    """

    def __init__(self, hidden: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.outputs = nn.ModuleList(_linear(hidden, size) for size in sizes)
        self.codes = nn.ParameterList(
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(size, hidden))) for size in sizes[:-1]
        )

    def log_probs(self, state_XH: Tensor) -> Tensor:
        """Return the log-probabilities ``[X, M]`` float32 of all interests."""
        logp_XP = state_XH.new_zeros(len(state_XH), 1, dtype=torch.float32)
        prefix_PH = state_XH.new_zeros(1, state_XH.shape[1])
        for level in range(len(self.sizes)):
            logp_XP = (logp_XP[:, :, None] + self._level(level, state_XH, prefix_PH[None])).flatten(1)
            if level < len(self.codes):
                prefix_PH = (prefix_PH[:, None] + self.codes[level]).flatten(0, 1)
        return logp_XP

    def loss(self, state_XH: Tensor, code_XC: Tensor) -> Tensor:
        """Return ``-log p`` ``[X]`` float32 of one tuple per state, without the logits of any other prefix."""
        loss_X = state_XH.new_zeros(len(state_XH), dtype=torch.float32)
        for level, output in enumerate(self.outputs):
            loss_X = loss_X + F.cross_entropy(output(state_XH).float(), code_XC[:, level], reduction="none")
            if level < len(self.codes):
                state_XH = state_XH + F.embedding(code_XC[:, level], self.codes[level])
        return loss_X

    @torch.no_grad()
    def top(self, state_XH: Tensor, k: int, beam: int) -> tuple[Tensor, Tensor]:
        """Return the ``k`` most probable interests that a beam search finds.

        ``beam`` prefixes are kept after each level, never fewer than ``k``; the result is exact if that is all of them.
        """
        logp_XP = state_XH.new_zeros(len(state_XH), 1, dtype=torch.float32)
        index_XP = torch.zeros(len(state_XH), 1, dtype=torch.int64, device=state_XH.device)
        prefix_XPH = state_XH.new_zeros(1, 1, state_XH.shape[1])
        last = len(self.sizes) - 1
        for level, size in enumerate(self.sizes):
            logp_XPV = logp_XP[:, :, None] + self._level(level, state_XH, prefix_XPH)
            logp_XP, column_XP = ordered_top_k(logp_XPV.flatten(1), k if level == last else max(beam, k))
            index_XP = index_XP.gather(1, column_XP // size) * size + column_XP % size
            if level < last:
                # In ascending order, so that at the next level a lower column is a lower index.
                index_XP, order_XP = index_XP.sort(dim=1)
                logp_XP = logp_XP.gather(1, order_XP)
                code_XPC = unflatten(index_XP, self.sizes[: level + 1])
                tables = list(self.codes)[: level + 1]
                prefix_XPH = torch.stack([F.embedding(code_XPC[..., c], t) for c, t in enumerate(tables)]).sum(dim=0)
        return index_XP, logp_XP

    def _level(self, level: int, state_XH: Tensor, prefix_XPH: Tensor) -> Tensor:
        """Return one level's log-probabilities ``[X, P, V]`` float32 after each prefix's summed code vectors."""
        output = self.outputs[level]
        assert isinstance(output, nn.Linear)
        logit_XPV = output(state_XH)[:, None] + F.linear(prefix_XPH, output.weight)
        return F.log_softmax(logit_XPV.float(), dim=2)
