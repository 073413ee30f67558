"""What the verb export does: an artifact in, a folder of vectors, graphs and a map out.

Axes: N items, D embedding, B users, L history length.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import gemirec
from gemirec.artifacts import FORMAT_VERSION, atomic_dir, write_json
from gemirec.errors import ArtifactError, ConfigError, GemirecError
from gemirec.models.base import Histories
from gemirec.models.dmi import DMI
from gemirec.models.gemirec import GemiRec
from gemirec.recommender.export.config import PARTS, ExportConfig
from gemirec.recommender.export.map import project, write_map
from gemirec.recommender.export.onnx import need_onnx, write_graph, write_int8
from gemirec.recommender.export.parity import Parity, cases, compare
from gemirec.recommender.export.traced import HistoryGraph, graphs_of
from gemirec.recommender.export.vectors import stored_users, write_items, write_users
from gemirec.recommender.face import Recommender
from gemirec.recommender.histories import ParquetHistories
from gemirec.retrieval.versions import dictionary_version, model_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from gemirec.recommender.export.traced import Graph

MANIFEST = "export.json"
_POOL = 256
"""Users whose histories graphs are compared on."""


def export(
    source: Recommender | str | Path,
    out: str | Path,
    config: ExportConfig | None = None,
    *,
    which: Sequence[str] | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a trained model for other systems: vectors (Parquet), the path of a request (ONNX), a map (Parquet).

    The folder appears whole or not at all. Memory is bounded by the model and a block of users.

    Args:
        source: A recommender, or the folder of one.
        out: The folder to write.
        config: ``None`` takes the defaults.
        which: Of :data:`PARTS`; ``None`` takes all, without ``users`` where no histories are kept.
        overwrite: Replace a folder that is there.
        note: Is told what begins.
        progress: Called with (users done, users in all).

    Returns:
        The facts of ``export.json``, and ``seconds``.

    Raises:
        ArtifactError: A graph does not give the model's numbers, or histories are asked for that are not kept.
        ConfigError: An unknown part, or a model that cannot be made a graph.
        MissingExtraError: ONNX is asked for and not installed.

    Example:
        Vectors and a map, without the extra ``export``::

            from gemirec.recommender.export import export

            export("run/artifact", "run/export", which=["items", "users", "map"])
    """
    begin = time.perf_counter()
    wanted, config, note = _wanted(which), config or ExportConfig(), note or (lambda _: None)
    if "onnx" in wanted:
        need_onnx()
    recommender = source if isinstance(source, Recommender) else Recommender.from_pretrained(source)
    if which is None and not _keeps_histories(recommender):
        note("no users: the artifact keeps no histories")
        wanted = [name for name in wanted if name != "users"]
    item_ND, version = recommender.served_items()
    about = _about(recommender, version, item_ND.shape[1])
    facts: dict[str, Any] = {**about, "parts": wanted}
    with atomic_dir(out, overwrite=overwrite) as folder:
        if "items" in wanted:
            note("item vectors")
            write_items(folder / "items.parquet", recommender, item_ND.numpy(), about)
            facts["items"] = len(recommender.catalog)
        if "users" in wanted:
            note("users' interests")
            counts = write_users(
                folder / "users.parquet", recommender, about, batch_size=config.batch_size, progress=progress
            )
            facts |= counts._asdict()
        if "map" in wanted:
            note("map of the catalogue")
            # Without GemiRec's cells: their coordinates would pack each cell into a point of its own.
            seen_ND = item_ND[1:, : getattr(recommender.model.config, "dim", None)]
            found = project(seen_ND, landmarks=config.landmarks, steps=config.map_steps)
            write_map(folder / "map.parquet", recommender.catalog.items, found, about)
            facts["landmarks"] = len(found.landmark_P)
        if "onnx" in wanted:
            facts |= _write_graphs(folder, recommender, item_ND, config, about, note)
        facts["bytes"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, facts)
    return {"export": str(out), **facts, "seconds": round(time.perf_counter() - begin, 2)}


def _wanted(which: Sequence[str] | None) -> list[str]:
    """Return the parts that are asked for, in their order."""
    unknown = [name for name in which or () if name not in PARTS]
    if unknown or (which is not None and not which):
        raise ConfigError("no such part", got=", ".join(unknown) or "none", fix=f"choose from {', '.join(PARTS)}")
    return [name for name in PARTS if which is None or name in which]


def _keeps_histories(recommender: Recommender) -> bool:
    store = recommender._histories
    return not isinstance(store, ParquetHistories) or store.path.exists()


def _about(recommender: Recommender, version: str, dim: int) -> dict[str, Any]:
    """Return what every file of an export says of itself."""
    model = recommender.model
    base = model.base if isinstance(model, DMI) else model
    return {
        "format_version": FORMAT_VERSION,
        "gemirec": gemirec.__version__,
        "model": recommender.info.model,
        "model_version": model_version(model),
        "items_version": version,
        "dictionary_version": dictionary_version(model) if isinstance(base, GemiRec) else None,
        "fingerprint": recommender.info.dataset.get("fingerprint"),
        "dim": dim,
    }


