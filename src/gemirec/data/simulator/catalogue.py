"""The planted catalogue: clusters, items, their vectors, names and popularity.

Inside the simulator an item is an index: the ordinary items cluster by cluster, the most popular of each first, then
the precursor items announced cluster by announced cluster. ``id_N`` maps an index to the id in the files, a random
permutation, so that ids say nothing.

Axes: N items, M ordinary items, C clusters, I interests: the clusters, then the values of the aspects, if there are
any (:mod:`~gemirec.data.simulator.aspects`), A aspects, S ordinary items once for each of the 1 + A ways to group them,
G super-clusters, D latent axes, R ranks within a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemirec.data.simulator.aspects import with_aspects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.simulator.config import SimulatorConfig

THEMES = (
    "garden",
    "kitchen",
    "travel",
    "music",
    "fitness",
    "gaming",
    "astronomy",
    "photography",
    "fashion",
    "cycling",
    "painting",
    "chess",
    "camping",
    "baking",
    "history",
    "robotics",
    "sailing",
    "yoga",
    "comics",
    "gadgets",
    "gardening",
    "birds",
    "theatre",
    "cars",
)
KINDS = (
    "classic",
    "modern",
    "compact",
    "vintage",
    "outdoor",
    "family",
    "expert",
    "budget",
    "studio",
    "urban",
    "winter",
    "pocket",
)
QUALITIES = (
    "quiet",
    "bright",
    "sturdy",
    "clever",
    "golden",
    "simple",
    "rapid",
    "gentle",
    "bold",
    "fresh",
    "noble",
    "curious",
)

_CATALOGUE, _CHUNK, _ASPECTS = 0, 1, 2


def catalogue_stream(config: SimulatorConfig) -> np.random.Generator:
    """Return the random stream of the catalogue."""
    return _stream(config.seed, _CATALOGUE, 0)


def chunk_stream(config: SimulatorConfig, chunk: int) -> np.random.Generator:
    """Return the random stream of one chunk of users; it depends on the seed and the chunk's number only."""
    return _stream(config.seed, _CHUNK, chunk)


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@dataclass(frozen=True)
class Catalogue:
    """Everything the events need to know of the items.

    Attributes:
        id_N: ``[N]`` int64 id in the files.
        cluster_N: ``[N]`` int32 cluster; of a precursor item, the cluster it lies in.
        label_N: ``[N]`` int32 cluster whose category names the item carries (noisy).
        vector_ND: ``[N, D]`` float32 latent vectors.
        unit_ND: ``[N, D]`` float32 direction from the cluster's centre to the item, length 1.
        value_NA: ``[N, A]`` int32 value of each item in each aspect.
        centre_ID: ``[I, D]`` float32 cluster centres; of a value, the mean of its ordinary items.
        super_I: ``[I]`` int32 super-cluster of each cluster; of a value, a random one.
        cluster_cdf_C: ``[C]`` float64 cumulative chance that a cluster is drawn as the born interest.
        interest_cdf_I: ``[I]`` float64 cumulative chance that a cluster or value is drawn as another interest.
        member_S: ``[S]`` int64 ordinary items, interest by interest, the most popular of each first.
        start_I: ``[I]`` int64 place of each interest's first item in ``member_S``.
        size_I: ``[I]`` int64 ordinary items of each interest.
        rank_cdf_R: ``[R]`` float64 cumulative unnormalised popularity of ranks 1, 2, ...
        first_precursor: Index of the first precursor item.
    """

    id_N: NDArray[np.int64]
    cluster_N: NDArray[np.int32]
    label_N: NDArray[np.int32]
    vector_ND: NDArray[np.float32]
    unit_ND: NDArray[np.float32]
    value_NA: NDArray[np.int32]
    centre_ID: NDArray[np.float32]
    super_I: NDArray[np.int32]
    cluster_cdf_C: NDArray[np.float64]
    interest_cdf_I: NDArray[np.float64]
    member_S: NDArray[np.int64]
    start_I: NDArray[np.int64]
    size_I: NDArray[np.int64]
    rank_cdf_R: NDArray[np.float64]
    first_precursor: int

    @property
    def num_items(self) -> int:
        """Items, precursors included."""
        return len(self.id_N)

    def draw_interests(self, uniform: NDArray[np.float64], *, born: bool) -> NDArray[np.int64]:
        """Turn uniform numbers in [0, 1) into interests by their chance; a born one is always a cluster."""
        cdf = self.cluster_cdf_C if born else self.interest_cdf_I
        return np.minimum(np.searchsorted(cdf, uniform, side="right"), len(cdf) - 1)

    def draw_items(self, interest_E: NDArray[np.int64], uniform_E: NDArray[np.float64]) -> NDArray[np.int64]:
        """Turn uniform numbers in [0, 1) into ordinary items of the interests by popularity."""
        size_E = self.size_I[interest_E]
        rank_E = np.searchsorted(self.rank_cdf_R, uniform_E * self.rank_cdf_R[size_E - 1], side="right")
        return self.member_S[self.start_I[interest_E] + np.minimum(rank_E, size_E - 1)]

    def popularity(self) -> NDArray[np.float64]:
        """Return ``[N]`` chance of each item given its cluster; 0 for precursor items."""
        clusters = len(self.cluster_cdf_C)
        start_C, size_C = self.start_I[:clusters], self.size_I[:clusters]
        rank_M = np.arange(self.first_precursor) - np.repeat(start_C, size_C)
        chance_R = np.diff(self.rank_cdf_R, prepend=0.0)
        total_M = np.repeat(self.rank_cdf_R[size_C - 1], size_C)
        out_N = np.zeros(self.num_items)
        out_N[: self.first_precursor] = chance_R[rank_M] / total_M
        return out_N


