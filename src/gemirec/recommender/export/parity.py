"""Hold a written graph against the model: largest difference, and the share of the lists that stay.

Axes: B batch, L length, K interests, D embedding, Q queries, R places of a list.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gemirec.models.base import Histories
from gemirec.retrieval.index import ExactIndex

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from gemirec.recommender.export.traced import Case, Graph

BATCHES = (1, 2, 7, 64)
"""Users at once."""
_QUERIES = 500
"""Most vectors whose lists are compared."""


class Parity(NamedTuple):
    """What a graph gives beside what the model gives.

    Attributes:
        difference: Largest absolute difference of any output; NaN where one of them is not finite.
        relative: The same in parts of the longest vector of the model's (1 at least where outputs are no vectors).
        same_masks: Whether both say that the same interests exist.
        cases: Batch sizes and lengths that were compared.
        recall: Share of the model's lists that the graph's vectors find; ``None`` for a graph without interests.
    """

    difference: float
    relative: float
    same_masks: bool
    cases: int
    recall: float | None

    def within(self, tolerance: float) -> bool:
        """Return whether the graph gives the model's numbers."""
        return self.same_masks and self.relative <= tolerance

    def facts(self) -> dict[str, Any]:
        """Return plain facts for a reader or a file."""
        small = {"difference": self.difference, "relative": self.relative}
        return {**small, "same_masks": self.same_masks, "cases": self.cases, "recall": self.recall}


def cases(pool: Histories, most: int) -> Iterator[Histories]:
    """Yield histories of several batch sizes and lengths, made of a pool of real ones.

    Lengths are 1, 2, half of what the model reads, all of it, and more than it reads. Rows of a batch have different
    lengths; in batches of more than two one is empty.

    Args:
        pool: ``[B, L]``, none empty.
        most: Items that the model reads.
    """
    count = len(pool.item_BL)
    for turn, batch in enumerate(BATCHES):
        for length in sorted({1, 2, max(1, most // 2), most, most + 3}):
            row_B = torch.arange(turn, turn + batch) % count
            some = replace(pool, **{name: value[row_B] for name, value in vars(pool).items() if value is not None})
            item_BL = torch.zeros(batch, length, dtype=torch.int64)
            for row, items_L in enumerate(some.item_BL):
                want = 0 if batch > 2 and row == 2 else max(1, length - row % 3 * (length // 3))
                item_BL[row, :want] = torch.from_numpy(np.resize(items_L[items_L != 0].numpy(), want))
            yield replace(some, item_BL=item_BL)


@torch.no_grad()
def compare(path: Path, graph: Graph, pool: Histories, item_ND: Tensor | None, list_length: int) -> Parity:
    """Run a graph and the model on the same histories.

    Args:
        path: The graph's file.
        graph: What it was made from.
        pool: Real histories, see :func:`cases`.
        item_ND: ``[N + 1, D]`` items to search, for the recall; ``None`` for none.
        list_length: Length of the lists.

    Raises:
        Exception: ONNX Runtime cannot run it.
    """
    session = open_graph(path)
    difference, longest, same, done = 0.0, 0.0, True, 0
    asked: list[Tensor] = []
    given: list[Tensor] = []
    for histories in cases(pool, pool.item_BL.shape[1]):
        case = graph.case(histories)
        found = run(session, case)
        main = next(iter(case.outputs))
        longest = max(longest, float(torch.linalg.vector_norm(case.outputs[main], dim=-1).max()))
        for name, own in case.outputs.items():
            if own.dtype == torch.bool:
                same = same and bool((own == found[name]).all())
            else:
                gap = float((own - found[name]).abs().max())
                difference = gap if gap != gap else max(difference, gap)
        done += 1
        if "mask" in case.outputs:
            mask_BK = case.outputs["mask"]
            asked.append(case.outputs[main][mask_BK])
            given.append(found[main][mask_BK])
    recall = None
    if item_ND is not None and asked:
        row_Q = random.Random(0).sample(range(total := sum(map(len, asked))), min(_QUERIES, total))
        given_QD = torch.cat(given)[row_Q]
        finite = bool(torch.isfinite(given_QD).all())
        recall = list_recall(torch.cat(asked)[row_Q], given_QD, item_ND, list_length) if finite else 0.0
    return Parity(difference, difference / max(longest, 1e-12), same, done, recall)


def list_recall(asked_QD: Tensor, given_QD: Tensor, item_ND: Tensor, length: int) -> float:
    """Return the share of the lists of ``asked_QD`` that the lists of ``given_QD`` hold.

    An item that ties with a list's last one counts as held.

    Args:
        asked_QD: ``[Q, D]`` the model's vectors.
        given_QD: ``[Q, D]`` the graph's.
        item_ND: ``[N + 1, D]`` items, row 0 padding.
        length: Places of a list.

    Example:
        >>> list_recall(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[3.0, 1.0, 2.0]]), torch.eye(4)[:, 1:], 2)
        0.5
    """
    index = ExactIndex(item_ND)
    length = min(length, len(index))
    _, score_QR = index.search(asked_QD, length)
    id_QR, _ = index.search(given_QD, length)
    row_Q1 = torch.arange(len(asked_QD))[:, None].expand_as(id_QR)
    held_QR = index.score(asked_QD[row_Q1.reshape(-1)], id_QR.reshape(-1)).view_as(score_QR)
    return float((held_QR >= score_QR[:, -1:]).float().mean())


def run(session: Any, case: Case) -> dict[str, Tensor]:
    """Return what a graph gives for the inputs of a case, by the names of its outputs."""
    wanted = {value.name for value in session.get_inputs()}
    feed = {name: value.numpy() for name, value in case.inputs.items() if name in wanted}
    return dict(zip(case.outputs, map(torch.from_numpy, session.run(list(case.outputs), feed)), strict=True))


def open_graph(path: Path) -> Any:
    """Return a session of ONNX Runtime, on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
