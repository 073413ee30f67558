"""What limits a trained GemiRec: the prediction of interests, the retrieval given an interest, K, or epsilon.

Nothing is trained. (a) Other sources of interests in the generator's place, the true ones among them; (b) sweeps of K
and epsilon; (c) the generator as a predictor beside counting the history; (d) what interests add to the user's own
vector, by the length of the history. All on the same users, with the same number of retrieved items.

Axes: U users evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import torch

from gemirec.components.selection import check_selection
from gemirec.config import EvaluationConfig, from_dict
from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.evaluation.evaluate import evaluate
from gemirec.evaluation.significance import paired
from gemirec.experiments.probe_generator import generator_rows
from gemirec.experiments.probe_sources import (
    Oracle,
    Probed,
    Source,
    drawn,
    generated,
    history_twin,
    nothing,
)
from gemirec.experiments.watch import Silent, Watcher
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gemirec.data.batches import EvalWindows
    from gemirec.evaluation.result import EvaluationResult

SOURCE_METRICS = ("recall@20", "recall@50", "amr@50", "exclusive@50", "cur@50")
SWEEP_METRICS = ("recall@50", "amr@50", "exclusive@50", "list_div@50", "cur@50")
SWEEP_K = tuple(range(1, 11))
SWEEP_EPSILON = tuple(range(1, 6))
LENGTHS = (1, 5, 10, 20, 50)
"""Where the bins of history lengths start; the last is open."""
SERVED = "generator, as served"
ALONE = "user vector alone"


def probe(
    artifact: Path, dataset: Path, *, split: str = "test", users: int = 5000, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Probe an artifact of ``gemirec train --model gemirec`` on the dataset it was trained on.

    Args:
        artifact: The trained model.
        dataset: The prepared dataset.
        split: ``valid`` or ``test``.
        users: Most users (a fixed sample); 0 takes all.
        watcher: Shows progress.

    Returns:
        What :func:`probe_model` returns.

    Raises:
        ConfigError: The model is not a GemiRec, or has no generator yet.
        DataError: The dataset is not the one that the model was trained on.
    """
    recommender, data = Recommender.from_pretrained(artifact), Dataset.open(dataset)
    model = recommender.model
    if not isinstance(model, GemiRec):
        raise ConfigError(
            "only a gemirec model can be probed: the probes replace its interests",
            got=f"{recommender.info.model} ({artifact})",
            fix="train one: gemirec train DATA --model gemirec --out RUN",
        )
    values = {"split": split, "users": users, "bootstrap": 0}
    config = from_dict(EvaluationConfig, values, where="the probe's configuration")
    recommender.evaluate(data, config, users=1)  # refuses another dataset
    return probe_model(model, data, config, watcher=watcher)


