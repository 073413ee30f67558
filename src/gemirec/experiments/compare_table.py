"""The tables of a comparison, for readers: Markdown, and what HTML and a terminal are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gemirec.experiments.compare_rows import ACCURACY, COLLAPSE, COST, EVOLUTION, names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHOWN = ("recall@n", "ndcg@n", "recall_tail@n", "int_cos", "exclusive@n", "cur@n", "diversity@n")
"""Metrics whose difference to the chosen model a reader is shown; the files have that of all."""


class Table(NamedTuple):
    """One table for a reader: a title, its column names, and its rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def overview(report: Mapping[str, Any]) -> Table:
    """Return recall at the longest list of every model on every data set, the best of each in bold."""
    metric = f"recall@{report['top_n'][-1]}"
    data = [about["name"] for about in report["datasets"]]
    mean = {(row["model"], row["dataset"]): row["metrics"][metric]["mean"] for row in report["rows"]}
    mark = {(row["model"], row["dataset"]): _mark(row["differences"].get(metric)) for row in report["rows"]}
    best = {name: max((v for (_, where), v in mean.items() if where == name), default=None) for name in data}
    rows = []
    for model in report["models"]:
        cells = [number(mean.get((model, name))) + mark.get((model, name), "") for name in data]
        cells = [
            f"**{c}**" if mean.get((model, n)) == best[n] is not None else c for c, n in zip(cells, data, strict=True)
        ]
        rows.append((model, *cells))
    title = f"{metric}: ▲ above {report['against']}, ▼ below it, interval of the difference without 0"
    return Table(title, ("model", *data), rows)


def _mark(gain: Mapping[str, float] | None) -> str:
    """Return a sign where a difference's interval is without zero."""
    if gain is None or gain["low"] <= 0 <= gain["high"]:
        return ""
    return " ▲" if gain["low"] > 0 else " ▼"


def tables(report: Mapping[str, Any], dataset: str) -> Iterator[Table]:
    """Yield the tables of one data set: accuracy, differences, collapse, evolution, cost."""
    rows, top_n, against = [r for r in report["rows"] if r["dataset"] == dataset], report["top_n"], report["against"]
    parts = (("Accuracy", ACCURACY), ("Collapse", COLLAPSE), ("Evolution and catalogue", EVOLUTION))
    for title, metrics in parts:
        shown = [name for name in names(metrics, top_n) if any(name in row["metrics"] for row in rows)]
        body = [
            (row["model"], *(cell(row["metrics"].get(name)) for name in shown), str(len(row["seeds"]))) for row in rows
        ]
        yield Table(f"{title}: mean ± sd over seeds [interval over users]", ("model", *shown, "seeds"), body)
        if metrics is ACCURACY:
            wanted = [name for name in names(SHOWN, top_n) if any(name in row["differences"] for row in rows)]
            body = [(r["model"], *(gained(r["differences"].get(n)) for n in wanted)) for r in rows if r["differences"]]
            yield Table(f"Difference to {against} [interval over users] p", ("model", *wanted), body)
    body = [(row["model"], *(number(row["cost"][name], places=0) for name in COST)) for row in rows]
    yield Table("Cost: means over seeds", ("model", *(name.replace("_", " ") for name in COST)), body)


def number(value: float | None, places: int = 4) -> str:
    """Return a number as a reader wants it.

    Example:
        >>> number(0.12345), number(1234567.0, places=0), number(None)
        ('0.1235', '1,234,567', '-')
    """
    return "-" if value is None else f"{value:,.{places}f}"


def cell(value: Mapping[str, float | None] | None) -> str:
    """Return ``mean ± deviation [low, high]``, without what there is not."""
    if value is None:
        return "-"
    spread = "" if value["sd"] is None else f" ± {value['sd']:.4f}"
    ends = "" if value["low"] is None else f" [{value['low']:.4f}, {value['high']:.4f}]"
    return f"{number(value['mean'])}{spread}{ends}"


