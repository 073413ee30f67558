"""What of a model is cached, and how it becomes interests again: two roads.

- ``indices``: a model with a dictionary (GemiRec, and DMI over GemiRec). Cached are the K indices that the generator
  chose; they are fused with the user as the user is now, so that they serve a history that has grown.
- ``vectors``: every other model. Cached are the K vectors themselves. They are a function of the history alone, so they
  serve exactly the history that they were worked out from.

Axes: B users, K interests, E width of a vector as searched for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch

from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests
from gemirec.models.dmi import DMI
from gemirec.models.gemirec import GemiRec
from gemirec.models.gemirec.online import OnlinePath
from gemirec.retrieval.stores.base import StoreInfo
from gemirec.retrieval.stores.codec import Layout, history_digest
from gemirec.retrieval.versions import dictionary_version, model_version

if TYPE_CHECKING:
    from gemirec.models.base import RetrievalModel
    from gemirec.retrieval.stores.codec import Records

Precision = Literal["float16", "float32"]


class Road(Protocol):
    """Between histories, records and interests of one model."""

    follows_history: bool
    """Whether a record also serves a history that has changed since."""

    def records(self, histories: Histories, written: int) -> Records:
        """Return unsealed records of users, worked out by the whole model.

        Args:
            histories: ``[B, L]``, as wide as the model reads.
            written: Microseconds since 1970: when the histories were read.
        """

    def interests(self, histories: Histories, record_B: Records) -> Interests:
        """Return the interests of intact records, on the device of the histories."""


class IndexRoad:
    """Indices of a dictionary, fused on the spot.

    Args:
        model: GemiRec, or DMI over it.
        info: Of the store: K and epsilon.
    """

    follows_history = True

    def __init__(self, model: GemiRec | DMI, info: StoreInfo) -> None:
        base = model.base if isinstance(model, DMI) else model
        assert isinstance(base, GemiRec)
        self._base, self._info, self._codec = base, info, info.codec()
        self._refiner = model if isinstance(model, DMI) else None
        self._fused = OnlinePath(base)

    @torch.no_grad()
    def records(self, histories: Histories, written: int) -> Records:
        """See :class:`Road`."""
        chosen = self._base.select(self._base.state(histories), self._info.layout.k, self._info.epsilon)
        return self._codec.pack_indices(chosen, written, history_digest(histories))

    @torch.no_grad()
    def interests(self, histories: Histories, record_B: Records) -> Interests:
        """See :class:`Road`; up to rounding what the model itself says of these interests."""
        device = histories.item_BL.device
        chosen = self._codec.indices(record_B)
        chosen = type(chosen)(*(part.to(device) for part in chosen))
        found = self._fused(histories, chosen)
        return found if self._refiner is None else self._refiner.interests(histories, found)


class VectorRoad:
    """Vectors as they are served.

    Args:
        model: Any model.
        info: Of the store.
    """

    follows_history = False

    def __init__(self, model: RetrievalModel, info: StoreInfo) -> None:
        self._model, self._codec = model, info.codec()

    @torch.no_grad()
    def records(self, histories: Histories, written: int) -> Records:
        """See :class:`Road`."""
        return self._codec.pack_vectors(self._model.interests(histories), written, history_digest(histories))

    def interests(self, histories: Histories, record_B: Records) -> Interests:
        """See :class:`Road`."""
        found, device = self._codec.vectors(record_B), histories.item_BL.device
        weight_BK = None if found.weight_BK is None else found.weight_BK.to(device)
        return Interests(found.vector_BKD.to(device), found.mask_BK.to(device), weight_BK)


def store_info(
    model: RetrievalModel, *, k: int | None = None, epsilon: int | None = -1, precision: Precision = "float32"
) -> StoreInfo:
    """Return what a store of a model's interests must be made with.

    Args:
        model: In ``eval`` mode.
        k: K of a model with a dictionary; ``None`` takes its own.
        epsilon: Its limit on repeated codes, ``None`` for none; -1 takes its own.
        precision: Of log-probabilities or vectors. float16 halves the store; lists may differ where scores are close.

    Raises:
        ConfigError: The model has a dictionary and no interest to cache: its generator is not trained, or it serves the
            user's own vector alone.

    Example:
        >>> from gemirec.data.dataset import DataSpec
        >>> from gemirec.models.catalog import build_model
        >>> spec = DataSpec(num_items=9, train_count_N=[0] * 10)
        >>> layout = store_info(build_model("comirec_sa", {"num_interests": 4, "dim": 8}, spec).eval()).layout
        >>> layout.kind, layout.k, layout.width
        ('vectors', 4, 8)
    """
    base = model.base if isinstance(model, DMI) else model
    if isinstance(base, GemiRec):
        k = base.config.num_interests - base.config.keep_user_vector if k is None else k
        if int(base.phase) < 2 or k < 1:
            raise ConfigError(
                "the model serves no interest of its dictionary, so there is nothing to cache",
                got=f"stage {int(base.phase)} of 2, {k} interests",
                fix="train it to its last stage, with a larger model.num_interests; or serve it without a cache",
            )
        layout = Layout(kind="indices", k=k, entries=base.num_interests, precision=precision)
        return StoreInfo(
            version=model_version(model),
            layout=layout,
            dictionary_version=dictionary_version(base),
            epsilon=base.epsilon if epsilon == -1 else epsilon,
            model=type(model).__name__,
        )
    with torch.no_grad():
        found = model.interests(_anyone(model))
    _, count, width = found.vector_BKD.shape
    weighted = found.weight_BK is not None
    layout = Layout(kind="vectors", k=count, width=width, weighted=weighted, precision=precision)
    return StoreInfo(version=model_version(model), layout=layout, model=type(model).__name__)


def road_of(model: RetrievalModel, info: StoreInfo) -> Road:
    """Return the road between a model and a store of its version."""
    return IndexRoad(model, info) if info.layout.kind == "indices" else VectorRoad(model, info)  # type: ignore[arg-type]


def _anyone(model: RetrievalModel) -> Histories:
    """Return one user with as long a history as the model reads: the shape of what it says is that of all users."""
    spec, length = model.spec, model.max_length
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    item_BL = (torch.arange(length, device=device) % max(1, spec.num_items) + 1)[None]
    features = len(spec.user_categorical_sizes), spec.num_user_numeric
    categorical = torch.zeros(1, features[0], dtype=torch.int64, device=device) if features[0] else None
    numeric = torch.zeros(1, features[1], device=device) if features[1] else None
    return Histories(item_BL, categorical, numeric)
