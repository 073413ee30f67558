"""GemiRec against the controls: recall, collapse and evolution on test users, several seeds, paired intervals.

    python benchmarks/gemirec_compare.py                                  # everything; finished runs are kept
    python benchmarks/gemirec_compare.py --data amazon-beauty --seeds 1   # a part of it
    python benchmarks/gemirec_compare.py --page docs/results-gemirec.md   # write the tables into the page

A run lies in ``runs/compare/LOG/MODEL/SEED/artifact`` (what ``gemirec train`` writes) and is trained if it is missing.
The log ``births`` is simulated: 10,000 users, four in five with a new interest, born late. The others lie in
``../shared/data``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from realdata import MAX_LENGTH, prepared
from results import MODELS as RIVALS
from results import write_page

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset
    from gemirec.data.simulator import SimulatedLog

LOGS = ("amazon-beauty", "ml-1m", "kuairand-pure", "births")
MODELS = (*RIVALS, "gemirec")
SINGLE = ("popularity", "item_mean", "youtube_dnn", "single_vector", "sasrec")
METRICS = ("recall@20", "recall@50", "ndcg@50", "amr@50", "exclusive@50", "list_div@50", "int_cos", "cur@50")
PLANTED = ("planted_recovered", "planted_match", "births_found", "births_in_list@50", "births_users")
BIRTHS: dict[str, Any] = {"num_users": 10_000, "birth_share": 0.8, "birth_from": 0.6, "birth_to": 0.9}


def dataset(name: str, cache: Path) -> tuple[Dataset, SimulatedLog | None]:
    """Return the prepared log, and the simulated one behind it."""
    if name != "births":
        return prepared(name, cache), None
    from gemirec.data.dataset import Dataset
    from gemirec.data.prepare import prepare
    from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate

    source = cache / "births-log"
    log = SimulatedLog.open(source) if source.exists() else simulate(source, SimulatorConfig(**BIRTHS))
    if not (cache / name).exists():
        prepare(log.interactions, cache / name, items=log.items, users=log.users)
    return Dataset.open(cache / name), log


def run(data: Dataset, log: SimulatedLog | None, model: str, seed: int, folder: Path, *, train: bool) -> Any:
    """Train a run if its artifact is missing; return its evaluation and planted scores, ``None`` if there is none."""
    from gemirec import Recommender
    from gemirec.config import EvaluationConfig
    from gemirec.evaluation.planted import planted_scores

    if not (folder / "artifact").exists():
        if not train:
            return None
        over: dict[str, Any] = {"training": {"seed": seed, "threads": 1}}
        over |= {} if model == "popularity" else {"model": {"max_length": MAX_LENGTH}}
        fitted = Recommender.fit(data, model=model, overrides=over, workdir=folder)
        fitted.save_pretrained(folder / "artifact", histories=False)
    recommender = Recommender.from_pretrained(folder / "artifact")
    result = recommender.evaluate(data, EvaluationConfig(bootstrap=0))
    return result, (planted_scores(recommender.model, data, log) if log is not None else {})


def per_user(results: list[Any], metric: str) -> NDArray[np.float64]:
    """Return the users' values, averaged over the seeds; NaN where a user has none."""
    rows = [result.users[metric].fill_null(float("nan")).to_numpy() for result, _ in results]
    mean_U: NDArray[np.float64] = np.mean(np.stack(rows), axis=0)
    return mean_U


def cell(results: list[Any], metric: str) -> str:
    """Return mean and spread over seeds."""
    values = [result.metrics[metric] for result, _ in results if metric in result.metrics]
    if not values:
        return "-"
    return f"{statistics.mean(values):.4f}" + (f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else "")


def comparison(found: dict[str, list[Any]], rivals: tuple[str, ...], metric: str) -> str | None:
    """Return GemiRec against the best of ``rivals`` in one metric, with the paired interval over users."""
    from gemirec.evaluation.significance import paired

    means = {m: statistics.mean(r.metrics[metric] for r, _ in found[m]) for m in rivals if _has(found, m, metric)}
    if "gemirec" not in found or not means or not _has(found, "gemirec", metric):
        return None
    best = max(means, key=lambda name: means[name])
    gap = paired(per_user(found["gemirec"], metric), per_user(found[best], metric))
    share = gap.difference / gap.second if gap.second else float("nan")
    return (
        f"- {metric}: `gemirec` {gap.first:.4f}, best of them `{best}` {gap.second:.4f}: {share:+.1%}, "
        f"difference {gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    )


def _has(found: dict[str, list[Any]], model: str, metric: str) -> bool:
    return model in found and metric in found[model][0][0].metrics


def tables(name: str, found: dict[str, list[Any]]) -> list[str]:
    """Return the page's part about one log."""
    lines = [f"## {name}", "", "| model | " + " | ".join(METRICS) + " | seeds |", "|---" * (len(METRICS) + 2) + "|"]
    for model, results in found.items():
        lines.append(f"| `{model}` | " + " | ".join(cell(results, m) for m in METRICS) + f" | {len(results)} |")
    some = next(iter(found.values()))[0][0]
    lines += [
        "",
        f"{some.settings['users']:,} test users, {some.settings['cur_users']:,} of them eligible for cur.",
        "",
    ]
    rivals = tuple(model for model in found if model != "gemirec")
    multi = tuple(model for model in rivals if model not in SINGLE)
    for metric, against in (("recall@50", rivals), ("recall@50", multi), ("cur@50", rivals)):
        line = comparison(found, against, metric)
        lines += [
            line.replace("best of them", "best multi-interest rival") if against is multi and line else line or ""
        ]
    lines += [line for m in ("amr@50", "exclusive@50") if (line := comparison(found, multi, m))]
    if some is not None and next(iter(found.values()))[0][1]:
        lines += ["", "| model | " + " | ".join(PLANTED) + " |", "|---" * (len(PLANTED) + 1) + "|"]
        for model, results in found.items():
            means = [statistics.mean(planted[key] for _, planted in results) for key in PLANTED]
            lines.append(f"| `{model}` | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    return [*lines, ""]


def main() -> None:
    """Run what is missing, print the tables, write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(LOGS))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--cache", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--no-train", action="store_true", help="take the runs that are there and no more")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    text: list[str] = []
    for name in args.data:
        data, log = dataset(name, args.cache)
        found: dict[str, list[Any]] = {}
        for model in args.models:
            places = [args.runs / name / model / str(seed) for seed in args.seeds]
            rows = [
                run(data, log, model, s, p, train=not args.no_train) for s, p in zip(args.seeds, places, strict=True)
            ]
            if kept := [row for row in rows if row is not None]:
                found[model] = kept
        part = tables(name, found)
        print(*part, sep="\n", flush=True)
        text += part
    if args.page is not None:
        write_page(args.page, "\n" + "\n".join(text), Path(__file__).name)


if __name__ == "__main__":
    main()
