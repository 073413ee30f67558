"""The catalogue: every model by name, as one literal table, and its shipped profiles.

Nothing here imports torch until a model is built, so that listing models is cheap.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemirec.config import Config, from_dict, load_yaml, to_dict
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec
    from gemirec.models.base import RetrievalModel

PROFILES = ("tuned", "paper")
"""``tuned`` (default): what gives the best quality here. ``paper``: the values of the paper or its released code."""
_PROFILE_FOLDER = Path(__file__).resolve().parents[1] / "profiles"


@dataclass(frozen=True)
class ModelEntry:
    """One row of the catalogue.

    Attributes:
        model: ``module:Class`` of the model.
        config: ``module:Class`` of its config.
        paper: Where it comes from.
        line: What it is, in one line.
    """

    model: str
    config: str
    paper: str
    line: str


MODELS: dict[str, ModelEntry] = {
    "popularity": ModelEntry(
        "gemirec.models.popularity:Popularity",
        "gemirec.models.popularity:PopularityConfig",
        "control",
        "the items with the most training events, for everyone",
    ),
    "item_mean": ModelEntry(
        "gemirec.models.item_mean:ItemMean",
        "gemirec.models.item_mean:ItemMeanConfig",
        "control; loss of arXiv 2302.14532",
        "the mean of the history's item vectors, no parameter but the item table",
    ),
    "youtube_dnn": ModelEntry(
        "gemirec.models.youtube_dnn:YouTubeDNN",
        "gemirec.models.youtube_dnn:YouTubeDNNConfig",
        "Covington et al., RecSys 2016",
        "the mean of the history through a dense layer",
    ),
    "single_vector": ModelEntry(
        "gemirec.models.single_vector:SingleVector",
        "gemirec.models.single_vector:SingleVectorConfig",
        "control; in-batch InfoNCE with logQ (Yi et al., RecSys 2019)",
        "one attentive, L2-normalised vector",
    ),
    "sasrec": ModelEntry(
        "gemirec.models.sasrec:SASRec",
        "gemirec.models.sasrec:SASRecConfig",
        "Kang and McAuley, ICDM 2018, arXiv 1808.09781",
        "a causal transformer's last state",
    ),
    "hstu": ModelEntry(
        "gemirec.models.hstu:HSTU",
        "gemirec.models.hstu:HSTUConfig",
        "Zhai et al., ICML 2024, arXiv 2402.17152",
        "a causal encoder of gated, pointwise attention: its last state, or K read from its states",
    ),
    "mind": ModelEntry(
        "gemirec.models.mind:MIND",
        "gemirec.models.mind:MINDConfig",
        "Li et al., CIKM 2019, arXiv 1904.08030",
        "capsules by dynamic routing with a shared map, adaptive K, label-aware attention",
    ),
    "comirec_dr": ModelEntry(
        "gemirec.models.comirec_dr:ComiRecDR",
        "gemirec.models.comirec_dr:ComiRecDRConfig",
        "Cen et al., KDD 2020, arXiv 2005.09347",
        "K capsules by dynamic routing with a map per position",
    ),
    "comirec_sa": ModelEntry(
        "gemirec.models.comirec_sa:ComiRecSA",
        "gemirec.models.comirec_sa:ComiRecSAConfig",
        "Cen et al., KDD 2020, arXiv 2005.09347",
        "K self-attention distributions over the history",
    ),
    "remi": ModelEntry(
        "gemirec.models.remi:REMI",
        "gemirec.models.remi:REMIConfig",
        "Xie et al., RecSys 2023, arXiv 2302.14532",
        "ComiRec-SA with interest-aware hard negatives and attention kept broad",
    ),
    "re4": ModelEntry(
        "gemirec.models.re4:Re4",
        "gemirec.models.re4:Re4Config",
        "Zhang et al., WWW 2022, arXiv 2208.08011",
        "K attention distributions whose interests re-attend, re-contrast and re-construct their items",
    ),
    "simrec": ModelEntry(
        "gemirec.models.simrec:SimRec",
        "gemirec.models.simrec:SimRecConfig",
        "Liu et al., WSDM 2024, arXiv 2311.17374",
        "ComiRec-SA over item vectors that mix in those of co-occurring items",
    ),
    "dismir": ModelEntry(
        "gemirec.models.dismir:DisMIR",
        "gemirec.models.dismir:DisMIRConfig",
        "Du et al., KDD 2024, DOI 10.1145/3637528.3671800",
        "capsules over items that a contrast partitions by what is bought together",
    ),
    "bam": ModelEntry(
        "gemirec.models.bam:BaM",
        "gemirec.models.bam:BaMConfig",
        "IEEE BigData 2024",
        "any extractor, trained through an interest that is drawn, not the nearest",
    ),
    "sine": ModelEntry(
        "gemirec.models.sine:SINE",
        "gemirec.models.sine:SINEConfig",
        "Tan et al., WSDM 2021, arXiv 2102.09267",
        "the few prototypes that a user activates, merged into one vector",
    ),
    "timirec": ModelEntry(
        "gemirec.models.timirec:TiMiRec",
        "gemirec.models.timirec:TiMiRecConfig",
        "Wang et al., CIKM 2022",
        "self-attentive interests, mixed into one vector by a predictor that learns from the target",
    ),
    "ulim": ModelEntry(
        "gemirec.models.ulim:ULIM",
        "gemirec.models.ulim:ULIMConfig",
        "Meng et al., 2025, arXiv 2507.10097 (abstract)",
        "a pointer-generator names the next categories; a long- and short-term interest searches each",
    ),
    "mima": ModelEntry(
        "gemirec.models.mima:MIMA",
        "gemirec.models.mima:MIMAConfig",
        "Alibaba International, 2026, arXiv 2609.12842",
        "learned queries read the history; sets of positives matched one to one with the interests",
    ),
    "umi": ModelEntry(
        "gemirec.models.umi:UMI",
        "gemirec.models.umi:UMIConfig",
        "Chai et al., SIGIR 2022",
        "capsules whose items and profile fields are gated by the user's profile",
    ),
    "composed": ModelEntry(
        "gemirec.models.composed:Composed",
        "gemirec.models.composed:ComposedConfig",
        "Li et al., TOIS 2026, arXiv 2506.15284",
        "any extractor, regularisers and aggregator, named in a YAML file",
    ),
    "mgnm": ModelEntry(
        "gemirec.models.mgnm:MGNM",
        "gemirec.models.mgnm:MGNMConfig",
        "Tian et al., SIGIR 2022, arXiv 2205.01286",
        "capsules at every level of a graph over the history's items",
    ),
    "dmi": ModelEntry(
        "gemirec.models.dmi:DMI",
        "gemirec.models.dmi:DMIConfig",
        "Le et al., 2025, arXiv 2502.05561 (abstract)",
        "any model's interests, refined by a small diffusion that reads the history's items it keeps",
    ),
    "gemirec": ModelEntry(
        "gemirec.models.gemirec:GemiRec",
        "gemirec.models.gemirec:GemiRecConfig",
        "Wu et al., 2025, arXiv 2510.14626",
        "a dictionary of interests, a generator of future ones, a retriever that fuses interest and user",
    ),
}


def entry(name: str) -> ModelEntry:
    """Return the row of model ``name``.

    Raises:
        ConfigError: There is no such model; the error suggests the nearest name.

    Example:
        >>> entry("comirec_sa").line
        'K self-attention distributions over the history'
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        guess = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError("no such model", got=name, fix=f"{guess}known models: {', '.join(MODELS)}")
    return MODELS[name]


