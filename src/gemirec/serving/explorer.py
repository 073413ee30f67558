"""What the explorer page asks of a model beside recommendations: users, items, the map, the dictionary.

Nothing is computed before the page is opened, and little after that: everything is bounded by what is shown.

Axes: N items, C levels of the dictionary, X items of a code.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.errors import ConfigError
from gemirec.serving import wire_explorer as ask
from gemirec.serving.catalogue_map import Places, dictionary_codes, evenly, places
from gemirec.serving.wire import UserRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gemirec.recommender import Recommender
    from gemirec.recommender.search import Searcher
    from gemirec.serving.users import Users

SHOWN_HISTORY = 50
"""Most items of a found user's history."""
_CATEGORIES = 3


class Explorer:
    """Answers the page; asked on one thread at a time, beside the one that answers recommendations.

    Args:
        recommender: The model.
        searcher: Its item vectors as they are searched.
        users: Whose histories are stored.
        artifact: The folder, for its map.
        version: Which model this is.
    """

    def __init__(
        self, recommender: Recommender, searcher: Searcher, users: Users, artifact: Path, version: str
    ) -> None:
        self._info = recommender.info
        self._items = recommender.catalog.items
        self._count_N = recommender.catalog.count_N[1:]
        self._searcher = searcher
        self._users = users
        self._artifact = artifact
        self._version = version

    def answer(self, asked: ask.Explored) -> Any:
        """Return the answer of one question.

        Raises:
            GemirecError: What is wrong with it.
        """
        if isinstance(asked, ask.UsersQuery):
            return self._find(asked)
        if isinstance(asked, ask.MapQuery):
            rows = evenly(self._items.height, asked.count)
            placed = rows[~np.isnan(self._places.xy_N2[rows, 0])]
            return ask.MapAnswer(
                items=self._facts(placed),
                total=self._items.height,
                source=self._places.source,
                version=self._version,
            )
        if isinstance(asked, ask.DictionaryQuery):
            return self._dictionary(asked)
        if isinstance(asked, ask.ItemsRequest):
            index_of = {item: self._users.index(item) for item in asked.item_ids}
            known = np.array([index - 1 for index in index_of.values() if index], dtype=np.int64)
            unknown = [item for item, index in index_of.items() if not index]
            return ask.ItemsAnswer(items=self._facts(known), unknown=unknown, version=self._version)
        return self._about()

    @cached_property
    def _places(self) -> Places:
        return places(self._artifact, self._items, lambda: self._searcher.served()[1:].detach())

    @cached_property
    def _codes(self) -> tuple[NDArray[np.int32], tuple[int, ...]]:
        return dictionary_codes(self._searcher.model, self._items.height)

    @cached_property
    def _user_ids(self) -> pl.Series:
        return pl.Series("user", list(self._users.stored.row_of), dtype=pl.String)

    def _about(self) -> ask.ArtifactFacts:
        """Return what this artifact is."""
        return ask.ArtifactFacts(
            variant="A",  # the application, which knows, sets it
            version=self._version,
            model=self._info.model,
            data=str(self._info.dataset.get("name", "")),
            items=self._items.height,
            users=len(self._users.stored.row_of),
            categories=self._searcher.categories is not None,
            titles="title" in self._items.columns,
            sizes=list(self._codes[1]),
        )

    def _find(self, asked: ask.UsersQuery) -> ask.UsersAnswer:
        """Return the users whose id is, begins with, or contains a text; one known by events alone only by its id."""
        text, ids = asked.query.strip(), self._user_ids
        found = [text] if text else ids.head(asked.count).to_list()
        if text:
            begins = pl.col("user").str.starts_with(text)
            near = ids.to_frame().filter(pl.col("user").str.contains(text, literal=True) & (pl.col("user") != text))
            found += near.sort(~begins.head(near.height), maintain_order=True)["user"].head(asked.count).to_list()
        histories = self._users.read([UserRequest(user_id=user) for user in found])
        users = []
        for user, start, end in zip(found, histories.offset_B1[:-1], histories.offset_B1[1:], strict=True):
            last = histories.item_E[max(int(start), int(end) - SHOWN_HISTORY) : int(end)].tolist()
            if end > start:
                history = [self._users.item_ids[index - 1] for index in last]
                users.append(ask.UserFound(user_id=user, events=int(end - start), history=history))
        return ask.UsersAnswer(users=users[: asked.count], total=len(ids), version=self._version)

    def _dictionary(self, asked: ask.DictionaryQuery) -> ask.DictionaryAnswer:
        """Return one level of the tree below a path."""
        code_NC, sizes = self._codes
        path = [int(code) for code in asked.path.split(".") if code]
        if len(path) > len(sizes):
            raise ConfigError(
                "the path is longer than the dictionary is deep" if sizes else "the model has no dictionary",
                got=f"path {asked.path}, {len(sizes)} levels",
                fix="leave the path out to see what there is",
            )
        row_X = np.flatnonzero((code_NC[:, : len(path)] == path).all(axis=1)) if sizes else np.empty(0, np.int64)
        here, codes = None, []
        if len(row_X):
            here = self._code(path, row_X, asked.items)
            if len(path) < len(sizes):
                level_X = code_NC[row_X, len(path)]
                known, size = np.unique(level_X[level_X >= 0], return_counts=True)
                order = known[np.argsort(-size, kind="stable")].tolist()
                codes = [self._code([*path, code], row_X[level_X == code], asked.items) for code in order]
        return ask.DictionaryAnswer(sizes=list(sizes), here=here, codes=codes, version=self._version)

    def _code(self, path: Sequence[int], row_X: NDArray[np.int64], most: int) -> ask.Code:
        """Return a code with its items at rows ``[X]``."""
        top = row_X[np.argsort(-self._count_N[row_X], kind="stable")[:most]]
        categories = []
        if "category" in self._items.columns:
            counted = self._items["category"].gather(row_X).cast(pl.String).drop_nulls().value_counts()
            for name, size in counted.sort(["count", "category"], descending=[True, False]).head(_CATEGORIES).rows():
                categories.append(ask.CategoryShare(category=name, share=size / len(row_X)))
        share = len(row_X) / self._items.height
        return ask.Code(path=list(path), items=len(row_X), share=share, categories=categories, top=self._facts(top))

    def _facts(self, row_X: NDArray[np.int64]) -> list[ask.ItemFacts]:
        """Return the items at rows ``[X]``."""
        code_NC, sizes = self._codes
        titles, categories = self._column("title", row_X), self._column("category", row_X)
        xy_X2 = self._places.xy_N2[row_X]
        out = []
        for row, title, category, (x, y) in zip(row_X.tolist(), titles, categories, xy_X2.tolist(), strict=True):
            placed = x == x  # not NaN
            out.append(
                ask.ItemFacts(
                    item_id=self._users.item_ids[row],
                    title=title,
                    category=category,
                    count=int(self._count_N[row]),
                    x=round(x, 5) if placed else None,
                    y=round(y, 5) if placed else None,
                    codes=code_NC[row].tolist() if sizes and code_NC[row, 0] >= 0 else None,
                )
            )
        return out

    def _column(self, name: str, row_X: NDArray[np.int64]) -> Iterable[str | None]:
        """Return a column of the item table as texts, or nulls if there is none."""
        if name not in self._items.columns:
            return [None] * len(row_X)
        return self._items[name].gather(row_X).cast(pl.String).to_list()
