"""Every aggregator by name.

>>> sorted(AGGREGATORS)
['base', 'calibrated', 'concat', 'intent', 'max', 'mean', 'pool', 'target']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemirec.components.kinds import parse_part
from gemirec.components.roles import Sizes
from gemirec.components.score_aggregators import (
    Calibrated,
    CalibratedConfig,
    Max,
    MaxConfig,
    Mean,
    MeanConfig,
    Target,
    TargetConfig,
)
from gemirec.components.vector_aggregators import (
    Base,
    BaseConfig,
    Concat,
    ConcatConfig,
    Intent,
    IntentConfig,
    Pool,
    PoolConfig,
)
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gemirec.components.roles import Aggregator, AggregatorConfig, Extractor

AGGREGATORS: dict[str, tuple[type[AggregatorConfig], Callable[[Any, Sizes], Aggregator]]] = {
    "max": (MaxConfig, Max),
    "mean": (MeanConfig, Mean),
    "target": (TargetConfig, Target),
    "calibrated": (CalibratedConfig, Calibrated),
    "concat": (ConcatConfig, Concat),
    "pool": (PoolConfig, Pool),
    "base": (BaseConfig, Base),
    "intent": (IntentConfig, Intent),
}
"""``kind -> (settings, what is built from settings and sizes)``. Add a row to use an aggregator of your own."""


def make_aggregator(values: Mapping[str, Any], extractor: Extractor, extractor_kind: str) -> Aggregator:
    """Build the aggregator that ``values`` describes, for what ``extractor`` gives.

    Args:
        values: ``{"kind": NAME, **fields}``.
        extractor: Whose interests it aggregates.
        extractor_kind: Its name, for errors.

    Raises:
        ConfigError: An unknown kind, key or value, a combination that cannot work, or one that cannot serve.
    """
    kind, config = parse_part("aggregator", values, {name: row[0] for name, row in AGGREGATORS.items()})
    sizes = Sizes(extractor.sizes.dim, extractor.num_interests, extractor.sizes.max_length)
    aggregator = AGGREGATORS[kind][1](config, sizes)
    if aggregator.needs_prototypes and not extractor.gives_prototypes:
        raise ConfigError(
            f"aggregator {kind!r} reads the prototypes that a user activates, extractor {extractor_kind!r} has none",
            got=f"extractor: {extractor_kind}, aggregator: {kind}",
            fix="take extractor prototypes, or an aggregator that fits any extractor: max, mean, calibrated, concat, "
            "pool, base",
        )
    return aggregator
