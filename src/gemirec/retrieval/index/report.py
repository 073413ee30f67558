"""Build an index, choose its search parameters, and say what it finds.

Recall is measured against the exact index with real interest vectors: the share of the exact list's items that are
found. An item that ties with the exact list's last one counts as found.

Axes: Q queries, N items (row 0 is padding), D embedding, K list length.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch

from gemirec.errors import ConfigError
from gemirec.retrieval.index.config import IndexConfig, Measured
from gemirec.retrieval.index.exact import ExactIndex
from gemirec.retrieval.index.kinds import index_class

if TYPE_CHECKING:
    from torch import Tensor

    from gemirec.retrieval.index.base import ItemIndex, Knob

logger = logging.getLogger("gemirec")

_CALL = 4
"""Queries of one call when time is taken: the interests of a user."""
_CALLS = 25
_LENGTHS = (10, 50, 100)
"""Shorter lists whose recall is reported."""


def build_index(
    item_ND: Tensor, config: IndexConfig, query_QD: Tensor | None = None, *, version: str | None = None
) -> ItemIndex:
    """Build an index, and choose search parameters that reach the stated recall as cheaply as possible.

    A parameter is doubled until the recall is reached, then bisected (:func:`tune`). An index that cannot reach it is
    returned all the same, and refuses to be saved.

    Args:
        item_ND: ``[N + 1, D]`` item vectors as a model gives them.
        config: Kind, recall and list length.
        query_QD: ``[Q, D]`` real interest vectors, in random order; the first ``config.queries`` are used. Without,
            nothing is measured, search parameters stay at their least, and only an exact index can be saved.
        version: Version of the model, for the index's folder.

    Raises:
        ConfigError: There are no query vectors among ``query_QD``.
        DataError: A vector is not finite, or there are too few items for this kind.
        MissingExtraError: The engine is not installed.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> index = build_index(torch.randn(501, 8), IndexConfig(kind="exact_int8", k=10), torch.randn(20, 8))
        >>> index.measured.recall, sorted(index.measured.at)
        (1.0, ['10'])
    """
    begin = time.perf_counter()
    index = index_class(config.kind).build(item_ND, config)
    build_s = time.perf_counter() - begin
    index.version = version
    if query_QD is None:
        return index
    query_QD = query_QD[: config.queries].detach().cpu()
    if not len(query_QD):
        raise ConfigError("recall needs query vectors", got="none", fix="give interest vectors of some users")
    exact = ExactIndex(item_ND.detach().cpu())
    truth_QK = exact.search(query_QD, config.k)[1]
    trials = tune(index, exact, query_QD, truth_QK)
    index.measured = _measured(index, exact, query_QD, truth_QK, trials, build_s)
    logger.info("%s", summary(index))
    return index


def recall_at(index: ItemIndex, exact: ExactIndex, query_QD: Tensor, truth_QK: Tensor) -> float:
    """Return the share of the exact lists that an index finds.

    Args:
        index: Any index.
        exact: The same items.
        query_QD: ``[Q, D]``.
        truth_QK: ``[Q, K]`` scores of the exact lists of K; -inf where there are fewer items.

    Example:
        >>> exact = ExactIndex(torch.eye(4))
        >>> query_QD = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
        >>> recall_at(exact.without(torch.tensor([1])), exact, query_QD, exact.search(query_QD, 2)[1])
        0.5
    """
    id_QK = index.search(query_QD, truth_QK.shape[1])[0]
    row_C, place_C = (id_QK > 0).nonzero(as_tuple=True)
    score_QK = torch.full_like(truth_QK, float("-inf"))
    score_QK[row_C, place_C] = exact.score(query_QD[row_C], id_QK[row_C, place_C])
    there_QK = truth_QK > float("-inf")
    last_Q1 = truth_QK.masked_fill(~there_QK, float("inf")).amin(dim=1, keepdim=True)
    hits_Q = (score_QK >= last_Q1).sum(dim=1)
    return float((hits_Q / there_QK.sum(dim=1).clamp(min=1)).mean()) if len(exact) else 1.0


def tune(index: ItemIndex, exact: ExactIndex, query_QD: Tensor, truth_QK: Tensor) -> list[dict[str, float]]:
    """Set an index's search parameters to the least that reach its recall; arguments as in :func:`recall_at`.

    Where a kind has two, the second is set first: so that half of what may be missed is missed with the first at its
    largest.

    Returns:
        What was tried: parameters and recall.
    """
    trials: list[dict[str, float]] = []

    def reaches(knob: Knob, value: int, want: float) -> bool:
        index.params[knob.name] = value
        found = recall_at(index, exact, query_QD, truth_QK)
        trials.append({**index.params, "recall": round(found, 5)})
        return found >= want

    want = index.config.recall
    knobs = index.knobs(truth_QK.shape[1])
    for knob in knobs[1:]:
        index.params[knobs[0].name] = knobs[0].high
        value = min(index.params[knob.name], knob.high)
        while not reaches(knob, value, (1 + want) / 2) and value < knob.high:
            value = min(2 * value, knob.high)
    for knob in knobs[:1]:
        low, value = 0, knob.low
        while not (enough := reaches(knob, value, want)) and value < knob.high:
            low, value = value, min(2 * value, knob.high)
        while enough and low >= knob.low and value - low > max(1, value // 16):
            middle = (low + value) // 2
            low, value = (low, middle) if reaches(knob, middle, want) else (middle, value)
        index.params[knob.name] = value
    return trials


def _measured(
    index: ItemIndex,
    exact: ExactIndex,
    query_QD: Tensor,
    truth_QK: Tensor,
    trials: list[dict[str, float]],
    build_s: float,
) -> Measured:
    """Measure an index with the search parameters it has."""
    k = truth_QK.shape[1]
    at = {n: recall_at(index, exact, query_QD, truth_QK[:, :n]) for n in (*(n for n in _LENGTHS if n < k), k)}
    calls = torch.split(query_QD, _CALL)[:_CALLS]
    begin = time.perf_counter()
    for call_QD in calls:
        index.search(call_QD, k)
    query_ms = 1000 * (time.perf_counter() - begin) / sum(map(len, calls))
    return Measured(
        recall=at[k],
        k=k,
        queries=len(query_QD),
        at={str(n): round(value, 5) for n, value in at.items()},
        trials=trials,
        build_s=round(build_s, 3),
        query_ms=round(query_ms, 4),
    )


def summary(index: ItemIndex) -> str:
    """Return what an index finds, in one line."""
    found, params = index.measured, ", ".join(f"{name} {value}" for name, value in index.params.items())
    head = f"{index.config.kind}: {len(index):,} items" + (f", {params}" if params else "")
    if found is None:
        return f"{head}, recall not measured"
    at = ", ".join(f"recall@{n} {value:.4f}" for n, value in found.at.items())
    short = "" if found.recall >= index.config.recall else f" - BELOW {index.config.recall}"
    return f"{head}, {at} over {found.queries} queries{short}"