def _write_graphs(
    folder: Path,
    recommender: Recommender,
    item_ND: Tensor,
    config: ExportConfig,
    about: Mapping[str, Any],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Write the graphs of the model, and return a row on each and the names of its inputs and outputs."""
    pool, model = pool_of(recommender), recommender.model
    rows: list[dict[str, Any]] = []
    signature: dict[str, Any] = {}
    for name, graph in graphs_of(model).items():
        items = item_ND if isinstance(graph, HistoryGraph) else None
        path = folder / f"{name}.onnx"
        note(f"graph {path.name}")
        exporter, found = _write_checked(path, graph, pool, items, config, about)
        rows.append(_row(path, exporter, found))
        signature[name] = signature_of(path)
        if config.int8:
            small = folder / f"{name}.int8.onnx"
            note(f"graph {small.name}")
            write_int8(small, path, about)
            found = compare(small, graph, pool, items, config.list_length)
            if found.recall is not None and not found.recall >= config.least_recall:
                raise ArtifactError(
                    "the graph in 8 bits finds too little",
                    got=f"recall {found.recall:.3f} of lists of {config.list_length}, least_recall "
                    f"{config.least_recall}",
                    fix="leave out --int8, or accept less: --set least_recall=...",
                )
            rows.append(_row(small, exporter, found))
    return {"max_length": model.max_length, "graphs": rows, "signature": signature}


def _write_checked(
    path: Path, graph: Graph, pool: Histories, items: Tensor | None, config: ExportConfig, about: Mapping[str, Any]
) -> tuple[str, Parity]:
    """Write a graph that gives the model's numbers, by the first exporter that can; return its name and what it gives.

    Raises:
        ArtifactError: The numbers are others.
        ConfigError: No exporter can.
    """
    example = graph.case(next(some for some in cases(pool, pool.item_BL.shape[1]) if min(some.item_BL.shape) > 1))
    trouble: GemirecError | None = None
    for exporter in ("torchscript", "dynamo") if config.exporter == "auto" else (config.exporter,):
        try:
            write_graph(path, graph, example, dynamo=exporter == "dynamo", opset=config.opset, facts=about)
            found = compare(path, graph, pool, items, config.list_length)
        except GemirecError:
            raise
        except Exception as error:  # torch, onnx and ONNX Runtime raise a dozen kinds for what they cannot do
            trouble = ConfigError(
                "this model cannot be made an ONNX graph",
                got=f"{exporter}: {_reason(error)}",
                fix="leave the graph out: --which items,users,map",
            )
            continue
        if found.within(config.tolerance):
            return exporter, found
        trouble = ArtifactError(
            "the graph does not give the model's numbers",
            got=f"{exporter}: {path.name} differs by {found.relative:.2g} of the longest vector, "
            f"masks {'equal' if found.same_masks else 'differ'}; tolerance {config.tolerance:g}",
            fix="leave the graph out: --which items,users,map; or accept more: --set tolerance=...",
        )
    assert trouble is not None
    raise trouble


def _reason(error: BaseException) -> str:
    """Return the first line of what an exporter stumbled over; what it wraps that in says less."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _row(path: Path, exporter: str, found: Parity) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "exporter": exporter, **found.facts()}


def signature_of(path: Path) -> dict[str, Any]:
    """Return the inputs and outputs of a graph: for each a type and axes, free ones by name."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph

    def told(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
        return {"type": onnx.TensorProto.DataType.Name(kind.elem_type).lower(), "axes": axes}

    return {
        "inputs": {value.name: told(value) for value in graph.input},
        "outputs": {value.name: told(value) for value in graph.output},
    }


def pool_of(recommender: Recommender) -> Histories:
    """Return some users' histories as the model reads them; made-up ones where none are kept."""
    search = recommender._search
    if _keeps_histories(recommender):
        for block in stored_users(recommender._histories, _POOL)[1]:
            known = block.with_known_items()
            if len(known):
                return search.windows(known)
    spec, most = recommender.model.spec, recommender.model.max_length
    rng = np.random.default_rng(0)
    item_BL = torch.from_numpy(rng.integers(1, spec.num_items + 1, (_POOL, most)))
    categorical = [rng.integers(0, size, _POOL) for size in spec.user_categorical_sizes]
    numeric = rng.normal(size=(_POOL, spec.num_user_numeric)).astype(np.float32)
    return Histories(
        item_BL,
        torch.from_numpy(np.stack(categorical, axis=1)) if categorical else None,
        torch.from_numpy(numeric) if spec.num_user_numeric else None,
    )
