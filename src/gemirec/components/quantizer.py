"""The interest dictionary: a residual quantiser that turns an item vector into a tuple of codes.

GemiRec's dictionary module (arXiv 2510.14626, "IDMM"; METHODS 1.3). An item vector v is encoded and quantised level by
level, each level coding what the levels before it left over (``sg`` stops gradients)::

    r_1 = enc(sg[v]);   m_c = argmin_j |r_c - e^c_j|^2;   r_{c+1} = r_c - sg[e^c_{m_c}]
    loss = |sg[v] - dec(z)|^2 + sum_c ( |sg[r_c] - e^c_{m_c}|^2 + beta |r_c - sg[e^c_{m_c}]|^2 )

The interest's embedding is the *concatenation* of the C codes, not their sum (RQ-VAE, TIGER). ``z`` is that
concatenation, each code passed straight through: ``r_c + sg[e^c - r_c]``. The paper does not say so; without it the
encoder learns from the commitment term alone (``straight_through: false``).

Everything runs in float32 also under autocast, so that an item has the same codes in training as in serving.

Axes: B batch, N items, D item width, C levels, M codes of all levels, W width of a code, E = C W, X any leading axes.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.codes import count_interests
from gemirec.components.kmeans import category_centres, extend_centres, nearest, sample_rows
from gemirec.config import Config
from gemirec.errors import ConfigError, DataError

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
_CHUNK = 65_536


class QuantizerConfig(Config, frozen=True, kw_only=True):
    """The interest dictionary. The paper gives ``sizes``, ``code_dim``, ``beta`` and the initialisation by k-means."""

    sizes: Annotated[tuple[Count, ...], Meta(min_length=1)] = (32, 16, 8, 4)
    """Codes of each sub-dictionary (level); their product is the number of interests."""
    code_dim: Count = 16
    """Width of a code."""
    hidden: Count = 64
    """Hidden width of encoder and decoder, ReLU MLPs ``dim -> hidden -> code_dim`` and ``C code_dim -> hidden -> dim``
    (inferred: the smallest shape that fits the paper's widths)."""
    encoder: Literal["mlp", "identity"] = "mlp"
    """``identity`` (ours): codes live in the space of the items and are as wide, ``code_dim`` is not read, and the
    decoder is the sum of the codes. With ``straight_through`` the reconstruction term then trains nothing."""
    normalize: bool = False
    """L2-normalise item vectors before they are encoded (ours); the decoder then restores the normalised vector."""
    beta: Annotated[float, Meta(ge=0)] = 0.25
    """Weight of the commitment term."""
    straight_through: bool = True
    """Pass the decoder's gradient through the codes to the encoder (inferred). Otherwise it goes to the codes."""
    init: Literal["kmeans", "category", "random"] = "kmeans"
    """First codes. ``kmeans``: level by level on residuals. ``category``: level 1 from the items' categories, the
    other levels by k-means (the paper's, where there are categories). ``random``: uniform in ``±1 / M_c``."""
    kmeans_iterations: CountOrZero = 25
    """Most Lloyd iterations of a level (inferred)."""
    kmeans_sample: CountOrZero = 65_536
    """Most item vectors that k-means sees, a random sample; 0 takes all (inferred)."""
    dead_after: CountOrZero = 0
    """Training steps after which an unused code starts again at a residual of the batch; 0 never (the paper)."""


def code_width(config: QuantizerConfig, dim: int) -> int:
    """Return the width of a code for items ``dim`` wide."""
    return dim if config.encoder == "identity" else config.code_dim


class Quantized(NamedTuple):
    """Item vectors, quantised.

    Attributes:
        code_BC: ``[B, C]`` int64 codes.
        embedding_BE: ``[B, C W]`` float32 chosen codes, concatenated; its gradient goes to the codes.
        reconstruction_B: ``[B]`` float32 ``|sg[v] - dec(z)|^2``.
        codebook_B: ``[B]`` float32 ``sum_c |sg[r_c] - e^c|^2``.
        commitment_B: ``[B]`` float32 ``sum_c |r_c - sg[e^c]|^2``, not yet times beta.
        residual_BCW: ``[B, C, W]`` float32 ``r_c`` without gradient, what :meth:`ResidualQuantizer.revive` wants.
    """

    code_BC: Tensor
    embedding_BE: Tensor
    reconstruction_B: Tensor
    codebook_B: Tensor
    commitment_B: Tensor
    residual_BCW: Tensor


class ResidualQuantizer(nn.Module):
    """The dictionary with its encoder and decoder.

    Args:
        config: What to build.
        dim: D, width of an item vector.

    Attributes:
        codebooks: ``[M_c, W]`` codes of each level.
        sizes: M_c of each level.
        width: ``C W``, width of an interest's embedding.
        num_interests: Product of the sizes.
        idle_M: ``[sum of sizes]`` int64 training steps since each code was last used, level by level; in the state.

    Raises:
        ConfigError: No level.

    Example:
        >>> quantizer = ResidualQuantizer(QuantizerConfig(sizes=(8, 4), code_dim=3), dim=5)
        >>> vector_ND = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
        >>> quantizer.initialise(vector_ND, generator=torch.Generator().manual_seed(0))
        >>> quantized = quantizer(vector_ND)
        >>> quantized.code_BC.shape, quantized.embedding_BE.shape, quantizer.num_interests
        (torch.Size([50, 2]), torch.Size([50, 6]), 32)
        >>> torch.equal(quantizer.embed(quantizer.assign(vector_ND)), quantized.embedding_BE)
        True
    """

    idle_M: Tensor
    first_C: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_interests = count_interests(config.sizes)
        self.sizes = tuple(config.sizes)
        code_dim = code_width(config, dim)
        self.width = len(self.sizes) * code_dim
        if config.encoder == "identity":
            self.encoder: nn.Module = nn.Identity()
            self.decoder: nn.Module = _SumOfCodes(len(self.sizes))
        else:
            self.encoder = _mlp(dim, config.hidden, code_dim)
            self.decoder = _mlp(self.width, config.hidden, dim)
        self.codebooks = nn.ParameterList(
            torch.empty(size, code_dim).uniform_(-1 / size, 1 / size) for size in self.sizes
        )
        self.register_buffer("idle_M", torch.zeros(sum(self.sizes), dtype=torch.int64))
        size_C = torch.tensor(self.sizes)
        self.register_buffer("first_C", size_C.cumsum(0) - size_C, persistent=False)

    def forward(self, vector_BD: Tensor) -> Quantized:
        """Quantise item vectors ``[B, D]``; no gradient reaches them."""
        with torch.autocast(vector_BD.device.type, enabled=False):
            target_BD = self._prepare(vector_BD)
            residual_BW: Tensor = self.encoder(target_BD)
            codebook_B = commitment_B = target_BD.new_zeros(len(target_BD))
            codes, embeddings, passed, residuals = [], [], [], []
            for codebook in self.codebooks:
                fixed_BW = residual_BW.detach()
                code_B, _ = nearest(fixed_BW, codebook)
                embedding_BW = F.embedding(code_B, codebook).float()
                codebook_B = codebook_B + (fixed_BW - embedding_BW).square().sum(dim=1)
                next_BW = residual_BW - embedding_BW.detach()
                commitment_B = commitment_B + next_BW.square().sum(dim=1)
                through_BW = residual_BW + (embedding_BW - residual_BW).detach()
                codes.append(code_B)
                embeddings.append(embedding_BW)
                passed.append(through_BW if self.config.straight_through else embedding_BW)
                residuals.append(fixed_BW)
                residual_BW = next_BW
            decoded_BD = self.decoder(torch.cat(passed, dim=1))
            return Quantized(
                torch.stack(codes, dim=1),
                torch.cat(embeddings, dim=1),
                (target_BD - decoded_BD).square().sum(dim=1),
                codebook_B,
                commitment_B,
                torch.stack(residuals, dim=1),
            )

    def loss(self, quantized: Quantized, weight_B: Tensor | None = None) -> Tensor:
        """Return the mean of reconstruction + codebook + beta commitment, a float32 scalar; 0 for an empty batch.

        Args:
            quantized: What :meth:`forward` returned.
            weight_B: ``[B]`` example weights; the mean is weighted by them. ``None`` for equal ones.
        """
        loss_B = quantized.reconstruction_B + quantized.codebook_B + self.config.beta * quantized.commitment_B
        if len(loss_B) == 0:
            return loss_B.sum()
        return loss_B.mean() if weight_B is None else (loss_B * weight_B).sum() / weight_B.sum()

    def encode(self, vector_XD: Tensor) -> Tensor:
        """Return ``r_1``, the latent vectors ``[..., W]`` of item vectors ``[..., D]``, float32."""
        with torch.autocast(vector_XD.device.type, enabled=False):
            latent_XW: Tensor = self.encoder(self._prepare(vector_XD))
            return latent_XW

    @torch.no_grad()
    def assign(self, vector_ND: Tensor, chunk: int = _CHUNK) -> Tensor:
        """Return the ``[N, C]`` int64 codes of item vectors ``[N, D]``, in float32; the lowest code on a tie.

        Args:
            vector_ND: Item vectors.
            chunk: Items held at once. Codes can depend on it where the encoder's rounding decides between two codes.
        """
        parts = [self._codes(self.encode(part_ND)) for part_ND in torch.split(vector_ND, chunk)]
        return torch.cat(parts)

    def embed(self, code_XC: Tensor) -> Tensor:
        """Return the embeddings ``[..., C W]`` of code tuples ``[..., C]``; the gradient goes to the codes."""
        # one look-up in the codebooks laid end to end: a request pays for calls, not for numbers
        code_MW = torch.cat(list(self.codebooks))
        return F.embedding(code_XC + self.first_C, code_MW).flatten(-2)

    @torch.no_grad()
    def initialise(
        self, vector_ND: Tensor, category_N: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Set the codes as ``config.init`` says, from item vectors that have been trained.

        ``category``: each of the M_1 most frequent categories (the lower one on a tie) gives level 1 the mean latent
        vector of its items. With fewer categories, k-means finds the other codes among those half of the sampled items
        that lie farthest from every category's mean. ``random`` leaves the codes as they are.

        Args:
            vector_ND: ``[N, D]`` item vectors, padding left out.
            category_N: ``[N]`` category of each item, 0 if unknown; read by ``category`` alone.
            generator: Source of the draws, on the CPU; torch's global one if ``None``.

        Raises:
            ConfigError: ``category`` without categories, or fewer items than a level has codes.
            DataError: An item vector that is not finite, or a category for another number of items.
        """
        self.idle_M.zero_()
        if self.config.init == "random":
            return
        _check_items(vector_ND, category_N, self.config)
        residual_SW = self._latents(sample_rows(vector_ND, self.config.kmeans_sample, generator))
        for level, codebook in enumerate(self.codebooks):
            centre_MW = residual_SW[:0]
            if level == 0 and self.config.init == "category" and category_N is not None:
                centre_MW = category_centres(self._latents(vector_ND), category_N, most=len(codebook))
            centre_MW = extend_centres(
                centre_MW, residual_SW, len(codebook), iterations=self.config.kmeans_iterations, generator=generator
            )
            codebook.copy_(centre_MW)
            residual_SW = residual_SW - codebook[nearest(residual_SW, codebook)[0]]

    def count_use(self, code_BC: Tensor) -> None:
        """Count one training step that used the codes ``[B, C]``.

        With several processes, gather the codes first and give every process the same: their counts must agree.
        """
        self.idle_M += 1
        self.idle_M.index_fill_(0, (code_BC + self.first_C).flatten(), 0)

    @torch.no_grad()
    def revive(self, residual_BCW: Tensor, generator: torch.Generator | None = None) -> int:
        """Move every code unused for ``dead_after`` steps to a residual of its level, drawn without repetition.

        Where the batch has fewer distinct residuals than the level has dead codes, the rest wait for a later batch.
        With several processes, gather the residuals and give every process the same ones and the same generator.
        Moments that an optimiser keeps of a code are not its business and stay.

        Args:
            residual_BCW: :attr:`Quantized.residual_BCW` of the step.
            generator: Source of the draws, on the CPU; torch's global one if ``None``.

        Returns:
            Number of codes moved; 0 always if ``dead_after`` is 0.
        """
        if not self.config.dead_after or not bool((self.idle_M >= self.config.dead_after).any()):
            return 0
        moved = 0
        for level, idle_m in enumerate(torch.split(self.idle_M, list(self.sizes))):
            distinct_RW = torch.unique(residual_BCW[:, level], dim=0)
            dead = (idle_m >= self.config.dead_after).nonzero()[: len(distinct_RW), 0]
            row = torch.randperm(len(distinct_RW), generator=generator)[: len(dead)]
            self.codebooks[level][dead] = distinct_RW[row.to(dead.device)]
            idle_m[dead] = 0
            moved += len(dead)
        return moved

    def _prepare(self, vector_XD: Tensor) -> Tensor:
        """Return ``sg[v]`` in float32, normalised if the config says so; a zero vector stays zero."""
        fixed_XD = vector_XD.detach().float()
        return F.normalize(fixed_XD, dim=-1) if self.config.normalize else fixed_XD

    def _latents(self, vector_ND: Tensor) -> Tensor:
        """Return ``[N, W]`` as :meth:`encode` does, block by block."""
        return torch.cat([self.encode(part_ND) for part_ND in torch.split(vector_ND, _CHUNK)])

    def _codes(self, residual_NW: Tensor) -> Tensor:
        """Return the ``[N, C]`` codes of latent vectors."""
        codes = []
        for codebook in self.codebooks:
            code_N, _ = nearest(residual_NW, codebook)
            codes.append(code_N)
            residual_NW = residual_NW - F.embedding(code_N, codebook)
        return torch.stack(codes, dim=1)


class _SumOfCodes(nn.Module):
    """The decoder of codes that live in the item space: ``[..., C D]`` to ``[..., D]``."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, embedding_XE: Tensor) -> Tensor:
        return torch.stack(embedding_XE.chunk(self.levels, dim=-1)).sum(dim=0)


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out))


