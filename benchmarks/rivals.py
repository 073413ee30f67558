"""The rivals' results page: every model of the catalogue on five logs, and the survey's three experiments.

    python benchmarks/rivals.py                                    # everything; finished runs are kept
    python benchmarks/rivals.py --parts models --data ml-1m        # a part; two calls may work in one folder
    python benchmarks/rivals.py --page docs/results-rivals.md      # write the tables from what is there, train nothing
    python benchmarks/rivals.py --targets                          # the share of test targets that training has seen

Each part is a comparison of ``gemirec compare`` in one folder, ``runs/rivals``: ``models`` (all of them on the small
logs), ``large``, ``paper`` (profiles as published, for the sanity bands), ``interests`` (K), ``regularizers`` (each
alone, beside none), ``aggregators`` (max pooling against one vector) and ``probes`` and
``budget`` (a part taken away, three times the steps: for what surprises). Needs the real logs in ``../shared/data``.

Budget, the same for all: 1,000 steps of 256 windows with a rate that falls linearly to 0, the best of the validations
every 250 steps. Models that train every position of a window take 3,000 steps of 64 windows, as their profiles do.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.experiments.compare import compare
from gemirec.experiments.compare_table import number
from gemirec.experiments.watch import Silent
from gemirec.models.catalog import MODELS
from realdata import DATA, MAX_LENGTH, prepared
from results import write_page

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL = ("amazon-beauty", "ml-1m", "kuairand-pure")
LOGS = (*SMALL, "amazon-sports", "globo", "globo-time")
SEEDS = (1, 2, 3)
WINDOWS: dict[str, Any] = {"training": {"steps": 3000}}
"""Models whose profile trains all positions of 64 windows a step."""
FALLING: dict[str, Any] = {"learning_rate": 0.002}
"""A falling rate bears a larger start than the constant one of these profiles, 0.001."""
SETTINGS: dict[str, Any] = {
    "model": {"max_length": MAX_LENGTH},
    "training": {"threads": 1, "steps": 1000, "schedule": "linear", "eval_every": 250},
    "models": {
        **dict.fromkeys(("sasrec", "hstu", "gemirec"), WINDOWS),
        **{name: {"training": FALLING} for name in ("comirec_sa", "item_mean", "composed")},
    },
}
PAPER = ("youtube_dnn", "mind", "comirec_dr", "comirec_sa", "remi", "item_mean")
PAPER_SETTINGS: dict[str, Any] = {"training": {"threads": 1}}
INTERESTS: dict[str, Any] = {
    f"{base} K {k}": {
        "base": base,
        "model": {"num_interests": k},
        "training": FALLING if base == "comirec_sa" else {},
    }
    for base in ("comirec_sa", "comirec_dr", "remi")
    for k in (1, 2, 4, 8)
}


def _composed(regularizer: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ComiRec-SA as a composition, with one regulariser or none."""
    return {
        "base": "composed",
        "model": {"regularizers": [] if regularizer is None else [dict(regularizer)]},
        "training": FALLING,
    }


REGULARIZERS: dict[str, Any] = {
    "none": _composed(None),
    "cosine 0.1": _composed({"kind": "cosine", "weight": 0.1}),
    "cosine 1": _composed({"kind": "cosine", "weight": 1.0}),
    "orthogonality 0.1": _composed({"kind": "orthogonality", "weight": 0.1}),
    "orthogonality 1": _composed({"kind": "orthogonality", "weight": 1.0}),
    "contrast": _composed({"kind": "contrast", "weight": 0.1}),
    "covariance, masked": _composed({"kind": "covariance", "weight": 100.0}),
    "covariance, padding counted": _composed({"kind": "covariance", "weight": 100.0, "padding": "counted"}),
    "elementwise": _composed({"kind": "elementwise", "weight": 0.1}),
    "partition": _composed({"kind": "partition", "weight": 0.1, "temperature": 0.1}),
}
AGGREGATORS: dict[str, Any] = {
    "max": _composed(None),
    "mean": {"base": "composed", "model": {"aggregator": {"kind": "mean"}}, "training": FALLING},
    "concat + MLP": {"base": "composed", "profile": "concat", "training": FALLING},
}
PROBES: dict[str, Any] = {
    "comirec_sa": {"training": FALLING},
    "remi": {},
    "remi, no routing regularisation": {"base": "remi", "model": {"routing_weight": 0.0}},
    "remi, no hard negatives": {"base": "remi", "model": {"loss": {"beta": 0.0}}},
    "remi, normalised": {
        "base": "remi",
        "model": {"loss": {"beta": 0.0, "normalize": True, "temperature": 0.1, "negatives": "mixed"}},
    },
    "dismir": {},
    "dismir, no partition contrast": {"base": "dismir", "model": {"partition_weight": 0.0}},
    "simrec": {},
    "simrec, 3 neighbours": {"base": "simrec", "model": {"neighbours": 3}},
    "simrec, K 1": {"base": "simrec", "model": {"num_interests": 1}},
}
"""Models with one part taken away, for what surprises on the page."""
LONGER: dict[str, Any] = {
    f"{base}, 3,000 steps": {"base": base, "training": {**({} if base == "comirec_dr" else FALLING), "steps": 3000}}
    for base in ("comirec_sa", "comirec_dr", "remi", "dismir")
}
"""What a longer budget changes on ml-1m, whose long histories are learnt slowly."""
COLUMNS = ("recall@20", "recall@50", "ndcg@50", "recall_tail@50", "int_cos", "exclusive@50", "amr@50", "cur@50")