def build_catalogue(config: SimulatorConfig) -> Catalogue:
    """Draw the catalogue of a configuration."""
    rng = catalogue_stream(config)
    clusters, dim = config.num_clusters, config.latent_dim
    super_C = np.repeat(np.arange(config.num_super_clusters, dtype=np.int32), config.clusters_per_super)
    centre_GD = config.super_spread * rng.standard_normal((config.num_super_clusters, dim))
    centre_CD = (centre_GD[super_C] + config.cluster_spread * rng.standard_normal((clusters, dim))).astype(np.float32)
    # Ranks of popularity are dealt at random, so that a super-cluster is not popular as a whole.
    chance_C = rng.permutation(np.arange(1, clusters + 1) ** -config.cluster_skew)

    precursors = clusters * config.precursors_per_cluster
    ordinary = config.num_items - precursors
    size_C = np.full(clusters, ordinary // clusters, dtype=np.int64)
    size_C[: ordinary % clusters] += 1
    announces_P = np.repeat(np.arange(clusters), config.precursors_per_cluster)
    home_P = (announces_P + rng.integers(1, max(clusters, 2), size=precursors)) % clusters
    cluster_N = np.concatenate([np.repeat(np.arange(clusters), size_C), home_P]).astype(np.int32)
    offset_ND = rng.standard_normal((config.num_items, dim), dtype=np.float32)
    filed_wrong_N = rng.random(config.num_items) < config.category_noise
    label_N = np.where(filed_wrong_N, rng.integers(clusters, size=config.num_items), cluster_N).astype(np.int32)
    cluster_cdf_C = np.cumsum(chance_C) / chance_C.sum()
    catalogue = Catalogue(
        id_N=rng.permutation(config.num_items),
        cluster_N=cluster_N,
        label_N=label_N,
        vector_ND=centre_CD[cluster_N] + np.float32(config.item_spread) * offset_ND,
        unit_ND=offset_ND / np.linalg.norm(offset_ND, axis=1, keepdims=True),
        value_NA=np.empty((config.num_items, 0), dtype=np.int32),
        centre_ID=centre_CD,
        super_I=super_C,
        cluster_cdf_C=cluster_cdf_C,
        interest_cdf_I=cluster_cdf_C,
        member_S=np.arange(ordinary),
        start_I=np.concatenate([[0], np.cumsum(size_C)[:-1]]),
        size_I=size_C,
        rank_cdf_R=np.cumsum(np.arange(1, size_C.max() + 1) ** -config.item_skew),
        first_precursor=ordinary,
    )
    return with_aspects(config, catalogue, _stream(config.seed, _ASPECTS, 0)) if config.aspects else catalogue


def super_name(number: int) -> str:
    """Return the category's name: a theme, numbered from the second round on."""
    lap, theme = divmod(number, len(THEMES))
    return THEMES[theme] + (f"-{lap + 1}" if lap else "")


def cluster_name(config: SimulatorConfig, cluster: int) -> str:
    """Return the subcategory's name, ``category/kind``."""
    parent, kind = divmod(cluster, config.clusters_per_super)
    lap, word = divmod(kind, len(KINDS))
    return f"{super_name(parent)}/{KINDS[word]}" + (f"-{lap + 1}" if lap else "")
