"""GemiRec without one of its parts at a time: every ablation is a configuration, none is code.

Each variant is trained with every seed into ``OUT/seed1/-J`` and so on, evaluated, and set beside ``full``. A run that
is finished is not trained again; one that was stopped goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from gemirec.artifacts import FORMAT_VERSION, write_json
from gemirec.config import Config, EvaluationConfig, from_dict, merge, to_dict
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.evaluation.result import EvaluationResult
from gemirec.experiments.ablate_table import variant_row
from gemirec.experiments.many_runs import check_seeds, earlier_report, measured, told
from gemirec.experiments.watch import Silent, Watcher
from gemirec.models.catalog import build_model
from gemirec.recommender.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gemirec.data.dataset import DataSpec

MODEL, FULL, REPORT = "gemirec", "full", "ablate.json"


@dataclass(frozen=True)
class Variant:
    """One row of the table of variants.

    Attributes:
        what: What it is, in one line.
        model: What it changes in the model's configuration.
        needs: Keys of :data:`NEEDS`; without one of them the variant is the full model or cannot be.
    """

    what: str
    model: dict[str, Any]
    needs: tuple[str, ...] = ()


VARIANTS: dict[str, Variant] = {
    FULL: Variant("the model as the profile and --set have it", {}),
    "-I": Variant("preset categories are the interests", {"dictionary": "categories"}, ("categories",)),
    "-J": Variant("the dictionary is not trained with the retriever", {"joint": False}, ("learned",)),
    "-U": Variant("the generator reads no user features", {"generator_features": False}, ("features", "decoder")),
    "-M": Variant("interests by their frequency in the history, no generator", {"generator": "history"}),
    "random": Variant("a random dictionary to start from, no k-means", {"quantizer": {"init": "random"}}, ("learned",)),
    "+J": Variant(
        "the dictionary is trained with the retriever, each step's items assigned anew",
        {"joint": True, "refresh_every": 1},
        ("learned",),
    ),
    "no-cells": Variant("every interest searches all items", {"cells": "none"}),
    "no-user-vector": Variant("the user's own vector is none of the K", {"keep_user_vector": False}),
    "user-only": Variant("the user's own vector alone", {"num_interests": 1, "keep_user_vector": True}),
    "no-item-categories": Variant("item vectors know no category", {"item_categories": False}, ("categories",)),
}
"""Every variant: the paper's -I, -J, -U, -M and random dictionary, and those of our own additions."""
PAPER = (FULL, "-I", "-J", "-U", "-M", "random")
NEEDS = {
    "categories": "the data have no item categories",
    "features": "the data have no user features",
    "learned": "the interests are the preset categories already",
    "decoder": "there is no generator",
}


