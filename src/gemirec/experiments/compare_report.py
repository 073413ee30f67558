"""The report of a comparison: one HTML file that needs no other file and no network."""

from __future__ import annotations

import hashlib
import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemirec.artifacts import read_json
from gemirec.errors import MissingExtraError
from gemirec.experiments import compare_plots as plots
from gemirec.experiments.compare_examples import section
from gemirec.experiments.compare_table import Table, notes, overview, tables
from gemirec.experiments.pictures.canvas import figure
from gemirec.training.tracking import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { margin: 2rem auto; max-width: 1180px; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 1.5rem }
caption { text-align: left; font-weight: 600; padding: .3rem 0 } th, td { padding: .25rem .6rem; white-space: nowrap }
th { text-align: right; border-bottom: 2px solid #999 } td { text-align: right; border-bottom: 1px solid #eee }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
figure { margin: 1.2rem 0 } figure svg { max-width: 100%; height: auto } figcaption { color: #444; max-width: 60rem }
ul, p { max-width: 60rem } .why td, .why th { text-align: left; vertical-align: top }
"""


def html(report: Mapping[str, Any], out: Path, examples: Mapping[str, Any] | None = None) -> str:
    """Return the report as one HTML page: notes, tables, and the figures as inlined SVG.

    Without matplotlib the page has no figures and says so.

    Args:
        report: What ``compare.json`` holds.
        out: The comparison's folder, for the curves and views of its runs.
        examples: From :func:`~gemirec.experiments.compare_examples.examples`; stand with the first data set.
    """
    parts = ["<h1>Comparison</h1>", "<ul>", *(f"<li>{escape(note)}</li>" for note in notes(report)), "</ul>"]
    parts.append(_table(overview(report)))
    draws = True
    try:
        figure(1, 1)
    except MissingExtraError as error:
        parts.append(f"<p>No figures: {escape(error.what)}. {escape(error.fix)}</p>")
        draws = False
    for number, about in enumerate(report["datasets"]):
        parts.append(f"<h2>{escape(about['name'])}</h2>")
        parts += [_table(table) for table in tables(report, about["name"])]
        if draws:
            parts += [_figure(*drawn) for drawn in _figures(report, about["name"], out)]
        if number == 0:
            parts.append(section(examples))
    head = f'<meta charset="utf-8"><title>gemirec: comparison</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _figures(report: Mapping[str, Any], dataset: str, out: Path) -> Iterator[tuple[Any, str, str]]:
    """Yield the figures of a data set that have something to show: figure, title, explanation."""
    rows = [row for row in report["rows"] if row["dataset"] == dataset]
    style, recall = plots.styles(report["models"]), f"recall@{report['top_n'][-1]}"
    diversity = f"diversity@{report['top_n'][-1]}"
    lines, views, metric = {}, {}, "recall@50"
    for row in rows:
        folders = [out / folder for folder in row["runs"].values()]
        lines[row["model"]] = [read_metrics(folder / "run") for folder in folders]
        metric = row["config"]["training"]["metric"]
        looked = folders[0] / row["evaluation"] / "views.json"
        if looked.is_file():
            views[row["model"]] = read_json(looked)
    users = f"{max((view['users'] for view in views.values()), default=0):,} users at most, first seed."
    drawn = (
        (plots.standing(rows, recall, style), "Recall, and how much of it comes with collapse", _STANDING),
        (plots.learning(lines, metric, style), "Training", _LEARNING),
        (plots.first_interests(views, rows, recall, style), "Number of interests", f"{_FIRST} {users}"),
        (plots.diversity(views, recall, diversity, style), "Recall against diversity", f"{_DIVERSITY} {users}"),
        (plots.heat(views), "Similarity of interests", f"{_HEAT} {users}"),
    )
    yield from (part for part in drawn if part[0] is not None)


_STANDING = (
    "Left: mean over seeds with its bootstrap interval over users. Right: the same recall over the mean cosine of two "
    "of a user's interests; far right means that the interests are nearly one."
)
_LEARNING = (
    "The first seed bold, the others thin. Losses of different models and stages are different quantities: each curve "
    "is divided by its first value and shows its shape only."
)
_FIRST = (
    "Over k: one trained model of which only the first k interests are served; nothing is trained anew, and this is "
    "not what training with k would give. Over K, where the comparison has variants that differ in num_interests "
    "alone: models that were trained with K."
)
_DIVERSITY = (
    "For each model the lambda of the greedy rule (score minus lambda times the items of that category already taken) "
    "grows from 0 to the mean gap between a list's first and last score; candidates are the best 4 n items."
)
_HEAT = "Mean over users of the cosine of interest i and interest j, as they are compared with items at serving."


def _figure(drawn: Any, title: str, text: str) -> str:
    """Return a figure with its explanation."""
    return f"<figure><h3>{escape(title)}</h3>{svg(drawn, title)}<figcaption>{escape(text)}</figcaption></figure>"


def svg(drawn: Any, title: str) -> str:
    """Return a figure as an SVG element for an HTML page: no header, no reference to anything outside it.

    Args:
        drawn: A matplotlib figure.
        title: What a screen reader says.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gemirec"}):
        drawn.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)  # HTML knows them
    mark = hashlib.sha256(body.encode()).hexdigest()[:8]  # identifiers of two figures must differ
    body = re.sub(r'\bid="', f'id="{mark}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}-", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _table(table: Table) -> str:
    """Return a table as HTML, nothing for one without rows; cells in ``**`` are bold."""
    if not table.rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str) -> str:
    """Return a cell's HTML."""
    return f"<b>{escape(text[2:-2])}</b>" if text.startswith("**") else escape(text)
