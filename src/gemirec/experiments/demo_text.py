"""The demo's report as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WIDTH = 140
METRICS = ("recall@20", "recall@50", "hr@50", "ndcg@50")


def demo_text(report: Mapping[str, Any]) -> str:
    """Return what a reader wants of a report of :func:`gemirec.experiments.demo.demo`."""
    parts = [_data(report), _metrics(report), _users(report), _next_steps(report)]
    return "\n".join(line for part in parts for line in part)


def _data(report: Mapping[str, Any]) -> Iterator[str]:
    yield "DATA"
    for key, value in report["data"].items():
        if key == "steps":
            for step in value:
                counts = ", ".join(f"{step[name]:,} {name}" for name in ("events", "users", "items") if name in step)
                yield f"  {'':<13}  {step['step']}: {counts}"
        elif isinstance(value, dict):
            yield f"  {key:<13}  " + ", ".join(f"{name} {number:,}" for name, number in value.items())
        else:
            yield f"  {key:<13}  {f'{value:,}' if isinstance(value, int) else value}"
    yield ""


def _metrics(report: Mapping[str, Any]) -> Iterator[str]:
    about = report["evaluation"]
    yield (
        f"SCORES on {about['users']:,} of {about['users_in_split']:,} {about['split']} users, whole catalogue ranked, "
        f"seen items {'left out' if about['exclude_seen'] else 'kept'}; [95 % interval over users]"
    )
    width = max(len(row["model"]) for row in report["metrics"])
    yield "  " + " " * width + "".join(f"  {metric:<23}" for metric in METRICS) + "  training"
    for row in report["metrics"]:
        cells = ""
        for metric in METRICS:
            low, high = row[f"{metric} interval"]
            cells += f"  {row[metric]:.4f} [{low:.4f}, {high:.4f}]"
        yield f"  {row['model']:<{width}}{cells}  {row['steps']:,} steps, {row['train_s']:.0f} s"
    for row in report["differences"]:
        low, high = row["interval"]
        yield (
            f"  recall@50 of {report['metrics'][-1]['model']} minus {row['minus']}: "
            f"{row['recall@50']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    yield "  One seed and a small budget: the same number of steps for all. gemirec train has the full budget."
    yield ""


def _users(report: Mapping[str, Any]) -> Iterator[str]:
    if report["users"]:
        yield "USERS, drawn at random from the test users"
        yield "  <n> is the interest that won an item; * came true in the events that the model did not see"
    for user in report["users"]:
        yield f"  user {user['user']}"
        yield from _wrapped("history", user["history"])
        for row in user["interests"]:
            yield from _wrapped(f"interest {row['interest']}", row["items"])
        listed = [f"{row['item']} <{_source(row)}>{'*' if row['came_true'] else ''}" for row in user["recommended"]]
        yield from _wrapped("merged", listed)
        yield from _wrapped("came next", user["next"])
    yield ""


def _wrapped(name: str, items: list[str]) -> Iterator[str]:
    """Yield a named list, wrapped."""
    lines = textwrap.wrap("; ".join(items) or "(nothing)", WIDTH - 16, break_on_hyphens=False)
    for number, line in enumerate(lines):
        yield f"    {'' if number else name:<10}  {line}"


def _source(row: Mapping[str, Any]) -> str:
    """Return which interest won an item."""
    return "fallback" if row["interest"] is None else str(row["interest"])


def _next_steps(report: Mapping[str, Any]) -> Iterator[str]:
    artifact, out = report["artifact"], report["out"]
    yield f"ARTIFACT  {artifact}   (report: {out}/demo.json; {report['seconds']:.0f} s in all)"
    yield "NEXT"
    if report["users"]:
        yield f"  gemirec recommend {artifact} --user {report['users'][0]['user']} -k 10"
    yield f"  gemirec train {out}/dataset --model {report['metrics'][-1]['model']} --out runs/full"
    yield "  gemirec --help"
