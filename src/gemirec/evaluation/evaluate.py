"""Full-ranking evaluation: histories to interests to merged lists to metrics, in bounded memory.

The lists come from :func:`gemirec.retrieval.retrieve.retrieve`, the same path that serves. Every model returns the same
number of items, whatever its K: the largest of ``top_n``. Nothing of size users x items is ever held.

Axes: U users in all, B users of a block, K interests, D embedding, N places of a list, F places fetched, M metrics.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from gemirec.config import EvaluationConfig, to_dict
from gemirec.data.batches import evaluation_batches
from gemirec.errors import ConfigError, DataError
from gemirec.evaluation.result import EvaluationResult, compare, surroundings
from gemirec.evaluation.significance import check_confidence, intervals
from gemirec.evaluation.table import BlockTable
from gemirec.models.base import Histories
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import retrieve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gemirec.data.batches import EvalWindows
    from gemirec.data.dataset import Dataset
    from gemirec.models.base import Interests, RetrievalModel
    from gemirec.retrieval.merge import Merged

__all__ = ["EvaluationResult", "compare", "evaluate"]

TIE_PLACES = 8
"""Places fetched behind the longest list, to see the items that tie with its last."""


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
        ConfigError: A setting is out of range.
    """
    config = config or EvaluationConfig()
    top_n = _checked(config)
    users_U, available = _users(dataset, config)
    started = time.perf_counter()
    found = BlockTable(dataset, top_n)
    with _serving(model, device) as place:
        index = ExactIndex(_catalogue(model, dataset))
        for windows in evaluation_batches(
            dataset, config.split, batch_size=config.batch_size, max_length=model.max_length, users=users_U
        ):
            merged = _ranked(model, index, windows, config, top_n[-1] + TIE_PLACES, place)
            found.add(windows, merged)
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


@contextmanager
def _serving(model: RetrievalModel, device: torch.device | str | None) -> Iterator[torch.device]:
    """Put the model into ``eval`` mode on ``device`` without gradient; put everything back afterwards."""
    tensor = next((t for source in (model.parameters(), model.buffers()) for t in source), None)
    home = tensor.device if tensor is not None else torch.device("cpu")
    place = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        if place != home:
            model.to(place)
        model.eval()
        with torch.no_grad():
            yield place
    finally:
        for module, training in modes:
            module.training = training
        if place != home:
            model.to(home)


def _catalogue(model: RetrievalModel, dataset: Dataset) -> torch.Tensor:
    """Return all item vectors, padding row included."""
    item_ND = model.item_vectors()
    if len(item_ND) != dataset.num_items + 1:
        raise DataError(
            "the model and the dataset have different catalogues",
            got=f"{len(item_ND) - 1} items in the model, {dataset.num_items} in {dataset.path}",
            fix="evaluate on the dataset that the model was trained on",
        )
    return item_ND


def _ranked(
    model: RetrievalModel,
    index: ExactIndex,
    windows: EvalWindows,
    config: EvaluationConfig,
    n: int,
    place: torch.device,
) -> Merged:
    """Return the merged lists of one block of users, ``n`` items each."""
    histories = Histories(windows.item_BL, windows.user_categorical_BF, windows.user_numeric_BG).to(place)
    interests = _readable(model.interests(histories), histories)
    return retrieve(
        interests,
        index,
        n,
        seen_E=windows.seen_E.to(place) if config.exclude_seen else None,
        seen_offset_B1=windows.seen_offset_B1.to(place) if config.exclude_seen else None,
        item_chunk=config.item_chunk,
    )


def _readable(interests: Interests, histories: Histories) -> Interests:
    """Take away the interests of users without history that are not finite: attention over nothing gives NaN."""
    empty_B = histories.length_B == 0
    if not bool(empty_B.any()):
        return interests
    broken_BK = empty_B[:, None] & ~torch.isfinite(interests.vector_BKD).all(dim=2)
    return replace(interests, mask_BK=interests.mask_BK & ~broken_BK)


def _intervals(found: BlockTable, config: EvaluationConfig) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals of the means over users."""
    names = [name for name in found.metric_names if np.isfinite(found.column(name)).any()]
    if config.bootstrap == 0:
        return {}
    value_UM = np.stack([found.column(name) for name in names], axis=1)
    ends_M2 = intervals(value_UM, config.bootstrap, config.confidence, config.seed)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, ends_M2, strict=True)}
