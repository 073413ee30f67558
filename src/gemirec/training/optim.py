"""Optimisers for item tables whose step costs the rows of the step, not the catalogue.

Dense Adam walks every row of the table and of both moments at each step: past some 50 thousand items that walk is most
of a training step. :class:`LazyAdam` and :class:`RowwiseAdagrad` read and write only the rows that have a gradient.

Axes: N rows of the table (row 0 is padding), D embedding, E looked-up rows of the step with repeats, R distinct rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.embedding import ItemTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gemirec.config import TrainingConfig


def row_gradients(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a table's gradient by row and drop the padding row.

    Args:
        grad: ``[N, D]``, sparse with repeats allowed (``F.embedding(sparse=True)``) or dense.

    Returns:
        ``row_R`` int64, ascending and distinct, without 0, and ``grad_RD``, contiguous. A dense one gives all rows.

    Example:
        >>> grad = torch.sparse_coo_tensor([[3, 0, 3]], [[1.0], [9.0], [2.0]], (5, 1), check_invariants=True)
        >>> row_R, grad_RD = row_gradients(grad)
        >>> row_R.tolist(), grad_RD.tolist()
        ([3], [[3.0]])
    """
    if not grad.is_sparse:
        return torch.arange(1, len(grad), device=grad.device), grad[1:].contiguous()
    # coalesce() does the same at twice the price: it sorts 2-D indices and adds row by row.
    row_R, place_E = torch.unique(grad._indices()[0], return_inverse=True)
    value_ED = grad._values()
    grad_RD = value_ED.new_zeros(len(row_R), value_ED.shape[1]).index_add_(0, place_E, value_ED)
    if len(row_R) and int(row_R[0]) == 0:
        return row_R[1:], grad_RD[1:]
    return row_R, grad_RD


