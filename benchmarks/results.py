"""The results page: every model on the real logs, test users, shipped profiles, several seeds.

    python benchmarks/results.py --jobs 2                                        # all of it; resumable
    python benchmarks/results.py --data amazon-beauty --models comirec_sa        # one cell of the page
    python benchmarks/results.py --page docs/results.md                          # write the page from what was run

Each run is one process on one thread: the profile's training on the training users, the best checkpoint by validation
Recall@50, then one full ranking of the test users. Needs the real logs in ``../shared/data``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from pathlib import Path
from typing import Any

from realdata import MAX_LENGTH, prepared, read_lines, run_all

LOGS = ("amazon-beauty", "ml-1m", "kuairand-pure", "globo")
MODELS = (
    "popularity",
    "item_mean",
    "youtube_dnn",
    "single_vector",
    "sasrec",
    "mind",
    "comirec_dr",
    "comirec_sa",
)
SEEDS = {"globo": (1,)}
METRICS = ("recall@20", "recall@50", "hr@50", "ndcg@50")


def tasks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs of the page: tuned everywhere, paper on amazon-beauty for the sanity bands."""
    plan = [(data, model, "tuned", seed) for data in args.data for model in args.models for seed in seeds(args, data)]
    plan.sort(key=lambda run: run[3])  # a first look at everything before the second seed
    plan = plan if "tuned" in args.profiles else []
    if "amazon-beauty" in args.data and "paper" in args.profiles:
        plan += [("amazon-beauty", model, "paper", 1) for model in args.models if model != "popularity"]
    return [
        {
            "key": f"{data}/{model}/{profile}/{seed}",
            "data": data,
            "cache": str(args.cache),
            "model": model,
            "profile": profile,
            "overrides": {"model": {"max_length": MAX_LENGTH}} if model != "popularity" else {},
            "split": "test",
            "seed": seed,
            "bootstrap": 1000,
        }
        for data, model, profile, seed in plan
    ]


def seeds(args: argparse.Namespace, data: str) -> tuple[int, ...]:
    """Return the seeds run on one log."""
    return SEEDS.get(data, tuple(args.seeds))


def row(records: list[dict[str, Any]], label: str) -> str:
    """Return one line of a table: means over seeds, and the mean ends of the intervals over users."""
    cells = []
    for metric in METRICS:
        values = [r["metrics"][metric] for r in records]
        low = statistics.mean(r["intervals"][metric][0] for r in records)
        high = statistics.mean(r["intervals"][metric][1] for r in records)
        spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread} [{low:.4f}, {high:.4f}]")
    seconds = statistics.mean(r["train_seconds"] for r in records)
    steps = statistics.mean(r["best_step"] for r in records)
    return f"| {label} | " + " | ".join(cells) + f" | {len(records)} | {steps:.0f} | {seconds:.0f} |"


def table(records: list[dict[str, Any]], data: str, profile: str) -> list[str]:
    """Return the table of one log and profile, models in catalogue order."""
    lines = [
        "| model | Recall@20 | Recall@50 | HR@50 | NDCG@50 | seeds | best step | training s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        found = [r for r in records if (r["data"], r["model"], r["profile"]) == (data, model, profile)]
        if found:
            lines.append(row(found, f"`{model}`"))
    return lines


def statistics_line(data: str, cache: Path) -> str:
    """Return users, items, events and fingerprint of a prepared log."""
    dataset = prepared(data, cache)
    info = dataset.info
    parts = ", ".join(f"{n:,} {part}" for part, n in info.users_per_split.items())
    return (
        f"{info.num_users:,} users ({parts}), {info.num_items:,} items, {info.num_events:,} events after the filter; "
        f"histories of at most {MAX_LENGTH} events; fingerprint `{info.fingerprint[:16]}`."
    )


def page(args: argparse.Namespace, records: list[dict[str, Any]]) -> str:
    """Return the generated part of the page."""
    lines = [f"Measured on {platform.machine()}, Python {platform.python_version()}, one thread per run.", ""]
    for data in LOGS:
        lines += [f"## {data}", "", statistics_line(data, args.cache), ""]
        command = f"python benchmarks/results.py --data {data}"
        lines += [f"Profile `tuned`, test users; command: `{command}`", "", *table(records, data, "tuned"), ""]
        paper = table(records, data, "paper")
        if len(paper) > 2:
            lines += ["Profile `paper` (same command):", "", *paper, ""]
    return "\n".join(lines)


def write_page(path: Path, generated: str, script: str = "results.py") -> None:
    """Replace what stands between the two marks of ``path``; a file without them gets them at its end."""
    begin, end = f"<!-- generated by benchmarks/{script} -->", "<!-- end of the generated part -->"
    text = path.read_text() if path.exists() else f"{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{generated}\n{end}{tail}")


def main() -> None:
    """Run what is missing, print the tables, write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", nargs="+", default=list(LOGS))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--profiles", nargs="+", default=["tuned", "paper"], help="paper: amazon-beauty only, one seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--cache", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--results", type=Path, default=Path("runs/results.jsonl"))
    parser.add_argument("--page", type=Path, help="write the page from the results so far; runs nothing")
    args = parser.parse_args()
    if args.page is not None:
        write_page(args.page, page(args, read_lines(args.results)))
        return
    for data in args.data:
        prepared(data, args.cache)
    records = run_all(tasks(args), args.results, args.jobs)
    for data in args.data:
        for profile in ("tuned", "paper"):
            lines = table(records, data, profile)
            if len(lines) > 2:
                print(f"\n{data}, {profile}", *lines, sep="\n")


if __name__ == "__main__":
    main()
