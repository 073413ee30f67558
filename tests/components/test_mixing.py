"""Mixed rows and their gradient against the whole mixing matrix in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.components.embedding import ItemTable
from gemirec.components.mixing import mixed_rows

ITEMS, DIM = 9, 3


@pytest.mark.parametrize("sparse", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    ids=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(st.integers(0, ITEMS), min_size=width, max_size=width), max_size=8)
    ),
    seed=st.integers(0, 99),
)
def test_sums_and_gradient_are_those_of_the_matrix(sparse: bool, ids: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    table = ItemTable(ITEMS, DIM, "normal", 1.0)
    table.sparse = sparse
    id_UM = torch.tensor(ids, dtype=torch.int32).reshape(len(ids), -1 if ids else 2)
    weight_UM, grad_UD = torch.randn(id_UM.shape), torch.randn(len(ids), DIM)
    matrix = np.zeros((len(ids), ITEMS + 1))
    for row, (places, weights) in enumerate(zip(ids, weight_UM.tolist(), strict=True)):
        np.add.at(matrix[row], places, weights)
    matrix[:, 0] = 0

    mixed_UD = mixed_rows(table, id_UM, weight_UM)
    np.testing.assert_allclose(mixed_UD.detach(), matrix @ table.weight.detach().numpy(), rtol=1e-4, atol=1e-5)

    mixed_UD.backward(grad_UD)  # type: ignore[no-untyped-call]
    grad_ND = table.weight.grad
    assert grad_ND is not None
    assert grad_ND.is_sparse == sparse
    if sparse:
        rows = grad_ND._indices()[0].tolist()
        assert rows == sorted(set(id_UM.flatten().tolist()))
        grad_ND = grad_ND.to_dense()
    np.testing.assert_allclose(grad_ND, matrix.T @ grad_UD.numpy(), rtol=1e-4, atol=1e-5)
    assert (grad_ND[0] == 0).all()
