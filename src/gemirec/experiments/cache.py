"""Build the interest cache of a trained model: every user's interests, streamed from the data into one file.

Axes: B users of a block, X users of one pass, S state, K interests, L history length, U all users of a dataset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import numpy as np
import polars as pl
import torch
from msgspec import Meta

from gemirec.components.selection import Selected, check_selection
from gemirec.config import Config
from gemirec.data.batches import gather_events, pad_histories
from gemirec.data.dataset import TEST_START, VALID_START, Dataset
from gemirec.errors import ArtifactError, ConfigError, DataError
from gemirec.models.base import Histories
from gemirec.recommender.artifact import HISTORY_BLOCK, read_artifact
from gemirec.recommender.histories import history_lengths
from gemirec.retrieval.interest_cache import CacheInfo, CacheRows, take_users, write_cache
from gemirec.retrieval.versions import dictionary_version, model_version, with_dictionary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.models.base import RetrievalModel
    from gemirec.models.gemirec import GemiRec
    from gemirec.recommender.artifact import ArtifactInfo

_CUT = {"valid": VALID_START, "test": TEST_START}


class CacheConfig(Config, frozen=True, kw_only=True):
    """What goes into an interest cache."""

    k: Annotated[int, Meta(ge=1)] | None = None
    """K, interests of a user; empty takes the model's own number (paper: 5)."""
    epsilon: Annotated[int, Meta(ge=0)] | None = None
    """Most interests of a user that share a code of one sub-dictionary; 0 for no limit, empty takes the model's own
    (paper: 3)."""
    batch_size: Annotated[int, Meta(ge=1)] = 512
    """Users of one pass through the generator; memory grows with it times the number of interests."""


class UserBlock(NamedTuple):
    """Some users with the events that a model reads.

    Attributes:
        user_id: ``[B]`` ids.
        histories: Their last events, ``[B, L]``, and features.
        length_B: ``[B]`` int64, all events of each.
    """

    user_id: pl.Series
    histories: Histories
    length_B: NDArray[np.int64]


