"""How items of a history form interests: what every model that says so must keep."""

from __future__ import annotations

import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.models.catalog import MODELS
from support_models import held_out, ready


@pytest.mark.parametrize("name", list(MODELS))
def test_attributions_are_shares_of_the_history(name: str, planted: Dataset) -> None:
    model = ready(name, planted.spec()).eval()
    histories = held_out(planted, model.max_length)
    histories.item_BL[0] = 0
    weight_BKL = model.attribution(histories)
    if weight_BKL is None:
        return
    interests = model.interests(histories)
    assert weight_BKL.shape == (*interests.vector_BKD.shape[:2], model.max_length)
    assert (weight_BKL >= 0).all()
    assert (weight_BKL.masked_select(~histories.mask_BL[:, None].expand_as(weight_BKL)) == 0).all()
    total_BK = weight_BKL.sum(dim=2)
    torch.testing.assert_close(total_BK[1:], torch.ones_like(total_BK[1:]))
    assert (total_BK[0] == 0).all()
