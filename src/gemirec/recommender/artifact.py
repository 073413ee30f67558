"""The artifact folder: all that is needed to recommend, in formats that cannot run code.

Layout::

    artifact.json         format version, model and config, sizes, data fingerprint, metrics, versions, fallback, files
    model.safetensors     the model's parameters and buffers
    items.parquet         the caller's item ids and whatever the item table held; row r is item index r + 1
    histories.parquet     optional: user_id, items (indices, oldest first), categorical, numeric
    new_items.*           optional: items without interactions (:mod:`gemirec.recommender.new_items`)
    README.md             the same facts for a reader
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from gemirec.artifacts import (
    FORMAT_VERSION,
    atomic_dir,
    check_format,
    load_tensors,
    read_json,
    save_tensors,
    translate_os_errors,
    write_json,
)
from gemirec.config import to_dict
from gemirec.data.batches import gather_events
from gemirec.data.dataset import FeatureInfo, data_spec
from gemirec.data.writer import write_table
from gemirec.errors import ArtifactError
from gemirec.recommender.histories import history_lengths
from gemirec.recommender.new_items import write_new_items
from gemirec.training.run_folder import versions

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset
    from gemirec.models.base import RetrievalModel
    from gemirec.retrieval.cold_start import ColdItems

HISTORY_BLOCK = 65_536
"""Users per row group of ``histories.parquet``."""


class ArtifactInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``artifact.json``."""

    format_version: int = FORMAT_VERSION
    model: str
    """Name in the catalogue of models."""
    config: dict[str, Any]
    """The model's configuration."""
    num_items: int
    num_categories: int = 0
    user_categorical_sizes: list[int] = []
    num_user_numeric: int = 0
    dataset: dict[str, Any] = {}
    """Name, counts, split and fingerprint of the data that the model was trained on."""
    user_features: list[FeatureInfo] = []
    """How to encode the features of a new user."""
    fallback: str = "popularity"
    """What a user without any known item gets."""
    training: dict[str, Any] = {}
    """Profile, configuration and outcome of the training."""
    metrics: dict[str, float] = {}
    """Metrics of the last evaluation, if there was one."""
    history_events: int | None = 0
    """Events kept per user in ``histories.parquet``: 0 none, ``None`` all."""
    new_items: list[dict[str, Any]] = []
    """Items that got their vectors from side features, call by call: how many, configuration, fingerprint."""
    versions: dict[str, str] = {}
    files: dict[str, int] = {}
    """Bytes of each file, so that a cut copy is found on opening."""


def write_artifact(
    path: Path,
    info: ArtifactInfo,
    model: RetrievalModel,
    items: pl.DataFrame,
    dataset: Dataset | None,
    *,
    overwrite: bool,
    cold: ColdItems | None = None,
    histories: Path | None = None,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        path: Where.
        info: Content of ``artifact.json``; ``files`` and ``versions`` are filled in here.
        model: Whose parameters are saved.
        items: The item table, new items last.
        dataset: Where the histories are streamed from; ``None`` saves none.
        overwrite: Replace a folder that is there.
        cold: Items without interactions, if there are any.
        histories: A file of histories to copy, in place of ``dataset``.
    """
    with atomic_dir(path, overwrite=overwrite) as folder:
        save_tensors(folder / "model.safetensors", dict(model.state_dict()), {"model": info.model})
        write_table(folder / "items.parquet", items.head(info.num_items))
        if cold is not None:
            write_new_items(folder, items.slice(info.num_items), cold)
        if dataset is not None and info.history_events != 0:
            write_histories(folder / "histories.parquet", dataset, info.history_events)
        elif histories is not None:
            with translate_os_errors(histories):
                shutil.copyfile(histories, folder / "histories.parquet")
        info = msgspec.structs.replace(info, versions=versions())
        (folder / "README.md").write_text(model_card(info), encoding="utf-8")
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        write_json(folder / "artifact.json", msgspec.to_builtins(msgspec.structs.replace(info, files=sizes)))


def write_histories(path: Path, dataset: Dataset, keep: int | None) -> None:
    """Stream the last ``keep`` events of every user (all with ``None``) into a Parquet file, block by block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    categorical, numeric = dataset.user_features()
    writer = None
    with translate_os_errors(path):
        try:
            for start in range(0, dataset.num_users, HISTORY_BLOCK):
                user_B = np.arange(start, min(start + HISTORY_BLOCK, dataset.num_users))
                length_B = history_lengths(dataset, user_B)
                size_B = length_B if keep is None else np.minimum(length_B, keep)
                item_E, offset_B1 = gather_events(dataset, user_B, length_B - size_B, size_B)
                columns = {
                    "user_id": dataset.users["user_id"].gather(user_B).to_arrow(),
                    "items": pa.ListArray.from_arrays(offset_B1.astype(np.int32), item_E.astype(np.int32)),
                }
                for name, table in (("categorical", categorical), ("numeric", numeric)):
                    if table is not None:
                        flat = pa.array(np.ascontiguousarray(table[user_B]).ravel())
                        columns[name] = pa.FixedSizeListArray.from_arrays(flat, table.shape[1])
                block = pa.table(columns)
                writer = writer or pq.ParquetWriter(path, block.schema, compression="zstd")
                writer.write_table(block)
        finally:
            if writer is not None:
                writer.close()


def read_artifact(path: Path) -> tuple[ArtifactInfo, RetrievalModel, pl.DataFrame]:
    """Read a folder written by :func:`write_artifact`; the model is in ``eval`` mode, on the CPU.

    Raises:
        ArtifactError: A file is missing, cut, damaged, of another format version, or does not fit the others.
    """
    raw = read_json(path / "artifact.json")
    check_format("artifact", raw.get("format_version") if isinstance(raw, dict) else None, path)
    try:
        info = msgspec.convert(raw, ArtifactInfo)
    except msgspec.ValidationError as error:
        raise ArtifactError(
            "artifact.json is damaged", got=f"{path}: {error}", fix="save the artifact again"
        ) from error
    for name, size in info.files.items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != size and name != "README.md":
            raise ArtifactError(
                "a file of the artifact is missing or cut",
                got=f"{file}: {'missing' if found is None else f'{found} bytes'}, {size} bytes were written",
                fix="copy the folder again, whole, or save the artifact again",
            )
    items = _read_items(path / "items.parquet", info.num_items)
    return info, _read_model(path, info, items), items


def _read_items(path: Path, num_items: int) -> pl.DataFrame:
    """Read the item table and hold it against the number of items."""
    try:
        items = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            "the item table is damaged", got=f"{path}: {error}", fix="save the artifact again"
        ) from error
    if items.height != num_items:
        raise ArtifactError(
            "the item table does not fit the model",
            got=f"{path}: {items.height} rows for {num_items} items",
            fix="save the artifact again",
        )
    return items


