"""A few held-out users, as a reader understands them: history, interests, what each retrieves, what came next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.data.dataset import TEST_END, TEST_START

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset
    from gemirec.recommender import Recommender

RECENT = 8
"""History items shown."""
PER_INTEREST = 4
"""Items shown of each interest."""
TITLE = 40
"""Most characters shown of a title."""
TOP = 10
"""Items shown of the merged list."""


def show_users(recommender: Recommender, dataset: Dataset, count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    """Return ``count`` test users drawn at random (not chosen), with what the model makes of them.

    A user's history ends where the test targets begin; the model sees nothing of what is called ``next``.

    Returns:
        Per user: ``user``, ``history`` (the last items), ``interests`` (each with the items it retrieves),
        ``recommended`` (items, the interest that won each, whether it came true) and ``next`` (the targets). An item
        is described by its title or id and its category.
    """
    test_U = dataset.users_in("test")
    user_B = np.sort(np.random.default_rng(seed).choice(test_U, size=min(count, len(test_U)), replace=False))
    if not len(user_B):
        return []
    ids = dataset.users["user_id"].gather(user_B)
    events = recommender.known_histories(ids)
    bounds_B5 = dataset.bounds_of(user_B)
    names = item_names(dataset.items)
    out = []
    for user_id, items, bounds in zip(ids.to_list(), events, bounds_B5, strict=True):
        start, end = int(bounds[TEST_START]), int(bounds[TEST_END])
        out.append({"user": str(user_id), **_one(recommender, names, items[:start], items[start:end])})
    return out


def _one(recommender: Recommender, names: dict[Any, str], history: list[Any], targets: list[Any]) -> dict[str, Any]:
    """Return one user's part of :func:`show_users`."""
    interests = recommender.interests(histories=[history], items=PER_INTEREST, exclude_seen=True)
    best = recommender.recommend(histories=[history], k=TOP)
    wanted = set(targets)
    return {
        "history": [names[item] for item in history[-RECENT:]],
        "interests": [
            {"interest": row["interest"], "items": [names[item] for item in row["items"] or []]}
            for row in interests.to_dicts()
        ],
        "recommended": [
            {"item": names[row["item_id"]], "interest": row["interest"], "came_true": row["item_id"] in wanted}
            for row in best.to_dicts()
        ],
        "next": [names[item] for item in targets[:RECENT]],
    }


def item_names(items: pl.DataFrame) -> dict[Any, str]:
    """Return for each item id its title (the id without one) and its category.

    Example:
        >>> item_names(pl.DataFrame({"item_id": [7], "title": ["Kettle"], "category": ["kitchen"]}))
        {7: 'Kettle [kitchen]'}
    """
    name = pl.lit("item ") + pl.col("item_id").cast(pl.String)
    if "title" in items.columns:
        title = pl.col("title").cast(pl.String)
        cut = title.str.slice(0, TITLE - 1).str.strip_chars_end() + pl.lit("…")
        name = pl.coalesce(pl.when(title.str.len_chars() > TITLE).then(cut).otherwise(title), name)
    if "category" in items.columns and not items["category"].dtype.is_nested():
        category = pl.lit(" [") + pl.col("category").cast(pl.String) + pl.lit("]")
        name = name + category.fill_null("")
    table = items.select("item_id", name=name)
    return dict(zip(table["item_id"].to_list(), table["name"].to_list(), strict=True))
