"""Configuration of DMI, and the model that it refines. The paper gives no value: every choice here is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gemirec.components.denoiser import DenoiserConfig
from gemirec.components.diffusion import NoiseConfig
from gemirec.config import Config, to_dict
from gemirec.errors import ConfigError
from gemirec.models.catalog import build_model, config_class, model_class
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, Probability, TableModel

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

Weight = Annotated[float, Meta(ge=0)]
SHARED = ("dim", "max_length", "num_interests", "item_init", "item_std", "loss")
"""Fields of DMI that its base takes over, as far as it has them."""


class DMIConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of DMI. ``dim``, ``max_length``, ``num_interests``, ``item_init`` and ``loss`` are the base's, too."""

    base: dict[str, Any] = msgspec.field(default_factory=lambda: {"model": "comirec_sa"})
    """The model whose interests are refined, ``{model: NAME, field: value}``: any of the catalogue that trains. An
    extractor of the framework is ``{model: composed, extractor: {kind: NAME}}``."""
    noise: NoiseConfig = NoiseConfig()
    """The forward process."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """The network of one reverse step, and which items it reads."""
    guidance: Literal["history", "neighbours", "users"] = "history"
    """The "collaborative information": the pruned ``history`` alone; beside it the items that co-occur with the
    history's in training sequences (``neighbours``), or the nearest interests of other ``users``."""
    neighbours: Count = 5
    """With ``guidance``: co-occurring items of each item, or other users' interests of each interest."""
    neighbours_of: Count = 5
    """With ``guidance: neighbours``: the most recent items of a history whose co-occurring items are read."""
    memory: Count = 256
    """Interests remembered, of the users trained last. With ``guidance: users``."""
    reverse_steps: Annotated[int, Meta(ge=1, le=10)] = 2
    """Reverse steps, in training as at serving; no more than ``noise.steps``."""
    eta: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Noise added in each reverse step: 0 none (DDIM), 1 as much as the forward process took (DDPM)."""
    train_start: Literal["noised", "clean"] = "noised"
    """Where the reverse process starts in training: at the noised interest, or at it shrunk as by the forward process
    but without noise, as serving does by default."""
    serve_start: Literal["clean", "noised"] = "clean"
    """Where it starts at serving: at the interest as the forward process shrinks it, without noise; or with noise of
    ``serve_seed``, the same for all users. Either way serving repeats itself."""
    serve_seed: Annotated[int, Meta(ge=0)] = 1
    """Seed of the noise at serving, if there is any."""
    reconstruction_weight: Weight = 0.1
    """gamma, weight of the squared error of x0^ at a random step."""
    reconstruct: Literal["item", "coarse"] = "item"
    """What x0^ is compared with: the next item's vector, for the interest nearest to it; or that coarse interest."""
    contrast_weight: Weight = 0.0
    """Weight of a contrastive term between refined and coarse interests; the user's other ones are the negatives."""
    contrast_temperature: PositiveFloat = 0.1
    """Divides the cosines of that term."""
    base_weight: Weight = 1.0
    """Weight of all the base's own terms while both train: its retrieval loss on coarse interests, its regularisers,
    its generator. 0 leaves them out, which is faster, and the base learns through the refined interests alone."""
    train: Literal["joint", "refiner"] = "joint"
    """What the last stage trains: base and refiner, or the refiner on a base that stays as it is."""
    base_share: Probability = 0.0
    """Share of the steps in which the base trains alone, before. 0 with a base of several stages: all but its last one
    come first, as long as they are there, and the last one is joint."""


def build_base(config: DMIConfig, spec: DataSpec) -> TableModel:
    """Build the model that is refined; it has DMI's own sizes, initialisation and loss.

    Raises:
        ConfigError: The base has no name, is DMI or learns nothing, sets what DMI sets, or would stay untrained.
    """
    name = config.base.get("model")
    if not isinstance(name, str):
        raise ConfigError("the base has no name", got=config.base, fix="write base: {model: NAME}, NAME of a model")
    cls = model_class(name)
    if name == "dmi" or not issubclass(cls, TableModel):
        raise ConfigError("this model cannot be refined", got=f"base.model: {name}", fix="name one with an item table")
    both = [field for field in SHARED if field in config.base]
    if both:
        raise ConfigError(
            "the base takes this from the model around it",
            got=f"base.{both[0]}",
            fix=f"set model.{both[0]} and leave base.{both[0]} out",
        )
    if config.train == "refiner" and not config.base_share:
        raise ConfigError(
            "a refiner alone would refine what was never trained",
            got="train: refiner, base_share: 0",
            fix="set model.base_share, for example to .5, or model.train=joint",
        )
    built = build_model(name, _shared(config, config_class(name)) | _own(config), spec)
    assert isinstance(built, TableModel)
    return built


def _own(config: DMIConfig) -> dict[str, Any]:
    return {field: value for field, value in config.base.items() if field != "model"}


def _shared(config: DMIConfig, cls: type[Config]) -> dict[str, Any]:
    """Return the shared fields that ``cls`` has; of the loss, those that its own loss has."""
    values = {field: value for field, value in to_dict(config).items() if field in SHARED}
    default: Any = cls()
    values["loss"] = {key: values["loss"][key] for key in type(default.loss).__struct_fields__}
    return {field: value for field, value in values.items() if field in cls.__struct_fields__}
