"""The face of the library: fit, recommend, look at interests, save, load.

Axes: B users, K interests, R places of a list, E events of all users one after the other.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from gemirec.config import EvaluationConfig, MergeConfig, from_dict, to_dict
from gemirec.config import merge as layered
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError, DataError
from gemirec.recommender.artifact import ArtifactInfo, new_artifact_info, read_artifact, write_artifact
from gemirec.recommender.catalog import Catalog
from gemirec.recommender.explain import Words, explained
from gemirec.recommender.histories import (
    DatasetHistories,
    Encoded,
    HistoryStore,
    ParquetHistories,
    RawHistories,
    encode_raw,
)
from gemirec.recommender.new_items import add_items, read_new_items
from gemirec.recommender.search import Searcher
from gemirec.recommender.settings import Fallback, as_dataset, check_fallback, check_k, resolve
from gemirec.retrieval.cold_start import ColdItems, ColdStartConfig
from gemirec.retrieval.versions import served_version

if TYPE_CHECKING:
    from torch import Tensor

    from gemirec.data.prepare import PrepareConfig
    from gemirec.evaluation.evaluate import EvaluationResult
    from gemirec.models.base import RetrievalModel
    from gemirec.retrieval.index import ItemIndex
    from gemirec.training.progress import ProgressCallback

Ids = Sequence[object] | pl.Series
Overrides = Mapping[str, Any] | Iterable[str]

logger = logging.getLogger("gemirec")


class Recommender:
    """A trained model together with the ids of its items and, where known, the histories of its users.

    Make one with :meth:`fit` or :meth:`from_pretrained`.

    Args:
        info: The facts that an artifact records.
        model: The trained model.
        items: Item table; row r is item index r + 1.
        histories: Where the histories of known users come from.
        dataset: The data it was trained on, if at hand.
        cold: Items without interactions that have a vector (:meth:`with_new_items`).

    Example:
        A log of three columns in, recommendations for a history that was never seen out::

            from gemirec import Recommender

            recommender = Recommender.fit("events.parquet", model="comirec_sa")
            recommender.recommend(histories=[["item-7", "item-9"]], k=10)
            recommender.save_pretrained("artifact")
    """

    def __init__(
        self,
        info: ArtifactInfo,
        model: RetrievalModel,
        items: pl.DataFrame,
        histories: HistoryStore,
        dataset: Dataset | None = None,
        cold: ColdItems | None = None,
    ) -> None:
        self.info = info
        self.model = model
        self.catalog = Catalog(items)
        self.dataset = dataset
        self._histories = histories
        self.cold = cold
        self._search = Searcher(model, self.catalog, cold)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._warned = False
        self._words: Words | None = None

    @classmethod
    def fit(
        cls,
        log: Any,
        *,
        model: str = "comirec_sa",
        profile: str = "tuned",
        items: Any = None,
        users: Any = None,
        overrides: Overrides | None = None,
        prepare: PrepareConfig | None = None,
        workdir: str | Path | None = None,
        resume: bool = False,
        fallback: Fallback = "popularity",
        progress: ProgressCallback | None = None,
    ) -> Recommender:
        """Train a model on a log.

        Args:
            log: A prepared :class:`~gemirec.data.dataset.Dataset`, or anything that
                :func:`gemirec.data.prepare.prepare` reads: a file, or a pandas, polars or Arrow table.
            model: Name in the catalogue of models.
            profile: ``tuned`` (what gives the best quality here) or ``paper`` (the published values).
            items: Item table with ``item_id`` and, if known, ``category``, ``title``, anything. Only with a raw log.
            users: User table with ``user_id`` and features. Only with a raw log.
            overrides: Configuration laid over the profile: ``["training.steps=500"]`` or nested mappings with the
                sections ``model`` and ``training``.
            prepare: How a raw log is prepared; ``None`` takes the defaults.
            workdir: Where the prepared dataset (``dataset/``) and the run with its checkpoints (``run/``) are kept;
                ``None`` uses a temporary folder that lives as long as the recommender.
            resume: Go on with the run (and use the dataset) that ``workdir`` holds.
            fallback: What a user without any known item gets: the most popular items, or nothing.
            progress: Called by the training loop with its state.

        Raises:
            GemirecError: Wrong data, configuration or folder; the message says what, what was got and how to mend it.
        """
        from gemirec.training.loop import train

        run = resolve(model, profile, overrides)
        check_fallback(fallback)
        holder = None
        if workdir is None:
            holder = tempfile.TemporaryDirectory(prefix="gemirec-")
            workdir = holder.name
        root = Path(workdir)
        dataset = as_dataset(log, root / "dataset", items, users, prepare, resume=resume)
        result = train(
            model,
            dataset,
            model_config=run.model,
            training=run.training,
            out=root / "run",
            resume=resume,
            progress=progress,
        )
        outcome = {
            "profile": profile,
            "config": to_dict(run.training),
            "best_step": result.best_step,
            "best_metric": result.best_metric,
            "steps": result.steps,
            "seconds": round(result.seconds, 2),
            "examples_per_s": round(result.examples_per_s, 1),
        }
        info = new_artifact_info(model, result.model, dataset, fallback=fallback, training=outcome)
        out = cls(info, result.model.cpu().eval(), dataset.items, DatasetHistories(dataset), dataset)
        out._folder = holder
        return out

    def recommend(
        self,
        users: Ids | None = None,
        *,
        histories: RawHistories | None = None,
        k: int = 20,
        exclude_seen: bool = True,
        allow: Ids | None = None,
        merge: MergeConfig | None = None,
    ) -> pl.DataFrame:
        """Return the ``k`` best items of each user, over all of the user's interests.

        Give either ``users`` or ``histories``; a known user and the same history given raw get the same list, unless
        the model reads user features. A known user's history is all that the log held, held-out events included.

        Args:
            users: Ids of users in the log.
            histories: Lists of your item ids, oldest first: a list of lists, a mapping from a label to a list, or a
                polars table with ``user_id`` and ``item_id``. Items that the model does not know are skipped and
                counted in the column ``skipped``. A user without any known item gets the declared fallback.
            k: Items per user, at least 1. More than the catalogue holds gives all items there are.
            exclude_seen: Leave out the items of the history. (``evaluate`` has its own switch, off by default.)
            allow: Ids of the only items that may be returned; unknown ones are skipped.
            merge: How the lists of the interests become one: diverse categories, a quota for each interest
                (:class:`~gemirec.config.MergeConfig`); ``None`` takes each item's best score.
                ``evaluate(merge=...)`` measures the same lists.

        Returns:
            A table with ``user_id`` (the user's id, the label, or the row number), ``rank`` (from 1), ``item_id``,
            ``score`` (inner product; training events for the popularity fallback), ``interest`` (which interest
            won, from 0; null in a fallback), ``source`` (``model`` or the name of the fallback) and ``skipped``.

        Raises:
            ConfigError: The merge needs categories or weights that are not there, or names too many interests.
            DataError: A user is not known, or histories or allow-list cannot be read.

        Example:
            Fewer items of one category, places for every interest, and what such lists are worth::

                from gemirec import MergeConfig

                recommender.recommend(users=[3], merge=MergeConfig(kind="diverse", diversity=0.2))
                recommender.recommend(users=[3], merge=MergeConfig(kind="quota", quota=(2, 1, 1)))
                recommender.evaluate(merge=MergeConfig(kind="quota")).metrics["recall@50"]
        """
        asked = self._encode(users, histories)
        check_k(k)
        how = merge or MergeConfig()
        asks: dict[str, Any] = {"merge": how, "exclude_seen": exclude_seen, "allow": self.catalog.allowed(allow)}
        blocks = asked.blocks(self._search.block_users(k, how))
        parts = [self._search.ranked(block, k, **asks, fallback=self.info.fallback) for block in blocks]
        return pl.concat(parts) if parts else self._search.no_rows(asked.label)

    def interests(
        self,
        users: Ids | None = None,
        *,
        histories: RawHistories | None = None,
        items: int = 0,
        exclude_seen: bool = True,
        allow: Ids | None = None,
    ) -> pl.DataFrame:
        """Return the interests of each user, one row each; a user without any known item has none.

        Args:
            users: Ids of users in the log.
            histories: As in :meth:`recommend`.
            items: How many items each interest retrieves on its own; 0 leaves the column ``items`` out.
            exclude_seen: Leave the items of the history out of ``items``.
            allow: Ids of the only items that may be retrieved.

        Returns:
            A table with ``user_id``, ``interest`` (from 0), ``weight`` (the model's own, null without), ``vector``
            and, if asked for, ``items``.
        """
        asked = self._encode(users, histories)
        allow_ids = self.catalog.allowed(allow)
        size = self._search.block_users(items)
        blocks = list(asked.blocks(size)) or [asked]
        return pl.concat(
            [self._search.interests(block, items, exclude_seen=exclude_seen, allow=allow_ids) for block in blocks]
        )

    def explain(
        self,
        users: Ids | None = None,
        *,
        histories: RawHistories | None = None,
        items: int = 20,
        history_items: int = 5,
        words: int = 5,
    ) -> pl.DataFrame:
        """Return, for each interest of each user, what formed it, what describes it and what it retrieves.

        Args:
            users: Ids of users in the log.
            histories: As in :meth:`recommend`.
            items: Items that each interest retrieves on its own, at least 1; seen ones are not left out.
            history_items: Most items of the history to name for each interest.
            words: Most categories and title words to name.

        Returns:
            A table with ``user_id``, ``interest`` (from 0), ``weight`` (the model's own, null without),
            ``history_share`` (share of the history that belongs to the interest; shares of a user sum to 1),
            ``history`` and ``history_weights`` (the items that formed it, most first, and how much),
            ``weights_from`` (``model``: its attention; ``nearness``: cosines, where a model has no such weights),
            ``items`` (what it retrieves, best first) and ``words``: the categories and title words that its items have
            more often than the catalogue's events, with ``lift`` and ``share``. A user without known items has no rows.
        """
        asked = self._encode(users, histories)
        check_k(items)
        if self._words is None:
            self._words = Words(self.catalog.items, self.catalog.count_N)
        blocks = list(asked.blocks(self._search.block_users(items))) or [asked]
        limits = {"items": items, "history_items": history_items, "most_words": words}
        return pl.concat([explained(self._search, self._words, block, **limits) for block in blocks])

    def known_histories(self, users: Ids) -> list[list[Any]]:
        """Return the item ids of known users, oldest first: all events of the log, held-out ones included.

        Raises:
            DataError: A user is not known.
        """
        asked = self._encode(users, None)
        return [self.catalog.ids(block.item_E).to_list() for block in asked.blocks(1)]

    def similar_items(self, items: Ids, k: int = 10) -> pl.DataFrame:
        """Return the ``k`` items nearest to each of ``items`` by cosine of their vectors, the item itself left out.

        Returns:
            A table with ``item_id``, ``rank``, ``similar_item_id`` and ``score``; unknown items have no rows.
        """
        check_k(k)
        ids = items if isinstance(items, pl.Series) else pl.Series(list(items), strict=False)
        index = self.catalog.encode(ids)
        self._warn_skipped(int((index == 0).sum()))
        return self._search.similar(index[index > 0], k)

    def with_new_items(
        self, items: Any, config: ColdStartConfig | None = None, *, known: Any = None, **settings: Any
    ) -> Recommender:
        """Return a recommender that also retrieves items without interactions, by their side features.

        A ridge regression from features to vectors is learnt on the trained items
        (:mod:`gemirec.retrieval.cold_start`). Everything else stays: the model, its items' vectors, the histories.
        In a history a new item is read as the trained item most like it; :meth:`evaluate` measures the model on its
        own items.

        Args:
            items: Path or table with ``item_id`` and side features: ``category`` and ``title``, or the columns that the
                configuration names. An item that the log has without a training event may be among them.
            config: Columns and strength; ``None`` takes the defaults.
            known: Path or table with ``item_id`` and the same features of the trained items; ``None`` takes the item
                table that was given to :meth:`fit` or ``prepare``.
            **settings: Fields of :class:`~gemirec.retrieval.cold_start.ColdStartConfig`, laid over ``config``.

        Raises:
            ConfigError: A column is in one table alone, or the model learns no item vectors.
            DataError: Ids are repeated or trained already, or the features cannot be used.
        """
        config = config or ColdStartConfig()
        if settings:
            config = from_dict(ColdStartConfig, layered(to_dict(config), settings), where="with_new_items")
        category = self.info.dataset.get("prepare", {}).get("category", "category")
        added = add_items(self.model, self.catalog, items, config, known=known, category=category, before=self.cold)
        info = msgspec.structs.replace(self.info, new_items=[*self.info.new_items, added.facts])
        out = Recommender(info, self.model, added.items, self._histories, self.dataset, added.cold)
        out._folder = self._folder
        return out

    def with_index(self, index: ItemIndex | str | Path | None) -> Recommender:
        """Return a recommender that searches in a given index; all else stays and is shared.

        :meth:`recommend`, :meth:`interests` and :meth:`explain` search there. :meth:`similar_items` (cosines) and
        :meth:`evaluate` stay exact, and so does what :meth:`with_new_items` gives.

        Args:
            index: An index of this model's items (:func:`gemirec.retrieval.index.build_index`), the folder of one
                (``gemirec index``), or ``None`` for the exact one.

        Raises:
            ArtifactError: The index is of another model, or its folder is damaged.

        Example:
            Build one from the command line, then search there::

                fast = Recommender.from_pretrained("run/artifact").with_index("run/index")
                fast.recommend(histories=[["item-7", "item-9"]], k=10)
        """
        if isinstance(index, (str, Path)):
            from gemirec.retrieval.index import load_index

            index = load_index(index)
        out = copy.copy(self)
        out._search = Searcher(self.model, self.catalog, self.cold, index)
        return out

    def served_items(self) -> tuple[Tensor, str]:
        """Return what an index is built from: ``[N + 1, D]`` item vectors, row 0 padding, and their version."""
        return self._search.served().detach(), served_version(self.model, self.cold)

    def evaluate(
        self,
        dataset: Dataset | None = None,
        config: EvaluationConfig | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> EvaluationResult:
        """Measure the model on a held-out part of the data it was trained on.

        Args:
            dataset: ``None`` takes the dataset of :meth:`fit`; after :meth:`from_pretrained` give it.
            config: What is measured; ``None`` takes the defaults.
            progress: Called with (users done, users in all).
            **settings: Fields of :class:`~gemirec.config.EvaluationConfig`, laid over ``config``:
                ``split="valid"``, ``merge=MergeConfig(kind="quota")``.

        Raises:
            DataError: The dataset is not the one that the model was trained on.
        """
        from gemirec.evaluation.evaluate import evaluate

        dataset = dataset or self.dataset
        if dataset is None:
            raise ConfigError(
                "there is no dataset to evaluate on",
                got="a recommender loaded from files",
                fix='give it: evaluate(Dataset.open("data/prepared"))',
            )
        self._check_same_data(dataset)
        config = config or EvaluationConfig()
        if settings:
            config = from_dict(EvaluationConfig, layered(to_dict(config), settings), where="evaluate")
        result = evaluate(self.model, dataset, config, progress=progress)
        self.info = msgspec.structs.replace(self.info, metrics=dict(result.metrics))
        return result

    def save_pretrained(self, path: str | Path, *, histories: bool | int = True, overwrite: bool = False) -> Path:
        """Write the recommender as a folder of safetensors, JSON and Parquet; nothing in it is ever unpickled.

        Args:
            path: The folder; it appears whole or not at all.
            histories: ``True`` keeps all events of all known users, so that ``recommend(users=...)`` gives the same
                lists after loading; a number keeps the last so many (older items are then not excluded as seen);
                ``False`` keeps none, and only raw histories can be asked.
            overwrite: Replace a folder that is there.

        Raises:
            StorageError: The folder exists, or the disk refuses.
        """
        keep = {True: None, False: 0}[histories] if isinstance(histories, bool) else int(histories)
        if self.dataset is None and keep != 0:
            raise ConfigError(
                "this recommender was loaded from files and has no dataset to take histories from",
                got=f"histories={histories}",
                fix="copy the artifact's folder, or save with histories=False",
            )
        info = msgspec.structs.replace(self.info, history_events=keep)
        items, cold = self.catalog.items, self.cold
        write_artifact(Path(path), info, self.model, items, self.dataset, overwrite=overwrite, cold=cold)
        return Path(path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Recommender:
        """Load a folder written by :meth:`save_pretrained`.

        Raises:
            ArtifactError: A file is missing, cut, damaged, or of another format version.
        """
        folder = Path(path)
        info, model, items = read_artifact(folder)
        items, cold = read_new_items(folder, model, items) if info.new_items else (items, None)
        return cls(info, model, items, ParquetHistories(folder / "histories.parquet"), cold=cold)

    def _encode(self, users: Ids | None, histories: RawHistories | None) -> Encoded:
        """Return the histories that are asked about."""
        if (users is None) == (histories is None):
            raise ConfigError(
                "give either users or histories",
                got="both" if users is not None else "neither",
                fix="users=[ids of the log] or histories=[[item ids, oldest first]]",
            )
        if histories is not None:
            asked = encode_raw(histories, self.catalog)
            self._warn_skipped(int(asked.skipped_B.sum()))
            return asked
        if isinstance(users, str):
            raise ConfigError("users must be a list of user ids", got=repr(users), fix=f"write users=[{users!r}]")
        return self._histories.lookup(
            users if isinstance(users, pl.Series) else pl.Series(list(users or ()), strict=False)
        )

    def _warn_skipped(self, count: int) -> None:
        """Say once per recommender that unknown items are skipped."""
        if count and not self._warned:
            self._warned = True
            logger.warning("%d items are not known to the model and are skipped (said once)", count)

    def _check_same_data(self, dataset: Dataset) -> None:
        """Raise if item indices of ``dataset`` may mean other items."""
        trained = self.info.dataset.get("fingerprint")
        if trained != dataset.fingerprint:
            raise DataError(
                "the model was trained on other data, so its item numbers do not fit this dataset",
                got=f"trained on {trained}, got {dataset.fingerprint} ({dataset.path})",
                fix="evaluate on the dataset that the model was trained on, or train on this one",
            )
