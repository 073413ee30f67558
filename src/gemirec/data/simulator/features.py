"""User features of a chunk, correlated with the planted interests; the package docstring gives the formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.data.simulator.catalogue import cluster_name, super_name
from gemirec.data.simulator.chunk import BY_FEATURE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.simulator.catalogue import Catalogue
    from gemirec.data.simulator.chunk import Users
    from gemirec.data.simulator.config import SimulatorConfig

REGIONS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")


def draw_features(
    config: SimulatorConfig, catalogue: Catalogue, users: Users, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the feature columns of a chunk's users, by name."""
    count, clusters = len(users.events_U), config.num_clusters
    main_U = users.cluster_UJ1[np.arange(count), users.weight_UJ.argmax(axis=1)]
    segment_U = _disturb(config, rng, catalogue.super_I[main_U].astype(np.int64), config.num_super_clusters)
    born_U = users.cluster_UJ1[:, -1]
    hint_U = _disturb(config, rng, np.where(users.announced_U == BY_FEATURE, born_U, clusters), clusters)

    axes_UJ2 = catalogue.centre_ID[users.cluster_UJ1[:, : config.interests_max], :2]
    taste_U2 = np.einsum("uj,ujd->ud", users.weight_UJ, axes_UJ2)
    spread = catalogue.centre_ID[:, :2].std()
    taste_U2 = taste_U2 + config.feature_noise * spread * rng.standard_normal((count, 2))
    activity_U = np.log(users.events_U) + config.feature_noise * rng.standard_normal(count)
    hints = [cluster_name(config, c) for c in range(clusters)] + ["none"]
    return {
        "segment": np.array([super_name(g) for g in range(config.num_super_clusters)], dtype=object)[segment_U],
        "hint": np.array(hints, dtype=object)[hint_U],
        "region": np.array(REGIONS, dtype=object)[rng.integers(len(REGIONS), size=count)],
        "taste_x": taste_U2[:, 0].astype(np.float32),
        "taste_y": taste_U2[:, 1].astype(np.float32),
        "activity": activity_U.astype(np.float32),
    }


def _disturb(
    config: SimulatorConfig, rng: np.random.Generator, code_U: NDArray[np.int64], codes: int
) -> NDArray[np.int64]:
    """Replace codes by uniform ones below ``codes``, with chance ``feature_noise``."""
    random_U = rng.integers(codes, size=len(code_U))
    return np.where(rng.random(len(code_U)) < config.feature_noise, random_U, code_U)
