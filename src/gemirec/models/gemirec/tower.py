"""GemiRec's user tower and fusion network.

Axes: B batch, L history length, K interests, D embedding, E interest embedding, P profile, H hidden width,
X any leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.pooling import last_state, mean_pool
from gemirec.components.transformer import CausalEncoder, check_heads
from gemirec.models.gemirec.config import FusionConfig, TowerConfig


class Users(NamedTuple):
    """What the fusion reads of B users.

    Attributes:
        vector_BD: ``[B, D]`` the tower's vectors.
        item_BLD: ``[B, L, D]`` item vectors of their histories.
        mask_BL: ``[B, L]`` bool, true at the items that count.
    """

    vector_BD: Tensor
    item_BLD: Tensor
    mask_BL: Tensor

    def rows(self, row_Q: Tensor) -> Users:
        """Return the users of some rows."""
        return Users(*(part[row_Q] for part in self))


class Prepared(NamedTuple):
    """What the fusion needs of interests.

    Attributes:
        hidden_XH: ``[..., H]`` the interest's part of the hidden layer.
        direction_XD: ``[..., D]`` what ``kind: residual`` adds to the user; ``None`` otherwise.
    """

    hidden_XH: Tensor
    direction_XD: Tensor | None


class UserTower(nn.Module):
    """History and profile to the user's vector, for the whole history and for each of its prefixes.

    Args:
        config: Its shape.
        dim: D.
        feature_width: P, width of the profile; 0 without.
        max_length: Most items of a history.

    Raises:
        ConfigError: The heads do not divide ``dim``.
    """

    def __init__(self, config: TowerConfig, dim: int, feature_width: int, max_length: int) -> None:
        super().__init__()
        if config.kind == "mean":
            width = dim + feature_width
            self.network = nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, dim))
        else:
            check_heads(config.heads, dim, "tower.heads")
            self.encoder = CausalEncoder(
                dim,
                layers=config.layers,
                heads=config.heads,
                hidden=dim,
                dropout=config.dropout,
                max_length=max_length,
                scale_input=True,
            )
            self.profile = nn.Linear(feature_width, dim, bias=False) if feature_width else None
            if self.profile is not None:
                nn.init.zeros_(self.profile.weight)
        self.kind = config.kind
        self.pooled = nn.Parameter(torch.tensor(config.pooled)) if config.pooled else None

    def forward(self, item_BLD: Tensor, profile_BP: Tensor | None) -> Tensor:
        """Return ``[B, L, D]``: entry l is the vector of a user whose history ends with item l.

        Args:
            item_BLD: ``[B, L, D]`` item vectors, oldest first, zero at padding behind.
            profile_BP: ``[B, P]`` profile, or ``None`` without features.
        """
        count_L1 = torch.arange(1, item_BLD.shape[1] + 1, device=item_BLD.device)[:, None]
        mean_BLD = item_BLD.cumsum(dim=1) / count_L1
        if self.kind == "mean":
            parts = [mean_BLD]
            if profile_BP is not None:
                parts.append(profile_BP[:, None].expand(-1, item_BLD.shape[1], -1))
            user_BLD: Tensor = self.network(torch.cat(parts, dim=2))
        else:
            input_BLD = item_BLD
            if self.profile is not None:
                input_BLD = item_BLD + self.profile(profile_BP)[:, None]
            user_BLD = self.encoder(input_BLD)
        return self._with_mean(user_BLD, mean_BLD)

    def last(self, item_BLD: Tensor, mask_BL: Tensor, profile_BP: Tensor | None) -> Tensor:
        """Return ``[B, D]``, the users' vectors after their whole histories; zero for an empty one.

        What :meth:`forward` gives at each row's last item, up to rounding, without the work for the others; in
        ``train`` mode, where there is dropout, it is read from there.
        """
        if self.training:
            return last_state(self(item_BLD, profile_BP), mask_BL)
        mean_BD = mean_pool(item_BLD, mask_BL)
        if self.kind == "mean":
            user_BD: Tensor = self.network(mean_BD if profile_BP is None else torch.cat([mean_BD, profile_BP], dim=1))
        else:
            input_BLD = item_BLD if self.profile is None else item_BLD + self.profile(profile_BP)[:, None]
            user_BD = self.encoder.last(input_BLD, (mask_BL.sum(dim=1) - 1).clamp(min=0))
        return self._with_mean(user_BD, mean_BD) * mask_BL[:, :1]  # padding stands behind

    def _with_mean(self, user_XD: Tensor, mean_XD: Tensor) -> Tensor:
        """Add the pooled mean, if the config wants it."""
        if self.pooled is None:
            return user_XD
        return F.normalize(user_XD, dim=-1) + self.pooled * F.normalize(mean_XD, dim=-1)


class Fusion(nn.Module):
    """``u_k = z_fusion(concat(e_k, u))`` (METHODS 1.5).

    Args:
        config: Its shape.
        width: E, width of an interest's embedding.
        dim: D.
    """

    def __init__(self, config: FusionConfig, width: int, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width + dim, config.hidden)
        self.outer = nn.Linear(config.hidden, dim)
        self.kind = config.kind
        if config.kind == "residual":
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)
            self.gate = nn.Parameter(torch.tensor(config.gate))
            self.project = nn.Linear(width, dim, bias=False)
            if width % dim == 0:  # codes of the items' own space: begin with their sum
                with torch.no_grad():
                    self.project.weight.copy_(torch.eye(dim).repeat(1, width // dim))
        attends = config.kind == "residual" and config.attend > 0
        self.attend = nn.Parameter(torch.tensor(config.attend)) if attends else None
        self.sharpness = nn.Parameter(torch.tensor(config.sharpness)) if attends else None

    def forward(self, interest_BKE: Tensor, users: Users) -> Tensor:
        """Return the fused vectors ``[B, K, D]`` of interests with embeddings ``[B, K, E]``."""
        return self.combine(self.prepare(interest_BKE), users)

    def prepare(self, interest_XE: Tensor) -> Prepared:
        """Return what the network does to interests ``[..., E]`` alone, whoever the user is."""
        weight_HE = self.inner.weight[:, : interest_XE.shape[-1]]
        direction_XD = self.project(interest_XE) if self.kind == "residual" else None
        return Prepared(F.linear(interest_XE, weight_HE), direction_XD)

    def combine(self, interests: Prepared, users: Users) -> Tensor:
        """Return the fused vectors ``[B, K, D]`` of prepared interests ``[B, K, ...]``."""
        user_BD, hidden_BKH, direction_BKD = users.vector_BD, interests.hidden_XH, interests.direction_XD
        # inner([e; u]) without building the concatenation: the user's part is computed once, not K times
        user_BH = F.linear(user_BD, self.inner.weight[:, -user_BD.shape[1] :], self.inner.bias)
        out_BKD: Tensor = self.outer(F.relu(hidden_BKH + user_BH[:, None]))
        if direction_BKD is None:
            return out_BKD
        fused_BKD: Tensor = user_BD[:, None] + self.gate * (direction_BKD + out_BKD)
        if self.attend is None or self.sharpness is None:
            return fused_BKD
        item_BLD = users.item_BLD
        score_BKL = self.sharpness * (F.normalize(direction_BKD, dim=2) @ F.normalize(item_BLD, dim=2).transpose(1, 2))
        weight_BKL = torch.softmax(score_BKL.float().masked_fill(~users.mask_BL[:, None], -1e9), dim=2)
        return fused_BKD + self.attend * F.normalize(weight_BKL.to(item_BLD.dtype) @ item_BLD, dim=2)
