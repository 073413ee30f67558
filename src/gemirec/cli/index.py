"""The verb that builds an index of a model's items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.console import emit
from gemirec.cli.options import ConfigFile, Json, Overwrite, Set


def index(
    artifact: Annotated[Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the index.")],
    kind: Annotated[
        str, typer.Option(help="exact, exact_int8; faiss: flat, ivf, ivf_sq8, ivf_pq, hnsw, pq; qdrant.")
    ] = "exact",
    recall: Annotated[float, typer.Option(help="Least share of the exact list's items that must be found.")] = 0.97,
    k: Annotated[int, typer.Option("-k", help="Length of the lists whose recall is meant.")] = 200,
    config: ConfigFile = None,
    overrides: Set = None,
    overwrite: Overwrite = False,
    allow_low_recall: Annotated[
        bool, typer.Option("--allow-low-recall", help="Save the index even if it finds less.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build an index of a model's items, and measure what it finds.

    Recall is the share of the exact list's items that the index finds, over the interests of sampled users. Search
    parameters are the least that reach --recall; an index that cannot is not saved. A recommender and a server search
    there (Recommender.with_index), and refuse the index of another model.

        gemirec index run/artifact --kind ivf_sq8 --out run/index

        gemirec index run/artifact --kind pq --recall 0.99 -k 100 --out run/index --overwrite

        gemirec index run/artifact --kind qdrant --out run/index --set location=http://localhost:6333
    """
    from gemirec.config import from_dict
    from gemirec.experiments.index import index_artifact
    from gemirec.experiments.summaries import layered
    from gemirec.retrieval.index import IndexConfig

    values = {"kind": kind, "recall": recall, "k": k, **layered(config, overrides)}
    settings = from_dict(IndexConfig, values, where="the index's configuration")
    emit(index_artifact(artifact, out, settings, overwrite=overwrite, allow_low_recall=allow_low_recall), as_json)