def probe_model(
    model: GemiRec, dataset: Dataset, config: EvaluationConfig | None = None, *, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Probe a trained model.

    Args:
        model: The model, trained into its joint stage.
        dataset: The data it was trained on.
        config: Whom to evaluate; list lengths are 20 and 50 whatever it says, and no interval of a mean is drawn.
        watcher: Shows progress.

    Returns:
        ``about`` (what was probed, on whom), ``sources``, ``sweep_k``, ``sweep_epsilon``, ``generator``,
        ``calibration``, ``reliability`` and ``history_length``: lists of rows, as docs/probes.md explains them.
        ``notes`` say what could not be probed.

    Raises:
        ConfigError: The model has not reached its joint stage.
    """
    if int(model.phase) < 2:
        raise ConfigError(
            "the model has no generated interests yet",
            got="a model that has not reached its joint stage",
            fix="train it to the end: gemirec train --resume",
        )
    config = msgspec.structs.replace(config or EvaluationConfig(), top_n=(20, 50), bootstrap=0)
    bench = Bench(model, dataset, config, watcher or Silent())
    served = evaluate(model, dataset, config)
    user_U = _users_of(served, dataset)
    alone = bench.rank(ALONE, nothing) if model.config.keep_user_vector else None
    out: dict[str, Any] = {
        "about": _about(bench, served),
        "sources": _source_rows(bench, served, alone, user_U),
        "sweep_k": _sweep_k(bench),
        "sweep_epsilon": _sweep_epsilon(bench),
        **generator_rows(model, lambda: bench.windows(user_U), bench.watcher),
        "history_length": [] if alone is None else _length_rows(served, alone),
    }
    notes = []
    if not out["sweep_epsilon"]:
        notes.append("no sweep of epsilon: the model generates no interest, or no two of them can share a code")
    if alone is None:
        notes.append("no gain by history length: the model does not serve the user's own vector")
    return out | {"notes": notes}


@dataclass(frozen=True)
class Bench:
    """What every probe shares: the model, the data, whom to evaluate."""

    model: GemiRec
    dataset: Dataset
    config: EvaluationConfig
    watcher: Watcher

    @property
    def kept(self) -> int:
        """1 if the user's own vector is one of the K, else 0."""
        return int(self.model.config.keep_user_vector)

    @property
    def k(self) -> int:
        """Interests that the generator is asked for; 1 where the model serves the user's vector alone."""
        return max(1, int(self.model.config.num_interests) - self.kept)

    def rank(self, label: str, choose: Source, *, user_vector: bool = True) -> EvaluationResult:
        """Evaluate the model with a source of interests in the generator's place."""
        self.watcher.note(f"probing {label}")
        return evaluate(Probed(self.model, choose, user_vector=user_vector), self.dataset, self.config)

    def windows(self, user_U: NDArray[np.int64]) -> Iterator[EvalWindows]:
        """Return the evaluation's batches."""
        return evaluation_batches(
            self.dataset,
            self.config.split,
            batch_size=self.config.batch_size,
            max_length=self.model.max_length,
            users=user_U,
        )


def _users_of(result: EvaluationResult, dataset: Dataset) -> NDArray[np.int64]:
    """Return the user indices that a result is over, in its order."""
    known = dataset.users.select("user_id").with_row_index("user")
    joined = result.users.select("user_id").join(known, on="user_id", how="left", maintain_order="left")
    return joined["user"].cast(pl.Int64).to_numpy()


def _about(bench: Bench, served: EvaluationResult) -> dict[str, Any]:
    """Return what was probed, and on whom."""
    config, settings = bench.model.config, served.settings
    return {
        "dataset": settings["dataset"],
        "dataset_fingerprint": settings["dataset_fingerprint"],
        "split": settings["split"],
        "users": settings["users"],
        "users_in_split": settings["users_in_split"],
        "exclude_seen": settings["exclude_seen"],
        "K": config.num_interests,
        "epsilon": config.epsilon,
        "keep_user_vector": config.keep_user_vector,
        "interests_in_the_dictionary": bench.model.num_interests,
        "interests_with_items": len(torch.unique(bench.model.item_interests()[1:])),
    }


def _source_rows(
    bench: Bench, served: EvaluationResult, alone: EvaluationResult | None, user_U: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return a row per source of interests, with its recall minus that of the served ones."""
    model, k, plus = bench.model, bench.k, bench.kept
    twin = history_twin(model)

    def next_one() -> Source:
        return Oracle(model, bench.windows(user_U), 1, next_only=True)

    def held_out() -> Source:
        return Oracle(model, bench.windows(user_U), k)

    def by_generator() -> Source:
        return generated(model, k, model.epsilon)

    rows = [_source_row(SERVED, model.config.num_interests, served, served)]
    kept = [
        ("oracle, interest of the next item", 1 + plus, next_one),
        ("oracle, frequent interests of the held-out items", k + plus, held_out),
        ("history frequency", k + plus, lambda: generated(twin, k, model.epsilon)),
        ("random", k + plus, lambda: drawn(model, k)),
    ]
    for label, count, source in kept:
        rows.append(_source_row(label, count, bench.rank(label, source()), served))
    if alone is None:
        return rows
    rows.append(_source_row(ALONE, 1, alone, served))
    dropped = [("generator", k, by_generator), (kept[0][0], 1, next_one), (kept[1][0], k, held_out)]
    for label, count, source in dropped:
        label = f"{label}, without the user vector"
        rows.append(_source_row(label, count, bench.rank(label, source(), user_vector=False), served))
    return rows


def _source_row(label: str, k: int, result: EvaluationResult, served: EvaluationResult) -> dict[str, Any]:
    """Return one source: K vectors at most, the metrics, and the paired difference of recall@50."""
    gain = paired(*(found.users["recall@50"].to_numpy() for found in (result, served)))
    return {
        "interests from": label,
        "K": k,
        **{name: result.metrics.get(name) for name in SOURCE_METRICS},
        "recall@50 minus served": gain.difference,
        "low": gain.low,
        "high": gain.high,
    }


def _sweep_k(bench: Bench) -> list[dict[str, Any]]:
    """Return a row per K, the user's own vector counted, at the model's epsilon."""
    return [_sweep_row(bench, {"K": k}, k - bench.kept, bench.model.epsilon) for k in SWEEP_K]


def _sweep_epsilon(bench: Bench) -> list[dict[str, Any]]:
    """Return a row per epsilon, at the model's K; none where no limit can change anything."""
    model = bench.model
    k = model.config.num_interests - bench.kept
    if len(model.dictionary.sizes) == 1 or k == 0:
        return []
    return [_sweep_row(bench, {"epsilon": epsilon}, k, epsilon) for epsilon in SWEEP_EPSILON]


def _sweep_row(bench: Bench, setting: dict[str, int], k: int, epsilon: int | None) -> dict[str, Any]:
    """Return the metrics with ``k`` generated interests under a limit, or why there are none."""
    model = bench.model
    try:
        if k:
            check_selection(k, epsilon, model.dictionary.sizes, model.limited)
    except ConfigError as error:
        return {**setting, **dict.fromkeys(SWEEP_METRICS), "note": f"not measured, {error.what}: {error.got}"}
    label = ", ".join(f"{name} {value}" for name, value in setting.items())
    found = bench.rank(label, generated(model, k, epsilon) if k else nothing).metrics
    return {**setting, **{name: found.get(name) for name in SWEEP_METRICS}, "note": ""}


def _length_rows(served: EvaluationResult, alone: EvaluationResult) -> list[dict[str, Any]]:
    """Return recall@50 of the model and of the user's vector alone, by the length of the history."""
    length_U = served.users["history_length"].to_numpy()
    both = [result.users["recall@50"].to_numpy() for result in (served, alone)]
    rows = []
    for first, end in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        mask_U = (length_U >= first) & (length_U < (end or np.inf))
        if mask_U.any():
            gain = paired(both[0][mask_U], both[1][mask_U])
            rows.append(
                {
                    "history length": f"{first}-{end - 1}" if end else f"{first} or more",
                    "users": int(mask_U.sum()),
                    "recall@50": gain.first,
                    ALONE: gain.second,
                    "difference": gain.difference,
                    "low": gain.low,
                    "high": gain.high,
                }
            )
    return rows


def probe_summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report as a reader wants it: all tables but the bins of the calibration, nothing empty."""
    return {name: value for name, value in report.items() if name != "reliability" and value}
