"""Every extractor by name.

>>> sorted(EXTRACTORS)
['attention', 'graph', 'one_pass', 'prototypes', 'routing', 'transform']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemirec.components.attended import (
    AttentionConfig,
    AttentionExtractor,
    PrototypesConfig,
    PrototypesExtractor,
    TransformConfig,
    TransformExtractor,
)
from gemirec.components.kinds import parse_part
from gemirec.components.routed import (
    GraphConfig,
    GraphExtractor,
    OnePassConfig,
    OnePassExtractor,
    RoutingConfig,
    RoutingExtractor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gemirec.components.roles import Extractor, ExtractorConfig, Sizes

EXTRACTORS: dict[str, tuple[type[ExtractorConfig], Callable[[Any, Sizes], Extractor]]] = {
    "attention": (AttentionConfig, AttentionExtractor),
    "routing": (RoutingConfig, RoutingExtractor),
    "one_pass": (OnePassConfig, OnePassExtractor),
    "graph": (GraphConfig, GraphExtractor),
    "prototypes": (PrototypesConfig, PrototypesExtractor),
    "transform": (TransformConfig, TransformExtractor),
}
"""``kind -> (settings, what is built from settings and sizes)``. Add a row to use an extractor of your own."""


def make_extractor(values: Mapping[str, Any], sizes: Sizes) -> Extractor:
    """Build the extractor that ``values`` describes; its initialisation draws from torch's global generator.

    Args:
        values: ``{"kind": NAME, **fields}``.
        sizes: D, K and L.

    Raises:
        ConfigError: An unknown kind, key or value, or a combination that cannot work.

    Example:
        >>> from gemirec.components.roles import Sizes
        >>> make_extractor({"kind": "graph", "levels": 3}, Sizes(dim=8, num_interests=2, max_length=5)).num_interests
        6
    """
    kind, config = parse_part("extractor", values, {name: row[0] for name, row in EXTRACTORS.items()})
    return EXTRACTORS[kind][1](config, sizes)