def build_cache(
    artifact: Path,
    dataset: Path | None,
    out: Path,
    *,
    config: CacheConfig | None = None,
    split: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the interests of all users into one file; memory is bounded by a block of users.

    Args:
        artifact: A folder that ``gemirec train`` or ``save_pretrained`` wrote, of a model with a dictionary.
        dataset: The prepared dataset it was trained on; ``None`` takes the histories that the artifact keeps.
        out: The Parquet file; one that is there is replaced when the new one is whole.
        config: ``None`` takes the model's own K and epsilon.
        split: ``None`` reads all events of all users. ``valid`` or ``test``: the held-out users alone, up to the cut.
        progress: Called with (users done, users in all).

    Returns:
        Plain facts: users, settings, versions, speed.

    Raises:
        ConfigError: The model has no dictionary, or the settings cannot be met.
        DataError: The dataset is another one, or no user has a history.
        ArtifactError: The artifact keeps no histories and there is no dataset.
    """
    begin = time.perf_counter()
    facts, loaded, _ = read_artifact(artifact)
    model, config = with_dictionary(loaded), config or CacheConfig()  # DMI's base selects, and DMI's version is served
    data = None if dataset is None else _same_data(Dataset.open(dataset), facts)
    if data is not None:
        total, blocks = dataset_blocks(data, model.max_length, split)
    else:
        total, blocks = artifact_blocks(artifact, model.max_length, split)
    info = cache_info(
        loaded, config, name=facts.model, fingerprint=facts.dataset.get("fingerprint", ""), history=split or "all"
    )
    count = _Count(total, progress)
    users = write_cache(out, info, (count.add(select_block(model, block, info, config.batch_size)) for block in blocks))
    seconds = time.perf_counter() - begin
    return {
        "cache": str(out),
        "users": users,
        "without_history": total - users,
        "history": info.history,
        "k": info.k,
        "epsilon": info.epsilon,
        "interests_per_user": count.interests / users,
        "dictionary_version": info.dictionary_version,
        "model_version": info.model_version,
        "fingerprint": info.dataset_fingerprint,
        "bytes": out.stat().st_size,
        "seconds": round(seconds, 2),
        "users_per_s": round(users / seconds, 1),
    }


def cache_info(served: RetrievalModel, config: CacheConfig, *, name: str, fingerprint: str, history: str) -> CacheInfo:
    """Return what a cache of ``served`` is made with; K and epsilon are by default its own, or those of its base.

    Raises:
        ConfigError: The model serves no interest of the dictionary, has not learned to, or K cannot be reached.
    """
    model = with_dictionary(served)
    if int(model.phase) < 2:
        raise ConfigError(
            "the model's best checkpoint is from before its generator was trained",
            got="an artifact of an earlier stage",
            fix="train longer, or with a larger model.joint_share",
        )
    k = model.config.num_interests - model.config.keep_user_vector if config.k is None else config.k
    if k == 0:
        raise ConfigError(
            "the model serves the user's own vector alone, so there is nothing to cache",
            got="num_interests: 1 with keep_user_vector: true",
            fix="set k of 1 or more, or train with a larger model.num_interests",
        )
    epsilon = model.epsilon if config.epsilon is None else config.epsilon or None
    sizes = model.dictionary.sizes
    check_selection(k, epsilon, sizes, model.limited)
    return CacheInfo(
        k=k,
        epsilon=epsilon,
        levels=list(model.limited or range(1, len(sizes) + 1)),
        sizes=list(sizes),
        dictionary_version=dictionary_version(model),
        model_version=model_version(served),
        model=name,
        dataset_fingerprint=fingerprint,
        history=history,
    )


@torch.no_grad()
def select_block(model: GemiRec, block: UserBlock, info: CacheInfo, batch_size: int) -> CacheRows:
    """Return the interests of a block's users; those without any event are left out.

    Args:
        model: In ``eval`` mode.
        block: The users.
        info: K and epsilon.
        batch_size: Users of one pass through the generator.
    """
    keep_B = block.length_B > 0
    parts = []
    for row_X in torch.split(torch.from_numpy(np.flatnonzero(keep_B)), batch_size):
        state_XS = model.state(take_users(block.histories, row_X))
        parts.append(model.select(state_XS, info.k, info.epsilon))
    chosen = Selected(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    return CacheRows(block.user_id.filter(pl.Series(keep_B)), chosen, block.length_B[keep_B])


def dataset_blocks(dataset: Dataset, max_length: int, split: str | None) -> tuple[int, Iterator[UserBlock]]:
    """Return the number of users of a dataset and the users in blocks.

    Args:
        dataset: The prepared dataset.
        max_length: Most recent events that are read.
        split: ``None`` for all events of all users, ``valid`` or ``test`` for the held-out users up to their cut.

    Raises:
        ConfigError: No such split.
    """
    if split is not None and split not in _CUT:
        raise ConfigError("no such split to cache", got=split, fix="choose valid or test, or leave it out for all")
    user_U = np.arange(dataset.num_users) if split is None else dataset.users_in(cast("Any", split))
    features = dataset.user_features()

    def blocks() -> Iterator[UserBlock]:
        for start in range(0, len(user_U), HISTORY_BLOCK):
            user_B = user_U[start : start + HISTORY_BLOCK]
            if split is None:
                length_B = history_lengths(dataset, user_B)
            else:
                length_B = dataset.bounds_of(user_B)[:, _CUT[split]].astype(np.int64)
            size_B = np.minimum(length_B, max_length)
            item_E, offset_B1 = gather_events(dataset, user_B, length_B - size_B, size_B)
            categorical, numeric = (None if table is None else table[user_B] for table in features)
            histories = _histories(pad_histories(item_E, offset_B1, max_length), categorical, numeric)
            yield UserBlock(dataset.users["user_id"].gather(user_B), histories, length_B)

    return len(user_U), blocks()


def artifact_blocks(artifact: Path, max_length: int, split: str | None) -> tuple[int, Iterator[UserBlock]]:
    """Return the number of users whose histories an artifact keeps, and the users in blocks.

    Raises:
        ConfigError: A split is asked for; the artifact does not know its cut.
        ArtifactError: It keeps no histories.
    """
    import pyarrow.parquet as pq

    if split is not None:
        raise ConfigError(
            "an artifact's histories are not split", got=f"split {split}", fix="give the prepared dataset too"
        )
    path = artifact / "histories.parquet"
    if not path.exists():
        raise ArtifactError(
            "the artifact keeps no histories, so its users are not known", got=path, fix="give the prepared dataset too"
        )
    file = pq.ParquetFile(path)

    def blocks() -> Iterator[UserBlock]:
        for batch in file.iter_batches(batch_size=HISTORY_BLOCK):
            length_B = batch["items"].value_lengths().to_numpy().astype(np.int64)
            offset_B1 = np.concatenate([[0], np.cumsum(length_B)])
            item_BL = pad_histories(batch["items"].flatten().to_numpy(), offset_B1, max_length)
            categorical, numeric = (
                batch[name].flatten().to_numpy().reshape(len(batch), -1) if name in batch.schema.names else None
                for name in ("categorical", "numeric")
            )
            user_id = cast("pl.Series", pl.from_arrow(batch["user_id"]))
            yield UserBlock(user_id, _histories(item_BL, categorical, numeric), length_B)

    return file.metadata.num_rows, blocks()


class _Count:
    """Counts what passes."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.interests = self._users = 0
        self._total, self._progress = total, progress

    def add(self, rows: CacheRows) -> CacheRows:
        """Count a block and hand it on."""
        self.interests += int((rows.chosen.index_Bk >= 0).sum())
        self._users += len(rows.user_id)
        if self._progress is not None:
            self._progress(self._users, self._total)
        return rows


def _same_data(dataset: Dataset, facts: ArtifactInfo) -> Dataset:
    """Return ``dataset`` if the model was trained on it: item numbers of another mean other items."""
    trained = facts.dataset.get("fingerprint")
    if trained != dataset.fingerprint:
        raise DataError(
            "the model was trained on other data, so its item numbers do not fit this dataset",
            got=f"trained on {trained}, got {dataset.fingerprint} ({dataset.path})",
            fix="cache the dataset that the model was trained on, or leave it out to take the artifact's histories",
        )
    return dataset


def _histories(item_BL: torch.Tensor, categorical_BF: Any, numeric_BG: Any) -> Histories:
    """Return histories with features as a model reads them."""
    return Histories(
        item_BL,
        None if categorical_BF is None else torch.from_numpy(np.asarray(categorical_BF, dtype=np.int64)),
        None if numeric_BG is None else torch.from_numpy(np.array(numeric_BG, dtype=np.float32)),
    )