class _RowOptimizer(torch.optim.Optimizer):
    """What the row optimisers share: walking the tables of the groups, and nothing of the update itself."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the rows that have a gradient; padding row 0 never moves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    self._init_state(table, state)
                row_R, grad_RD = row_gradients(table.grad)
                self._update(table, row_R, grad_RD, state, group)
        return loss

    def _init_state(self, table: Tensor, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(
        self, table: Tensor, row_R: Tensor, grad_RD: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError


class LazyAdam(_RowOptimizer):
    r"""Adam that touches only the rows of the step.

    For a row :math:`r` with gradient :math:`g_r` at global step :math:`t`

    .. math::
        m_r \leftarrow \beta_1 m_r + (1-\beta_1) g_r,\quad v_r \leftarrow \beta_2 v_r + (1-\beta_2) g_r^2,\quad
        w_r \leftarrow w_r - \eta \frac{m_r / (1-\beta_1^t)}{\sqrt{v_r / (1-\beta_2^t)} + \epsilon}

    and rows without a gradient keep weight and moments. Differences: from dense Adam (Kingma and Ba 2015, algorithm 1),
    whose unvisited rows go on drifting on old momentum; from ``torch.optim.SparseAdam``, which adds
    :math:`\epsilon` before the bias correction and walks through sparse tensors (2-4 times slower). If every row has a
    gradient at every step it *is* Adam.

    Args:
        params: Item tables ``[N, D]``.
        lr: Step size.
        betas: Decay of the two moments.
        eps: Added to the denominator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _init_state(self, table: Tensor, state: dict[str, Any]) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
        state["exp_avg"] = torch.zeros_like(table, memory_format=torch.contiguous_format)
        state["exp_avg_sq"] = torch.zeros_like(table, memory_format=torch.contiguous_format)

    def _update(
        self, table: Tensor, row_R: Tensor, grad_RD: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        state["step"] += 1
        tables = (table, state["exp_avg"], state["exp_avg_sq"])
        # Gather, one fused Adam over the gathered rows, scatter: three passes over R x D instead of ten.
        weight_RD, first_RD, second_RD = (F.embedding(row_R, part_ND) for part_ND in tables)
        torch._fused_adam_(
            [weight_RD],
            [grad_RD],
            [first_RD],
            [second_RD],
            [],
            [state["step"]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        for part_ND, part_RD in zip(tables, (weight_RD, first_RD, second_RD), strict=True):
            part_ND.index_copy_(0, row_R, part_RD)


class RowwiseAdagrad(_RowOptimizer):
    r"""Adagrad with one accumulator per row: the smallest optimiser state that adapts by item.

    For a row with a gradient: :math:`a_r \leftarrow a_r + \frac1D \sum_d g_{rd}^2`,
    :math:`w_r \leftarrow w_r - \eta\, g_r / (\sqrt{a_r} + \epsilon)`, as fbgemm's exact row-wise Adagrad.

    Args:
        params: Item tables ``[N, D]``.
        lr: Step size.
        eps: Added to the denominator.
        initial_accumulator_value: Start of :math:`a_r`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-2,
        eps: float = 1e-8,
        initial_accumulator_value: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "initial_accumulator_value": initial_accumulator_value})
        self._initial = initial_accumulator_value

    def _init_state(self, table: Tensor, state: dict[str, Any]) -> None:
        state["sum"] = torch.full((len(table),), self._initial, dtype=torch.float32, device=table.device)

    def _update(
        self, table: Tensor, row_R: Tensor, grad_RD: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        sum_N = state["sum"]
        sum_R = sum_N[row_R].add_(grad_RD.square().mean(dim=1))
        sum_N.index_copy_(0, row_R, sum_R)
        table.index_add_(0, row_R, grad_RD / (sum_R.sqrt() + group["eps"])[:, None], alpha=-group["lr"])


def scale_rates(optimizers: Mapping[str, torch.optim.Optimizer], config: TrainingConfig, factor: float) -> None:
    """Set every optimiser's step size to ``factor`` times its configured value."""
    for name, optimizer in optimizers.items():
        item_rate = config.item_learning_rate if name == "items" else None
        for group in optimizer.param_groups:
            group["lr"] = factor * (config.learning_rate if item_rate is None else item_rate)


def item_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of every :class:`~gemirec.components.embedding.ItemTable` in ``model``, by parameter name."""
    tables = [(name, module.weight) for name, module in model.named_modules() if isinstance(module, ItemTable)]
    return {
        f"{name}.weight" if name else "weight": weight for name, weight in tables if isinstance(weight, nn.Parameter)
    }


def build_optimizers(model: nn.Module, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers of a model: ``"dense"`` for its ordinary parameters, ``"items"`` for its item tables.

    Sets ``sparse`` of every item table to fit. The dense part is always fused Adam with decoupled weight decay
    (``AdamW``; at 0 it is Adam), never the foreach form, which is three times slower on a large table. Item tables
    get no weight decay, dense or not: it would have to touch every row.

    Args:
        model: Any module; parameters that belong to no :class:`ItemTable` are dense.
        config: Learning rates, ``item_optimizer``, ``weight_decay``.
    """
    tables = item_tables(model)
    sparse = config.item_optimizer != "adam"
    for module in model.modules():
        if isinstance(module, ItemTable):
            module.sparse = sparse
    owned = {id(weight) for weight in tables.values()}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in owned]
    rate = config.learning_rate if config.item_learning_rate is None else config.item_learning_rate
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if dense:
        optimizers["dense"] = torch.optim.AdamW(
            dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
    if not tables:
        return optimizers
    unique = list({id(weight): weight for weight in tables.values()}.values())
    if config.item_optimizer == "lazy_adam":
        optimizers["items"] = LazyAdam(unique, lr=rate)
    elif config.item_optimizer == "rowwise_adagrad":
        optimizers["items"] = RowwiseAdagrad(unique, lr=rate)
    else:
        optimizers["items"] = torch.optim.Adam(unique, lr=rate, fused=True)
    return optimizers
