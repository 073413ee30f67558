"""What the verb extend does: an artifact and a table of new items in, an artifact that retrieves them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemirec.config import from_dict
from gemirec.recommender import Recommender
from gemirec.recommender.artifact import write_artifact
from gemirec.retrieval.cold_start import ColdStartConfig

_EXAMPLES = 5


def extend_run(
    artifact: Path,
    items: Path,
    out: Path,
    *,
    known: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an artifact that also retrieves the items of a table, by their side features.

    Args:
        artifact: A folder that ``gemirec train``, ``gemirec extend`` or ``save_pretrained`` wrote; it stays as it is.
        items: Table with ``item_id`` and side features.
        out: The new folder; its model and histories are those of ``artifact``.
        known: Table with the same features of the trained items; ``None`` takes the artifact's item table.
        overrides: Fields of :class:`~gemirec.retrieval.cold_start.ColdStartConfig`.
        overwrite: Replace a folder that is there.

    Returns:
        Plain facts, with the trained items nearest to the first few new ones.
    """
    config = from_dict(ColdStartConfig, overrides or {}, where="the configuration of new items")
    recommender = Recommender.from_pretrained(artifact).with_new_items(items, config, known=known)
    cold, catalog, histories = recommender.cold, recommender.catalog, artifact / "histories.parquet"
    assert cold is not None
    write_artifact(
        out,
        recommender.info,
        recommender.model,
        catalog.items,
        None,
        overwrite=overwrite,
        cold=cold,
        histories=histories if histories.exists() else None,
    )
    index, stand_in = cold.index_C[:_EXAMPLES].numpy(), cold.stand_in_C[:_EXAMPLES].numpy()
    pairs = zip(catalog.ids(index), catalog.ids(stand_in), strict=True)
    return {
        "artifact": str(out),
        "new_items": recommender.info.new_items[-1]["items"],
        "items": len(catalog),
        "fingerprint": recommender.info.new_items[-1]["fingerprint"],
        "examples": [{"item_id": new, "nearest trained item": near} for new, near in pairs],
    }
