"""Where the interests of a trained GemiRec can come from, other than its generator.

A source is a function from histories to :class:`~gemirec.components.selection.Selected`; :class:`Probed` puts it in the
place of the generator and leaves everything else as served.

Axes: B users, E events of all users, T different interests of all users, U interests that have an item, L history
length, K interests, k interests chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import Tensor

from gemirec.components.selection import Selected
from gemirec.errors import DataError
from gemirec.models.base import Histories, Interests, LossTerms, RetrievalModel, TrainBatch
from gemirec.models.gemirec import GemiRec

if TYPE_CHECKING:
    from gemirec.data.batches import EvalWindows

Source = Callable[[Histories], Selected]


class Probed(RetrievalModel):
    """A trained GemiRec whose interests somebody else chooses.

    Args:
        model: The trained model; shared, not copied.
        choose: The source.
        user_vector: Keep the user's own vector, where the model has it among its interests.
    """

    def __init__(self, model: GemiRec, choose: Source, *, user_vector: bool = True) -> None:
        super().__init__(model.config, model.spec)
        self.model, self.choose = model, choose
        self.drops = model.config.keep_user_vector and not user_vector

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return the model's item vectors."""
        return self.model.item_vectors(item_ids)

    def interests(self, histories: Histories) -> Interests:
        """Return the vectors of the interests that the source chooses."""
        found = self.model.fused(histories, self.choose(histories))
        if not self.drops:
            return found
        assert found.weight_BK is not None
        assert found.code_BKC is not None
        mask_BK = found.mask_BK[:, 1:]
        first_K = torch.arange(mask_BK.shape[1], device=mask_BK.device) == 0
        mask_BK = mask_BK | (first_K & ~mask_BK.any(dim=1, keepdim=True))  # every user has an interest, if a zero one
        return Interests(found.vector_BKD[:, 1:], mask_BK, found.weight_BK[:, 1:], found.code_BKC[:, 1:])

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the model's losses."""
        return self.model.losses(batch, stage)


def generated(model: GemiRec, k: int, epsilon: int | None) -> Source:
    """Return the generator's ``k`` most probable interests under another limit, ``None`` for none."""
    return lambda histories: model.select(model.state(histories), k, epsilon)


def nothing(histories: Histories) -> Selected:
    """Choose no interest at all: the user's own vector stays alone."""
    empty_B0 = torch.empty(len(histories.item_BL), 0, device=histories.item_BL.device)
    return Selected(empty_B0.long(), empty_B0)


def drawn(model: GemiRec, k: int, seed: int = 1) -> Source:
    """Return ``k`` different interests per user, uniformly among those that have an item."""
    used_U = torch.unique(model.item_interests()[1:])
    generator = torch.Generator().manual_seed(seed)

    def choose(histories: Histories) -> Selected:
        value_BU = torch.rand(len(histories.item_BL), len(used_U), generator=generator)
        index_Bk = used_U[value_BU.topk(min(k, len(used_U)), dim=1).indices.to(used_U.device)]
        return Selected(index_Bk, torch.full(index_Bk.shape, -float(np.log(len(used_U))), device=used_U.device))

    return choose


def history_twin(model: GemiRec) -> GemiRec:
    """Return the same model with ``generator: history`` (the paper's variant -M, not trained anew); weights shared."""
    config = msgspec.structs.replace(model.config, generator="history")
    with torch.random.fork_rng(devices=()):  # building draws weights that are replaced at once
        twin = GemiRec(config, model.spec)
    own = twin.state_dict().keys()
    twin.load_state_dict({name: value for name, value in model.state_dict().items() if name in own}, assign=True)
    return twin.to(model.interest_N.device).eval()


class Oracle:
    """Knows what comes: the true interests of the evaluated users, the upper bound of any generator.

    It reads the evaluation's own batches beside the evaluation, one per call, and compares the histories.

    Args:
        model: Gives the items their interests.
        windows: The batches, in the order in which the evaluation visits them.
        k: Interests per user: the most frequent ones among the held-out items, of equal ones the earlier.
        next_only: Only the first held-out item's, one interest.
    """

    def __init__(self, model: GemiRec, windows: Iterator[EvalWindows], k: int, *, next_only: bool = False) -> None:
        self._interest_N = model.item_interests().cpu()
        self._windows, self._k, self._next_only = windows, k, next_only

    def __call__(self, histories: Histories) -> Selected:
        """Return the true interests of the next block.

        Raises:
            DataError: The block's histories are not those of the evaluation's batch.
        """
        block = next(self._windows, None)
        if block is None or not torch.equal(block.item_BL, histories.item_BL.cpu()):
            raise DataError(
                "the oracle was asked about other users than it knows",
                got="no more users" if block is None else f"a block of {len(histories.item_BL)} other histories",
                fix="use an oracle for one evaluation, with its users, order and batch size",
            )
        target_E, offset_B1 = block.target_E, block.target_offset_B1
        if self._next_only:
            target_E, offset_B1 = target_E[offset_B1[:-1]], torch.arange(len(offset_B1))
        chosen = most_frequent(self._interest_N[target_E], offset_B1, self._k)
        return Selected(*(part.to(histories.item_BL.device) for part in chosen))


def most_frequent(interest_E: Tensor, offset_B1: Tensor, k: int) -> Selected:
    """Return each user's ``k`` most frequent interests, of equally frequent ones the one that came first.

    Args:
        interest_E: ``[E]`` int64 interests in time order, one user after the other.
        offset_B1: ``[B + 1]`` int64 where each user's part starts.
        k: Interests to keep; with fewer different ones the rest are missing.

    Returns:
        Flat indices, and the logarithm of each one's share of the user's events.

    Example:
        >>> most_frequent(torch.tensor([5, 3, 3, 8, 4]), torch.tensor([0, 4, 5]), 2).index_Bk.tolist()
        [[3, 5], [4, -1]]
    """
    users = len(offset_B1) - 1
    size_B = offset_B1.diff().numpy()
    stride = int(interest_E.max()) + 1 if len(interest_E) else 1
    key_E = np.repeat(np.arange(users), size_B) * stride + interest_E.numpy()
    key_T, first_T, count_T = np.unique(key_E, return_index=True, return_counts=True)
    order_T = np.lexsort((first_T, -count_T, key_T // stride))
    key_T, count_T = key_T[order_T], count_T[order_T]
    row_T = key_T // stride
    place_T = np.arange(len(row_T)) - np.searchsorted(row_T, row_T)
    kept_T = place_T < k
    row_T, place_T = row_T[kept_T], place_T[kept_T]
    index_Bk, logp_Bk = np.full((users, k), -1), np.full((users, k), -np.inf, dtype=np.float32)
    index_Bk[row_T, place_T] = key_T[kept_T] % stride
    logp_Bk[row_T, place_T] = np.log(count_T[kept_T] / size_B[row_T])
    return Selected(torch.from_numpy(index_Bk), torch.from_numpy(logp_Bk))
