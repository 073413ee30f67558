"""Configuration of the simulator; the package docstring gives each field its place in the formulas."""

from __future__ import annotations

import math

from gemirec.config import Config
from gemirec.errors import ConfigError


class SimulatorConfig(Config, frozen=True, kw_only=True):
    """Size and shape of a simulated log. The default is a log for demos: about 175,000 events.

    Its users have several interests, and its catalogue has more clusters than a vector of usual width has axes, so that
    one vector per user is not enough; every item has enough events to be learnt.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.

    Example:
        >>> SimulatorConfig(num_users=100).num_clusters
        120
        >>> SimulatorConfig(noise=1.5)
        Traceback (most recent call last):
        gemirec.errors.ConfigError: noise must be a chance
          got: 1.5
          fix: give a number from 0 to 1
    """

    num_users: int = 5_000
    """Users."""
    num_items: int = 2_000
    """Items, precursor items included."""
    seed: int = 1
    """Seed of everything."""
    string_ids: bool = False
    """Ids as strings (``u17``, ``i4``) instead of integers."""
    write_event_truth: bool = True
    """Write ``truth_events.parquet``: cluster and kind of every event."""

    num_super_clusters: int = 12
    """Super-clusters; each is a category."""
    clusters_per_super: int = 10
    """Clusters inside each super-cluster; each is a subcategory and a possible interest."""
    precursors_per_cluster: int = 2
    """Items that announce the birth of each cluster."""
    latent_dim: int = 16
    """Width of the items' latent vectors."""
    super_spread: float = 1.0
    """Standard deviation of the super-clusters' centres, per axis."""
    cluster_spread: float = 0.7
    """Standard deviation of clusters around their super-cluster, per axis."""
    item_spread: float = 0.3
    """Standard deviation of items around their cluster, per axis."""
    item_skew: float = 0.8
    """Zipf exponent of items within a cluster; 0 is uniform."""
    cluster_skew: float = 0.5
    """Zipf exponent of clusters as interests; 0 is uniform."""
    category_noise: float = 0.05
    """Chance that an item is filed under a uniform cluster's category and subcategory."""

    aspects: int = 0
    """Further aspects of an item (brand, colour), each irrelevant to the interests that care about another one; 0
    switches them off."""
    aspect_values: int = 8
    """Values of each aspect; every value is a possible interest."""
    aspect_share: float = 0.5
    """Chance that an interest cares about the value of an aspect instead of a cluster."""
    aspect_lean: float = 0.3
    """Chance that an item's value in an aspect is its cluster's own: how strongly aspects come along with clicks that
    have nothing to do with them."""

    mean_events: float = 35.0
    """Mean events per user, before clipping."""
    min_events: int = 8
    """Fewest events of a user."""
    max_events: int = 400
    """Most events of a user."""
    activity_skew: float = 0.6
    """Standard deviation of the logarithm of a user's number of events."""
    interests_min: int = 3
    """Fewest interests of a user, births not counted."""
    interests_max: int = 5
    """Most interests of a user, births not counted."""
    interest_concentration: float = 3.0
    """Dirichlet concentration of the interests' weights; large makes them equal."""
    drift: float = 1.0
    """Standard deviation of the change of an interest's log-weight over the user's life."""
    stickiness: float = 0.4
    """Chance that an event goes on with the interest of the one before."""
    choices: int = 3
    """Candidates of which the user's taste picks one; 1 switches taste off."""
    affinity: float = 1.0
    """Strength of the user's taste among the candidates."""
    noise: float = 0.08
    """Chance that an event is a uniform item."""

    birth_share: float = 0.5
    """Share of users with a new interest."""
    birth_from: float = 0.3
    """Earliest birth, as a share of the user's events."""
    birth_to: float = 0.9
    """Latest birth, as a share of the user's events."""
    birth_weight: float = 0.5
    """Chance that a fresh event after the birth belongs to the new interest."""
    announced_by_feature: float = 0.4
    """Share of births announced by the user feature ``hint``."""
    announced_by_precursor: float = 0.4
    """Share of births announced by precursor items; the rest of births comes unannounced."""
    precursor_events: int = 2
    """Precursor items right before an announced birth."""
    feature_noise: float = 0.1
    """Chance that a categorical feature is random; relative noise of the numeric ones."""

    start: int = 1_600_000_000
    """First possible timestamp, in seconds."""
    horizon: int = 31_536_000
    """Length of the log, in seconds."""
    session_gap: float = 0.01
    """Mean gap between two events of a session, relative to the gap between sessions."""

    @property
    def num_clusters(self) -> int:
        """Clusters in all."""
        return self.num_super_clusters * self.clusters_per_super

    @property
    def num_interests(self) -> int:
        """Possible interests: clusters, then the values of the aspects."""
        return self.num_clusters + self.aspects * self.aspect_values

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_pairs()

    def _check_ranges(self) -> None:
        """Check each field by itself."""
        chances = ("category_noise", "stickiness", "noise", "birth_share", "birth_from", "birth_to", "birth_weight")
        shares = ("announced_by_feature", "announced_by_precursor", "feature_noise", "aspect_share", "aspect_lean")
        for name in (*chances, *shares):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must be a chance", got=value, fix="give a number from 0 to 1")
        counts = ("num_users", "num_items", "num_super_clusters", "clusters_per_super", "choices", "interests_min")
        least = dict.fromkeys(counts, 1) | {"latent_dim": 2, "min_events": 2, "seed": 0, "start": 0}
        least |= {"precursors_per_cluster": 0, "precursor_events": 0, "aspects": 0, "aspect_values": 2}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} is too small", got=getattr(self, name), fix=f"give {lowest} or more")
        for name in ("super_spread", "cluster_spread", "item_spread", "interest_concentration", "mean_events"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive", got=getattr(self, name), fix="give a number above 0")
        for name in ("item_skew", "cluster_skew", "activity_skew", "drift", "affinity", "session_gap"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must not be negative", got=getattr(self, name), fix="give 0 or more")

    def _check_pairs(self) -> None:
        """Check the fields that must agree with each other."""
        least_items = self.num_clusters * (1 + self.precursors_per_cluster)
        births = self.birth_share > 0
        by_precursor = births and self.announced_by_precursor > 0
        contradictions = (
            (self.num_items < least_items, "num_items", f"give {least_items} or more, or fewer clusters"),
            (self.interests_max < self.interests_min, "interests_max", "give interests_min or more"),
            (self.interests_max + births > self.num_clusters, "interests_max", "give fewer than there are clusters"),
            (self.max_events < self.min_events, "max_events", "give min_events or more"),
            (not self.min_events <= self.mean_events <= self.max_events, "mean_events", "give min_ to max_events"),
            (self.birth_to < self.birth_from, "birth_to", "give birth_from or more"),
            (self.announced_by_feature + self.announced_by_precursor > 1, "announced_by_precursor", "sum up to 1"),
            (by_precursor and not self.precursors_per_cluster, "precursors_per_cluster", "give 1 or more"),
            (by_precursor and not self.precursor_events, "precursor_events", "give 1 or more"),
            (
                self.num_clusters < 2 and self.precursors_per_cluster > 0,
                "num_super_clusters",
                "give 2 or more clusters",
            ),
            (self.aspects > 0 and self.aspect_share == 1, "aspect_share", "give less than 1"),
            (self.horizon < 4 * self.max_events, "horizon", f"give {4 * self.max_events} seconds or more"),
        )
        for wrong, name, fix in contradictions:
            if wrong:
                raise ConfigError(f"{name} contradicts other fields", got=getattr(self, name), fix=fix)