def _check_items(vector_ND: Tensor, category_N: Tensor | None, config: QuantizerConfig) -> None:
    if config.init == "category" and category_N is None:
        raise ConfigError(
            "the dictionary is to start from categories and the items have none",
            got="quantizer.init: category",
            fix="prepare the data with an item table that has a category column, or set quantizer.init=kmeans",
        )
    if config.init == "category" and category_N is not None and len(category_N) != len(vector_ND):
        raise DataError(
            "there are not as many categories as item vectors",
            got=f"{len(category_N)} categories, {len(vector_ND)} vectors",
            fix="give one category per item, padding left out of both",
        )
    sample = min(len(vector_ND), config.kmeans_sample or len(vector_ND))
    level, size = max(enumerate(config.sizes, start=1), key=lambda pair: pair[1])
    if sample < size:
        raise ConfigError(
            "a level of the dictionary has more codes than there are items to start them from",
            got=f"level {level} has {size} codes; {len(vector_ND)} items, kmeans_sample {config.kmeans_sample}",
            fix=f"set quantizer.sizes to at most {len(vector_ND)} codes a level and quantizer.kmeans_sample to 0",
        )
    if not bool(torch.isfinite(vector_ND).all()):
        raise DataError(
            "an item vector is not finite",
            got=f"{int((~torch.isfinite(vector_ND)).any(dim=1).sum())} of {len(vector_ND)} vectors",
            fix="look for a training that diverged; lower its learning rate",
        )
