"""The dictionary as a tree: what each code of the first levels holds.

Axes: N items (entry 0 is padding), C levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import torch

from gemirec.components.codes import flat_index, unflatten
from gemirec.experiments.pictures.canvas import COLOURS, GREY, INK, bare, figure, plain

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset
    from gemirec.experiments.pictures.case import Names
    from gemirec.models.gemirec import GemiRec

Row = dict[str, Any]
PAGE = ((30, 0), (10, 4), (8, 2))
"""Codes of level 1, and of each parent, that fit on a page of one, two and three or more levels."""


def tree_rows(model: GemiRec, dataset: Dataset, names: Names, *, depth: int = 2, top: int = 3) -> list[Row]:
    """Return the codes that hold items, parents before their children, the largest of each parent first.

    Args:
        model: A trained GemiRec.
        dataset: The data it was trained on.
        names: What items and categories are called.
        depth: Levels to go down; no more than there are.
        top: Items and categories listed of each.

    Returns:
        Per code ``path`` (its codes, level 1 first), ``items``, ``share`` (of all items), ``share_of_parent``,
        ``categories`` (each with its ``share`` of the code's items) and ``top_items`` (``item_id``, ``title`` and
        ``train_count``, most training events first, equal ones in the catalogue's order).
    """
    sizes = model.dictionary.sizes
    code_NC = unflatten(model.item_interests()[1:], sizes).cpu()
    count = dataset.items["train_count"]
    columns: dict[str, Any] = {"item": torch.arange(1, len(code_NC) + 1).numpy(), "count": count}
    if names.category_N is not None:
        columns["category"] = names.category_N[1:]
    table = pl.DataFrame(columns)
    total = table.height
    children: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    size_of = {(): total}
    for level in range(1, min(depth, len(sizes)) + 1):
        key = pl.Series("key", flat_index(code_NC[:, :level], sizes[:level]).numpy())
        for row in _level(table.with_columns(key), sizes[:level], top):
            path = tuple(row["path"])
            size_of[path] = row["items"]
            children[path[:-1]].append(
                {
                    "path": row["path"],
                    "items": row["items"],
                    "share": row["items"] / total,
                    "share_of_parent": row["items"] / size_of[path[:-1]],
                    "categories": [
                        {"category": names.category[category], "share": found / row["items"]}
                        for category, found in row["categories"]
                    ],
                    "top_items": [
                        {
                            "item_id": dataset.items["item_id"][item - 1],
                            "title": names.title_N[item],
                            "train_count": count[item - 1],
                        }
                        for item in row["top"]
                    ],
                }
            )
    return list(_walk(children, ()))


def _level(table: pl.DataFrame, sizes: Sequence[int], top: int) -> Iterator[Row]:
    """Yield the codes of one level, largest first: path, number of items, top items and categories as numbers."""
    found = table.group_by("key").agg(items=pl.len()).sort(["items", "key"], descending=[True, False])
    heads = table.sort(["count", "item"], descending=[True, False]).group_by("key", maintain_order=True)
    found = found.join(heads.agg(top=pl.col("item").head(top)), on="key", how="left", maintain_order="left")
    if "category" in table.columns:
        counts = table.group_by("key", "category").len().sort(["len", "category"], descending=[True, False])
        counts = counts.group_by("key", maintain_order=True).agg(pl.col("category", "len").head(top))
        found = found.join(counts, on="key", how="left", maintain_order="left")
    path = unflatten(torch.from_numpy(found["key"].to_numpy().copy()), sizes).tolist()
    for row, codes in zip(found.iter_rows(named=True), path, strict=True):
        categories = list(zip(row.get("category", ()), row.get("len", ()), strict=True))
        yield {"path": codes, "items": row["items"], "top": row["top"], "categories": categories}


def _walk(children: dict[tuple[int, ...], list[Row]], path: tuple[int, ...]) -> Iterator[Row]:
    """Yield rows depth first."""
    for row in children.get(path, ()):
        yield row
        yield from _walk(children, tuple(row["path"]))


def pruned(rows: Sequence[Row], first: int, below: int) -> list[Row]:
    """Return at most ``first`` codes of level 1 and ``below`` of every parent; what is left out becomes one row.

    Such a row has a ``path`` that ends with ``None``, ``codes`` (how many are left out), ``items`` and ``share``.

    Example:
        >>> rows = [{"path": [code], "items": 2, "share": 0.25} for code in (3, 0, 1, 2)]
        >>> [(row["path"], row.get("codes")) for row in pruned(rows, 2, 4)]
        [([3], None), ([0], None), ([None], 2)]
    """
    children: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    for row in rows:
        children[tuple(row["path"][:-1])].append(row)
    for path, all_rows in children.items():
        most = below if path else first
        rest = all_rows[most:]
        if len(rest) > 1:  # a single one takes no more room than the row that stands for it
            left_out = {"path": [*path, None], "codes": len(rest)}
            sums = {name: sum(row[name] for row in rest) for name in ("items", "share")}
            children[path] = [*all_rows[:most], {**left_out, **sums}]
    return list(_walk(children, ()))


def tree_text(rows: Sequence[Row]) -> str:
    """Return rows of :func:`tree_rows` or :func:`pruned` as lines for a terminal."""
    lines = [f"{'code':16} {'items':>7} {'share':>6}  holds"]
    for row in rows:
        indent = "  " * (len(row["path"]) - 1)
        lines.append(f"{indent + _name(row):16} {row['items']:7,} {row['share']:6.1%}  {_holds(row)}".rstrip())
    return "\n".join(lines) + "\n"


def _name(row: Row) -> str:
    if "codes" in row:
        return f"… {row['codes']:,} more"
    return ".".join(map(str, row["path"]))


def _holds(row: Row) -> str:
    """Return categories and top items of a row in one line."""
    parts = [_categories(row), _titles(row)]
    return " | ".join(part for part in parts if part)


def _categories(row: Row) -> str:
    return ", ".join(f"{found['category']} {found['share']:.0%}" for found in row.get("categories", ()))


def _titles(row: Row, most: int = 36) -> str:
    return "; ".join(plain(item["title"], most).replace(r"\$", "$") for item in row.get("top_items", ()))


def tree_figure(rows: Sequence[Row], title: str, *, first: int = 0, below: int = 0) -> Any:
    """Draw the tree as an outline: a row per code, a bar for its share of the items, and what it holds.

    Args:
        rows: From :func:`tree_rows`.
        title: Of the picture.
        first: Most codes of level 1; 0 takes what fits on a page.
        below: Most codes below each parent; 0 likewise.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    depth = max(len(row["path"]) for row in rows)
    fits = PAGE[min(depth, len(PAGE)) - 1]
    shown = pruned(rows, first or fits[0], below or fits[1])
    largest = max(row["share"] for row in shown if "codes" not in row)
    has_categories = any(row.get("categories") for row in shown)
    drawn = figure(16, 1.1 + 0.235 * len(shown))
    axes = drawn.subplots()
    start = 1.3 + 0.75 * (depth - 1)  # where the bars stand, in the axes' own units: 16 of them across
    text = start + 2.3
    for y, row in enumerate(shown):
        _draw_row(axes, shown, y, start, 1.4 * row["share"] / largest, text, has_categories)
    axes.set_xlim(0, 16)
    axes.set_ylim(len(shown) - 0.4, -1.4)
    heads = [(0.1, "code"), (start, "share of all items")]
    heads += [(text, "categories"), (text + 4.4, "top items")] if has_categories else [(text, "top items")]
    for x, head in heads:
        axes.text(x, -0.95, head, fontsize=9, fontweight="bold", va="center")
    axes.set_xticks([])
    axes.set_yticks([])
    bare(axes)
    axes.set_title(plain(title), fontsize=13, loc="left")
    return drawn


def _draw_row(
    axes: Any, shown: Sequence[Row], y: int, start: float, width: float, text: float, has_categories: bool
) -> None:
    """Draw one row: the line to its parent, the code, the bar and the texts."""
    row = shown[y]
    level = len(row["path"]) - 1
    rest = "codes" in row
    if level:
        parent = max(above for above in range(y) if shown[above]["path"] == row["path"][:-1])
        x = 0.75 * (level - 1) + 0.3
        axes.plot([x, x, x + 0.4], [parent + 0.45, y, y], color=GREY, lw=1)
    elif y:
        axes.axhline(y - 0.5, color=GREY, lw=0.6)
    ink = "#777777" if rest else INK
    axes.text(0.75 * level + 0.1, y, _name(row), fontsize=9 if level else 10, va="center", color=ink)
    if not rest:
        axes.barh(y, width, left=start, height=0.6, color=COLOURS[0] if not level else COLOURS[5])
    axes.text(start + (0 if rest else width) + 0.08, y, f"{row['share']:.1%}", fontsize=8.5, va="center", color=ink)
    if has_categories:
        axes.text(text, y, plain(_categories(row), 62), fontsize=8.5, va="center", color=ink)
        text += 4.4
    axes.text(text, y, plain(_titles(row), 118), fontsize=8.5, va="center", color=ink)
