"""One small model, trained once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gemirec.recommender import Recommender

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

QUICK = ["model.dim=16", "training.steps=80", "training.learning_rate=0.02", "training.eval_every=0"]


@pytest.fixture(scope="session")
def recommender(planted: Dataset) -> Recommender:
    """ComiRec-SA on the planted data (items item-1 ... item-120, users user-0 ... user-399)."""
    return Recommender.fit(planted, model="comirec_sa", overrides=QUICK)
