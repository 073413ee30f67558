"""Example users of a comparison: what the best multi-interest model takes for their interests, and why.

The users are drawn by a seed from those of the split that have a history, not chosen.

Axes: B users.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import TEST_START, VALID_START
from gemirec.experiments.users import item_names
from gemirec.recommender import Recommender
from gemirec.recommender.histories import Encoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray

    from gemirec.data.batches import EvalWindows
    from gemirec.data.dataset import Dataset

USERS = 3
"""Users shown."""
INTERESTS = 6
"""Most interests shown of a user: those with the largest share of the history."""
ITEMS, HISTORY, WORDS, NEXT = 5, 4, 4, 6
"""Most items that an interest retrieves, items that formed it, words, and events that came later."""


def chosen(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row of the model to explain: that of most recall on the first data set, of those with two interests.

    Args:
        report: What ``compare.json`` holds.

    Returns:
        ``None`` if no such model is finished.
    """
    first, metric = report["datasets"][0]["name"], f"recall@{report['top_n'][-1]}"
    rows = [row for row in report["rows"] if row["dataset"] == first and "int_cos" in row["metrics"]]
    best: dict[str, Any] | None = max(rows, key=lambda row: row["metrics"][metric]["mean"], default=None)
    return best


def examples(report: Mapping[str, Any], out: Path, data: Dataset, *, seed: int = 1) -> dict[str, Any] | None:
    """Return how the model of :func:`chosen` sees a few users of the split.

    Args:
        report: What ``compare.json`` holds.
        out: The comparison's folder.
        data: Its first data set.
        seed: Seed of the draw of users.

    Returns:
        ``model``, ``weights_from`` (as :meth:`~gemirec.recommender.face.Recommender.explain` says it) and ``users``:
        each with ``user``, ``events`` (of the history), ``next`` (what came later) and ``interests``, most share first:
        ``interest``, ``share``, ``history`` (item and weight), ``words`` (word and lift) and ``items`` (item and
        whether it came true). ``None`` if there is nothing to explain.
    """
    row = chosen(report)
    folder = out / next(iter(row["runs"].values())) / "artifact" if row else out
    if row is None or not folder.is_dir():
        return None
    loaded, split = Recommender.from_pretrained(folder), report["evaluation"]["split"]
    user_B = _drawn(data, split, seed)
    (window,) = evaluation_batches(data, split, batch_size=USERS, max_length=loaded.model.max_length, users=user_B)
    asked = _encoded(data, window)
    recommender = Recommender(loaded.info, loaded.model, loaded.catalog.items, _Asked(asked), data)
    table = recommender.explain(users=asked.label, items=ITEMS, history_items=HISTORY, words=WORDS)
    names = item_names(loaded.catalog.items)
    later = np.split(window.target_E.numpy(), window.target_offset_B1.numpy()[1:-1])
    users = []
    for number, user in enumerate(asked.label.to_list()):
        targets = loaded.catalog.ids(later[number]).to_list()
        found = table.filter(table["user_id"] == user).sort("history_share", descending=True, maintain_order=True)
        users.append(
            {
                "user": str(user),
                "events": int(np.diff(asked.offset_B1)[number]),
                "next": [names[item] for item in dict.fromkeys(targets)][:NEXT],
                "interests": [_interest(one, names, set(targets)) for one in found.head(INTERESTS).to_dicts()],
            }
        )
    return {"model": row["model"], "weights_from": [*table["weights_from"], "model"][0], "users": users}


def _drawn(data: Dataset, split: Literal["valid", "test"], seed: int) -> NDArray[np.int64]:
    """Return the users to show, ascending."""
    user_U = data.users_in(split)
    known_U = data.bounds_of(user_U)[:, VALID_START if split == "valid" else TEST_START] > 0
    drawn_U = np.random.default_rng([seed, 0xE8A3]).permutation(user_U[known_U] if known_U.any() else user_U)
    return np.sort(drawn_U[:USERS])


def _interest(row: Mapping[str, Any], names: Mapping[Any, str], targets: set[Any]) -> dict[str, Any]:
    """Return a row of ``explain`` with names for ids."""
    return {
        "interest": row["interest"],
        "share": row["history_share"],
        "history": [(names[item], w) for item, w in zip(row["history"] or [], row["history_weights"], strict=True)],
        "words": [(word["word"], word["lift"]) for word in row["words"]],
        "items": [(names[item], item in targets) for item in row["items"] or []],
    }


def _encoded(data: Dataset, window: EvalWindows) -> Encoded:
    """Return the histories as they were measured: they end where the targets begin, and user features are known."""
    numeric, categorical = window.user_numeric_BG, window.user_categorical_BF
    return Encoded(
        data.users["user_id"].gather(window.user_B.numpy()),
        window.seen_E.numpy(),
        window.seen_offset_B1.numpy(),
        np.zeros(len(window.user_B), dtype=np.int64),
        None if categorical is None else categorical.numpy(),
        None if numeric is None else numeric.numpy(),
    )


class _Asked:
    """The histories of the users that are asked about, and of no others."""

    def __init__(self, asked: Encoded) -> None:
        self.asked = asked

    def lookup(self, user_ids: pl.Series) -> Encoded:
        """See :class:`~gemirec.recommender.histories.HistoryStore`."""
        return self.asked


def section(found: Mapping[str, Any] | None) -> str:
    """Return the examples as a part of the report's HTML page, nothing for ``None``."""
    if found is None:
        return ""
    source = {"model": "the model's own weights", "nearness": "nearness: the model has no weights of its own"}
    about = (
        f"{len(found['users'])} users of the split, drawn by a seed. Per interest of {found['model']} (first seed): "
        "its share of the history; the history's items that formed it, with their weights "
        f"({source[found['weights_from']]}); categories and title words that its items have more often than the "
        "training events do, with the lift; and what it retrieves on its own, ✓ where it came true. Items of the "
        f"history are not left out. At most {INTERESTS} interests, of the largest shares."
    )
    parts = [f"<h3>What {escape(found['model'])} sees in users</h3>", f"<p>{escape(about)}</p>"]
    return "\n".join([*parts, *(part for user in found["users"] for part in _user(user))])


def _user(user: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one user's table."""
    caption = f"user {user['user']}: a history of {user['events']} events; later came {', '.join(user['next'])}"
    yield f'<div class="wide"><table class="why"><caption>{escape(caption)}</caption>'
    columns = ("interest", "share", "formed by", "telling words", "retrieves")
    yield "<thead><tr>" + "".join(f"<th>{name}</th>" for name in columns) + "</tr></thead><tbody>"
    for one in user["interests"]:
        cells = (
            [str(one["interest"])],
            [f"{one['share']:.0%}"],
            [f"{name} ({weight:.2f})" for name, weight in one["history"]],
            [f"{word} ({lift:.1f}x)" for word, lift in one["words"]] or ["-"],
            [f"{name}{' ✓' if true else ''}" for name, true in one["items"]],
        )
        yield "<tr>" + "".join(f"<td>{'<br>'.join(map(escape, cell))}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></div>"
