"""The numbers of a comparison: means over seeds, intervals over users, paired differences, costs, and a long table.

Axes: U users, M metrics.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.evaluation.result import compare
from gemirec.evaluation.significance import intervals
from gemirec.experiments.many_runs import mean_and_deviation, over_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl

    from gemirec.evaluation.result import EvaluationResult

    Reader = Callable[[], EvaluationResult]

ACCURACY = ("recall@n", "hr@n", "ndcg@n", "mrr@n", "precision@n", "recall_head@n", "recall_middle@n", "recall_tail@n")
COLLAPSE = ("int_cos", "effective_rank", "amr@n", "exclusive@n", "list_div@n", "win_share@n", "win_entropy@n")
EVOLUTION = ("cur@n", "cur_micro@n", "diversity@n", "coverage@n", "gini@n")
COST = ("train_seconds", "examples_per_s", "steps", "best_step", "parameters", "parameters_beside_items")


def names(metrics: Sequence[str], top_n: Sequence[int]) -> list[str]:
    """Return the metrics' names at the longest list; recall at every length.

    Example:
        >>> names(("recall@n", "int_cos"), (20, 50))
        ['recall@20', 'recall@50', 'int_cos']
    """
    out = []
    for metric in metrics:
        lengths = top_n if metric == "recall@n" else top_n[-1:]
        out += [metric.replace("@n", f"@{n}") for n in lengths] if "@n" in metric else [metric]
    return out


def measures(results: Mapping[int, EvaluationResult], read: Mapping[int, Reader]) -> dict[str, dict[str, Any]]:
    """Return every metric's mean and standard deviation over seeds, and its bootstrap interval over users.

    Args:
        results: Results by seed; only their means are used.
        read: Reads a result anew, so that its table of users is not kept.

    Returns:
        By metric ``mean``, ``sd`` (``None`` with one seed), ``low`` and ``high``: the interval over users of their
        means over seeds, ``None`` for what is no mean over users.
    """
    known = list(dict.fromkeys(name for result in results.values() for name in result.metrics))
    settings = next(iter(results.values())).settings
    users = over_seeds([read[seed]() for seed in results], known).users.drop("user_id")
    value_UM = np.stack([users[name].fill_null(float("nan")).to_numpy() for name in users.columns], axis=1)
    ends_M2 = intervals(value_UM, settings["bootstrap"], settings["confidence"], settings["seed"])
    ends = {name: (float(low), float(high)) for name, (low, high) in zip(users.columns, ends_M2, strict=True)}
    out = {}
    for name in known:
        values = [result.metrics[name] for result in results.values() if name in result.metrics]
        (mean, deviation), (low, high) = mean_and_deviation(values), ends.get(name, (None, None))
        out[name] = {"mean": mean, "sd": deviation, "low": low, "high": high}
    return out


def differences(model: Sequence[Reader], chosen: Sequence[Reader], top_n: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the paired bootstrap over users of a model minus the chosen one, metric by metric.

    Per user a metric is the mean over the seeds; the interval is that of users, not of seeds.

    Args:
        model: Reads the model's results, over the seeds that both have.
        chosen: Reads the chosen model's results, over the same seeds.
        top_n: List lengths.

    Returns:
        By metric ``difference``, ``low``, ``high`` and ``p_value``; a metric that no user has in both is left out.
    """
    wanted = names((*ACCURACY, *COLLAPSE, *EVOLUTION), top_n)
    pair = [over_seeds([read() for read in readers], wanted) for readers in (model, chosen)]
    about = pair[0].settings
    found = compare(*pair, resamples=about["bootstrap"], confidence=about["confidence"], seed=about["seed"])
    return {
        name: {"difference": gain.difference, "low": gain.low, "high": gain.high, "p_value": gain.p_value}
        for name, gain in found.items()
    }


def costs(facts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the means over seeds of what training cost."""
    out: dict[str, float | None] = {}
    for name in COST:
        values = [fact[name] for fact in facts if fact.get(name) is not None]
        out[name] = fmean(values) if values else None
    return out


def long_table(report: Mapping[str, Any]) -> pl.DataFrame:
    """Return one row per data set, model and metric; the costs are metrics, too.

    Columns: ``dataset, fingerprint, model, base, profile, seeds, users, metric, mean, sd, low, high, against,
    difference, difference_low, difference_high, p_value``.
    """
    import polars as pl

    rows = []
    for row in report["rows"]:
        about = {name: row[name] for name in ("dataset", "fingerprint", "model", "base", "profile")}
        about |= {"seeds": len(row["seeds"]), "users": row["users"]}
        for metric, value in row["metrics"].items():
            gain = row["differences"].get(metric, {})
            ends = {f"difference_{end}": gain.get(end) for end in ("low", "high")}
            test = {"against": report["against"], "difference": gain.get("difference"), **ends}
            rows.append({**about, "metric": metric, **value, **test, "p_value": gain.get("p_value")})
        rows += [{**about, "metric": name, "mean": value} for name, value in row["cost"].items()]
    text = ("dataset", "fingerprint", "model", "base", "profile", "metric", "against")
    order = [
        "dataset",
        "fingerprint",
        "model",
        "base",
        "profile",
        "seeds",
        "users",
        "metric",
        "mean",
        "sd",
        "low",
        "high",
    ]
    order += ["against", "difference", "difference_low", "difference_high", "p_value"]
    kinds = {name: pl.String if name in text else pl.Float64 for name in order} | {"seeds": pl.Int64, "users": pl.Int64}
    return pl.DataFrame(rows, schema=kinds)
