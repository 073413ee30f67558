"""GemiRec against ComiRec-SA in a simulated online experiment: a traffic split, users who click by planted interests.

A log with planted interests is simulated. Half of its users are the experiment's: their log is cut just before their
new interest is born (without one, at 70 % of it), both models are trained on what is left and on the other half, and
one server serves both, each user with the one that the hash deals. In every round a user is shown ten items and clicks
each that lies in one of the planted interests, the new one included, with a chance that falls with its place,

    p(click) = 0.4 [the item's cluster is one of the user's interests] / log2(1 + place)

so what a user is about to become counts from the first round on. Clicks go to the server's event log and into the
histories of the next round. The report is gemirec ab-report over that log, with the planted clusters as labels: a click
is of a new interest if its cluster, planted for this user, was not in the user's history, by the log or an earlier
click.

The models are trained once and compared in several ways of serving: as trained; with less of the user's history in
gemirec's interests (its field history_share); with as many places for each interest as for the others (quota).

    python benchmarks/ab_simulated.py                                  # some minutes on one core
    python benchmarks/ab_simulated.py --a comirec_sa --b comirec_sa    # A/A
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import numpy as np
import polars as pl
import torch

from gemirec import Recommender
from gemirec.artifacts import read_json, write_json
from gemirec.data.simulator import SimulatedLog, SimulatorConfig, simulate
from gemirec.experiments.ab import ab_report, markdown, read_labels
from gemirec.serving.config import ServeConfig, ServePlan
from gemirec.serving.events import read_events
from gemirec.serving.impressions import read_impressions
from gemirec.serving.run import build_app
from gemirec.serving.split import Split

STEPS = {"gemirec": 1200, "comirec_sa": 600}
"""Training steps; a step of gemirec takes 64 users, one of comirec_sa 256."""
SHOWN = 10
CLICK = 0.4
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as trained": ({}, {}),
    "history_share 0": ({"history_share": 0.0}, {}),
    "quota equal": ({}, {"quota": "equal"}),
    "history_share 0, quota equal": ({"history_share": 0.0}, {"quota": "equal"}),
}
"""Fields of gemirec's configuration, and of every request."""
ASKED, SENT = 250, 1000


def cut_log(log: SimulatedLog) -> tuple[pl.DataFrame, dict[int, set[int]]]:
    """Return the log up to the experiment, and the interests that its users have from then on."""
    truth = pl.read_parquet(log.truth_users).filter(pl.col("user_id") % 2 == 0)
    events = pl.read_parquet(log.interactions).with_columns(place=pl.int_range(pl.len()).over("user_id"))
    size = events.group_by("user_id").agg(size=pl.len())
    cut = truth.select("user_id", "birth_time").join(size, on="user_id")
    events = events.join(cut, on="user_id", how="left")
    before = pl.coalesce(
        pl.col("timestamp") < pl.col("birth_time"), pl.col("place") < 0.7 * pl.col("size"), pl.lit(value=True)
    )
    interests = {
        row["user_id"]: {*row["interests"], *([] if row["born_cluster"] is None else [row["born_cluster"]])}
        for row in truth.iter_rows(named=True)
    }
    kept = events.filter(before).select("user_id", "item_id", "timestamp")
    known = set(kept["user_id"].unique().to_list())
    return kept, {user: clusters for user, clusters in interests.items() if user in known}


def train(model: str, log: pl.DataFrame, source: SimulatedLog, home: Path, steps: int, seed: int) -> Path:
    """Train a model and return its artifact."""
    start = time.perf_counter()
    settings = [f"training.steps={steps}", "training.eval_every=0", f"training.seed={seed}"]
    recommender = Recommender.fit(log, model=model, items=source.items, users=source.users, overrides=settings)
    print(f"{model}: {steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
    return recommender.save_pretrained(home / f"{model}-{seed}" / "artifact")


def served_as(artifact: Path, change: dict[str, Any], home: Path) -> Path:
    """Return the artifact with other values of its configuration, where it is gemirec's."""
    facts = read_json(artifact / "artifact.json")
    if not change or facts["model"] != "gemirec":
        return artifact
    shutil.copytree(artifact, home / artifact.parent.name / "artifact")
    write_json(
        home / artifact.parent.name / "artifact" / "artifact.json", {**facts, "config": {**facts["config"], **change}}
    )
    return home / artifact.parent.name / "artifact"


async def rounds(
    app: Any, interests: dict[int, set[int]], cluster: dict[int, int], count: int, seed: int, more: dict[str, Any]
) -> None:
    """Show lists, click, send events, round by round."""
    rng, users = np.random.default_rng(seed), list(interests)
    place = 1 / np.log2(1 + np.arange(1, SHOWN + 1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=600) as http:

        async def post(path: str, body: Any) -> Any:
            answer = await http.post(path, json=body, headers={"x-deadline-ms": "60000"})
            answer.raise_for_status()
            return answer.json()

        for _ in range(count):
            clicks = []
            for part in chunks(users, ASKED):
                asks = [{"user_id": user, "k": SHOWN, **more} for user in part]
                for answer in (await post("/recommend:batch", {"requests": asks}))["answers"]:
                    shown, own = [item["item_id"] for item in answer["items"]], interests[answer["user_id"]]
                    wanted = np.array([cluster[item] in own for item in shown])
                    taken = rng.random(len(shown)) < CLICK * wanted * place[: len(shown)]
                    clicks += [
                        {"user_id": answer["user_id"], "item_id": shown[at]} for at in np.flatnonzero(taken).tolist()
                    ]
            for events in chunks(clicks, SENT):
                await post("/events", {"events": events})
    await app.stop()


def chunks(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a", default="comirec_sa", choices=sorted(STEPS))
    parser.add_argument("--b", default="gemirec", choices=sorted(STEPS))
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=float, default=1.0, help="multiple of the training steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--salt", default="simulated")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        births = {"birth_share": 0.8, "birth_from": 0.5, "birth_to": 0.9}
        shape = {"num_items": 800, "num_super_clusters": 8, "clusters_per_super": 6}
        config = SimulatorConfig(num_users=args.users, seed=args.seed, **births, **shape)  # type: ignore[arg-type]
        log = simulate(home / "log", config)
        before, interests = cut_log(log)
        before.write_parquet(home / "before.parquet")
        artifacts = [
            train(model, before, log, home, int(STEPS[model] * args.steps), args.seed + at)
            for at, model in enumerate((args.a, args.b))
        ]
        table = pl.read_parquet(log.truth_items)
        cluster = dict(zip(table["item_id"].to_list(), table["cluster"].to_list(), strict=True))
        labels = read_labels(None, log.truth_items, home / "before.parquet", "cluster")
        print(f"A {args.a}, B {args.b}: {len(interests)} users, {args.rounds} rounds of {SHOWN} items\n")
        reports = {}
        for number, (way, (change, more)) in enumerate(WAYS.items()):
            folder = home / str(number)
            first, second = (served_as(artifact, change, folder) for artifact in artifacts)
            plan = ServePlan(
                artifact=first,
                split=Split(artifact=second, salt=f"{args.salt}: {way}"),
                events=folder / "events.sqlite",
            )
            app = build_app(plan, ServeConfig(), None)
            asyncio.run(rounds(app, interests, cluster, args.rounds, args.seed, more))
            found = read_impressions(folder / "events.sqlite")
            events = read_events(folder / "events.sqlite")
            reports[way] = ab_report(found.lists, events, share=found.share, labels=labels, salt=found.salt)
            print(markdown(reports[way]), flush=True)
    if args.out:
        write_json(args.out, reports)


if __name__ == "__main__":
    main()