def parts(wanted: list[str], logs: list[str], seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Return what each part asks of ``compare``: part -> keyword arguments without folders."""
    small = [log for log in logs if log in SMALL]
    two = [log for log in logs if log in SMALL[:2]]
    everything: dict[str, dict[str, Any]] = {
        "models": {"logs": small, "models": list(MODELS), "seeds": seeds, "overrides": SETTINGS},
        "large": {
            "logs": [log for log in logs if log not in SMALL],
            "models": list(MODELS),
            "seeds": seeds[:1],
            "overrides": SETTINGS,
        },
        "paper": {
            "logs": [log for log in logs if log == "amazon-beauty"],
            "models": list(PAPER),
            "seeds": seeds[:1],
            "profile": "paper",
            "overrides": PAPER_SETTINGS,
        },
    }
    for name, variants in (
        ("interests", INTERESTS),
        ("regularizers", REGULARIZERS),
        ("aggregators", AGGREGATORS),
        ("probes", PROBES),
        ("budget", LONGER),
    ):
        overrides = {**SETTINGS, "models": variants}
        logs_of_part = [log for log in two if name != "budget" or log == "ml-1m"]
        everything[name] = {"logs": logs_of_part, "models": list(variants), "seeds": seeds, "overrides": overrides}
    return {name: everything[name] for name in wanted if everything[name]["logs"]}


def folder(log: str, cache: Path) -> Path:
    """Prepare a log once and return its folder; ``globo-time`` is globo cut in time instead of by users."""
    if log != "globo-time":
        return prepared(log, cache).path
    from gemirec.data.prepare import PrepareConfig, prepare

    out = cache / log
    if not (out / "dataset.json").exists():
        source = DATA / "globo"
        config = PrepareConfig(name=log, split="global_time")
        prepare(
            source / "interactions.parquet",
            out,
            items=source / "items.parquet",
            users=source / "users.parquet",
            config=config,
        )
    return Dataset.open(out).path


def seen_share(data: Dataset) -> float:
    """Return the share of test targets that have a training event."""
    count_N = data.spec().train_count_N
    blocks = evaluation_batches(data, "test", batch_size=4096, max_length=1)
    return float((count_N[np.concatenate([block.target_E.numpy() for block in blocks])] > 0).mean())


class Printed(Silent):
    """Prints one line for each note."""

    def note(self, text: str) -> None:
        """Print."""
        print(text, flush=True)


def table(report: Mapping[str, Any], log: str) -> list[str]:
    """Return one log's table: a model's means over seeds, spread of the main one, and its difference."""
    rows = [row for row in report["rows"] if row["dataset"] == log]
    shown = [name for name in COLUMNS if any(name in row["metrics"] for row in rows)]
    head = ["model", *shown, f"recall@50 minus `{report['against']}`", "seeds", "train s"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows.sort(key=lambda row: -row["metrics"]["recall@50"]["mean"])
    for row in rows:
        cells = [_cell(row["metrics"].get(name), spread=name == "recall@50") for name in shown]
        gain = row["differences"].get("recall@50")
        gained = "" if gain is None else f"{gain['difference']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
        seconds = number(row["cost"]["train_seconds"], places=0)
        out.append("| " + " | ".join([f"`{row['model']}`", *cells, gained, str(len(row["seeds"])), seconds]) + " |")
    return [*out, ""]


def _cell(value: Mapping[str, Any] | None, *, spread: bool) -> str:
    """Return a mean, with the standard deviation over seeds and the interval over users if asked."""
    if value is None:
        return "-"
    if not spread:
        return f"{value['mean']:.3f}"
    deviation = "" if value["sd"] is None else f" ±{value['sd']:.4f}"
    return f"**{value['mean']:.4f}**{deviation} [{value['low']:.3f}, {value['high']:.3f}]"


TITLES = {
    "models": "All models",
    "large": "All models, larger logs",
    "paper": "Profiles as published",
    "interests": "Experiment 1: number of interests",
    "regularizers": "Experiment 2: with and without each regulariser",
    "aggregators": "Experiment 3: max pooling against one vector",
    "probes": "Probes: a part taken away",
    "budget": "Probes: three times the budget",
}


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the generated part of the page."""
    lines = [""]
    for part, report in reports.items():
        lines += [f"## {TITLES[part]}", ""]
        for about in report["datasets"]:
            if not any(row["dataset"] == about["name"] for row in report["rows"]):
                continue
            facts = f"{about['users']:,} users, {about['items']:,} items, {about['events']:,} events"
            lines += [f"### {about['name']}", "", f"{facts}; fingerprint `{about['fingerprint'][:16]}`.", ""]
            lines += table(report, about["name"])
    return "\n".join(lines)


def main() -> None:
    """Run what is missing of the parts, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--data", nargs="+", default=list(LOGS), choices=LOGS)
    parser.add_argument("--models", nargs="+", help="only these of a part's")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--cache", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--page", type=Path, help="write the tables of what is there into this page; trains nothing")
    parser.add_argument("--targets", action="store_true", help="print how many test targets training has seen")
    args = parser.parse_args()
    if args.targets:
        for log in args.data:
            print(f"{log:16}{seen_share(Dataset.open(folder(log, args.cache))):.4f}")
        return
    reports = {}
    for name, asked in parts(args.parts, args.data, args.seeds).items():
        logs = [folder(log, args.cache) for log in asked.pop("logs")]
        if args.models:
            asked["models"] = [model for model in asked["models"] if model in args.models]
        minutes = 0.0 if args.page else args.minutes
        reports[name] = compare(logs, args.out, minutes=minutes, watcher=Printed(), **asked)
    if args.page:
        write_page(args.page, page(reports), "rivals.py")


if __name__ == "__main__":
    main()
