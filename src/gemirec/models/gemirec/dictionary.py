"""The interests that a model knows: the learned dictionary of codes, or the items' preset categories.

Both answer the same questions, so that the model does not ask which it has. Axes: N items (row 0 is padding), C levels,
M interests, E interest embedding, D item vector, P rows of a loss, X any leading axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from gemirec.components.codes import all_codes, flat_index, health
from gemirec.components.quantizer import Quantized, QuantizerConfig, ResidualQuantizer
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class LearnedDictionary(nn.Module):
    """The residual quantiser's tuples of codes (IDMM).

    Args:
        config: The quantiser.
        spec: For the categories that may start it.
        dim: D.

    Raises:
        ConfigError: It shall start from categories and the data have none, or there are fewer items than codes.
    """

    def __init__(self, config: QuantizerConfig, spec: DataSpec, dim: int) -> None:
        super().__init__()
        if config.init == "category" and spec.category_N is None:
            raise ConfigError(
                "the dictionary is to start from the items' categories and there are none",
                got="quantizer.init: category",
                fix="prepare with an item table that has a category column, or set quantizer.init=kmeans",
            )
        most = min(spec.num_items, config.kmeans_sample or spec.num_items)
        if most < max(config.sizes):
            raise ConfigError(
                "the dictionary has a level with more codes than there are items to start them from",
                got=f"sizes {list(config.sizes)}, {spec.num_items} items, kmeans_sample {config.kmeans_sample}",
                fix=f"set model.quantizer.sizes to at most {most} codes per level",
            )
        self.quantizer = ResidualQuantizer(config, dim)
        self.sizes, self.width = self.quantizer.sizes, self.quantizer.width
        category = None if spec.category_N is None else torch.from_numpy(spec.category_N[1:].astype("int64"))
        self._category_N = category

    def initialise(self, item_ND: Tensor, generator: torch.Generator) -> None:
        """Set the codes from item vectors ``[N + 1, D]``, padding included."""
        category_N = None if self._category_N is None else self._category_N.to(item_ND.device)
        self.quantizer.initialise(item_ND[1:], category_N, generator)

    def assign(self, item_X: Tensor, vector_XD: Tensor) -> Tensor:
        """Return the flat index ``[...]`` of the interest of items with ids ``[...]`` and vectors ``[..., D]``."""
        code_XC = self.quantizer.assign(vector_XD.detach().flatten(0, -2))
        return flat_index(code_XC, self.sizes).view(item_X.shape)

    def embed(self, code_XC: Tensor) -> Tensor:
        """Return the embeddings ``[..., E]`` of code tuples ``[..., C]``, with gradient to the codes."""
        return self.quantizer.embed(code_XC)

    def quantize(self, vector_PD: Tensor) -> Quantized:
        """Quantise item vectors with gradient to the dictionary (and none to them)."""
        quantized: Quantized = self.quantizer(vector_PD)
        return quantized

    def after_step(self, quantized: Quantized, generator: torch.Generator | None) -> None:
        """Count the use of codes and move dead ones, if the config asks for it; the same in every process."""
        if not self.quantizer.config.dead_after:
            return
        several = distributed.is_available() and distributed.is_initialized()
        self.quantizer.count_use(quantized.code_BC)
        if several:  # a code that any process has used is not idle
            distributed.all_reduce(self.quantizer.idle_M, op=distributed.ReduceOp.MIN)
        self.quantizer.revive(quantized.residual_BCW, generator)
        if several:  # each has moved dead codes to residuals of its own batch: the first one's are taken
            for tensor in (self.quantizer.idle_M, *self.quantizer.codebooks):
                distributed.broadcast(tensor.detach(), src=0)

    def health(self, interest_N: Tensor) -> dict[str, float]:
        """Return :func:`gemirec.components.codes.health` for the items' interests ``[N + 1]``."""
        codes_MC = all_codes(self.sizes, interest_N.device)
        return health(codes_MC[interest_N[1:]], list(self.quantizer.codebooks), self.sizes)


class CategoryDictionary(nn.Module):
    """One level whose codes are the items' preset categories (the paper's variant -I); code 0 is "unknown".

    Args:
        spec: The data's categories.
        width: E.

    Raises:
        ConfigError: The data have no categories.
    """

    category_N: Tensor

    def __init__(self, spec: DataSpec, width: int) -> None:
        super().__init__()
        if spec.category_N is None or spec.num_categories == 0:
            raise ConfigError(
                "the items' categories shall be the interests and there are none",
                got="dictionary: categories",
                fix="prepare with an item table that has a category column, or set model.dictionary=learned",
            )
        self.sizes, self.width = (spec.num_categories + 1,), width
        self.table = nn.Embedding(self.sizes[0], width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.register_buffer("category_N", torch.from_numpy(spec.category_N.astype("int64")), persistent=False)

    def initialise(self, item_ND: Tensor, generator: torch.Generator) -> None:
        """Do nothing: categories are given."""

    def assign(self, item_X: Tensor, vector_XD: Tensor) -> Tensor:
        """Return the category ``[...]`` of items with ids ``[...]``."""
        return self.category_N[item_X]

    def embed(self, code_XC: Tensor) -> Tensor:
        """Return the embeddings ``[..., E]`` of codes ``[..., 1]``."""
        embedding_XE: Tensor = self.table(code_XC[..., 0])
        return embedding_XE

    def health(self, interest_N: Tensor) -> dict[str, float]:
        """Return :func:`gemirec.components.codes.health` for the items' interests ``[N + 1]``."""
        return health(interest_N[1:, None], [self.table.weight], self.sizes)
