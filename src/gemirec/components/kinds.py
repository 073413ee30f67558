"""Parts by name: how ``{kind: NAME, ...}`` becomes a typed config.

A role has a literal table ``kind -> config class`` (and what is built from it); a program may add rows to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from gemirec.config import Config, from_dict
from gemirec.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=Config)


def parse_part(role: str, values: Mapping[str, Any], configs: Mapping[str, type[ConfigT]]) -> tuple[str, ConfigT]:
    """Return the kind and the config of a part ``{kind: NAME, **fields}``.

    Args:
        role: Name of the role, for errors (``extractor``).
        values: The part as a mapping of plain values.
        configs: Config class of every kind.

    Raises:
        ConfigError: No kind, an unknown one, an unknown key or a wrong value.

    Example:
        >>> from gemirec.components.attended import AttentionConfig
        >>> kind, config = parse_part("extractor", {"kind": "attention", "power": 2.0}, {"attention": AttentionConfig})
        >>> kind, config.power
        ('attention', 2.0)
    """
    if not isinstance(values, Mapping) or "kind" not in values:
        raise ConfigError(
            f"the {role} has no kind", got=values, fix=f"write {role}: {{kind: NAME}} with one of: {', '.join(configs)}"
        )
    fields = {key: value for key, value in values.items() if key != "kind"}
    kind = str(values["kind"])
    if kind not in configs:
        close = difflib.get_close_matches(kind, configs, n=1)
        guess = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"there is no such {role}", got=kind, fix=f"{guess}choose one of: {', '.join(configs)}")
    return kind, from_dict(configs[kind], fields, where=f"{role} {kind!r}")
