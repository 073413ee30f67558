"""Further aspects of the planted items, whose values are interests too; the package docstring gives the formulas.

Axes: N items, M ordinary items, C clusters, A aspects, V values of an aspect, X = A V values in all, I = C + X
interests, S = (1 + A) M places, D latent axes, R ranks within a group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.simulator.catalogue import Catalogue
    from gemirec.data.simulator.config import SimulatorConfig


def with_aspects(config: SimulatorConfig, catalogue: Catalogue, rng: np.random.Generator) -> Catalogue:
    """Return the catalogue with aspects; what it had stays, and the values come behind the clusters as interests."""
    ordinary, values = catalogue.first_precursor, config.aspect_values
    value_NA = _draw_values(config, catalogue.cluster_N, rng)
    member, size = [catalogue.member_S], [catalogue.size_I]
    for value_M in value_NA[:ordinary].T:
        shuffled_M = rng.permutation(ordinary)
        member.append(shuffled_M[np.argsort(value_M[shuffled_M], kind="stable")])
        size.append(np.bincount(value_M, minlength=values))
    size_I, size_X = np.concatenate(size), np.concatenate(size[1:])

    # A value that no ordinary item has, possible in a tiny catalogue only, is nobody's interest.
    chance_X = (size_X > 0) * config.aspect_share / len(size_X)
    chance_C = (1 - config.aspect_share) * np.diff(catalogue.cluster_cdf_C, prepend=0.0)
    chance_I = np.concatenate([chance_C, chance_X])
    sum_XD = np.zeros((len(size_X), config.latent_dim), dtype=np.float32)
    column_MA = np.arange(config.aspects) * values + value_NA[:ordinary]
    np.add.at(sum_XD, column_MA, catalogue.vector_ND[:ordinary, None])
    centre_XD = sum_XD / np.maximum(size_X, 1)[:, None].astype(np.float32)
    super_X = rng.integers(config.num_super_clusters, size=len(size_X), dtype=np.int32)
    return replace(
        catalogue,
        value_NA=value_NA,
        centre_ID=np.concatenate([catalogue.centre_ID, centre_XD]),
        super_I=np.concatenate([catalogue.super_I, super_X]),
        interest_cdf_I=np.cumsum(chance_I) / chance_I.sum(),
        member_S=np.concatenate(member),
        start_I=np.cumsum(size_I) - size_I,
        size_I=size_I,
        rank_cdf_R=np.cumsum(np.arange(1, size_I.max() + 1) ** -config.item_skew),
    )


def _draw_values(config: SimulatorConfig, cluster_N: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Draw ``[N, A]``: the cluster's own value with chance ``aspect_lean``, otherwise a uniform one."""
    values, shape = config.aspect_values, (len(cluster_N), config.aspects)
    # Own values are dealt in turn, so that a leaning catalogue is not poor in some value.
    own_CA = rng.permuted(np.arange(config.num_clusters)[:, None] % values + np.zeros(config.aspects, int), axis=0)
    value_NA = rng.integers(values, size=shape)
    return np.where(rng.random(shape) < config.aspect_lean, own_CA[cluster_N], value_NA).astype(np.int32)
