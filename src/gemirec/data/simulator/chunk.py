"""The users and events of one chunk, drawn by vectorised NumPy; the package docstring gives the formulas.

Axes: U users of the chunk, J interests of a user (born one not counted), J1 = J + 1 slots with the born one last,
E events of the chunk, D latent axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemirec.data.simulator.catalogue import chunk_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.simulator.catalogue import Catalogue
    from gemirec.data.simulator.config import SimulatorConfig

KINDS_OF_EVENT = ("interest", "birth", "precursor", "noise")
INTEREST, BIRTH, PRECURSOR, NOISE = range(4)
"""What made an event: an interest, the born interest, the announcement of a birth, or chance."""

ANNOUNCEMENTS = ("none", "feature", "precursor")
BY_NOTHING, BY_FEATURE, BY_PRECURSOR = range(3)
"""What announces a birth."""

NO_BIRTH = np.int32(2**31 - 1)


@dataclass(frozen=True)
class Users:
    """The planted users of a chunk.

    Attributes:
        first: Index of the first user.
        events_U: ``[U]`` int64 number of events.
        interests_U: ``[U]`` int64 number of interests.
        cluster_UJ1: ``[U, J + 1]`` int64 clusters, or values of aspects, numbered behind the clusters; beyond a user's
            interests they mean nothing, the last is the born one, always a cluster.
        weight_UJ: ``[U, J]`` float64 weights at the start; 0 beyond a user's interests.
        drift_UJ: ``[U, J]`` float64 change of the log-weights over the life.
        taste_UD: ``[U, D]`` float32 taste among the items of a cluster.
        birth_U: ``[U]`` int32 event of the birth, ``NO_BIRTH`` without one.
        announced_U: ``[U]`` int8 code of :data:`ANNOUNCEMENTS`.
    """

    first: int
    events_U: NDArray[np.int64]
    interests_U: NDArray[np.int64]
    cluster_UJ1: NDArray[np.int64]
    weight_UJ: NDArray[np.float64]
    drift_UJ: NDArray[np.float64]
    taste_UD: NDArray[np.float32]
    birth_U: NDArray[np.int32]
    announced_U: NDArray[np.int8]

    @property
    def has_birth_U(self) -> NDArray[np.bool_]:
        """``[U]`` whether an interest is born."""
        has_birth_U: NDArray[np.bool_] = self.birth_U != NO_BIRTH
        return has_birth_U


@dataclass(frozen=True)
class Events:
    """The events of a chunk, by user, then time.

    Attributes:
        user_E: ``[E]`` int64 user, counted from the chunk's first.
        item_E: ``[E]`` int64 index in the catalogue.
        time_E: ``[E]`` int64 seconds, strictly increasing for each user.
        cluster_E: ``[E]`` int64 cluster that was meant: of the interest, or the one announced; of noise, the item's.
        kind_E: ``[E]`` int8 code of :data:`KINDS_OF_EVENT`.
    """

    user_E: NDArray[np.int64]
    item_E: NDArray[np.int64]
    time_E: NDArray[np.int64]
    cluster_E: NDArray[np.int64]
    kind_E: NDArray[np.int8]


def draw_chunk(
    config: SimulatorConfig, catalogue: Catalogue, chunk: int, first: int, count: int
) -> tuple[Users, Events, np.random.Generator]:
    """Draw the users ``first .. first + count - 1`` and their events.

    Returns:
        The users, their events, and the stream, from which the features are drawn next.
    """
    rng = chunk_stream(config, chunk)
    users = _draw_users(config, catalogue, rng, first, count)
    return users, _draw_events(config, catalogue, rng, users), rng


def _draw_users(
    config: SimulatorConfig, catalogue: Catalogue, rng: np.random.Generator, first: int, count: int
) -> Users:
    slots, skew = config.interests_max, config.activity_skew
    size_U = config.mean_events * np.exp(skew * rng.standard_normal(count) - skew**2 / 2)
    events_U = np.clip(np.rint(size_U), config.min_events, config.max_events).astype(np.int64)
    interests_U = rng.integers(config.interests_min, slots + 1, size=count)
    weight_UJ = rng.standard_gamma(config.interest_concentration, size=(count, slots))
    weight_UJ[np.arange(slots) >= interests_U[:, None]] = 0.0
    weight_UJ /= weight_UJ.sum(axis=1, keepdims=True)
    born_U = rng.random(count) < config.birth_share
    share_U = config.birth_from + (config.birth_to - config.birth_from) * rng.random(count)
    birth_U = np.clip(np.ceil(share_U * events_U), 1, events_U - 1).astype(np.int32)
    by_feature = config.announced_by_feature
    cause_U = np.searchsorted([by_feature, by_feature + config.announced_by_precursor], rng.random(count), "right")
    code_U = np.array([BY_FEATURE, BY_PRECURSOR, BY_NOTHING], dtype=np.int8)[cause_U]
    return Users(
        first=first,
        events_U=events_U,
        interests_U=interests_U,
        cluster_UJ1=_distinct_interests(config, catalogue, rng, count),
        weight_UJ=weight_UJ,
        drift_UJ=config.drift * rng.standard_normal((count, slots)),
        taste_UD=rng.standard_normal((count, config.latent_dim), dtype=np.float32),
        birth_U=np.where(born_U, birth_U, NO_BIRTH),
        announced_U=np.where(born_U, code_U, np.int8(BY_NOTHING)),
    )


def _distinct_interests(
    config: SimulatorConfig, catalogue: Catalogue, rng: np.random.Generator, count: int
) -> NDArray[np.int64]:
    """Draw interests without replacement for each user: a slot that repeats an earlier one is drawn again."""
    slots = config.interests_max + (config.birth_share > 0)
    cluster_UJ1 = np.empty((count, slots), dtype=np.int64)
    for slot in range(slots):
        again = np.arange(count)
        while len(again):
            born = slot == config.interests_max
            cluster_UJ1[again, slot] = catalogue.draw_interests(rng.random(len(again)), born=born)
            repeats = (cluster_UJ1[again, :slot] == cluster_UJ1[again, slot, None]).any(axis=1)
            again = again[repeats]
    return cluster_UJ1


def _draw_events(config: SimulatorConfig, catalogue: Catalogue, rng: np.random.Generator, users: Users) -> Events:
    last_U = np.cumsum(users.events_U)
    total = int(last_U[-1])
    user_E = np.repeat(np.arange(len(last_U)), users.events_U)
    step_E = np.arange(total) - (last_U - users.events_U)[user_E]
    birth_E = users.birth_U[user_E]
    is_birth_E = step_E == birth_E
    fresh_E = (step_E == 0) | is_birth_E | (rng.random(total) >= config.stickiness)

    slot_E = _draw_slots(config, rng, users, user_E, step_E)
    slot_E[is_birth_E] = config.interests_max
    # A session goes on with what its fresh event drew; the first event of a user is fresh, so none crosses users.
    slot_E = slot_E[np.maximum.accumulate(np.where(fresh_E, np.arange(total), 0))]
    cluster_E = users.cluster_UJ1[user_E, slot_E]
    kind_E = np.where(slot_E == config.interests_max, np.int8(BIRTH), np.int8(INTEREST))
    item_E = _choose_items(config, catalogue, rng, users.taste_UD, user_E, cluster_E)

    announce_E = (users.announced_U[user_E] == BY_PRECURSOR) & (step_E < birth_E)
    announce = np.flatnonzero(announce_E & (step_E >= birth_E - config.precursor_events))
    born = users.cluster_UJ1[user_E[announce], -1]
    which = rng.integers(max(config.precursors_per_cluster, 1), size=len(announce))
    item_E[announce] = catalogue.first_precursor + born * config.precursors_per_cluster + which
    cluster_E[announce], kind_E[announce] = born, PRECURSOR

    noise_E = (rng.random(total) < config.noise) & (kind_E != PRECURSOR) & ~is_birth_E
    noise = np.flatnonzero(noise_E)
    item_E[noise] = rng.integers(catalogue.num_items, size=len(noise))
    cluster_E[noise], kind_E[noise] = catalogue.cluster_N[item_E[noise]], NOISE
    return Events(user_E, item_E, _draw_times(config, rng, users.events_U, fresh_E, user_E, step_E), cluster_E, kind_E)


def _draw_slots(
    config: SimulatorConfig,
    rng: np.random.Generator,
    users: Users,
    user_E: NDArray[np.int64],
    step_E: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Draw every event's interest as if it were fresh: the drifting weights, and the born interest after its birth."""
    life_E = step_E / users.events_U[user_E]
    total_E = np.zeros(len(user_E))
    cumulated = []
    for slot in range(config.interests_max):
        total_E = total_E + users.weight_UJ[user_E, slot] * np.exp(users.drift_UJ[user_E, slot] * life_E)
        cumulated.append(total_E)
    point_E = rng.random(len(user_E)) * total_E
    slot_E = np.zeros(len(user_E), dtype=np.int64)
    for part_E in cumulated[:-1]:
        slot_E += point_E >= part_E
    slot_E = np.minimum(slot_E, users.interests_U[user_E] - 1)
    born_E = (step_E >= users.birth_U[user_E]) & (rng.random(len(user_E)) < config.birth_weight)
    slot_E[born_E] = config.interests_max
    return slot_E


