"""The row optimisers against NumPy transcriptions, torch's own optimisers, and their contract (padding, state)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.embedding import ItemTable
from gemirec.config import TrainingConfig
from gemirec.training.optim import LazyAdam, RowwiseAdagrad, build_optimizers, row_gradients

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N, D = 13, 4


def random_steps(seed: int, steps: int, width: int = 9) -> list[tuple[Tensor, Tensor]]:
    """Looked-up rows (with repeats and padding) and a gradient for each, one pair per step."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, N, (width,), generator=generator), torch.randn(width, D, generator=generator))
        for _ in range(steps)
    ]


def run(optimizer: torch.optim.Optimizer, table: nn.Parameter, steps: list[tuple[Tensor, Tensor]]) -> None:
    """Apply each step's gradient to the table through a sparse lookup."""
    for row_E, grad_ED in steps:
        optimizer.zero_grad()
        (F.embedding(row_E, table, sparse=True) * grad_ED).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def dense_gradient(row_E: Tensor, grad_ED: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Distinct non-padding rows and their summed gradients, in NumPy."""
    grad_ND = np.zeros((N, D))
    np.add.at(grad_ND, row_E.numpy(), grad_ED.numpy().astype(np.float64))
    row_R = np.setdiff1d(np.unique(row_E.numpy()), [0])
    return row_R, grad_ND[row_R]


def new_table(seed: int = 0) -> nn.Parameter:
    weight_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(seed))
    weight_ND[0] = 0
    return nn.Parameter(weight_ND)


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_lazy_adam_equals_numpy(seed: int, steps: int) -> None:
    table = new_table(seed)
    weight_ND = table.detach().numpy().astype(np.float64).copy()
    m_ND, v_ND = np.zeros((N, D)), np.zeros((N, D))
    rate, b1, b2, eps = 0.05, 0.8, 0.95, 1e-6
    sequence = random_steps(seed, steps)
    for t, (row_E, grad_ED) in enumerate(sequence, start=1):
        row_R, g_RD = dense_gradient(row_E, grad_ED)
        m_ND[row_R] = b1 * m_ND[row_R] + (1 - b1) * g_RD
        v_ND[row_R] = b2 * v_ND[row_R] + (1 - b2) * g_RD**2
        weight_ND[row_R] -= rate * (m_ND[row_R] / (1 - b1**t)) / (np.sqrt(v_ND[row_R] / (1 - b2**t)) + eps)
    run(LazyAdam([table], lr=rate, betas=(b1, b2), eps=eps), table, sequence)
    np.testing.assert_allclose(table.detach().numpy(), weight_ND, rtol=2e-4, atol=2e-5)


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_rowwise_adagrad_equals_numpy(seed: int, steps: int) -> None:
    table = new_table(seed)
    weight_ND = table.detach().numpy().astype(np.float64).copy()
    sum_N = np.full(N, 0.1)
    sequence = random_steps(seed, steps)
    for row_E, grad_ED in sequence:
        row_R, g_RD = dense_gradient(row_E, grad_ED)
        sum_N[row_R] += (g_RD**2).mean(axis=1)
        weight_ND[row_R] -= 0.3 * g_RD / (np.sqrt(sum_N[row_R]) + 1e-8)[:, None]
    run(RowwiseAdagrad([table], lr=0.3, initial_accumulator_value=0.1), table, sequence)
    np.testing.assert_allclose(table.detach().numpy(), weight_ND, rtol=2e-4, atol=2e-5)


def test_lazy_adam_equals_torch_sparse_adam_where_epsilon_is_small() -> None:
    ours, theirs = new_table(), new_table()
    steps = [(row_E.clamp(min=1), grad_ED) for row_E, grad_ED in random_steps(3, 12)]
    run(LazyAdam([ours], lr=0.01, eps=1e-15), ours, steps)
    run(torch.optim.SparseAdam([theirs], lr=0.01, eps=1e-15), theirs, steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_lazy_adam_is_adam_when_every_row_has_a_gradient() -> None:
    lazy, dense = new_table(), new_table()
    lazy_optimizer, dense_optimizer = LazyAdam([lazy], lr=0.01), torch.optim.Adam([dense], lr=0.01)
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        grad_ND = torch.randn(N, D, generator=generator)
        grad_ND[0] = 0
        lazy.grad, dense.grad = grad_ND.clone(), grad_ND.clone()
        lazy_optimizer.step()
        dense_optimizer.step()
    torch.testing.assert_close(lazy, dense, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [LazyAdam, RowwiseAdagrad])
def test_rows_without_a_gradient_and_padding_never_move(kind: type[LazyAdam] | type[RowwiseAdagrad]) -> None:
    table = new_table()
    before_ND = table.detach().clone()
    optimizer = kind([table], lr=0.1)
    for _ in range(3):
        run(optimizer, table, [(torch.tensor([0, 2, 2, 5]), torch.ones(4, D))])
    moved_N = (table.detach() != before_ND).any(dim=1)
    assert moved_N.nonzero().flatten().tolist() == [2, 5]


def test_row_gradients_sum_repeats_drop_padding_and_accept_dense() -> None:
    row_E, grad_ED = torch.tensor([4, 0, 1, 4, 4]), torch.randn(5, D)
    sparse = torch.sparse_coo_tensor(row_E[None], grad_ED, (N, D), check_invariants=True)
    row_R, grad_RD = row_gradients(sparse)
    assert row_R.tolist() == [1, 4]
    torch.testing.assert_close(grad_RD, sparse.to_dense()[[1, 4]])
    row_R, grad_RD = row_gradients(sparse.to_dense())
    assert row_R.tolist() == list(range(1, N))
    torch.testing.assert_close(grad_RD, sparse.to_dense()[1:])
    only_padding = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.ones(2, D), (N, D), check_invariants=True)
    assert len(row_gradients(only_padding)[0]) == 0


class TwoTables(nn.Module):
    """An item table beside a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.items = ItemTable(N - 1, D)
        self.layer = nn.Linear(D, D)

    def forward(self, row_E: Tensor) -> Tensor:
        value: Tensor = self.layer(self.items(row_E)).square().sum()
        return value


@pytest.mark.parametrize(
    ("name", "kind", "sparse"),
    [("lazy_adam", LazyAdam, True), ("rowwise_adagrad", RowwiseAdagrad, True), ("adam", torch.optim.Adam, False)],
)
def test_build_optimizers_by_name(name: str, kind: type[Any], sparse: bool) -> None:
    model = TwoTables()
    config = TrainingConfig(item_optimizer=name, learning_rate=0.3, item_learning_rate=0.2, weight_decay=0.1)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, config)
    assert isinstance(optimizers["items"], kind)
    assert model.items.sparse is sparse
    (items,), (dense,) = optimizers["items"].param_groups, optimizers["dense"].param_groups
    assert (items["lr"], dense["lr"], dense["weight_decay"]) == (0.2, 0.3, 0.1)
    assert len(items["params"]) == 1
    assert items["params"][0] is model.items.weight
    assert not items.get("foreach")
    assert not dense.get("foreach")
    assert build_optimizers(model, TrainingConfig())["items"].param_groups[0]["lr"] == TrainingConfig().learning_rate


