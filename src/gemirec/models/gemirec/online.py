"""GemiRec's online path: what a request pays once interests are cached.

Axes: B batch, K interests, k those of the cache, D embedding, E interest embedding, M interests, X = M + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from gemirec.models.gemirec.tower import Prepared

if TYPE_CHECKING:
    from gemirec.components.selection import Selected
    from gemirec.models.base import Histories, Interests
    from gemirec.models.gemirec.core import ServedGemiRec


class OnlinePath:
    """From cached interests and fresh histories to vectors, with as little work per request as can be.

    Its vectors are those of :meth:`~gemirec.models.gemirec.core.ServedGemiRec.fused` up to rounding.

    Args:
        model: The model. What the fusion does to interests alone is done here, once: build a new path when the model
            has been trained further.
    """

    def __init__(self, model: ServedGemiRec) -> None:
        self._model = model
        with torch.no_grad():
            # One further row: no interest. Absent ones and the user's own vector are fused with it.
            embedding_XE = F.pad(model.dictionary.embed(model.code_MC), (0, 0, 0, 1))
            self._prepared = model.fusion.prepare(embedding_XE)

    def __call__(self, histories: Histories, chosen: Selected) -> Interests:
        """Return what ``fused`` returns, up to rounding, without gradient."""
        model, hidden_XH, direction_XD = self._model, *self._prepared
        with torch.no_grad():
            index_BK = chosen.index_Bk
            if model.config.keep_user_vector:
                index_BK = F.pad(index_BK, (1, 0), value=-1)
            row_BK = index_BK % len(hidden_XH)  # -1 is the last row
            direction_BKD = None if direction_XD is None else F.embedding(row_BK, direction_XD)
            users = model.users(histories)
            fused_BKD = model.fusion.combine(Prepared(F.embedding(row_BK, hidden_XH), direction_BKD), users)
            return model.given(fused_BKD, chosen, users)
