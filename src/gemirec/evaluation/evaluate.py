"""Full-ranking evaluation: histories to interests to merged lists to metrics, in bounded memory.

The lists come from :mod:`gemirec.evaluation.ranking`, by the search and the merge that serve. Every model returns the
same number of items, whatever its K: the largest of ``top_n``. Each block is searched once; accuracy, collapse and
evolution all come from those lists. Merged by best score, a shorter list is the head of the longest; otherwise a list
of each length is made, as it would be served. Nothing of size users x items is ever held.

Axes: U users in all, D embedding, M metrics (``item_ND``: items, row 0 is padding).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from gemirec.config import EvaluationConfig, to_dict
from gemirec.data.batches import evaluation_batches
from gemirec.errors import ConfigError, DataError
from gemirec.evaluation.collapse import collapse, item_norms
from gemirec.evaluation.ranking import TIE_PLACES, catalogue, rank_block, served, serving
from gemirec.evaluation.result import EvaluationResult, compare, surroundings
from gemirec.evaluation.significance import check_confidence, intervals
from gemirec.evaluation.table import BlockTable
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import check_categories, searched

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset
    from gemirec.models.base import RetrievalModel

__all__ = ["EvaluationResult", "compare", "evaluate"]


def evaluate(
    model: RetrievalModel,
    dataset: Dataset,
    config: EvaluationConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Rank the whole catalogue for the held-out users of a split and measure the lists.

    A user without history is ranked if the model gives it finite interests, and gets an empty list (every metric 0)
    otherwise; ``settings["users_without_history"]`` counts them. With ``exclude_seen`` the targets stay as they are: a
    target that is in the history cannot be hit, and ``settings["seen_target_share"]`` says how many there are.

    Args:
        model: The model. It is put into ``eval`` mode, and back afterwards.
        dataset: A prepared dataset with the model's catalogue.
        config: What is measured, and on whom.
        progress: Called after every block with (users done, users in all).
        device: Where to compute; ``None`` leaves the model where it is. The model is moved back afterwards.

    Returns:
        Metrics, intervals, settings and the table of users.

    Raises:
        DataError: The split is empty, the catalogues differ, or the model gives vectors that are not finite.
        ConfigError: A setting is out of range, or the merge does not fit the model or the data.
    """
    config = config or EvaluationConfig()
    top_n = _checked(config)
    users_U, available = _users(dataset, config)
    started = time.perf_counter()
    found = BlockTable(dataset, top_n)
    lengths = [top_n] if config.merge.kind == "max" else [(n,) for n in top_n]
    check_categories(config.merge, found.category_N)
    category_I = None if found.category_N is None else torch.as_tensor(found.category_N)
    with serving(model, device) as place:
        item_ND = catalogue(model, dataset)
        index, norm_N = ExactIndex(item_ND), item_norms(item_ND)
        for windows in evaluation_batches(
            dataset, config.split, batch_size=config.batch_size, max_length=model.max_length, users=users_U
        ):
            ranked = rank_block(
                model,
                index,
                windows,
                searched(config.merge, top_n[-1]) + TIE_PLACES,
                place,
                exclude_seen=config.exclude_seen,
                item_chunk=config.item_chunk,
            )
            made = [(part, served(ranked, part[-1], config.merge, category_I)) for part in lengths]
            found.add(windows, [(part, lists, collapse(lists, item_ND, norm_N, part)) for part, lists in made])
            if progress is not None:
                progress(found.users, len(users_U))
    seconds = time.perf_counter() - started
    metrics, ends = found.means(), _intervals(found, config)
    settings = {
        "model": type(model).__name__,
        "dataset": dataset.info.name,
        "dataset_fingerprint": dataset.fingerprint,
        "items": dataset.num_items,
        "candidates": top_n[-1],
        **to_dict(config),
        "top_n": list(top_n),
        "users": len(users_U),
        "users_in_split": available,
        **found.counts(),
        "seconds": round(seconds, 3),
        "users_per_second": round(len(users_U) / max(seconds, 1e-9), 1),
        **surroundings(place),
    }
    return EvaluationResult(metrics, ends, settings, found.table)


def _checked(config: EvaluationConfig) -> tuple[int, ...]:
    """Return the list lengths, ascending and once each; raise for settings out of range."""
    check_confidence(config.confidence)
    for name, value, least in (
        ("top_n", min(config.top_n, default=0), 1),
        ("batch_size", config.batch_size, 1),
        ("item_chunk", config.item_chunk, 1),
        ("users", config.users, 0),
        ("bootstrap", config.bootstrap, 0),
        ("seed", config.seed, 0),
    ):
        if value < least:
            got = config.top_n if name == "top_n" else value
            raise ConfigError(f"evaluation.{name} is out of range", got=got, fix=f"give {least} or more")
    return tuple(sorted(set(config.top_n)))


def _users(dataset: Dataset, config: EvaluationConfig) -> tuple[NDArray[np.int64], int]:
    """Return the users to rank, ascending, and how many the split has."""
    users_U = dataset.users_in(config.split)
    if len(users_U) == 0:
        raise DataError(
            f"the {config.split} split is empty",
            got=f"{dataset.path}: 0 users with a held-out event",
            fix="prepare the dataset with another split or weaker filters, or evaluate the other split",
        )
    available = len(users_U)
    if 0 < config.users < available:
        chosen = np.random.default_rng([config.seed, 0x05E7]).choice(available, size=config.users, replace=False)
        users_U = users_U[np.sort(chosen)]
    return users_U, available


def _intervals(found: BlockTable, config: EvaluationConfig) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals of the means over users."""
    names = [name for name in found.metric_names if np.isfinite(found.column(name)).any()]
    if config.bootstrap == 0:
        return {}
    value_UM = np.stack([found.column(name) for name in names], axis=1)
    ends_M2 = intervals(value_UM, config.bootstrap, config.confidence, config.seed)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, ends_M2, strict=True)}
