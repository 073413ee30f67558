"""UMI: the user's profile gates the items that form the interests, and joins each interest (Chai et al., SIGIR 2022).

Axes: B batch, L history length, K interests, D embedding, F fields of a profile, P its width (all fields together).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from gemirec.components.capsule import InterestMaps, LogitUpdate, Routing, draw_logits
from gemirec.components.features import UserFeatures
from gemirec.components.gates import ProfileGate
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.components.pooling import mean_pool
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class UMIConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of UMI."""

    profile: Literal["features", "history_mean", "constant", "auto"] = "auto"
    """What stands for the user's profile. ``features``: the data's user features, one field each (paper).
    ``history_mean``: the mean of the history's item vectors, one field. ``constant``: one learned vector, so that the
    gates see the items alone. ``auto``: ``features`` where the data have any, else ``history_mean``. The substitutes
    are ours: published comparisons on data without features do not say what they took."""
    feature_dim: Count = 8
    """Width of each feature's embedding, and of ``profile: constant`` (released code: 8)."""
    gate_hidden: Count = 8
    """Hidden width of both gates (released code: 8)."""
    rounds: Count = 3
    """Routing rounds R (released code: 3)."""
    logit_update: LogitUpdate = "add"
    """What a round does to the routing logits: ``add`` the agreement to them (routing by agreement, as the paper's
    predecessors), or ``replace`` them by it (released code)."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of the initial routing logits, truncated at two of them (released code: 1)."""
    logit_seed: int = 0
    """Seed of the fixed initial logits (ours: one ``[K, L]`` matrix for all users; serving is then deterministic)."""
    redraw_logits: bool = False
    """Draw new initial logits for each example in training, as the released code does; serving keeps the fixed ones."""
    identity_maps: bool = False
    """Start the maps at the identity plus the draws (ours): capsules then begin in the space of the items."""
    residual: bool = False
    """Add the capsule to what the last layers make of it and the profile (ours): the interest then begins near it."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig(readout="best")
    """The retrieval loss; every candidate is scored by the interest nearest to it (released code). The paper also picks
    hard negatives, outside of what was released: ``beta`` is the nearest thing here."""


class UMI(TableModel):
    """Gated routing, then per interest a gated profile and two layers (released ``Model_UMI``)."""

    logit_KL: Tensor

    def __init__(self, config: UMIConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        dim, interests = config.dim, config.num_interests
        self.profile = Profile(config, spec)
        self.item_gate = ProfileGate(dim, self.profile.width, hidden=config.gate_hidden)
        self.votes = InterestMaps(dim, interests, config.identity_maps)
        self.routing = Routing(config.rounds, "interests", update=config.logit_update)
        generator = torch.Generator().manual_seed(config.logit_seed)
        self.register_buffer("logit_KL", draw_logits((interests, config.max_length), config.logit_std, generator))
        self.field_gate = ProfileGate(dim, self.profile.width, outputs=self.profile.fields, hidden=config.gate_hidden)
        hidden = max(dim // 2, 1)
        first, second = nn.Linear(self.profile.width + dim, hidden), nn.Linear(hidden, dim)
        for layer in (first, second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(first, nn.ReLU(), second)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests, all of which exist."""
        item_BLD, mask_BL = self.item_table(histories.item_BL), histories.mask_BL
        profile_BP = self.profile(histories, item_BLD)
        gate_BL = self.item_gate(item_BLD, profile_BP)[:, :, 0]
        capsule_BKD, _ = self.routing.route(self.votes(item_BLD), self._logits(histories), mask_BL, gate_BL=gate_BL)
        capsule_BKD = capsule_BKD.to(item_BLD.dtype)
        gate_BKF = self.field_gate(capsule_BKD, profile_BP)
        field_BKFX = gate_BKF[..., None] * profile_BP.view(
            len(mask_BL), 1, self.profile.fields, self.profile.width // self.profile.fields
        )
        interest_BKD = self.layers(torch.cat([field_BKFX.flatten(2), capsule_BKD], dim=2))
        return (interest_BKD + capsule_BKD if self.config.residual else interest_BKD), None

    def _logits(self, histories: Histories) -> Tensor:
        """Return the initial routing logits ``[B or 1, K, L]``."""
        if not (self.config.redraw_logits and self.training):
            return self.logit_KL[None]
        generator = histories.generator if isinstance(histories, TrainBatch) else None
        shape = (len(histories.item_BL), *self.logit_KL.shape)
        return draw_logits(shape, self.config.logit_std, generator).to(self.logit_KL.device)


class Profile(nn.Module):
    """The user's profile, or its substitute: F fields of equal width, concatenated.

    Attributes:
        kind: What it is made of.
        width: P.
        fields: F, the parts that are gated apart.

    Raises:
        ConfigError: ``features`` and the data have none.
    """

    def __init__(self, config: UMIConfig, spec: DataSpec) -> None:
        super().__init__()
        has_features = bool(spec.user_categorical_sizes or spec.num_user_numeric)
        self.kind = config.profile
        if config.profile == "auto":
            self.kind = "features" if has_features else "history_mean"
        if self.kind == "features" and not has_features:
            raise ConfigError(
                "the model wants user features and the data have none",
                got="profile: features",
                fix="give a user table to prepare, or set model.profile to history_mean or constant",
            )
        self.features, self.constant_P = None, None
        self.width, self.fields = config.dim, 1
        if self.kind == "features":
            self.features = UserFeatures(spec.user_categorical_sizes, spec.num_user_numeric, config.feature_dim)
            self.width = self.features.width
            self.fields = self.width // config.feature_dim
        elif self.kind == "constant":
            self.constant_P = nn.Parameter(nn.init.normal_(torch.empty(config.feature_dim), std=config.dim**-0.5))
            self.width = config.feature_dim

    def forward(self, histories: Histories, item_BLD: Tensor) -> Tensor:
        """Return the profiles ``[B, P]``; ``item_BLD`` ``[B, L, D]`` are the history's item vectors."""
        batch = len(item_BLD)
        if self.features is not None:
            out_BP: Tensor = self.features(batch, histories.user_categorical_BF, histories.user_numeric_BG)
            return out_BP
        if self.constant_P is not None:
            return self.constant_P.expand(batch, -1)
        return mean_pool(item_BLD, histories.mask_BL)
