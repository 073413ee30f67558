"""Models x data sets x seeds: train what is missing, evaluate, and set everything in one table.

The order is seed by seed, so that a comparison that is cut short is a whole table of fewer seeds. Everything that is
finished is kept (:mod:`gemirec.experiments.compare_plan` says where) and never done twice; a run that was stopped goes
on from its last checkpoint.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from gemirec.artifacts import atomic_file, write_json
from gemirec.errors import ConfigError, DataError, TrainingError
from gemirec.experiments.compare_examples import examples
from gemirec.experiments.compare_report import html
from gemirec.experiments.compare_state import HTML, Comparison, Run
from gemirec.experiments.compare_views import views
from gemirec.experiments.many_runs import cost, measured
from gemirec.experiments.watch import Silent, Watcher
from gemirec.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def compare(
    datasets: Sequence[Path],
    out: Path,
    *,
    models: Sequence[str],
    seeds: Sequence[int] = (1, 2, 3),
    against: str | None = None,
    minutes: float | None = None,
    profile: str = "tuned",
    overrides: Mapping[str, Any] | None = None,
    split: str = "test",
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train and evaluate every model on every data set with every seed, and write the table and the report.

    Args:
        datasets: Prepared datasets.
        out: Folder of the comparison; more models, data sets and seeds can be asked of the same folder later.
        models: Names of the catalogue, of ``overrides["models"]``, or ``all``.
        seeds: Training seeds, in the order in which they are run.
        against: The model that the others are tested against; ``None`` takes ``comirec_sa`` if it takes part,
            otherwise the first.
        minutes: Start no run that would end later than this after the call, estimated from finished runs; ``None`` is
            no limit, 0 only writes what is there. A run that has begun is never cut off, and the first run of all,
            about which nothing is known, begins if any time is left.
        profile: ``tuned`` or ``paper``.
        overrides: Sections of :class:`~gemirec.experiments.compare_plan.CompareConfig`.
        split: ``valid`` or ``test``.
        watcher: Shows progress.

    Returns:
        What ``OUT/compare.json`` holds: ``rows`` (metrics, differences, costs), ``missing`` with the reasons, and what
        was asked for. Beside it lie ``table.parquet``, ``table.md`` and ``report.html``.

    Raises:
        ConfigError: An unknown model, key or value; ``against`` does not take part.
        StorageError: The folder holds something else.
    """
    watcher = watcher or Silent()
    job = Comparison.of(datasets, out, models, seeds, against, minutes, profile, overrides or {}, split)
    job.look()
    job.write(watcher)
    for seed in job.seeds:
        if _round(job, seed, watcher) and seed != job.seeds[-1]:
            job.write(watcher)
    if not job.found and job.failed:
        raise next(iter(job.failed.values()))
    report = job.write(watcher)
    watcher.note("drawing the report")
    page = html(report, out, examples(report, out, job.contests[0].data))
    with atomic_file(out / HTML) as tmp:
        tmp.write_text(page, encoding="utf-8")
    return report


def _round(job: Comparison, seed: int, watcher: Watcher) -> bool:
    """Do what is missing of one seed and fits into the budget; return whether anything was done.

    A run that would take too long is left out while cheaper ones of its seed go on. A seed after one that is not
    complete is not begun.
    """
    if job.waiting:
        job.waiting |= {run for run in job.runs(seed) if run not in job.found}
        return False
    todo = [run for run in job.runs(seed) if run not in job.found or not job.looked_at(run)]
    done = False
    for run in todo:
        if run.pair in job.failed:
            continue
        if not _fits(job, run):
            job.waiting |= {run} - job.found.keys()
            continue
        done = _do(job, run, watcher) or done
    return done


def _fits(job: Comparison, run: Run) -> bool:
    """Return whether a run can be expected to end within the budget."""
    left = job.until - monotonic()
    expected = 0.0 if run in job.found else _estimate(job, run)
    return left > 0 and (expected is None or expected - cost(job.folder(run)).get("train", 0.0) <= left)


def _estimate(job: Comparison, run: Run) -> float | None:
    """Return the seconds that a run takes at most, as far as finished runs tell; ``None`` if none is finished.

    The longest of the same model on the same data; without one, the longest on the same data; the longest of the
    same model; the longest of all.
    """
    contest, contestant = run.pair
    seconds = [(other.pair, spent) for other, spent in job.seconds.items()]
    for same in (
        [s for pair, s in seconds if pair == run.pair],
        [s for pair, s in seconds if pair[0] == contest],
        [s for pair, s in seconds if pair[1] == contestant],
        [s for _, s in seconds],
    ):
        if same:
            return max(same)
    return None


def _do(job: Comparison, run: Run, watcher: Watcher) -> bool:
    """Train, evaluate and look at one run, whatever of it is missing; return whether that succeeded."""
    started = monotonic()
    watcher.note(f"{run.contestant.name} on {run.contest.name}, seed {run.seed}")
    try:
        result = measured(
            run.contest.data,
            job.folder(run),
            model=run.contestant.base,
            profile=run.contestant.profile,
            overrides={
                **run.contestant.overrides,
                "training": {**run.contestant.overrides["training"], "seed": run.seed},
            },
            evaluation=job.evaluation,
            scores=job.scores(run),
            watcher=watcher,
        )
    except (ConfigError, DataError, TrainingError) as error:  # this model cannot; the others still can
        job.failed[run.pair] = error
        watcher.note(f"  {error.what} ({error.got})")
        return False
    job.add(run, result)
    if not job.looked_at(run):
        model = Recommender.from_pretrained(job.folder(run) / "artifact").model
        write_json(job.scores(run) / "views.json", views(model, run.contest.data, job.evaluation, watcher))
    recall = f"recall@{job.top_n[-1]}"
    watcher.note(f"  {recall} {result.metrics[recall]:.4f}, {monotonic() - started:.0f} s; {_left(job)}")
    return True


def _left(job: Comparison) -> str:
    """Return how many runs are done and about how long the rest takes."""
    runs = list(job.runs())
    rest = [run for run in runs if run not in job.found and run.pair not in job.failed]
    seconds = sum(_estimate(job, run) or 0.0 for run in rest)
    minutes = f"about {max(1, round(seconds / 60))} min left" if rest else "done"
    return f"{len(runs) - len(rest)} of {len(runs)} runs, {minutes}"
