"""What the verbs train, evaluate and recommend do: files in, files and plain results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from gemirec.artifacts import atomic_file
from gemirec.config import EvaluationConfig, MergeConfig, from_dict
from gemirec.data.dataset import Dataset
from gemirec.data.simulator import SimulatedLog
from gemirec.data.writer import write_table
from gemirec.errors import ConfigError, DataError
from gemirec.evaluation.planted import planted_scores
from gemirec.evaluation.planted_noise import planted_noise
from gemirec.recommender import Recommender

if TYPE_CHECKING:
    from gemirec.training.progress import ProgressCallback


def train_run(
    dataset: Path,
    out: Path,
    *,
    model: str = "comirec_sa",
    profile: str = "tuned",
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    histories: bool = True,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Train a model on a prepared dataset into ``out``: ``run/`` (checkpoints, metrics) and ``artifact/``.

    Args:
        dataset: A folder that ``gemirec prepare`` wrote.
        out: The folder of this run.
        model: Name in the catalogue of models.
        profile: ``tuned`` or ``paper``.
        overrides: Nested mapping with the sections ``model`` and ``training``.
        resume: Go on from the last checkpoint in ``out``.
        histories: Keep the users' histories in the artifact, so that it knows them by id.
        progress: Called by the training loop.

    Returns:
        Plain facts of the run, the artifact's path among them.
    """
    recommender = Recommender.fit(
        Dataset.open(dataset),
        model=model,
        profile=profile,
        overrides=overrides,
        workdir=out,
        resume=resume,
        progress=progress,
    )
    artifact = recommender.save_pretrained(out / "artifact", histories=histories, overwrite=resume)
    facts = {name: value for name, value in recommender.info.training.items() if name != "config"}
    return {
        "model": model,
        **facts,
        "metric": recommender.info.training["config"]["metric"],
        "fingerprint": recommender.info.dataset["fingerprint"],
        "run": str(out / "run"),
        "artifact": str(artifact),
    }


def evaluate_run(
    artifact: Path,
    dataset: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    out: Path | None = None,
    truth: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate an artifact on the dataset it was trained on.

    Args:
        artifact: A folder that ``gemirec train`` or ``save_pretrained`` wrote.
        dataset: The prepared dataset.
        overrides: Fields of :class:`~gemirec.config.EvaluationConfig`.
        out: Where the metrics and the table per user are written; ``None`` writes nothing.
        truth: Folder of the simulated log that the dataset was prepared from: also score against its planted truth.
        progress: Called with (users done, users in all).
    """
    config = from_dict(EvaluationConfig, overrides or {}, where="the evaluation's configuration")
    recommender = Recommender.from_pretrained(artifact)
    result = recommender.evaluate(Dataset.open(dataset), config, progress=progress)
    if out is not None:
        result.write(out)
    found = {"model": recommender.info.model, **result.to_dict()}
    if truth is not None:
        log, data = SimulatedLog.open(truth), Dataset.open(dataset)
        found["planted"] = planted_scores(recommender.model, data, log, config.split)
        if log.config.aspects:
            found["planted"] |= planted_noise(recommender.model, data, log, config.split)
    return found


def recommend_run(
    artifact: Path,
    *,
    users: Sequence[str] | None = None,
    histories: Sequence[str] | None = None,
    history_file: Path | None = None,
    k: int = 20,
    exclude_seen: bool = True,
    allow: Path | None = None,
    merge: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> pl.DataFrame:
    """Recommend from an artifact.

    Args:
        artifact: A folder that ``gemirec train`` or ``save_pretrained`` wrote.
        users: Ids of known users.
        histories: Raw histories, each as item ids with commas between, oldest first.
        history_file: Parquet, CSV or JSONL with ``user_id`` and ``item_id``; sorted by ``timestamp`` if it has one.
        k: Items per user.
        exclude_seen: Leave out the items of the history.
        allow: Text file with one item id per line, the only items that may be returned.
        merge: Fields of :class:`~gemirec.config.MergeConfig`; the shares of a quota may be text, ``2,1,1``.
        out: Parquet file for the answer.

    Raises:
        ConfigError: Not exactly one of users, histories and history_file; a merge that does not fit.
    """
    how = from_dict(MergeConfig, _with_shares(merge or {}), where="the merge")
    given = [name for name, value in (("users", users), ("histories", histories), ("file", history_file)) if value]
    if len(given) != 1:
        raise ConfigError(
            "say for whom to recommend, in one way",
            got=", ".join(given) or "nothing",
            fix="give --user ID, or --history ID,ID,ID, or --histories FILE",
        )
    recommender = Recommender.from_pretrained(artifact)
    raw: Any = [_split_ids(text) for text in histories] if histories else None
    if history_file is not None:
        raw = read_histories(history_file)
    table = recommender.recommend(
        users=list(users) if users else None,
        histories=raw,
        k=k,
        exclude_seen=exclude_seen,
        allow=_read_lines(allow) if allow else None,
        merge=how,
    )
    if out is not None:
        with atomic_file(out) as tmp:
            write_table(tmp, table)
    return table


def _with_shares(merge: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a merge with the shares of ``2,1,1`` as numbers; a name stays a name."""
    quota = merge.get("quota")
    if not isinstance(quota, str):
        return dict(merge)
    try:
        return {**merge, "quota": [float(part) for part in quota.split(",")]}
    except ValueError:
        return dict(merge)


def _split_ids(text: str) -> list[str]:
    """Return the ids of ``a, b,c``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "a list of items cannot be read", got=f"{path}: {error}", fix="give one item id per line"
        ) from error


def read_histories(path: Path) -> pl.DataFrame:
    """Read raw histories from Parquet, CSV or JSONL, oldest event first.

    Raises:
        DataError: The file cannot be read or is of another kind.
    """
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
        ".jsonl": pl.read_ndjson,
        ".ndjson": pl.read_ndjson,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError("histories are read from .parquet, .csv or .jsonl", got=path, fix="convert the file")
    try:
        table = reader(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError("a file of histories cannot be read", got=f"{path}: {error}", fix="check the file") from error
    return table.sort("timestamp", maintain_order=True) if "timestamp" in table.columns else table
