"""What each part of DMI brings: recall beside its extractor, and the planted noise that is left in interests.

    python benchmarks/dmi.py                                        # everything; finished runs are kept
    python benchmarks/dmi.py --data amazon-beauty --seeds 1
    python benchmarks/dmi.py --page docs/research/dmi.md            # write the tables of what is there, train nothing

Comparisons of ``gemirec compare`` in ``runs/dmi``, the budget of ``rivals.py``. The log ``aspects`` is simulated: items
have aspects that are noise to most interests, and the share of it in coarse and in refined interests is measured
against the planted truth. The others lie in ``../shared/data``.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from gemirec import Recommender
from gemirec.data.dataset import Dataset
from gemirec.data.prepare import PrepareConfig, prepare
from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.evaluation.planted_noise import planted_noise
from gemirec.experiments.compare import compare
from gemirec.models.dmi import DMI
from results import write_page
from rivals import FALLING, SETTINGS, Printed, folder, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemirec.models.base import Histories, Interests

LOGS = ("amazon-beauty", "ml-1m", "kuairand-pure", "aspects")
_SHAPE = {"num_items": 1000, "num_super_clusters": 4, "clusters_per_super": 5, "aspects": 3}
_UNTOUCHED = {"aspect_lean": 0.0, "interests_min": 2, "interests_max": 4, "choices": 1, "birth_share": 0.0}
SIMULATED: dict[str, dict[str, Any]] = {"aspects": {**_SHAPE, **_UNTOUCHED}, "aspects-taste": _SHAPE}
"""In ``aspects``, aspects are independent of clusters and users have no taste beside their interests (``choices: 1``):
what an interest does not care about is noise and nothing else. In ``aspects-taste``, for ``dmi_oracle.py``, it is not:
it says which of two items a user takes."""
USERS = 10_000
PICTURE = Path("docs/images/dmi-noise.svg")


def _dmi(model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """Return DMI over ComiRec-SA with some fields of its own."""
    return {"base": "dmi", "model": model or {}, "training": {**FALLING, **training}}


PARTS: dict[str, dict[str, Any]] = {
    "parts": {
        "comirec_sa": {"training": FALLING},
        "dmi": _dmi(),
        "no guidance": _dmi({"guidance": "history"}),
        "guided by users": _dmi({"guidance": "users"}),
        "guided by 50 users of 4096": _dmi({"guidance": "users", "neighbours": 50, "memory": 4096}),
        "drawn to 50 users of 4096": _dmi(
            {"guidance": "users", "neighbours": 50, "memory": 4096, "denoiser": {"guide_start": 1.0}}
        ),
        "drawn hard to 50 users of 4096": _dmi(
            {"guidance": "users", "neighbours": 50, "memory": 4096, "denoiser": {"guide_start": 4.0}}
        ),
        "contrast": _dmi({"contrast_weight": 0.1}),
        "contrast, drawn hard": _dmi(
            {
                "contrast_weight": 0.1,
                "guidance": "users",
                "neighbours": 50,
                "memory": 4096,
                "denoiser": {"guide_start": 4.0},
            }
        ),
        "no pruning": _dmi({"denoiser": {"prune": {"rule": "none"}}}),
        "no cross-attention": _dmi({"denoiser": {"cross_attention": False}}),
        "no cross-attention, no guidance": _dmi({"guidance": "history", "denoiser": {"cross_attention": False}}),
        "no noise": _dmi({"train_start": "clean", "reconstruction_weight": 0.0}),
        "no reconstruction": _dmi({"reconstruction_weight": 0.0}),
    },
    "steps": {f"{n} steps": _dmi({"reverse_steps": n}) for n in (1, 2, 5, 10)},
    "noise": {f"noise {amount}": _dmi({"noise": {"amount": amount}}) for amount in (0.01, 0.1, 0.3, 0.6, 0.9)},
    "extractors": {
        "comirec_dr": {},
        "dmi over comirec_dr": {
            "base": "dmi",
            "model": {
                "base": {"model": "comirec_dr", "identity_maps": True, "transform_std": 0.1},
                "loss": {"negatives": "uniform", "normalize": False, "temperature": 1.0, "beta": 1.0},
            },
            "training": {"learning_rate": 0.003},
        },
        "gemirec": {"training": {"steps": 3000}},
        "gemirec+dmi": {"base": "dmi", "profile": "gemirec", "training": {"steps": 3000}},
    },
}
TITLES = {
    "parts": "Without each part",
    "steps": "Reverse steps",
    "noise": "Amount of noise",
    "extractors": "Over other models",
}


def prepared_log(log: str, cache: Path) -> Path:
    """Return the folder of a prepared log; those of :data:`SIMULATED` are made."""
    if log not in SIMULATED:
        return folder(log, cache)
    source = cache / f"{log}-log"
    made = (
        SimulatedLog.open(source)
        if source.exists()
        else simulate(source, SimulatorConfig(num_users=USERS, **SIMULATED[log]))
    )
    if not (cache / log).exists():
        prepare(made.interactions, cache / log, items=made.items, users=made.users, config=PrepareConfig(name=log))
    return cache / log


def noise_table(report: Mapping[str, Any], out: Path, cache: Path) -> list[str]:
    """Return the share of interests' energy off their planted aspect, before and after, of the first seed's runs."""
    data, log = Dataset.open(cache / "aspects"), SimulatedLog.open(cache / "aspects-log")
    lines = ["| model | coarse | refined | matched | probe R2 |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        if row["dataset"] != data.info.name:
            continue
        first = next(iter(row["runs"].values()))
        model = Recommender.from_pretrained(out / first / "artifact").model
        after, before = planted_noise(model, data, log), {}
        if isinstance(model, DMI):
            before = planted_noise(model, data, log, read=partial(_coarse, model))
        coarse = f"{before['interest_noise']:.3f}" if before else "-"
        lines.append(
            f"| `{row['model']}` | {coarse} | {after['interest_noise']:.3f} | {after['noise_matched']:.2f} "
            f"| {after['probe_r2']:.2f} |"
        )
    return [*lines, ""]


def _coarse(model: DMI, histories: Histories) -> Interests:
    """Return the interests before refinement."""
    return model.coarse(histories).found


def page(reports: Mapping[str, Mapping[str, Any]], out: Path, cache: Path) -> str:
    """Return the generated part of the page."""
    lines = [""]
    for part, report in reports.items():
        lines += [f"## {TITLES[part]}", ""]
        for about in report["datasets"]:
            if sum(row["dataset"] == about["name"] for row in report["rows"]) > 1:
                lines += [f"### {about['name']}", "", *table(report, about["name"])]
                if about["name"] == "aspects":
                    lines += noise_table(report, out, cache)
    return "\n".join(lines)


def noise_picture(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw recall with its interval against the amount of noise, a panel for each log, and the extractor's recall."""
    from matplotlib.figure import Figure

    points: dict[str, dict[float, dict[str, float]]] = {}
    extractor: dict[str, float] = {}
    for part in ("parts", "noise"):
        for row in reports.get(part, {"rows": []})["rows"]:
            found, word = row["metrics"]["recall@50"], row["model"].split()
            if word[0] == "noise":
                points.setdefault(row["dataset"], {})[float(word[1])] = found
            elif row["model"] == "comirec_sa":
                extractor[row["dataset"]] = found["mean"]
    points = {log: of_amount for log, of_amount in points.items() if len(of_amount) > 1}
    if not points:
        return
    drawn = Figure(figsize=(3.1 * len(points), 2.8), layout="constrained")
    for axes, (log, of_amount) in zip(drawn.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        amount = sorted(of_amount)
        mean, low, high = ([of_amount[x][key] for x in amount] for key in ("mean", "low", "high"))
        axes.fill_between(amount, low, high, color="#0072B2", alpha=0.15, lw=0)
        axes.plot(amount, mean, "o-", color="#0072B2", label="DMI")
        if log in extractor:
            axes.axhline(extractor[log], color="#777777", ls="--", label="ComiRec-SA alone")
        axes.set(title=log, xlabel="noise, 1 - a_T", xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].set_ylabel("Recall@50")
    drawn.axes[0].legend(frameon=False, fontsize=8)
    drawn.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--data", nargs="+", default=list(LOGS), choices=LOGS)
    parser.add_argument("--models", nargs="+", help="only these of a part's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--cache", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--out", type=Path, default=Path("runs/dmi"))
    parser.add_argument("--page", type=Path, help="write the tables of what is there into this page; trains nothing")
    args = parser.parse_args()
    logs = [prepared_log(log, args.cache) for log in args.data]
    reports = {}
    for part in args.parts:
        names = [name for name in PARTS[part] if args.models is None or name in args.models]
        reports[part] = compare(
            logs,
            args.out,
            models=names,
            seeds=args.seeds,
            minutes=0.0 if args.page else None,
            overrides={**SETTINGS, "models": PARTS[part]},
            watcher=Printed(),
        )
    if args.page:
        write_page(args.page, page(reports, args.out, args.cache), "dmi.py")
        noise_picture(reports, PICTURE)


if __name__ == "__main__":
    main()
