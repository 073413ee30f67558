"""Tiny models and batches for the tests of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemirec.components.embedding import ItemTable
from gemirec.config import merge
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.models.base import Histories, RetrievalModel, Stage, TrainBatch
from gemirec.models.catalog import build_model
from gemirec.training.schedule import frozen, plan_stages

_WIDE: dict[str, Any] = {"dim": 16, "max_length": 12}
TINY: dict[str, dict[str, Any]] = {
    "popularity": {},
    "item_mean": {**_WIDE, "loss": {"num_negatives": 40}},
    "youtube_dnn": {**_WIDE, "loss": {"num_negatives": 40}},
    "single_vector": {**_WIDE},
    "sasrec": {**_WIDE, "loss": {"num_negatives": 40}},
    "hstu": {**_WIDE, "loss": {"num_negatives": 40}},
    "mind": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    # from its own random maps ComiRec-DR memorises 320 users instead of generalising
    "comirec_dr": {
        **_WIDE,
        "num_interests": 3,
        "identity_maps": True,
        "transform_std": 0.1,
        "loss": {"num_negatives": 40},
    },
    "comirec_sa": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    "remi": {**_WIDE, "num_interests": 3, "routing_reduce": "mean", "loss": {"num_negatives": 40}},
    "re4": {**_WIDE, "num_interests": 3, "identity_maps": True, "loss": {"num_negatives": 40}},
    "simrec": {**_WIDE, "num_interests": 3, "neighbours": 5, "loss": {"num_negatives": 40}},
    "dismir": {**_WIDE, "num_interests": 3, "recommendation": "softmax", "loss": {"num_negatives": 40}},
    "bam": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    "sine": {**_WIDE, "num_interests": 3, "num_prototypes": 8, "loss": {"num_negatives": 40}},
    "timirec": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    "ulim": {**_WIDE, "num_interests": 3, "short_length": 4, "loss": {"num_negatives": 40}},
    "mima": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    "umi": {**_WIDE, "num_interests": 3, "profile": "history_mean", "loss": {"num_negatives": 40}},
    "composed": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    "mgnm": {
        **_WIDE,
        "num_interests": 3,
        "levels": 3,
        "identity_maps": True,
        "transform_std": 0.1,
        "loss": {"num_negatives": 40},
    },
    "dmi": {**_WIDE, "num_interests": 3, "loss": {"num_negatives": 40}},
    "gemirec": {
        **_WIDE,
        "num_interests": 3,
        "epsilon": 2,
        "quantizer": {"sizes": [6, 3], "code_dim": 4, "hidden": 16},
        "decoder": {"layers": 1, "heads": 2, "hidden": 8},
        "tower": {"hidden": 32, "layers": 1},
        "fusion": {"hidden": 32},
        "feature_dim": 4,
        "hard_negatives": 3,
        "easy_negatives": 3,
        "loss": {"negatives": "in_batch", "log_q": False, "readout": "best", "num_negatives": 40},
    },
}
"""A small config of every model; a test holds the names equal to the catalogue's."""


def tiny(name: str, spec: DataSpec, *, seed: int = 0, **over: Any) -> RetrievalModel:
    """Build the tiny model ``name`` with ``over`` laid on its config, seeded."""
    torch.manual_seed(seed)
    return build_model(name, merge(TINY[name], over), spec)


def begin(model: RetrievalModel, stage: Stage, *, seed: int = 0) -> None:
    """Run what a stage starts with, seeded."""
    if stage.on_start is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            getattr(model, stage.on_start)()


def ready(name: str, spec: DataSpec, *, seed: int = 0, **over: Any) -> RetrievalModel:
    """The tiny model at the start of its last stage: what is served and trained from there on."""
    model = tiny(name, spec, seed=seed, **over)
    for stage in model.stages:
        begin(model, stage)
    return model


def loss_of(model: RetrievalModel, batch: TrainBatch) -> Tensor:
    """The weighted loss of the last stage."""
    return model.losses(batch, model.stages[-1].name).total()


def shake(model: RetrievalModel, scale: float = 0.3) -> None:
    """Move every parameter, so that angles and lengths of vectors both show, and states that lag behind."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(key))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, ItemTable):
                module.weight[0] = 0  # padding's vector is zero and stays so


def sequences(dataset: Dataset) -> list[Any]:
    """Every user's events."""
    return [
        np.asarray(shard.events[a:b])
        for shard in dataset.shards
        for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)
    ]


def right_padded(rows: list[Any], max_length: int) -> torch.Tensor:
    """The last ``max_length`` of each row, ``[B, max_length]``."""
    out = np.zeros((len(rows), max_length), dtype=np.int64)
    for b, row in enumerate(rows):
        cut = row[-max_length:]
        out[b, : len(cut)] = cut
    return torch.from_numpy(out)


def train_batch(dataset: Dataset, max_length: int, *, step: int = 0, size: int = 64) -> TrainBatch:
    """Random training users, a random position of each."""
    rng = np.random.default_rng(step)
    rows = sequences(dataset)
    users = rng.choice(dataset.users_in("train"), size=size, replace=False)
    cut = [int(rng.integers(2, len(rows[u]))) for u in users]
    categorical, numeric = dataset.user_features()
    return TrainBatch(
        right_padded([rows[u][:k] for u, k in zip(users, cut, strict=True)], max_length),
        None if categorical is None else torch.from_numpy(categorical[users].astype(np.int64)),
        None if numeric is None else torch.from_numpy(numeric[users].astype(np.float32)),
        target_B=torch.tensor([int(rows[u][k]) for u, k in zip(users, cut, strict=True)]),
        generator=torch.Generator().manual_seed(step),
    )


def held_out(dataset: Dataset, max_length: int) -> Histories:
    """The first 80 % of every validation and test user's events."""
    rows = sequences(dataset)
    users = np.concatenate([dataset.users_in("valid"), dataset.users_in("test")])
    categorical, numeric = dataset.user_features()
    return Histories(
        right_padded([rows[u][: int(0.8 * len(rows[u]))] for u in users], max_length),
        None if categorical is None else torch.from_numpy(categorical[users].astype(np.int64)),
        None if numeric is None else torch.from_numpy(numeric[users].astype(np.float32)),
    )


def fit(model: RetrievalModel, dataset: Dataset, *, steps: int, learning_rate: float = 0.01) -> Iterator[float]:
    """Adam for some steps, divided among the stages by their shares; yields the loss of each step."""
    model.learn_from(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, foreach=False)
    model.train()
    for span in plan_stages(model.stages, steps):
        begin(model, span.stage, seed=span.start)
        with frozen(model, span.stage):
            for step in range(span.start, span.end):
                torch.manual_seed(step)
                optimizer.zero_grad()
                loss = model.losses(train_batch(dataset, model.max_length, step=step), span.stage.name).total()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                yield loss.item()
    model.eval()
