"""Which dictionary and which model: hashes that files carry, so that parts of different models are not mixed.

Dictionary, fusion, item index and interest cache belong together; a file that is made with a model names these versions
and is held against the model that serves it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from gemirec.config import to_dict
from gemirec.errors import ConfigError
from gemirec.models.catalog import MODELS, model_class
from gemirec.models.dmi import DMI
from gemirec.models.gemirec import GemiRec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemirec.models.base import RetrievalModel
    from gemirec.retrieval.cold_start import ColdItems

_MEANING = ("quantizer.codebooks.", "quantizer.encoder.", "table.", "category_N")
"""Parameters and buffers of a dictionary that give an index its meaning."""


def with_dictionary(model: RetrievalModel) -> GemiRec:
    """Return the model with a dictionary of interests: ``model``, or the base that it refines (DMI).

    Raises:
        ConfigError: It has none.
    """
    base = model.base if isinstance(model, DMI) else model
    if isinstance(base, GemiRec):
        return base
    known = [name for name in MODELS if issubclass(model_class(name), GemiRec)]
    raise ConfigError(
        "this model has no dictionary of interests, so there is nothing to cache",
        got=type(model).__name__,
        fix=f"train a model that has one: {', '.join(known)}",
    )


def dictionary_version(model: RetrievalModel) -> str:
    """Return the SHA-256 (hex) of what gives an index its meaning, whatever was trained beside it.

    It covers the sizes, the codes (or the categories' embeddings, and each item's category) and the encoder that gives
    items their codes: with equal versions, an index has the same embedding and the same rule which items belong to it.

    Raises:
        ConfigError: The model has no dictionary.

    Example:
        >>> from gemirec.data.dataset import DataSpec
        >>> from gemirec.models.catalog import build_model
        >>> model = build_model("gemirec", {}, DataSpec(num_items=40, train_count_N=[0] * 41))
        >>> before = dictionary_version(model), model_version(model)
        >>> _ = torch.nn.init.ones_(model.fusion.outer.bias)
        >>> dictionary_version(model) == before[0], model_version(model) == before[1]
        (True, False)
    """
    dictionary = with_dictionary(model).dictionary
    named = [*dictionary.named_parameters(), *dictionary.named_buffers()]
    tensors = {name: value for name, value in named if name.startswith(_MEANING)}
    return _digest({"kind": type(dictionary).__name__, "sizes": list(dictionary.sizes)}, tensors)


def model_version(model: RetrievalModel) -> str:
    """Return the SHA-256 (hex) of a model's class, configuration, parameters and buffers."""
    header = {"kind": type(model).__name__, "config": to_dict(model.config)}
    return _digest(header, model.state_dict())


def served_version(model: RetrievalModel, cold: ColdItems | None) -> str:
    """Return the version of the item vectors that are served: the model's, and that of the items added to it."""
    if cold is None:
        return model_version(model)
    return _digest({"model": model_version(model)}, cold.tensors())


def _digest(header: dict[str, Any], tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON header and of named tensors, by name."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        flat = value.detach().cpu().contiguous()
        digest.update(f"\n{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
