"""What GemiRec is put together from, as its config and the data ask.

Axes: B batch, P profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gemirec.components.features import UserFeatures
from gemirec.components.quantizer import code_width
from gemirec.errors import ConfigError
from gemirec.models.base import Histories
from gemirec.models.gemirec.config import GemiRecConfig
from gemirec.models.gemirec.dictionary import CategoryDictionary, LearnedDictionary

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


def build_dictionary(config: GemiRecConfig, spec: DataSpec) -> LearnedDictionary | CategoryDictionary:
    """Return the dictionary that the config asks for."""
    if config.dictionary == "learned":
        return LearnedDictionary(config.quantizer, spec, config.dim)
    return CategoryDictionary(spec, code_width(config.quantizer, config.dim) * len(config.quantizer.sizes))


def build_features(spec: DataSpec, dim: int, *, wanted: bool) -> UserFeatures | None:
    """Return an encoder of the user features, ``None`` where they are not wanted or the data have none."""
    if not wanted or not (spec.user_categorical_sizes or spec.num_user_numeric):
        return None
    return UserFeatures(spec.user_categorical_sizes, spec.num_user_numeric, dim)


def profile_width(features: UserFeatures | None) -> int:
    """Return the width of the profiles, 0 without features."""
    return features.width if features is not None else 0


def profile_of(features: UserFeatures | None, histories: Histories) -> Tensor | None:
    """Return the users' profiles ``[B, P]``, ``None`` without features."""
    if features is None:
        return None
    profile_BP: Tensor = features(len(histories.item_BL), histories.user_categorical_BF, histories.user_numeric_BG)
    return profile_BP


def build_category_vectors(config: GemiRecConfig, spec: DataSpec) -> nn.Embedding | None:
    """Return the vectors that are added to the items of each category, ``None`` where there are none to add."""
    if not config.item_categories or spec.category_N is None:
        return None
    table = nn.Embedding(spec.num_categories + 1, config.dim, padding_idx=0)
    nn.init.normal_(table.weight, std=0.02)
    with torch.no_grad():
        table.weight[0] = 0
    return table


def build_placeholder(config: GemiRecConfig, spec: DataSpec, width: int) -> nn.Embedding | None:
    """Return what stands for the interest in stage 1, ``None`` for zero.

    Raises:
        ConfigError: It shall be the category and the data have none.
    """
    if config.placeholder == "zero":
        return None
    rows = 1
    if config.placeholder == "category":
        if spec.category_N is None:
            raise ConfigError(
                "stage 1 shall use the items' categories and there are none",
                got="placeholder: category",
                fix="prepare with an item table that has a category column, or set model.placeholder=learned",
            )
        rows = spec.num_categories + 1
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table