def _read_model(path: Path, info: ArtifactInfo, items: pl.DataFrame) -> RetrievalModel:
    """Build the model from its config and fill in its parameters, leaving torch's random state as it was."""
    import torch

    from gemirec.models.catalog import build_model

    tensors = load_tensors(path / "model.safetensors")
    spec = data_spec(items, info.num_categories, tuple(info.user_categorical_sizes), info.num_user_numeric)
    with torch.random.fork_rng(devices=[]):
        model = build_model(info.model, info.config, spec)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(
            "the saved parameters do not fit the model",
            got=f"{path / 'model.safetensors'}: {str(error).splitlines()[-1].strip()}",
            fix="save the artifact again with this release",
        ) from error
    return model.eval()


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """Return what an artifact records of its training data."""
    info = dataset.info
    return {
        "name": info.name,
        "fingerprint": info.fingerprint,
        "users": info.num_users,
        "items": info.num_items,
        "events": info.num_events,
        "users_per_split": dict(info.users_per_split),
        "prepare": dict(info.prepare),
    }


def new_artifact_info(model_name: str, model: RetrievalModel, dataset: Dataset, **values: Any) -> ArtifactInfo:
    """Return the facts of a model trained on ``dataset``."""
    spec = model.spec
    return ArtifactInfo(
        model=model_name,
        config=to_dict(model.config),
        num_items=spec.num_items,
        num_categories=spec.num_categories,
        user_categorical_sizes=list(spec.user_categorical_sizes),
        num_user_numeric=spec.num_user_numeric,
        dataset=dataset_facts(dataset),
        user_features=list(dataset.info.user_features),
        **values,
    )


def model_card(info: ArtifactInfo) -> str:
    """Return the artifact's README: what it is, what it was trained on, how good it was, how to use it."""
    facts = info.dataset
    lines = [
        f"# {info.model}",
        "",
        f"A multi-interest retrieval model, saved by gemirec {info.versions.get('gemirec', '')}.",
        "",
        f"- trained on: {facts.get('name', '')}, {facts.get('users', 0):,} users, {facts.get('items', 0):,} items, "
        f"{facts.get('events', 0):,} events",
        f"- data fingerprint: `{facts.get('fingerprint', '')}`",
        f"- profile: {info.training.get('profile', 'unknown')}; best step {info.training.get('best_step', 'unknown')}",
        f"- users without a known item get: {info.fallback}",
        *(f"- items without interactions, by their side features: {call['items']:,}" for call in info.new_items),
        "",
        "```python",
        "from gemirec import Recommender",
        "",
        'recommender = Recommender.from_pretrained("this/folder")',
        "recommender.recommend(histories=[[...]], k=20)  # your item ids, oldest first",
        "```",
        "",
    ]
    if info.metrics:
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in info.metrics.items()]
        lines.append("")
    return "\n".join(lines)
