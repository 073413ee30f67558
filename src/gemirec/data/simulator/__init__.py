r"""A simulator of interaction logs with planted interests.

The model, for users u, items i, clusters c inside super-clusters g; events of a user are numbered e = 0 .. n_u - 1 and
``t = e / n_u`` is the share of the user's life that has passed. Names in ``code`` are fields of
:class:`SimulatorConfig`.

Catalogue::

    m_g  = super_spread N(0, I),   m_c = m_g(c) + cluster_spread N(0, I),   z_i = m_c(i) + item_spread N(0, I)
    p(i | c)  ~  rank_i ^ -item_skew         over the ordinary items of c (ranks 1, 2, ... in random id order)
    q(c)      ~  rank_c ^ -cluster_skew      how often c is somebody's interest
    category(i), subcategory(i) = names of g(c'), c';   c' = c(i), or a uniform cluster with chance category_noise

Every cluster a has ``precursors_per_cluster`` *precursor items*. Each lies in another cluster (its vector, its
category) and announces a. Precursors are no ordinary items: p(i | c) does not reach them.

Aspects, with ``aspects`` A > 0. The cluster is what one kind of interest cares about; these are what others do::

    v_ia  =  b_c(i)a with chance aspect_lean, else uniform      value of item i in aspect a, of aspect_values V
    b_ca                                                        the own value of cluster c, dealt in turn at random

An interest is then a cluster or, with chance ``aspect_share``, a uniform value of a uniform aspect ("of this brand").
They are numbered: cluster c is c, value v of aspect a (from 0) is C + a V + v, and so they stand in the truth. The one
aspect that an interest cares about (the clusters count as an aspect, too) is its *planted dimension*. It draws items by
that alone: p(i | value) ~ rank_i ^ -item_skew over all ordinary items that have the value, ranks in random order. The
other aspects of these items are noise *at the level of dimensions*: an item's vector must hold them, since other
interests care about them, but they say nothing of this interest's next item, and a vector made of whole items takes
them over. ``aspect_lean`` makes them come along with an interest as a rule instead of by accident.
:mod:`gemirec.evaluation.planted_noise` measures them. Born interests are clusters.

Users::

    n_u   = round(mean_events exp(activity_skew x - activity_skew^2 / 2)), x ~ N(0, 1), clipped to [min, max]_events
    J_u   ~ uniform(interests_min .. interests_max);   clusters c_u1 .. c_uJ ~ q without replacement (or values)
    w_u   ~ Dirichlet(interest_concentration);   d_uj ~ drift N(0, 1);   taste y_u ~ N(0, I)
    w_uj(t)  ~  w_uj exp(d_uj t)             normalised over j: the weights drift

With chance ``birth_share`` one more cluster b_u ~ q, not among the others, is *born* at the event
``e_u = ceil(n_u x)``, x ~ uniform(birth_from, birth_to). The birth is announced by a feature (chance
``announced_by_feature``), by precursors (``announced_by_precursor``) or by nothing (the rest).

Events::

    the first event of a user, the event e_u, and every other with chance 1 - stickiness are fresh
    fresh:      interest of event e = b_u at e = e_u and with chance birth_weight at e > e_u, else j ~ w_u(t)
    not fresh:  interest of event e = interest of event e - 1 (a session goes on)
    item:       choices candidates i_1 .. i_m ~ p(. | c), with repeats; one is taken with chance
                ~ exp(affinity y_u . (z_i - m_c) / |z_i - m_c|)
    precursors: if b_u is announced by precursors, each of the precursor_events events before e_u is a uniform
                precursor item of b_u instead
    noise:      every event but those and e_u is, with chance noise, a uniform item of the whole catalogue instead
    time:       gaps ~ Exp(1) where the event is fresh, session_gap Exp(1) where not; scaled so that a user's events
                fill [s_u, start + horizon], s_u ~ start + uniform(0, horizon / 2); seconds, strictly increasing

User features, known from the start::

    segment   the super-cluster of the interest with the largest w_u; a uniform one with chance feature_noise (every
              value of an aspect has a super-cluster, dealt once at random, and as m_c the mean of its items)
    hint      b_u if it is announced by the feature, else "none"; with chance feature_noise a uniform cluster
    region    one of eight, uniform: says nothing (a control)
    taste_x, taste_y   the first two axes of sum_j w_uj m_c_uj, plus feature_noise N(0, 1) of their spread
    activity  log n_u + feature_noise N(0, 1)

Files: ``interactions.parquet`` (user_id, item_id, timestamp; by user, then time), ``items.parquet`` (item_id, title,
category, subcategory), ``users.parquet`` (user_id and the features), the planted truth in ``truth_users.parquet``,
``truth_items.parquet`` and ``truth_events.parquet`` (row for row beside the interactions), and ``simulator.json``.

The log is made in chunks of users, each from a random stream of its own that depends on the seed and the chunk's
number only; no memory grows with the number of users or events.
"""

from __future__ import annotations

from gemirec.data.simulator.config import SimulatorConfig
from gemirec.data.simulator.run import SimulatedLog, simulate

__all__ = ["SimulatedLog", "SimulatorConfig", "simulate"]