def gained(value: Mapping[str, float] | None) -> str:
    """Return ``difference [low, high] p``."""
    if value is None:
        return "-"
    return f"{value['difference']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}] {value['p_value']:.3f}"


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the numbers: protocol, seeds, what is missing, surroundings."""
    asked, first = report["evaluation"], report["rows"][0]["about"] if report["rows"] else {}
    seen = "left out" if asked["exclude_seen"] else "kept"
    how = asked.get("merge", {"kind": "max"})
    merged = "" if how["kind"] == "max" else f" lists are merged by {', '.join(f'{k} {v}' for k, v in how.items())};"
    out = [
        f"{asked['split']} users; the whole catalogue is ranked; every model returns {report['top_n'][-1]} items in "
        f"all;{merged} items of the history are {seen}; seeds {', '.join(map(str, report['seeds']))}.",
        f"Intervals and tests: bootstrap over users, {asked['bootstrap']} resamples, {asked['confidence']:.0%}; per "
        f"user a metric is the mean over seeds. Differences are paired, model minus {report['against']}, over the "
        "seeds that both have finished; p values are two-sided and not corrected for the number of tests.",
    ]
    for about in report["datasets"]:
        of = next((row for row in report["rows"] if row["dataset"] == about["name"]), None)
        ranked = f", {of['users']:,} ranked ({of['cur_users']:,} eligible for cur)" if of else ""
        out.append(
            f"{about['name']}: {about['users']:,} users, {about['items']:,} items, {about['events']:,} events{ranked}; "
            f"fingerprint {about['fingerprint']}."
        )
    if first:
        versions, where = first["versions"], first["hardware"]
        out.append(
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}; {where['name']}, "
            f"{where['device']}, {where['torch_threads']} of {where['cpus']} threads (the first run's). Training time "
            "is wall time, validation included, over all calls of a resumed run."
        )
    if len({str((row["about"]["versions"], row["about"]["hardware"])) for row in report["rows"]}) > 1:
        out.append("Not all runs were made with the same versions and on the same machine: see compare.json.")
    out += [f"Missing: {missing_line(gap)}." for gap in report["missing"]]
    return out


def missing_line(gap: Mapping[str, Any]) -> str:
    """Return what is missing and why, in one line."""
    return f"{gap['model']} on {gap['dataset']}, seed {gap['seed']}: {gap['why']}"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the whole report as Markdown."""
    lines = ["# Comparison", "", *(f"- {note}" for note in notes(report)), ""]
    lines += _markdown_table(overview(report))
    for about in report["datasets"]:
        lines += [f"## {about['name']}", ""]
        for table in tables(report, about["name"]):
            lines += _markdown_table(table)
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    """Return a table's lines; nothing for one without rows."""
    if not table.rows:
        return []
    head = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    return [f"{table.title}", "", *head, *("| " + " | ".join(row) + " |" for row in table.rows), ""]


def compare_summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as a terminal shows it: per data set the main columns, differences, and what is missing."""
    top_n = report["top_n"]
    main = names(("recall@n", "ndcg@n", "int_cos", "exclusive@n", "cur@n"), top_n)
    out: dict[str, Any] = {"split": report["evaluation"]["split"], "against": report["against"]}
    for about in report["datasets"]:
        rows = [row for row in report["rows"] if row["dataset"] == about["name"]]
        recall = names(("recall@n",), top_n)[-1]
        out[about["name"]] = [
            {
                "model": row["model"],
                **{name: number(row["metrics"].get(name, {}).get("mean")) for name in main},
                f"{recall} minus {report['against']}": gained(row["differences"].get(recall)),
                "train s": number(row["cost"]["train_seconds"], places=0),
                "seeds": len(row["seeds"]),
            }
            for row in rows
        ]
    out["missing"] = [missing_line(gap) for gap in report["missing"]] or "nothing"
    return {**out, "files": [report["out"] + "/" + name for name in report["files"]]}
