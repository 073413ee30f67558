"""A comparison's state: what is asked for, which runs are finished, and the report that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gemirec.artifacts import FORMAT_VERSION, atomic_file, read_json, write_json
from gemirec.config import EvaluationConfig, from_dict, to_dict
from gemirec.data.writer import write_table
from gemirec.errors import ConfigError, GemirecError
from gemirec.evaluation.result import EvaluationResult
from gemirec.experiments.compare_plan import (
    CompareConfig,
    Contest,
    Contestant,
    check_run,
    contestants,
    contests,
    digest,
    run_folder,
)
from gemirec.experiments.compare_rows import costs, differences, long_table, measures
from gemirec.experiments.compare_table import markdown
from gemirec.experiments.many_runs import FACTS, check_seeds, cost, earlier_report, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gemirec.experiments.watch import Watcher

REPORT, TABLE, MARKDOWN, HTML = "compare.json", "table.parquet", "table.md", "report.html"
DEFAULT_AGAINST = "comirec_sa"


class Run(NamedTuple):
    """One training run of the comparison."""

    seed: int
    contest: Contest
    contestant: Contestant

    @property
    def pair(self) -> tuple[str, str]:
        """Data set and model, as the table calls them."""
        return self.contest.name, self.contestant.name


@dataclass
class Comparison:
    """A comparison under way.

    Attributes:
        out: Its folder.
        contests: The data sets.
        contestants: The models.
        seeds: The training seeds, in order.
        against: Name of the model that the others are tested against.
        until: When no further run may end, on the monotonic clock.
        evaluation: What is measured.
        asked: What else was asked for, for the report.
        found: Finished runs.
        seconds: What each of them took, training and evaluation.
        failed: Errors of the models that cannot be trained on a data set.
        waiting: Runs that the budget did not allow.
    """

    out: Path
    contests: list[Contest]
    contestants: list[Contestant]
    seeds: tuple[int, ...]
    against: str
    until: float
    evaluation: EvaluationConfig
    asked: dict[str, Any]
    found: dict[Run, EvaluationResult] = field(default_factory=dict, init=False)
    seconds: dict[Run, float] = field(default_factory=dict, init=False)
    failed: dict[tuple[str, str], GemirecError] = field(default_factory=dict, init=False)
    waiting: set[Run] = field(default_factory=set, init=False)
    _rows: dict[Any, dict[str, Any]] = field(default_factory=dict, init=False)

    @classmethod
    def of(
        cls,
        datasets: Sequence[Path],
        out: Path,
        models: Sequence[str],
        seeds: Sequence[int],
        against: str | None,
        minutes: float | None,
        profile: str,
        overrides: Mapping[str, Any],
        split: str,
    ) -> Comparison:
        """Check everything that can be checked before anything is written."""
        check_seeds(seeds)
        if minutes is not None and not minutes >= 0:
            raise ConfigError("the budget must be 0 minutes or more", got=minutes, fix="--minutes 60")
        where = "the comparison's configuration"
        wanted = from_dict(CompareConfig, overrides, where=where)
        evaluation = from_dict(EvaluationConfig, {**wanted.evaluation, "split": split}, where=f"{where}, evaluation")
        if evaluation.bootstrap < 1 or not evaluation.top_n:
            got = f"bootstrap {evaluation.bootstrap}, top_n {evaluation.top_n}"
            raise ConfigError("a comparison needs intervals and a list length", got=got, fix="leave the defaults")
        players = contestants(models, profile, wanted)
        listed = [player.name for player in players]
        against = against or (DEFAULT_AGAINST if DEFAULT_AGAINST in listed else listed[0])
        if against not in listed:
            fix = f"--against one of {', '.join(listed)}, or add it to --models"
            raise ConfigError("the model to test against does not take part", got=against, fix=fix)
        fields = contests(datasets)
        earlier_report(out, REPORT)
        until = math.inf if minutes is None else monotonic() + 60 * minutes
        asked = {"profile": profile, "minutes": minutes, "overrides": dict(overrides)}
        return cls(out, fields, players, tuple(dict.fromkeys(seeds)), against, until, evaluation, asked)

    @property
    def top_n(self) -> list[int]:
        """List lengths, ascending."""
        return sorted(set(self.evaluation.top_n))

    def runs(self, seed: int | None = None) -> Iterator[Run]:
        """Yield the runs of one seed, or of all, in the order in which they are done."""
        for number in self.seeds if seed is None else (seed,):
            for contest in self.contests:
                for contestant in self.contestants:
                    yield Run(number, contest, contestant)

    def folder(self, run: Run) -> Path:
        """Return a run's folder."""
        return self.out / run_folder(run.contest, run.contestant, run.seed)

    def scores(self, run: Run) -> Path:
        """Return the folder of a run's evaluation."""
        return self.folder(run) / f"evaluation-{digest(told(self.evaluation))}"

    def looked_at(self, run: Run) -> bool:
        """Return whether a run has the views that the report shows; only the first seed's runs have."""
        return run.seed != self.seeds[0] or (self.scores(run) / "views.json").is_file()

    def look(self) -> None:
        """Find what earlier calls finished.

        Raises:
            ConfigError: A run there is not what its folder says.
        """
        for run in self.runs():
            if (self.folder(run) / "run" / "config.json").is_file():
                check_run(self.folder(run), run.contest, run.contestant)
            if (self.scores(run) / "evaluation.json").is_file():
                self.add(run, EvaluationResult.read(self.scores(run)))

    def add(self, run: Run, result: EvaluationResult) -> None:
        """Enter a finished run."""
        self.found[run] = result
        self.seconds[run] = sum(cost(self.folder(run)).values())

    def results(self, contest: Contest, contestant: Contestant) -> dict[int, Run]:
        """Return the finished runs of one model on one data set, by seed."""
        runs = (Run(seed, contest, contestant) for seed in self.seeds)
        return {run.seed: run for run in runs if run in self.found}

    def row(self, contest: Contest, contestant: Contestant) -> dict[str, Any]:
        """Return one row of the table; it is made anew only if there are more seeds than before."""
        chosen = next(player for player in self.contestants if player.name == self.against)
        mine, theirs = self.results(contest, contestant), self.results(contest, chosen)
        state = (contest.name, contestant.name, tuple(mine), tuple(theirs))
        if state in self._rows:
            return self._rows[state]
        shared = [seed for seed in mine if seed in theirs] if contestant.name != self.against else []
        pair = tuple([self.reader(runs[seed]) for seed in shared] for runs in (mine, theirs))
        results = {seed: self.found[run] for seed, run in mine.items()}
        settings = next(iter(results.values())).settings
        facts = [self.facts(run) for run in mine.values()]
        self._rows[state] = {
            "dataset": contest.name,
            "fingerprint": contest.data.fingerprint,
            "model": contestant.name,
            "base": contestant.base,
            "profile": contestant.profile,
            "config": contestant.config,
            "seeds": list(mine),
            "users": settings["users"],
            "cur_users": settings["cur_users"],
            "metrics": measures(results, {seed: self.reader(run) for seed, run in mine.items()}),
            "differences": differences(pair[0], pair[1], self.top_n) if shared else {},
            "cost": costs(facts),
            "about": {name: settings[name] for name in ("versions", "hardware")},
            "runs": {str(seed): run_folder(contest, contestant, seed) for seed in mine},
            "evaluation": self.scores(next(iter(mine.values()))).name,
        }
        return self._rows[state]

    def facts(self, run: Run) -> dict[str, Any]:
        """Return what training said of a run, and its wall seconds."""
        return {**read_json(self.folder(run) / FACTS), "train_seconds": cost(self.folder(run)).get("train", 0.0)}

    def reader(self, run: Run) -> Any:
        """Return what reads a result anew, so that its table of users is let go after use."""
        return lambda: EvaluationResult.read(self.scores(run))

    def report(self, watcher: Watcher) -> dict[str, Any]:
        """Return what is known now; the tests of a row take seconds on a large log."""
        pairs = [(a, b) for a in self.contests for b in self.contestants if self.results(a, b)]
        rows = []
        for number, pair in enumerate(pairs):
            watcher.counted(number, len(pairs))
            rows.append(self.row(*pair))
        report = {
            "format_version": FORMAT_VERSION,
            "out": str(self.out),
            "asked": self.asked,
            "evaluation": to_dict(self.evaluation),
            "top_n": self.top_n,
            "against": self.against,
            "seeds": list(self.seeds),
            "models": [contestant.name for contestant in self.contestants],
            "datasets": [_about(contest) for contest in self.contests],
            "rows": rows,
            "missing": self.missing(),
            "files": [REPORT, MARKDOWN, TABLE, HTML],
        }
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(report))
        return plain

    def missing(self) -> list[dict[str, Any]]:
        """Return the runs that are not finished, and why."""
        gaps = []
        for run in self.runs():
            if run not in self.found:
                error = self.failed.get(run.pair)
                why = f"{error.what} ({error.got})" if error else "not run: the budget of minutes"
                if not error and run not in self.waiting:
                    why = "not run yet"
                gaps.append({"dataset": run.contest.name, "model": run.contestant.name, "seed": run.seed, "why": why})
        return gaps

    def write(self, watcher: Watcher) -> dict[str, Any]:
        """Write the tables as they are now; return the report."""
        watcher.note("writing tables")
        report = self.report(watcher)
        write_json(self.out / REPORT, report)  # first: the folder is known by it
        with atomic_file(self.out / TABLE) as tmp:
            write_table(tmp, long_table(report))
        with atomic_file(self.out / MARKDOWN) as tmp:
            tmp.write_text(markdown(report), encoding="utf-8")
        return report


def _about(contest: Contest) -> dict[str, Any]:
    """Return the facts of a data set."""
    info = contest.data.info
    return {
        "name": contest.name,
        "fingerprint": info.fingerprint,
        "users": info.num_users,
        "items": info.num_items,
        "events": info.num_events,
        "users_per_split": dict(info.users_per_split),
    }