class AblateConfig(Config, frozen=True, kw_only=True):
    """What an ablation can be told, section by section."""

    model: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of the full model's config; every variant starts from them."""
    training: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.config.TrainingConfig`, the same for every run; the seed comes from the seeds."""
    evaluation: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of :class:`~gemirec.config.EvaluationConfig`; the lists are 20 and 50 items long."""


def ablate(
    dataset: Path,
    out: Path,
    *,
    profile: str = "tuned",
    variants: Sequence[str] = PAPER,
    seeds: Sequence[int] = (1, 2, 3),
    overrides: Mapping[str, Any] | None = None,
    split: str = "test",
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train and evaluate the variants, and tabulate them beside the full model.

    A finished run keeps its artifact, its log and its evaluation; its checkpoints are deleted. ``OUT/ablate.json`` is
    written after every run and holds what the last call asked for; more variants and seeds can be asked of the same
    folder later.

    Args:
        dataset: A prepared dataset.
        out: The folder of the ablation.
        profile: ``tuned`` or ``paper``: what ``full`` is.
        variants: Names in :data:`VARIANTS`; ``full`` always joins.
        seeds: Training seeds.
        overrides: Sections ``model``, ``training``, ``evaluation``.
        split: ``valid`` or ``test``.
        watcher: Shows progress.

    Returns:
        ``rows``: per variant the mean and standard deviation over seeds of every metric, and the difference to full.
        Per user, a metric is the mean over the seeds that both have finished; the interval is that of users, not of
        seeds. ``not_applicable``: why a variant was not trained. ``asked`` and ``dataset``: of what.

    Raises:
        ConfigError: An unknown variant, key or value, or a folder of another ablation.
    """
    job = _Job.of(dataset, out, profile, variants, seeds, overrides or {}, split)
    watcher = watcher or Silent()
    reasons = {name: reason for name in job.variants if (reason := job.refusal(name))}
    todo = [name for name in job.variants if name not in reasons]
    found: dict[str, dict[int, EvaluationResult]] = {name: {} for name in todo}
    report = job.report(found, reasons)
    write_json(out / REPORT, report)
    for seed in job.seeds:
        for name in todo:
            found[name][seed] = job.run(name, seed, watcher)
            report = job.report(found, reasons)
            write_json(out / REPORT, report)
    return report


@dataclass(frozen=True)
class _Job:
    """What is asked for, checked before anything starts."""

    data: Dataset
    spec: DataSpec
    out: Path
    profile: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: dict[str, Any]
    evaluation: EvaluationConfig
    asked: dict[str, Any]
    """What must stay the same for runs to be comparable: data, full configuration, evaluation."""

    @classmethod
    def of(
        cls,
        dataset: Path,
        out: Path,
        profile: str,
        variants: Sequence[str],
        seeds: Sequence[int],
        overrides: Mapping[str, Any],
        split: str,
    ) -> _Job:
        """Check every name, key and value, and that ``out`` is new or of the same ablation."""
        _check_lists(variants, seeds)
        wanted = from_dict(AblateConfig, overrides, where="the ablation's configuration")
        asked = {**wanted.evaluation, "split": split, "top_n": [20, 50]}
        evaluation = from_dict(EvaluationConfig, asked, where="the ablation's configuration, section evaluation")
        trained = {"model": wanted.model, "training": wanted.training}
        data = Dataset.open(dataset)
        names = tuple(name for name in VARIANTS if name == FULL or name in variants)
        run = resolve(MODEL, profile, trained)
        training = {key: value for key, value in to_dict(run.training).items() if key != "seed"}
        same = {"dataset_fingerprint": data.fingerprint, "profile": profile, "model": run.model, "training": training}
        plain = msgspec.json.decode(msgspec.json.encode({**same, "evaluation": told(evaluation)}))
        job = cls(data, data.spec(), out, profile, names, tuple(dict.fromkeys(seeds)), trained, evaluation, plain)
        job._check_folder()
        return job

    def _check_folder(self) -> None:
        """Refuse a folder that holds anything but this ablation."""
        before = earlier_report(self.out, REPORT)
        if before is not None and (not isinstance(before, dict) or before.get("asked") != self.asked):
            raise ConfigError(
                "the folder holds an ablation of other data or with another configuration",
                got=self.out / REPORT,
                fix="repeat the command that made it (its configuration is in that file), or choose another folder",
            )

    def _overrides(self, name: str, seed: int) -> dict[str, Any]:
        return merge(self.overrides, {"model": VARIANTS[name].model, "training": {"seed": seed}})

    def refusal(self, name: str) -> str | None:
        """Return why a variant would not differ from the full model or cannot be built, ``None`` if it can."""
        if name == FULL:
            return None
        full, run = (resolve(MODEL, self.profile, self._overrides(variant, 1)).model for variant in (FULL, name))
        if run == full:
            return "the full model is so already"
        has = {
            "categories": self.spec.category_N is not None,
            "features": bool(self.spec.user_categorical_sizes or self.spec.num_user_numeric),
            "learned": full["dictionary"] == "learned",
            "decoder": full["generator"] == "decoder",
        }
        missing = [NEEDS[need] for need in VARIANTS[name].needs if not has[need]]
        if missing:
            return missing[0]
        try:
            with torch.random.fork_rng(devices=()):
                build_model(MODEL, run, self.spec)
        except ConfigError as error:
            return f"{error.what} ({error.got})"
        return None

    def run(self, name: str, seed: int, watcher: Watcher) -> EvaluationResult:
        """Train and evaluate one variant with one seed, or read what an earlier call found."""
        folder = self.out / f"seed{seed}" / name
        scores = folder / "evaluation"
        if (scores / "evaluation.json").is_file():
            return EvaluationResult.read(scores)
        watcher.note(f"training {name}, seed {seed}")
        result = measured(
            self.data,
            folder,
            model=MODEL,
            profile=self.profile,
            overrides=self._overrides(name, seed),
            evaluation=self.evaluation,
            scores=scores,
            watcher=watcher,
        )
        watcher.note(f"  recall@50 {result.metrics['recall@50']:.4f}")
        return result

    def report(self, found: Mapping[str, Mapping[int, EvaluationResult]], reasons: Mapping[str, str]) -> dict[str, Any]:
        """Return the table of what is finished."""
        done = {name: results for name, results in found.items() if results}
        return {
            "format_version": FORMAT_VERSION,
            "dataset": self.data.info.name,
            "asked": self.asked,
            "seeds": list(self.seeds),
            "rows": [
                variant_row(name, VARIANTS[name].what, results, done[FULL] if name != FULL else None)
                for name, results in done.items()
            ],
            "not_applicable": dict(reasons),
        }


def _check_lists(variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise for an unknown variant or a list of seeds without a seed."""
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ConfigError("no such variant", got=", ".join(unknown), fix=f"choose from {', '.join(VARIANTS)}")
    check_seeds(seeds)
