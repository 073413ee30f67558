"""The user of a picture: history, what came next, and how items, categories and interests are called.

Axes: N items (entry 0 is padding), H events of the history, T held-out events, X prefixes of the history, L window,
C levels, M interests, F categorical and G numeric user features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from gemirec.components.codes import unflatten
from gemirec.data.batches import evaluation_batches, pad_histories
from gemirec.errors import ConfigError, DataError
from gemirec.models.base import Histories
from gemirec.models.gemirec import GemiRec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset
    from gemirec.models.base import RetrievalModel

Held = Literal["test", "valid"]
TITLE = 40
"""Most characters kept of a title."""


@dataclass(frozen=True)
class Case:
    """A held-out user.

    Attributes:
        user_id: The user's id in the log.
        history_H: ``[H]`` int64 item indices, oldest first, all before the cut.
        future_T: ``[T]`` int64 held-out item indices in time order.
        categorical_F: ``[1, F]`` int64 or ``None``.
        numeric_G: ``[1, G]`` float32 or ``None``.
    """

    user_id: Any
    history_H: NDArray[np.int64]
    future_T: NDArray[np.int64]
    categorical_F: Tensor | None = None
    numeric_G: Tensor | None = None

    def prefixes(self, length_X: Sequence[int], max_length: int) -> Histories:
        """Return ``[X, L]`` windows: row x is what a model reads after the first ``length_X[x]`` events."""
        size_X = np.asarray(length_X, dtype=np.int64)
        flat = np.concatenate([self.history_H[:size] for size in size_X])
        item_XL = pad_histories(flat, np.concatenate([[0], np.cumsum(size_X)]), max_length)
        features = (
            None if part is None else part.expand(len(size_X), -1) for part in (self.categorical_F, self.numeric_G)
        )
        return Histories(item_XL, *features)

    def now(self, max_length: int) -> Histories:
        """Return the whole history as a batch of one."""
        return self.prefixes([len(self.history_H)], max_length)


def find_case(dataset: Dataset, user: str | None = None, *, label_N: NDArray[Any] | None = None) -> Case:
    """Return a held-out user (test, or validation where there is no test).

    Args:
        dataset: A prepared dataset.
        user: The user's id, read in the log's own type. ``None`` takes, among the first 2,000 users of the part, the
            one with most held-out items under labels that the history does not have: a user whose interests evolve.
        label_N: ``[N + 1]`` what those labels are, 0 unknown: the items' categories, say.

    Raises:
        DataError: The user is not known or not held out, or there is no held-out user with a history.

    Reference:
        The kind of user that the case study of GemiRec shows (arXiv 2510.14626, Fig. 4).
    """
    if user is not None:
        row, split = _row_of(dataset, user)
    else:
        row, split = _evolving(dataset, np.zeros(dataset.num_items + 1) if label_N is None else label_N)
    windows = next(evaluation_batches(dataset, split, batch_size=1, max_length=1, users=np.array([row])))
    if not len(windows.seen_E):
        raise DataError("the user has no history before the cut", got=user, fix="choose another user with --user")
    return Case(
        dataset.users["user_id"][row],
        windows.seen_E.numpy(),
        windows.target_E.numpy(),
        windows.user_categorical_BF,
        windows.user_numeric_BG,
    )


def _row_of(dataset: Dataset, user: str) -> tuple[int, Held]:
    """Return the index of a user and the part that holds something of theirs back."""
    ids = dataset.users["user_id"]
    asked = pl.Series([user]).cast(ids.dtype, strict=False)[0]
    found = (ids == asked).arg_true() if asked is not None else ids.head(0)
    if not len(found):
        raise DataError(
            "there is no such user in the dataset", got=user, fix=f"give an id such as {ids.head(3).to_list()}"
        )
    splits: tuple[Held, ...] = ("test", "valid")
    for split in splits:
        if np.isin(found[0], dataset.users_in(split)):
            return int(found[0]), split
    held = np.concatenate([dataset.users_in(split) for split in splits])[:3]
    raise DataError(
        "nothing of this user is held out: the model was trained on all events",
        got=user,
        fix=f"choose a held-out user, for example {ids.gather(held).to_list()}",
    )


def _evolving(dataset: Dataset, label_N: NDArray[Any], first: int = 2000) -> tuple[int, Held]:
    """Return the user with most distinct held-out items under new labels, the first of equals."""
    split: Held = "test" if len(dataset.users_in("test")) else "valid"
    user_B = dataset.users_in(split)[:first]
    windows = next(evaluation_batches(dataset, split, batch_size=first, max_length=1, users=user_B), None)
    if windows is None:
        raise DataError(
            "no user is held out", got=dataset.path, fix="prepare the log with a split that holds users out"
        )
    size_B, held_B = windows.seen_offset_B1.diff().numpy(), windows.target_offset_B1.diff().numpy()
    row_B, stride = np.arange(len(user_B)), int(label_N.max()) + 1
    seen_E = np.repeat(row_B, size_B) * stride + label_N[windows.seen_E.numpy()]
    held_E2 = np.unique(np.stack([np.repeat(row_B, held_B), windows.target_E.numpy()], axis=1), axis=0)
    label_E = label_N[held_E2[:, 1]]
    new_E = (label_E > 0) & ~np.isin(held_E2[:, 0] * stride + label_E, seen_E)
    count_B = np.bincount(held_E2[new_E, 0], minlength=len(user_B))
    count_B[size_B == 0] = -1
    return int(user_B[count_B.argmax()]), split


def with_codes(model: RetrievalModel, artifact: Path) -> GemiRec:
    """Return a GemiRec that has been trained to its last stage.

    Raises:
        ConfigError: It is another model, or its generator is not trained yet.
    """
    if not isinstance(model, GemiRec):
        raise ConfigError(
            "only a gemirec model has a dictionary of interests to show",
            got=f"{type(model).__name__} ({artifact})",
            fix="give an artifact of gemirec train --model gemirec, or ask for --which map",
        )
    if int(model.phase) < 2:
        raise ConfigError(
            "the model's best checkpoint is from before its last stage",
            got=artifact,
            fix="train longer, or with a larger model.joint_share",
        )
    return model


class Names:
    """What things are called in a picture.

    Args:
        dataset: A prepared dataset.
        model: The GemiRec whose interests are named; ``None`` for none.

    Attributes:
        title_N: ``[N + 1]`` each item's title, its id without one.
        category_N: ``[N + 1]`` category of each item, 0 unknown; ``None`` without categories.
        category: Name of each category, entry 0 for the unknown.
    """

    def __init__(self, dataset: Dataset, model: GemiRec | None = None) -> None:
        items = dataset.items
        name = pl.lit("item ") + pl.col("item_id").cast(pl.String)
        if "title" in items.columns:
            name = pl.coalesce(pl.col("title").cast(pl.String), name)
        self.title_N: list[str] = ["", *items.select(name=name)["name"].to_list()]
        self.category_N: NDArray[np.int32] | None = dataset.spec().category_N if dataset.info.categories else None
        self.category = ["no category", *dataset.info.categories]
        self.sizes = () if model is None else model.dictionary.sizes
        self._interest_N = None if model is None else model.item_interests().cpu().numpy()

    def item(self, index: int) -> str:
        """Return an item's title and category."""
        name = self.title_N[index]
        name = name if len(name) <= TITLE else name[: TITLE - 1].rstrip() + "…"
        return name if self.category_N is None else f"{name} [{self.category[self.category_N[index]]}]"

    def most(self, index_X: NDArray[np.int64]) -> str:
        """Return the most frequent category of some items and its share; nothing without categories or items."""
        if self.category_N is None or not len(index_X):
            return ""
        count = np.bincount(self.category_N[index_X])
        return f"{self.label(int(count.argmax()))} {count.max() / len(index_X):.0%}"

    def label(self, category: int) -> str:
        """Return a category's name; one that is a number says that it is a category."""
        name = self.category[category]
        return f"category {name}" if name.isdigit() else name

    def path(self, interest: int) -> str:
        """Return the codes of an interest: ``3`` of one level, ``3.0.7`` of three."""
        return ".".join(map(str, unflatten(torch.tensor(interest), self.sizes).tolist()))

    def interest(self, interest: int) -> str:
        """Return an interest's codes and what most of its items are."""
        assert self._interest_N is not None
        most = self.most(np.flatnonzero(self._interest_N[1:] == interest) + 1)
        return f"{self.path(interest)}  {most}".rstrip()
