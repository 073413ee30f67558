"""DMI: interests of any model, refined dimension by dimension by a small diffusion (Le et al., 2025, arXiv 2502.05561).

An extractor weights whole items, so an interest takes over dimensions of its items that have nothing to do with it. The
abstract, which is all that could be read: noise of a controllable amount is added to coarse interests at the level of
dimensions, and an iterative reverse process, cross-attention with item pruning under collaborative guidance, rebuilds
them. Everything more concrete is ours (METHODS 2.3) and a field of the config. In one pass::

    h      = base(history)                      coarse interests, as the base serves them; item vectors are the base's
    x_0    = sqrt(D) h / |h|                                                               dimensions of variance 1
    x_T    = forward(x_0)                       noised in training, without noise at serving unless asked for
    x_s    = reverse(x_t, x0^(x_t, t, history))     a few steps; the items that the denoiser reads are chosen in each
    h'     = |h| / sqrt(D) x_0^                 normalised as the loss normalises, |h| kept

The denoiser starts as the identity: an untrained DMI serves what its base serves.

Axes: B batch, L history length, K interests, D embedding, E vectors as searched for (D and, with some bases, further
coordinates, which stay as they are), M neighbours, R reverse steps, T forward steps, N items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.denoiser import Denoiser
from gemirec.components.diffusion import (
    DimensionScale,
    ReverseProcess,
    add_noise,
    child,
    fresh_noise,
    signal_schedule,
)
from gemirec.components.guidance import InterestMemory, attended
from gemirec.components.losses import RetrievalLoss
from gemirec.components.regularizers import interest_contrast, weighted_mean
from gemirec.data.cooccurrence import cooccurrence
from gemirec.models.base import Histories, Interests, LossTerms, Stage, TrainBatch
from gemirec.models.common import TableModel, widen
from gemirec.models.dmi.config import DMIConfig, build_base
from gemirec.models.dmi.stages import BASE, JOINT, plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.components.embedding import ItemTable
    from gemirec.data.dataset import Dataset, DataSpec

_NEVER = -1e30


@dataclass(frozen=True)
class Coarse:
    """What the base says, and what the denoiser reads.

    Attributes:
        found: As the base serves it.
        clean_BKD: ``[B, K, D]`` float32 x_0, zero where an interest has no length.
        length_BK1: ``[B, K, 1]`` float32 |h|.
        item_BLD: ``[B, L, D]`` unit vectors of the history's items, zero at padding.
        mask_BL: ``[B, L]`` bool, true at real items.
        guide_BKD: ``[B, K, D]`` what other users say, or ``None``.
    """

    found: Interests
    clean_BKD: Tensor
    length_BK1: Tensor
    item_BLD: Tensor
    mask_BL: Tensor
    guide_BKD: Tensor | None


class DMI(TableModel):
    """``reverse( forward( base(history) ) )``, trained through what it serves and by reconstruction.

    Attributes:
        base: The model whose interests are refined; it owns the item table.
        denoiser: One step, a module that can be exported on its own.
    """

    neighbour_NM: Tensor
    signal_T: Tensor

    def __init__(self, config: DMIConfig, spec: DataSpec) -> None:
        super(TableModel, self).__init__(config, spec)  # without a second item table: the base has it
        self.retrieval_loss = RetrievalLoss(config.loss, spec.train_count_N)
        self.base = build_base(config, spec)
        signal_T = signal_schedule(config.noise.schedule, config.noise.steps, config.noise.amount)
        self.reverse = ReverseProcess(signal_T, config.reverse_steps, config.eta)
        self.register_buffer("signal_T", signal_T, persistent=False)
        guided = config.guidance != "history"
        self.denoiser = Denoiser(config.denoiser, config.dim, signal_T, guided=guided)
        self.scale = DimensionScale(config.dim) if config.noise.per_dimension else None
        self.memory = InterestMemory(config.memory, config.dim) if config.guidance == "users" else None
        if config.guidance == "neighbours":
            neighbour_NM = torch.zeros(spec.num_items + 1, config.neighbours, dtype=torch.int32)
            self.register_buffer("neighbour_NM", neighbour_NM)
        for stage in self.base.stages:  # a start is looked up by name on the model that trains, which is this one
            if stage.on_start is not None:
                setattr(self, BASE + stage.on_start, getattr(self.base, stage.on_start))

    @property
    def item_table(self) -> ItemTable:  # type: ignore[override]
        """The base's item table."""
        return self.base.item_table

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return the base's item vectors ``[..., E]``, or ``[N + 1, E]`` without ids."""
        return self.base.item_vectors(item_ids)

    def learn_from(self, dataset: Dataset) -> None:
        """Let the base learn; with ``guidance: neighbours`` also take each item's co-occurring items."""
        self.base.learn_from(dataset)
        if self.config.guidance == "neighbours":
            found = cooccurrence(dataset, max_neighbours=self.config.neighbours)
            self.neighbour_NM.copy_(torch.from_numpy(found.id_NM))

    # --- stages ---------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The base's own stages, as far as it trains alone, and the one with the refiner."""
        refiner = ("denoiser.", "scale.") if self.scale is not None else ("denoiser.",)
        return plan(self.config.train, self.config.base_share, self.base.stages, refiner)

    def diagnostics(self) -> dict[str, float]:
        """Return the base's, and ``context_gate``: how much the denoiser adds of what it reads, 0 at the start."""
        return self.base.diagnostics() | {"context_gate": float(self.denoiser.context_gate_D.detach().abs().mean())}

    def alarm(self) -> str | None:
        """Return the base's."""
        return self.base.alarm()

    # --- from coarse to refined -----------------------------------------------------------------------------------

    def interests(self, histories: Histories, found: Interests | None = None) -> Interests:
        """Return the refined interests; masks, weights and codes are the base's.

        Args:
            histories: The users' recent items.
            found: What the base says of them, if it is known already (from a cache of a base with a dictionary).
        """
        coarse = self.coarse(histories, found)
        return replace(coarse.found, vector_BKD=self.refine(coarse))

    def sample(self, histories: Histories, generator: torch.Generator | None = None) -> Interests:
        """Return interests refined from a noised start, with fresh noise in each step if ``eta > 0``.

        Args:
            histories: The users' recent items.
            generator: Source of the noise, on the CPU; torch's global one if ``None``.
        """
        coarse = self.coarse(histories)
        draw = fresh_noise(coarse.clean_BKD, generator)
        return replace(coarse.found, vector_BKD=self.refine(coarse, draw, noised=True))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, E]`` refined interests and which of them exist."""
        found = self.interests(histories)
        return found.vector_BKD, found.mask_BK

    def coarse(self, histories: Histories, found: Interests | None = None) -> Coarse:
        """Return the base's interests and all else that the reverse process needs, worked out once per user."""
        wide = widen(histories, self.max_length)
        found, dim = self.base.interests(wide) if found is None else found, self.config.dim
        vector_BKD = found.vector_BKD[..., :dim]
        clean_BKD = math.sqrt(dim) * F.normalize(vector_BKD, dim=2)
        length_BK1 = torch.linalg.vector_norm(vector_BKD, dim=2, keepdim=True)
        guide_BKD = self._guide(clean_BKD, wide)
        return Coarse(found, clean_BKD, length_BK1, self._directions(wide.item_BL), wide.mask_BL, guide_BKD)

    def refine(
        self,
        coarse: Coarse,
        draw: Callable[[int], Tensor] | None = None,
        *,
        noised: bool | None = None,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Run the reverse process; returns ``[B, K, E]`` as searched for.

        Args:
            coarse: From :meth:`coarse`.
            draw: Gives noise ``[..., D]`` of unit variance: for i = 0 that of the start, then that of each step.
                ``None`` takes that of ``serve_seed``, the same for every user.
            noised: Start with noise; ``None`` does what the config says of serving.
            watch: Is shown x_t ``[B, K, D]`` and t ``[1]`` before each step.
        """
        clean_BKD, config = coarse.clean_BKD, self.config
        noise = self._scaled(draw or self._fixed(clean_BKD), clean_BKD)
        if noised is None:
            noised = config.serve_start == "noised"
        signal = self.signal_T[-1]
        start_BKD = add_noise(clean_BKD, signal, noise(0)) if noised else signal.sqrt() * clean_BKD

        def predict(noised_BKD: Tensor, step: int) -> Tensor:
            step_B = torch.full((1,), step, device=noised_BKD.device)
            if watch is not None:
                watch(noised_BKD, step_B)
            return self.denoise(noised_BKD, step_B, coarse.item_BLD, coarse.mask_BL, coarse.guide_BKD)

        refined_BKD = self.reverse(predict, start_BKD, lambda i: noise(i + 1))
        if config.loss.normalize:
            refined_BKD = coarse.length_BK1 * F.normalize(refined_BKD, dim=2)
        else:
            refined_BKD = coarse.length_BK1 / math.sqrt(config.dim) * refined_BKD
        further_BKE = coarse.found.vector_BKD[..., config.dim :]
        return torch.cat([refined_BKD, further_BKE], dim=2) if further_BKE.shape[2] else refined_BKD

    def denoise(
        self, noised_BKD: Tensor, step_B: Tensor, item_BLD: Tensor, mask_BL: Tensor, guide_BKD: Tensor | None = None
    ) -> Tensor:
        """Return x0^ ``[B, K, D]``: the one prediction, in training as in sampling (:meth:`Denoiser.forward`)."""
        clean_BKD: Tensor = self.denoiser(noised_BKD, step_B, item_BLD, mask_BL, guide_BKD)
        return clean_BKD

    def reads(self, histories: Histories) -> Tensor:
        """Return what each interest reads of the history in each reverse step: ``[R, B, K, L]``, rows summing to 1."""
        coarse, seen = self.coarse(histories), []

        def watch(noised_BKD: Tensor, step_B: Tensor) -> None:
            seen.append(self.denoiser.attention(noised_BKD, step_B, coarse.item_BLD, coarse.mask_BL))

        self.refine(coarse, watch=watch)
        return torch.stack(seen)[..., : histories.item_BL.shape[1]]

    def attribution(self, histories: Histories) -> Tensor | None:
        """Return what the base says of its coarse interests; what the last step reads where the base says nothing."""
        weight_BKL = self.base.attribution(histories)
        if weight_BKL is None and self.config.denoiser.cross_attention:
            return self.reads(histories)[-1]
        return weight_BKL

    def _directions(self, item_X: Tensor) -> Tensor:
        """Return the unit vectors ``[..., D]`` of items, zero for padding."""
        vector_XD = self.base.item_vectors(item_X)[..., : self.config.dim].float()
        return vector_XD if self.config.loss.normalize else F.normalize(vector_XD, dim=-1)  # they are units already

    def _guide(self, clean_BKD: Tensor, wide: Histories) -> Tensor | None:
        """Return what other users say ``[B, K, D]``, if they are asked."""
        if self.memory is not None:
            return self.memory.nearest(clean_BKD, self.config.neighbours)
        if self.config.guidance == "neighbours":
            age_R = torch.arange(min(self.config.neighbours_of, self.max_length), device=clean_BKD.device)
            place_BR = wide.length_B[:, None] - 1 - age_R
            newest_BR = wide.item_BL.gather(1, place_BR.clamp(min=0)) * (place_BR >= 0)
            neighbour_BM = self.neighbour_NM[newest_BR].flatten(1).long()
            return attended(clean_BKD, self._directions(neighbour_BM), neighbour_BM > 0)
        return None

    def _scaled(self, draw: Callable[[int], Tensor], clean_BKD: Tensor) -> Callable[[int], Tensor]:
        """Return ``draw``, times the learned scale of each dimension if there is one."""
        if self.scale is None:
            return draw
        scale_BKD = self.scale(clean_BKD)
        return lambda i: scale_BKD * draw(i)

    def _fixed(self, clean_BKD: Tensor) -> Callable[[int], Tensor]:
        """Return the source of serving's noise: of a fixed seed, the same for every user of whatever batch."""
        shape, seed = clean_BKD.shape[1:], self.config.serve_seed
        return lambda i: torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)).to(clean_BKD.device)

    # --- losses ---------------------------------------------------------------------------------------------------

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the base's terms in its own stages; otherwise ``retrieval`` and what the config adds to it."""
        if stage.startswith(BASE):
            return self.base.losses(batch, stage.removeprefix(BASE))
        config, terms = self.config, LossTerms()
        coarse = self.coarse(batch)
        mask_BK, generator = coarse.found.mask_BK, batch.generator
        if self.training:
            noised = config.train_start == "noised"
            vector_BKE = self.refine(coarse, fresh_noise(coarse.clean_BKD, generator), noised=noised)
        else:
            vector_BKE = self.refine(coarse)
        terms.add("retrieval", self._retrieval(vector_BKE, mask_BK, batch.target_B, batch.weight_B, generator))
        if config.reconstruction_weight:
            terms.add("reconstruction", self._reconstruction(coarse, batch), config.reconstruction_weight)
        if self.memory is not None and self.training:
            self.memory.remember(self._owned(coarse, batch)[0][:, 0])
        if config.contrast_weight:
            coarse_BKD, refined_BKD = coarse.clean_BKD, vector_BKE[..., : config.dim]
            contrast = interest_contrast(refined_BKD, coarse_BKD, config.contrast_temperature, mask_BK, batch.weight_B)
            terms.add("contrast", contrast, config.contrast_weight)
        if config.base_weight and stage == JOINT:
            own = self.base.losses(batch, self.base.stages[-1].name)
            for name, value in own.terms.items():
                terms.add(BASE + name, value, config.base_weight * own.weights[name])
        return terms

    def _reconstruction(self, coarse: Coarse, batch: TrainBatch) -> Tensor:
        """Return ``|x0^(x_t, t) - target|^2 / D`` of the interest nearest to the next item, t at random from 1 to T."""
        clean_BKD, guide_BKD, target_BKD = self._owned(coarse, batch)
        step_B = torch.randint(1, len(self.signal_T), batch.target_B.shape, generator=child(batch.generator))
        step_B = step_B.to(clean_BKD.device)
        noise_BKD = self._scaled(fresh_noise(clean_BKD, batch.generator), clean_BKD)(0)
        noised_BKD = add_noise(clean_BKD, self.signal_T[step_B][:, None], noise_BKD)
        found_BKD = self.denoise(noised_BKD, step_B, coarse.item_BLD, coarse.mask_BL, guide_BKD)
        if self.config.reconstruct == "coarse":
            target_BKD = clean_BKD.detach()
        return weighted_mean((found_BKD - target_BKD).square().mean(dim=(1, 2)), batch.weight_B)

    def _owned(self, coarse: Coarse, batch: TrainBatch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the one interest nearest to the next item, its guidance and that item's vector: ``[B, 1, D]`` each."""
        target_BD = math.sqrt(self.config.dim) * self._directions(batch.target_B).detach()
        score_BK = torch.einsum("bkd,bd->bk", coarse.clean_BKD.detach(), target_BD)
        owner_B = score_BK.masked_fill(~coarse.found.mask_BK, _NEVER).argmax(dim=1)
        row_B = torch.arange(len(owner_B), device=owner_B.device)
        guide_BKD = None if coarse.guide_BKD is None else coarse.guide_BKD[row_B, owner_B][:, None]
        return coarse.clean_BKD[row_B, owner_B][:, None], guide_BKD, target_BD[:, None]