def config_class(name: str) -> type[Config]:
    """Return the config class of model ``name``."""
    found: type[Config] = _resolve(entry(name).config)
    return found


def model_class(name: str) -> type[RetrievalModel]:
    """Return the class of model ``name``."""
    found: type[RetrievalModel] = _resolve(entry(name).model)
    return found


def build_model(name: str, config: Mapping[str, Any] | Config, spec: DataSpec) -> RetrievalModel:
    """Build model ``name`` for data of ``spec``; its initialisation draws from torch's global generator.

    Args:
        name: A name of the catalogue.
        config: A mapping of plain values, or the model's config struct; checked either way.
        spec: What the model must know of the data.

    Raises:
        ConfigError: An unknown model, key or value.
    """
    values = to_dict(config) if isinstance(config, Config) else config
    return model_class(name)(from_dict(config_class(name), values, where=f"the {name} model config"), spec)


def load_profile(name: str, profile: str = "tuned") -> dict[str, Any]:
    """Return ``{"model": {...}, "training": {...}}`` of a shipped profile, as plain values that differ from defaults.

    Raises:
        ConfigError: There is no such model or profile.

    Example:
        >>> load_profile("comirec_sa", "paper")["training"]["batch_size"]
        128
    """
    entry(name)
    path = _PROFILE_FOLDER / f"{name}.{profile}.yaml"
    if not path.is_file():
        known = sorted(found.name.split(".")[1] for found in _PROFILE_FOLDER.glob(f"{name}.*.yaml"))
        raise ConfigError(f"model {name} has no such profile", got=profile, fix=f"choose one of: {', '.join(known)}")
    return {"model": {}, "training": {}, **load_yaml(path)}


def model_table() -> str:
    """Return the catalogue as a Markdown table, for the README.

    Example:
        >>> model_table().splitlines()[0]
        '| name | model | what it is | paper |'
    """
    rows = ["| name | model | what it is | paper |", "|---|---|---|---|"]
    for name, row in MODELS.items():
        rows.append(f"| `{name}` | {row.model.partition(':')[2]} | {row.line} | {row.paper} |")
    return "\n".join(rows) + "\n"


def _resolve(path: str) -> Any:
    """Import ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