@pytest.mark.parametrize("name", ["lazy_adam", "rowwise_adagrad", "adam"])
def test_sparse_and_dense_lookups_train_alike_and_keep_padding_at_zero(name: str) -> None:
    """The gradient that reaches the optimiser does not depend on how it travels."""
    torch.manual_seed(0)
    first = TwoTables()
    second = TwoTables()
    second.load_state_dict(first.state_dict())
    config = TrainingConfig(item_optimizer=name)  # type: ignore[arg-type]
    optimizers = [build_optimizers(model, config) for model in (first, second)]
    second.items.sparse = not second.items.sparse
    row_E = torch.arange(N)  # every row, so that dense and lazy moments agree
    for _ in range(4):
        for model, own in zip((first, second), optimizers, strict=True):
            for optimizer in own.values():
                optimizer.zero_grad()
            model(row_E).backward()
            if model.items.weight.grad is not None and name == "adam" and model.items.weight.grad.is_sparse:
                model.items.weight.grad = model.items.weight.grad.to_dense()
            for optimizer in own.values():
                optimizer.step()
    torch.testing.assert_close(first.items.weight, second.items.weight)
    assert not first.items.weight[0].any()


@pytest.mark.parametrize("kind", [LazyAdam, RowwiseAdagrad])
def test_state_survives_safetensors(kind: type[LazyAdam] | type[RowwiseAdagrad], tmp_path: Path) -> None:
    """Half the steps, state through a file, the other half: bit-equal to all the steps at once."""
    from gemirec.artifacts import load_tensors, save_tensors
    from gemirec.training.checkpoint import optimizer_tensors, restore_optimizer

    steps = random_steps(11, 10)
    whole, half = new_table(), new_table()
    run(kind([whole], lr=0.1), whole, steps)
    first = kind([half], lr=0.1)
    run(first, half, steps[:5])
    save_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors({"items": first}))
    second = kind([half], lr=0.1)
    restore_optimizer({"items": second}, load_tensors(tmp_path / "optimizer.safetensors"))
    run(second, half, steps[5:])
    assert torch.equal(whole, half)
