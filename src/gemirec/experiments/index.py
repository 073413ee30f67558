"""What the verb index does: an artifact in, a folder with an index of its items out, its recall measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from gemirec.errors import ArtifactError
from gemirec.recommender import Recommender
from gemirec.retrieval.index import IndexConfig, ItemIndex, build_index

SEED = 1
"""Of the sample of users."""


def index_artifact(
    artifact: Path, out: Path, config: IndexConfig, *, overwrite: bool = False, allow_low_recall: bool = False
) -> dict[str, Any]:
    """Build an index of an artifact's items, new items included, and save it.

    Recall is measured with the interests of sampled users: as many vectors as ``config.queries``.

    Args:
        artifact: A folder that ``gemirec train``, ``gemirec extend`` or ``save_pretrained`` wrote.
        out: The index's folder.
        config: Kind, recall, list length.
        overwrite: Replace a folder that is there.
        allow_low_recall: Save the index even if it finds less than ``config.recall``.

    Returns:
        Plain facts, with a row per list length.

    Raises:
        RetrievalError: The recall cannot be reached.
        ArtifactError: The artifact keeps no histories to take interests from.
        MissingExtraError: The engine is not installed.
    """
    recommender = Recommender.from_pretrained(artifact)
    query_QD = sample_interests(recommender, artifact, config.queries)
    item_ND, version = recommender.served_items()
    index = build_index(item_ND, config, query_QD, version=version)
    index.save(out, overwrite=overwrite, allow_low_recall=allow_low_recall)
    return {"index": str(out), **index_facts(index), "bytes": sum(file.stat().st_size for file in out.iterdir())}


def index_facts(index: ItemIndex) -> dict[str, Any]:
    """Return what was measured of an index, for a reader or a program."""
    found = index.measured
    assert found is not None
    return {
        "kind": index.config.kind,
        "items": len(index),
        "dim": index.dim,
        **index.params,
        "queries": found.queries,
        "build_s": found.build_s,
        "query_ms": found.query_ms,
        "wanted": index.config.recall,
        "reached": found.recall >= index.config.recall,
        "recall": [{"list length": int(n), "recall": value} for n, value in found.at.items()],
    }


def sample_interests(recommender: Recommender, artifact: Path, queries: int) -> torch.Tensor:
    """Return ``[Q, D]`` interest vectors of sampled users of an artifact, in random order.

    Raises:
        ArtifactError: It keeps no histories.
    """
    path = artifact / "histories.parquet"
    if not path.exists():
        raise ArtifactError(
            "the artifact keeps no histories, so there are no interests to measure recall with",
            got=path,
            fix="save it with histories, or call gemirec.retrieval.index.build_index with interest vectors of your own",
        )
    users = pl.scan_parquet(path).select("user_id").collect()["user_id"]
    users = users.sample(min(queries, len(users)), seed=SEED)
    vector = recommender.interests(users)["vector"].to_numpy()
    order = np.random.default_rng(SEED).permutation(len(vector))[:queries]
    return torch.from_numpy(vector[order].astype(np.float32))