def _choose_items(
    config: SimulatorConfig,
    catalogue: Catalogue,
    rng: np.random.Generator,
    taste_UD: NDArray[np.float32],
    user_E: NDArray[np.int64],
    cluster_E: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Draw candidates by popularity within the cluster and let the user's taste take one (Gumbel-max)."""
    chosen_E = catalogue.draw_items(cluster_E, rng.random(len(user_E)))
    if config.choices == 1:
        return chosen_E
    taste_ED = taste_UD[user_E]

    def appeal_of(item_E: NDArray[np.int64]) -> NDArray[np.float64]:
        score_E = np.einsum("ed,ed->e", taste_ED, catalogue.unit_ND[item_E])
        appeal_E: NDArray[np.float64] = config.affinity * score_E - np.log(rng.standard_exponential(len(item_E)))
        return appeal_E

    best_E = appeal_of(chosen_E)
    for _ in range(config.choices - 1):
        other_E = catalogue.draw_items(cluster_E, rng.random(len(user_E)))
        appeal_E = appeal_of(other_E)
        better_E = appeal_E > best_E
        chosen_E = np.where(better_E, other_E, chosen_E)
        best_E = np.maximum(appeal_E, best_E)
    return chosen_E


def _draw_times(
    config: SimulatorConfig,
    rng: np.random.Generator,
    events_U: NDArray[np.int64],
    fresh_E: NDArray[np.bool_],
    user_E: NDArray[np.int64],
    step_E: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Draw strictly increasing seconds; every user is active until about the end of the horizon."""
    gap_E = rng.standard_exponential(len(user_E)) * np.where(fresh_E, 1.0, config.session_gap)
    passed_E = np.cumsum(gap_E)
    end_U = np.cumsum(events_U) - 1
    begin_U = end_U - events_U + 1
    before_U = passed_E[begin_U]
    length_U = np.maximum(passed_E[end_U] - before_U, np.finfo(np.float64).tiny)
    first_U = rng.integers(config.horizon // 2, size=len(events_U))
    # One second per event is set aside, so that adding the event's number keeps times apart and inside the horizon.
    room_U = config.horizon - 1 - first_U - events_U
    share_E = np.clip((passed_E - before_U[user_E]) / length_U[user_E], 0.0, 1.0)
    time_E: NDArray[np.int64] = config.start + first_U[user_E] + (share_E * room_U[user_E]).astype(np.int64) + step_E
    return time_E
