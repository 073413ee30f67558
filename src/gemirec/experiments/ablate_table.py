"""The table of an ablation: each variant over its seeds, and beside the full model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemirec.evaluation.result import compare
from gemirec.experiments.many_runs import mean_and_deviation, over_seeds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemirec.evaluation.result import EvaluationResult

METRICS = ("recall@20", "recall@50", "hr@50", "ndcg@50", "amr@50", "exclusive@50", "cur@50")
COMPARED = ("recall@50", "ndcg@50", "exclusive@50", "cur@50")
"""Metrics whose difference to the full model a reader is shown."""


def variant_row(
    name: str, what: str, results: Mapping[int, EvaluationResult], full: Mapping[int, EvaluationResult] | None
) -> dict[str, Any]:
    """Return one variant's row.

    Args:
        name: The variant.
        what: What it is.
        results: Its results by seed.
        full: Those of the full model; ``None`` for the full model itself.

    Returns:
        ``variant``, ``what``, ``seeds``; per metric its mean over seeds and, as ``... sd``, the standard deviation over
        seeds (``None`` with one); ``difference to full``: per metric the paired difference over the seeds that both
        have, with its bootstrap interval over users.
    """
    row: dict[str, Any] = {"variant": name, "what": what, "seeds": sorted(results)}
    for metric in METRICS:
        values = [result.metrics[metric] for result in results.values() if metric in result.metrics]
        row[metric], row[f"{metric} sd"] = mean_and_deviation(values)
    row["difference to full"] = {}
    if full is not None:
        shared = [seed for seed in results if seed in full]
        pair = [over_seeds([found[seed] for seed in shared], METRICS) for found in (results, full)]
        for metric, gain in compare(*pair).items():
            row["difference to full"][metric] = {"difference": gain.difference, "interval": [gain.low, gain.high]}
    return row


def ablate_summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as a reader wants it: mean ± standard deviation over seeds, then differences to full."""
    table, gains = [], []
    for row in report["rows"]:
        cells = {metric: _cell(row[metric], row[f"{metric} sd"]) for metric in METRICS}
        table.append({"variant": row["variant"], **cells, "seeds": len(row["seeds"])})
        if row["difference to full"]:
            shown = {metric: _gain(row["difference to full"].get(metric)) for metric in COMPARED}
            gains.append({"variant": row["variant"], **shown, "what": row["what"]})
    return {
        "dataset": report["dataset"],
        "split": report["asked"]["evaluation"]["split"],
        "mean ± standard deviation over seeds": table,
        "difference to full [95 % interval over users]": gains,
        "not applicable": dict(report["not_applicable"]),
    }


def _cell(mean: float | None, deviation: float | None) -> str:
    """Return ``mean ± deviation`` with four places."""
    if mean is None:
        return "-"
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


def _gain(gain: Mapping[str, Any] | None) -> str:
    """Return a difference and its interval."""
    if gain is None:
        return "-"
    low, high = gain["interval"]
    return f"{gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
